"""How fast models are on this device, what a forward pass costs, and what accuracy that buys."""

from collections.abc import Mapping, Sequence

import torch

from ...errors import InputError, counted, rate
from ...hub.environment import describe_environment
from ...training.hardware import num_devices
from ..classifiers.classifiers import Classifier
from ..sections import Estimate, Picture, Section, Table
from .speed_picture import SpeedPoint, draw_speed
from .throughput import Peak, Throughput, measure_throughput, name_of


def speed_section(
    classifiers: Sequence[Classifier],
    *,
    accuracies: Mapping[str, Estimate],
    teacher: str | None = None,
    runs: int = 30,
    seconds: float = 60.0,
    batch_size: int | None = None,
) -> Section | None:
    """Measures the throughput of models in turn, as the paper's Table 5, and draws it against accuracy, as Figure 1.

    It is for one process alone: the work of others would be measured, too.

    Args:
        classifiers: on one device, with unique names.
        accuracies: top-1 of the answers that a model gives by itself, by its name. Models without are not drawn.
        teacher: the name of that one which is the teacher, or None.
        runs: forward passes of each model that are timed.
        seconds: for which the batch of a model is chosen so that its runs end within them, on an idle machine.
        batch_size: of all models, instead of the largest that is of use to each.

    Returns:
        None if there are no classifiers.

    Raises:
        InputError: there is no such batch size or number of runs, or memory has no room for the batch.
    """
    for name, number in (("runs", runs), ("seconds", seconds), ("batch_size", batch_size)):
        if number is not None and not number > 0:
            raise InputError(f"{name} of the measurement of speed must be more than 0, got {number!r}")
    if not classifiers:
        return None
    measured, peaks = measure_throughput(classifiers, runs=runs, seconds=seconds, batch_size=batch_size)
    device = describe_environment()["device"] if classifiers[0].model.device.type != "cpu" else _cpu()
    top1 = {each.name: accuracies.get(each.name) for each in classifiers}
    return Section(
        name="speed",
        title="Speed",
        text=tuple(_text(device, peaks, runs=runs, seconds=seconds, batch_size=batch_size)),
        tables=(_table(classifiers, measured, peaks, top1, device, runs),),
        pictures=_pictures(measured, top1, device, teacher, runs),
        numbers={
            "measured_on": {
                "device": device,
                "device_type": classifiers[0].model.device.type,
                "threads": torch.get_num_threads(),
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
            },
            "runs": runs,
            "seconds_per_model": seconds,
            "matmul_peak": {
                dtype: {"flop_per_second": peak.flop_per_second, "side": peak.side} for dtype, peak in peaks.items()
            },
            "models": {each.name: _numbers(each, measured[each.name], peaks, top1[each.name]) for each in classifiers},
        },
    )


def _cpu() -> str:
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}"


def _text(device: str, peaks: Mapping[str, Peak], *, runs: int, seconds: float, batch_size: int | None) -> list[str]:
    products = ", ".join(
        f"{rate(peak.flop_per_second / 1e9)} GFLOP/s in {dtype}, of matrices with {peak.side:,} rows and columns"
        for dtype, peak in peaks.items()
    )
    batch = f"Every batch has {counted(batch_size or 0, 'image')}, as given."
    if batch_size is None:
        batch = (
            "The batch of a model has one of three bounds. Memory: on a GPU it is doubled until memory is out, and "
            "between the last that fits and that one the largest is looked for in steps of an eighth; on a CPU half "
            "of the free memory is the bound. Speed, on a CPU alone: it is doubled as long as two doublings bring 5 % "
            f"more images per second, and the fastest is taken. Time: all runs of a model end within {seconds:g} s "
            "on an idle machine, if it can take one image at a time so fast."
        )
    processes = num_devices()
    alone = f" It is the speed of one of {processes} processes, after the others had ended." if processes > 1 else ""
    return [
        f"Images per second of the forward pass alone, without decoding and preprocessing, on {device}: the batch by "
        f"the average time of {counted(runs, 'run')}, after one that does not count, as in Table 5 of the DeiT paper. "
        "The models take turns, round by round, so that their ratios hold on a busy machine; p10 and p90 are of the "
        f"runs.{alone}",
        batch,
        "GFLOP are the floating-point operations of matrix products, convolutions and attention for one image. A "
        "multiply-add is two of them: they are twice the multiply-adds (GMACs) that papers and timm state.",
        "The part of the peak is images/s times GFLOP per image, by the fastest product of large matrices that was "
        f"timed between the models ({products}). Other work on the machine lowers it. It can be above 1 where "
        "convolutions take fewer operations than are counted (Winograd's algorithm) or, in float32 on an NVIDIA GPU, "
        "are computed in TF32, which by default products are not. Memory is the most that weights, pixels and what "
        "is computed of them take at once.",
    ]


def _table(
    classifiers: Sequence[Classifier],
    measured: Mapping[str, Throughput],
    peaks: Mapping[str, Peak],
    top1: Mapping[str, Estimate | None],
    device: str,
    runs: int,
) -> Table:
    columns = (
        *("model", "input, pixels", "parameters, million", "GFLOP per image", "images/s", "p10", "p90", "batch"),
        *("bound of the batch", "memory, MiB", "part of the peak", "top-1"),
    )
    rows = []
    for each in classifiers:
        speed = measured[each.name]
        size = " x ".join(map(str, each.input_size))
        rows.append(
            (
                each.name,
                f"{size}, {name_of(each.model.dtype)}",
                _num_parameters(each) / 1e6,
                speed.flop / 1e9,
                speed.images_per_second,
                speed.quantile(0.1),
                speed.quantile(0.9),
                speed.batch.size,
                speed.batch.limit,
                speed.memory / 2**20,
                _part_of_peak(each, speed, peaks),
                top1[each.name],
            )
        )
    caption = f"Throughput, cost and accuracy of each model on {device}: the average of {counted(runs, 'run')}."
    return Table("throughput", caption, columns, tuple(rows), in_card=True)


def _pictures(
    measured: Mapping[str, Throughput],
    top1: Mapping[str, Estimate | None],
    device: str,
    teacher: str | None,
    runs: int,
) -> tuple[Picture, ...]:
    points = [
        SpeedPoint(
            name, (speed.images_per_second, speed.quantile(0.1), speed.quantile(0.9)), accuracy, name == teacher
        )
        for name, speed in measured.items()
        if (accuracy := top1[name]) is not None
    ]
    if not points:
        return ()
    caption = (
        f"Throughput on {device} against top-1 accuracy, as in Figure 1 of the DeiT paper: up and to the right is "
        f"better. Bars are p10 to p90 of {counted(runs, 'run')}, and 95 % intervals."
    )
    alt = "Throughput against accuracy: " + "; ".join(
        f"{point.name} {rate(point.images_per_second[0])} images per second, top-1 {point.top1.value:.4f}"
        for point in points
    )
    return (Picture("throughput_and_accuracy", draw_speed(points, device=device), caption, alt, in_card=True),)


def _num_parameters(classifier: Classifier) -> int:
    return sum(parameter.numel() for parameter in classifier.model.parameters())


def _part_of_peak(classifier: Classifier, speed: Throughput, peaks: Mapping[str, Peak]) -> float:
    return speed.flop_per_second / peaks[name_of(classifier.model.dtype)].flop_per_second


def _numbers(
    classifier: Classifier, speed: Throughput, peaks: Mapping[str, Peak], top1: Estimate | None
) -> dict[str, object]:
    return {
        "input_size": list(classifier.input_size),
        "dtype": name_of(classifier.model.dtype),
        "parameters": _num_parameters(classifier),
        "flop_per_image": speed.flop,
        "batch_size": speed.batch.size,
        "batch_bound": speed.batch.limit,
        "images_per_second": speed.images_per_second,
        "images_per_second_median": speed.quantile(0.5),
        "images_per_second_p10": speed.quantile(0.1),
        "images_per_second_p90": speed.quantile(0.9),
        "seconds_of_runs": list(speed.seconds),
        "peak_fraction": _part_of_peak(classifier, speed, peaks),
        "memory_bytes": speed.memory,
        "top1": top1.as_json() if top1 is not None else None,
    }
