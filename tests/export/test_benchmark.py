"""The benchmark of inference: times, sizes and accuracies are of the same programs, each arm is alone with its
failures and, in its turn, with the machine, and every real arm answers as the model does.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import planted_arms as planted
from support import tiny
from support.main_of import main_of

from hf_deit import CaiTConfig
from hf_deit.commands import benchmark
from hf_deit.evaluation.images.images import evaluation_images
from hf_deit.evaluation.sections import Estimate
from hf_deit.export.benchmark import inference, runtimes
from hf_deit.export.benchmark.arms import ARMS, Making, usual_arms
from hf_deit.export.benchmark.inference import Settings, measure_inference
from hf_deit.export.benchmark.processes import ArmError, Process
from hf_deit.export.programs.source import load_source
from hf_deit.models.zoo import create_model

FAILING = [planted.UNMAKEABLE, planted.CRASHING, planted.UNOPENABLE, planted.DYING, planted.MISSING]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.student(initializer_range=0.2).save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def report(model):
    """Of planted arms, on digits with labels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "EAGER", planted.LINEAR)
        patch.setattr(inference, "begin_making", planted.begin_making)
        patch.setattr(inference, "_TURN", 0.03)
        digits = tiny.digits()[1]
        images = evaluation_images(digits, [str(label) for label in range(10)], source={}, words="held out")
        arms = [*FAILING, planted.WRONG, planted.EXACT]
        return measure_inference(model, images, Settings(arms=arms, batch_sizes=(1, 3), rounds=2, threads=1))


def rows_of(report, arm):
    return [row for row in report.rows if row.arm == arm]


def test_a_slow_arm_is_seen_as_slow(report):
    for row, linear in zip(rows_of(report, "exact"), rows_of(report, "linear"), strict=True):
        assert row.quantile(0.5) >= planted.SLEEP and row.quantile(0.95) >= row.quantile(0.5)
        assert row.images_per_second == pytest.approx(row.batch_size / row.quantile(0.5))
        assert row.speedup.high < 0.5 and linear.speedup.median == 1
        assert len(row.seconds) == report.rounds == 2 and len(row.seconds[0]) >= 2
        assert row.num_bytes == 3 * 16 * 16 * 10 * 4 + 128
        assert row.memory is None or 5e6 < row.memory < 3e8  # without torch


def test_answers_are_those_of_the_programs_that_are_timed(report):
    # 40 digits, of which a fifth at most was set apart for calibration.
    assert (report.num_images, report.num_calibration_images) == (32, 8)
    for row, wrong, exact in zip(*(rows_of(report, arm) for arm in ("linear", "wrong", "exact")), strict=True):
        assert row.agreement.value == exact.agreement.value == 1 and exact.loss.value == 0
        assert wrong.agreement.value < 0.5 and wrong.largest_difference > 0.5 > 1e-4 > exact.largest_difference
        assert wrong.loss.value == pytest.approx(row.accuracy.value - wrong.accuracy.value)
        assert row.accuracy == rows_of(report, "linear")[0].accuracy


def test_an_arm_fails_alone_and_says_why(report):
    reasons = {row.arm: row.failure for row in report.rows if row.failure}
    assert list(reasons) == [arm.name for arm in FAILING]
    assert reasons["unmakeable"] == "NotImplementedError: there is no operator aten::gelu"
    assert reasons["crashing"] == "its process ended with SIGSEGV: the compiler has met a case that cannot be"
    assert reasons["unopenable"] == "RuntimeError: the file is of another version"
    assert reasons["dying"] == "its process ended with SIGKILL"
    assert reasons["missing"] == "no_such_package not installed: pip install 'no-such[thing]'"
    assert all(len(rows_of(report, arm.name)) == 2 for arm in FAILING)


def test_the_tables(report):
    text = str(report)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert " | ".join(table[0]) == "runtime | MB | p50 ms | p95 ms | img/s | mem MB | speed | top-1 | lost"
    assert len(table) == 2 * (2 + 8) and {len(row) for row in table} == {len(table[0])}
    assert all(len({len(line) for line in lines[start : start + 10]}) == 1 for start in (0, 10))
    assert max(map(len, lines)) <= 100
    assert text.index("Batch 1:") < text.index(lines[0]) < text.index("Batch 3:")
    exact = next(row for row in reversed(table) if row[0] == "Exact int8")
    assert float(exact[2]) >= 1000 * planted.SLEEP and exact[6].startswith("0.") and exact[8] == "+0.00"
    assert float(exact[7]) == pytest.approx(100 * rows_of(report, "exact")[1].accuracy.value, abs=0.01)
    assert ["Dying float32", *"-" * 8] in table
    assert "- Missing (missing) at batch 1: no_such_package not installed: pip install 'no-such[thing]'" in text
    # A quantised program that is too often wrong is not the fastest; what it lost is told with its interval.
    lost = {"wrong": Estimate(0.006, 0, 0.1), "exact": Estimate(0.004, 0, 0.1)}
    text = str(replace(report, rows=tuple(replace(row, loss=lost.get(row.arm, row.loss)) for row in report.rows)))
    assert "intervals: Wrong int8 +0.60 [+0.00, +10.00]; Exact int8 +0.40 [+0.00, +10.00]." in text
    assert "- Fastest int8 at batch 1: Exact int8, " in text and ", +0.40 [+0.00, +10.00] points lost" in text
    assert "- Fastest float at batch 3: Linear float32, 1.00 (1.00 to 1.00) times as fast as PyTorch eager" in text
    found = json.loads(json.dumps(report.to_dict()))
    row, seconds = found["rows"][1], report.rows[1].quantile(0.5)
    assert row["p50"] == seconds and 0 < row["of_peak"] < 1
    assert row["of_peak"] * found["peaks"][0] == pytest.approx(2 * 3 * 3 * 16 * 16 * 10 / seconds)
    assert row["of_bandwidth"] * found["peaks"][1] == pytest.approx(3 * 3 * 16 * 16 * 4 / seconds)
    assert f"at {found['peaks'][0] / 1e9:.0f} GFLOP/s, a copy at " in text and f"{row['of_peak']:.0%} and " in text


def test_the_widest_table_fits_a_terminal(report):
    widest = [
        replace(report.rows[0], title=arm.title, precision=arm.precision, memory=846_000_000, num_bytes=22_200_000)
        for arm in ARMS.values()
    ]
    for line in str(replace(report, rows=tuple(widest))).splitlines():
        assert not line.startswith("|") or len(line) <= 100


def test_a_process_sleeps_until_it_is_asked(tmp_path):
    process = Process(planted.begin_spinning, log=str(tmp_path / "log"))
    try:
        before = process.ask("seconds")
        time.sleep(0.3)
        assert process.ask("seconds") - before < 0.1  # its thread would have computed all the while
        with pytest.raises(ArmError, match="ValueError: one line and another"):
            process.ask("fail")
        assert process.is_alive
        with pytest.raises(ArmError, match="SIGKILL"):
            process.ask("die")
        assert not process.is_alive
    finally:
        process.close()


# Arms whose programs are made in a moment; the others are tried with `-m slow`.
QUICK = [
    "eager",
    "transformers",
    "eager-bf16",
    "onnx",
    "onnx-int8-dynamic",
    "onnx-int8-static",
    "openvino",
    "openvino-bf16",
]


@pytest.fixture(scope="module")
def making(model, tmp_path_factory) -> Making:
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    return Making(load_source(model), str(tmp_path_factory.mktemp("programs")), (1, 4), pixels, "cpu", 1)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARMS]
)
def test_every_arm_answers_as_the_model(name, making):
    arm = ARMS[name]
    for module in arm.modules:
        pytest.importorskip(module)
    threads = torch.get_num_threads()
    programs = arm.make(making)
    answer = arm.open(programs, "cpu", 1)
    pixels = np.random.default_rng(1).normal(size=(4, 3, 16, 16)).astype(np.float32)
    classifier = making.source.classifier
    with torch.no_grad():
        expected = classifier.model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
    bound = {"float32": 1e-4, "bfloat16": 0.05}.get(arm.precision, 0.35) * np.abs(expected).max()
    assert sorted(programs) == [1, 4]
    for size in (1, 4):
        found = answer(pixels[:size])
        assert found.shape == (size, 10) and found.dtype == np.float32
        assert np.abs(found - expected[:size]).max() < bound
    if "int8" in arm.precision:  # and are not floats again
        assert np.abs(found - expected).max() > 1e-5
    torch.set_num_threads(threads)


def test_native_arm_is_of_transformers_own_class(making, tmp_path):
    file = ARMS["transformers"].make(making)[1][0]
    model = torch.load(file, weights_only=False).model
    assert type(model).__module__ == "transformers.models.deit.modeling_deit"
    for other in (model, SimpleNamespace(config=CaiTConfig())):
        source = SimpleNamespace(classifier=SimpleNamespace(model=other))
        with pytest.raises(ValueError, match="PyTorch eager is what it is"):
            ARMS["transformers"].make(replace(making, source=source, folder=str(tmp_path)))


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_int8_programs_are_those_that_are_exported(mode, making, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from hf_deit.export.programs import quantization

    core = onnx.load(ARMS["onnx"].make(making)[1][0])
    monkeypatch.setattr(quantization, "core_model", lambda source: core)
    calibration = runtimes._Calibration(making.calibration) if mode == "static" else None
    settings = quantization.QuantizationSettings(mode)
    quantization.quantize_onnx(making.source, str(tmp_path), calibration, settings)
    files = ARMS[f"onnx-int8-{mode}"].make(making)[1][0], tmp_path / quantization.MODEL
    measured, exported = (onnx.load(file).graph.SerializeToString(deterministic=True) for file in files)
    assert measured == exported


def test_a_model_of_the_zoo_can_be_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "create_model", lambda name: create_model(name, **tiny.SIZES, num_labels=3))
    source = load_source(inference._made_model("deit_tiny_distilled_patch16_224", str(tmp_path)))
    assert source.labels == ("class 0", "class 1", "class 2")


def test_which_arms_are_usual():
    assert usual_arms("cuda") == [
        "eager",
        "transformers",
        "eager-bf16",
        "compile",
        "compile-bf16",
        "aotinductor",
        "aotinductor-bf16",
        "onnx",
    ]
    assert [name for name in ARMS if name not in usual_arms("cpu")] == [
        "eager-bf16",
        "compile-bf16",
        "aotinductor-bf16",
        "executorch-int8",
    ]
    assert [arm.name for arm in Settings(arms=["onnx"]).chosen()] == ["eager", "onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "onnx-int8"], "arms must be one of eager,"),
        (["--batch_sizes", "0"], "batch_sizes must be at least 1, got [0]"),
        (["--rounds", "0"], "rounds must lie in"),
        (["--threads", "0"], "threads must lie in"),
        (["--device", "tpu"], "device must be one of cpu, cuda, got 'tpu'"),
        (["--output", "table.txt"], "--output must be files that end in .json, .md or .png, got 'table.txt'"),
        (["--output", "x.md", "no/such/x.json"], "no/such' for --output 'no/such/x.json': make it first"),
        (["--split", "test"], "--split is of a data set, got 'test': give --dataset_name, too"),
        (["--images_dir", "no/such/folder"], "no/such/folder"),
    ],
)
def test_what_the_command_refuses(options, message, capsys, monkeypatch):
    monkeypatch.setattr(inference, "measure_inference", lambda *_: pytest.fail("it was measured"))
    assert main_of("benchmark")(["inference", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_command_loads_no_library_before_it_is_told_what_to_measure():
    heavy = "{'torch', 'transformers', 'datasets'}"
    code = f"import sys, hf_deit.commands.benchmark; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_writes_what_it_prints(report, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(inference, "measure_inference", lambda *given: asked.append(given) or report)
    table, figures = tmp_path / "table.md", tmp_path / "figures.json"
    assert main_of("benchmark")(["inference", "--arms", "onnx", "eager", "--output", str(table)]) == 0
    assert capsys.readouterr().out == table.read_text() == f"{report}\n"
    assert main_of("benchmark")(["inference", "--batch-sizes", "8", "--output", str(figures)]) == 0
    assert json.loads(figures.read_text())["num_images"] == 32
    several = [str(tmp_path / name) for name in ("again.md", "again.json", "bars.png")]
    assert main_of("benchmark")(["inference", "--output", *several[:2], "--output", several[2]]) == 0
    assert [Path(file).read_bytes()[:4] for file in several] == [f"{report}"[:4].encode(), b"{\n  ", b"\x89PNG"]
    assert asked[0][:2] == ("deit_tiny_distilled_patch16_224", None)
    assert asked[0][2].arms == ["onnx", "eager"] and asked[1][2].batch_sizes == [8]


@pytest.mark.parametrize(
    ("command", "words"),
    [([], "required: label-store|imports|inference"), (["inference", "--model"], "--model: expected one argument")],
)
def test_what_is_missing_on_its_command_line_is_named(command, words, capsys):
    assert benchmark.main(command) == 2 and words in capsys.readouterr().err


def test_its_help_tells_each_default_once(capsys):
    assert benchmark.main(["inference", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: all for the device" in shown and "(default: 15)" in shown
    assert "(default: None)" not in shown and "(default: []" not in shown
