"""Speed is measured as the paper's Table 5 does, its cost agrees with closed formulas and with published figures."""

import itertools
import json
import statistics

import numpy as np
import pytest
import timm
import torch
from support.tiny import IMAGE_SIZE, SIZES, processor, resnet, student
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

from hf_deit import create_model
from hf_deit.errors import InputError
from hf_deit.evaluation.benchmarks import timing
from hf_deit.evaluation.classifiers.classifiers import Classifier
from hf_deit.evaluation.sections import Estimate
from hf_deit.evaluation.speed import speed_picture, throughput
from hf_deit.evaluation.speed.speed import speed_section
from hf_deit.evaluation.speed.speed_picture import SpeedPoint, draw_speed
from hf_deit.evaluation.speed.throughput import GIVEN, MEMORY, SPEED, TIME, Batch, find_batch, measure_throughput
from hf_deit.evaluation.speed.work import TrafficCounter, count_bytes, count_flop

# Multiply-adds in milliards and parameters in millions, by fvcore, in timm's
# results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv (infer_gmacs, param_count).
PUBLISHED = {
    "deit_base_patch16_224": (17.58, 86.57),
    "deit_tiny_distilled_patch16_224": (1.27, 5.91),
    "deit_base_distilled_patch16_224": (17.68, 87.34),
    "deit_base_distilled_patch16_384": (55.65, 87.63),
    "cait_xxs24_224": (2.53, 11.96),
    "regnety_160": (15.96, 83.59),
    "resnet50": (4.11, 25.56),
    "swin_tiny_patch4_window7_224": (4.51, 28.29),
    "convnext_tiny": (4.47, 28.59),
}


class ByKeyword(nn.Module):
    """A timm model that takes its pixels as transformers' models do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values)


def on_meta(name):
    with torch.device("meta"):
        ours = name.startswith(("deit", "cait"))
        return (create_model(name) if ours else ByKeyword(timm.create_model(name))).eval().to("meta")


def pixels(size, batch=1, device="meta"):
    return torch.zeros(batch, 3, size, size, device=device)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_cost_is_what_is_published(name):
    gmacs, parameters = PUBLISHED[name]
    model = on_meta(name)
    whole = {"output_hidden_states": True} if name.startswith("deit") else {}  # else the last layer's are spared
    flop = count_flop(model, pixels(384 if name.endswith("384") else 224), **whole)
    assert flop / 2e9 == pytest.approx(gmacs, rel=0.01)  # fvcore counts norms, too
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.006)


def deit_flop(config, *, distilled, patches=None, is_whole=False):
    """Of a forward pass: in the last layer of the special tokens alone, or whole, as that of other libraries."""
    patches, special = patches or (config.image_size // config.patch_size) ** 2, 1 + distilled
    tokens, width, hidden = patches + special, config.hidden_size, config.intermediate_size

    def layer(asking):
        projections = 2 * tokens * width**2 + 2 * asking * width**2  # keys and values, queries and output
        return projections + 2 * asking * tokens * width + 2 * asking * width * hidden

    layers = (config.num_hidden_layers - 1) * layer(tokens) + layer(tokens if is_whole else special)
    embeddings, heads = patches * width * 3 * config.patch_size**2, special * width * config.num_labels
    return 2 * np.float64(embeddings + layers + heads)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("distilled", [True, False])
def test_the_cost_of_a_deit_is_that_of_its_products(distilled, attention):
    model = student(distilled=distilled, num_attention_heads=4, num_hidden_layers=3).eval()
    model.set_attn_implementation(attention)
    for whole in (True, False):
        expected = deit_flop(model.config, distilled=distilled, is_whole=whole)
        for batch in (1, 3):
            images = pixels(IMAGE_SIZE, batch, "cpu")
            assert count_flop(model, images, output_hidden_states=whole) == batch * expected


def test_the_cost_of_a_model_does_not_depend_on_whose_it_is():
    ours = on_meta("deit_tiny_distilled_patch16_224")
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 1000}
    with torch.device("meta"):
        native = DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes)).eval()
        of_timm = ByKeyword(timm.create_model("deit_tiny_distilled_patch16_224").eval())
    expected = deit_flop(ours.config, distilled=True, is_whole=True)
    assert {count_flop(model, pixels(224)) for model in (native, of_timm)} == {expected}
    assert count_flop(ours, pixels(224), output_hidden_states=True) == expected
    assert 0.93 * expected < count_flop(ours, pixels(224)) < 0.95 * expected
    on_cpu = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=10).eval()  # fused there
    config = create_model("deit_tiny_patch16_224", image_size=32, num_hidden_layers=1, num_labels=10).config
    assert count_flop(ByKeyword(on_cpu), pixels(32, device="cpu")) == deit_flop(config, distilled=False, is_whole=True)


def test_the_cost_of_talking_heads_and_class_attention():
    model = on_meta("cait_xxs24_224")
    config = model.config
    n, d, h, k = 14**2, config.hidden_size, config.num_attention_heads, config.num_labels
    layer = 12 * n * d**2 + 2 * n**2 * d + 2 * n**2 * h**2  # the heads are mixed before and after the softmax
    class_layer = (1 + 2 * (n + 1) + 1) * d**2 + 2 * (n + 1) * d + 8 * d**2
    macs = n * d * 3 * 16**2 + config.num_hidden_layers * layer + config.num_class_layers * class_layer + d * k
    assert count_flop(model, pixels(224)) == 2 * macs


def test_memory_is_of_the_tensors_that_live_at_once():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4, 4))

        def forward(self, pixel_values):
            one = pixel_values * self.weight.flip(0).view(3, 4, 4)  # pixels, one (and the small flipped weight)
            two = one + 1  # pixels, one, two
            del one
            three = (two + 1).flatten()  # pixels, two, three
            return three.view(-1) + 1  # pixels, two, three, four

    one = 3 * 4 * 4 * 4
    assert count_bytes(Chain(), torch.zeros(5, 3, 4, 4)) == 4 * 5 * one


TRAFFIC = {  # in numbers of four bytes, of a matrix of 8 x 8 and what stands beside it
    "a product": (lambda m, row: m @ m.T, 3 * 64),
    "a product of batches": (lambda m, row: m.view(2, 4, 8) @ m.view(2, 8, 4), 2 * 64 + 2 * 16),
    "views": (lambda m, row: m.view(64).view(8, 8).t().expand(2, 8, 8), 0),
    "memory": (lambda m, row: (torch.empty(1000), m.new_empty(50), torch.empty_like(m)), 0),
    "in place, by a row for all": (lambda m, row: m.add_(row.expand(8, 8)), 64 + 8 + 64),
    "a copy": (lambda m, row: m.copy_(m.clone()), 2 * 2 * 64),
    "a value": (lambda m, row: m.fill_(1.0), 64),
    "into another": (lambda m, row: torch.add(m, m, out=row.new_empty(8, 8)), 3 * 64),
    "of several": (lambda m, row: torch._foreach_mul_([m, row], 2.0), 2 * (64 + 8)),
    "two results": (lambda m, row: m.max(dim=0), 64 + 8 + 2 * 8),  # the second are indices, of eight bytes
}


@pytest.mark.parametrize("what", TRAFFIC)
def test_traffic_is_what_operations_read_and_write(what):
    function, numbers = TRAFFIC[what]
    matrix, row = torch.zeros(8, 8), torch.zeros(8)
    with TrafficCounter() as traffic:
        function(matrix, row)
    assert traffic.total_bytes == 4 * numbers


def test_the_traffic_of_a_training_step():
    """A product, its gradient, and AdamW, which reads and, as it says, writes weight, gradient and two moments."""
    layer, images = nn.Linear(8, 8, bias=False), torch.zeros(5, 8)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(images).sum().backward()
    optimizer.step()  # makes the moments
    layer.weight.grad = None
    with TrafficCounter() as forward:
        loss = layer(images).sum()
    with TrafficCounter() as backward:
        loss.backward()
    with TrafficCounter() as step:
        optimizer.step()
    assert forward.total_bytes == 4 * (40 + 64 + 40 + 40 + 1)
    assert backward.total_bytes == 4 * (1 + (1 + 40 + 64))  # where all begins; the sum's is one number for all
    assert step.total_bytes == 4 * (2 * 4 * 64 + 2 + 1)  # and its count, which is read once more


def needs(images, error=None):
    def seconds_of(size):
        if size > images:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return 0.01 * size

    return seconds_of


@pytest.mark.parametrize(("room", "found"), [(100, 96), (127, 120), (64, 64), (1, 1), (3, 3), (1000, 960)])
def test_the_largest_batch_that_fits_is_found_to_an_eighth(room, found):
    assert find_batch(needs(room), longest=1e9, until_full=True) == Batch(found, MEMORY)


def test_only_a_lack_of_memory_makes_a_batch_smaller():
    mps = RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")
    assert find_batch(needs(5, mps), longest=1e9, until_full=True).size == 5
    with pytest.raises(RuntimeError, match="another"):
        find_batch(needs(5, RuntimeError("another error")), longest=1e9, until_full=True)
    with pytest.raises(torch.OutOfMemoryError):  # not even one image
        find_batch(needs(0), longest=1e9, until_full=True)


def test_a_batch_is_bounded_by_time_and_where_memory_does_not_bound_it_by_speed():
    assert find_batch(needs(1e9), longest=0.5, until_full=True) == Batch(32, TIME)  # 64 would take 0.64 s
    assert find_batch(needs(1e9), longest=0.001, until_full=True) == Batch(1, TIME)

    def slow_if_small(size):  # as fast as it gets from 8 on
        return 0.1 * max(size, 8)

    assert find_batch(slow_if_small, longest=1e9) == Batch(8, SPEED)
    assert find_batch(slow_if_small, longest=1e9, most=5) == Batch(4, MEMORY)
    assert find_batch(lambda size: 0.1 + 0.01 * size, longest=1.0) == Batch(64, TIME)  # in 0.74 s
    assert find_batch(lambda size: 0.1 * size**2, longest=1e9) == Batch(1, SPEED)  # a larger one is slower


class Clock:
    """Time that passes only where something is computed."""

    now = 0.0

    def __call__(self):
        return self.now


class Fake(nn.Module):
    """One product of known cost, at a known speed, on a device of known memory: the images that fit into it."""

    def __init__(self, clock, speeds, *, device="meta", room=lambda: 1e9):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(12, 10, device=device))
        self.device, self.dtype = self.weight.device, self.weight.dtype
        self._clock, self._speeds, self._room, self.sizes = clock, iter(speeds), room, []

    def forward(self, pixel_values):
        size = len(pixel_values)
        if size > self._room():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self._clock.now += size / next(self._speeds)
        self.sizes.append(size)
        return pixel_values.flatten(1) @ self.weight


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    def matmul(one, other, out):
        clock.now += 2 * len(one) ** 3 / (1e6 if len(one) == 16 else 4e5)  # FLOP/s

    monkeypatch.setattr(timing.time, "perf_counter", clock)
    monkeypatch.setattr(torch, "matmul", matmul)
    monkeypatch.setattr(throughput, "_SIDES_ON_CPU", (8, 16))
    monkeypatch.setattr(throughput, "_SIDES_ON_ACCELERATORS", (8, 16))
    return clock


def classifier(name, model, size=2):
    return Classifier(name, model, None, (size, size))


def test_throughput_is_of_the_average_time_and_the_peak_is_the_fastest_product(clock):
    speeds = [float(speed) for speed in range(100, 131)]  # one in the first round, which does not count
    models = [
        classifier("even", Fake(clock, itertools.repeat(1000.0))),
        classifier("uneven", Fake(clock, [7.0, *speeds, 7.0])),
    ]
    measured, peaks = measure_throughput(models, batch_size=10, runs=30)
    even, uneven = measured["even"], measured["uneven"]
    assert even.images_per_second == pytest.approx(1000) and even.batch == Batch(10, GIVEN)
    assert len(uneven.seconds) == 30
    assert uneven.images_per_second == pytest.approx(10 / statistics.mean(10 / speed for speed in speeds[1:]))
    assert uneven.quantile(0.1) == pytest.approx(np.quantile(speeds[1:], 0.1))
    assert uneven.flop == 2 * 12 * 10
    assert peaks["float32"] == throughput.Peak(16, pytest.approx(1e6))  # the faster of the two
    assert even.flop_per_second == pytest.approx(1000 * 240)


def test_models_take_turns_with_the_largest_batches_that_fit_and_with_fewer_where_all_of_them_do_not(
    clock, monkeypatch
):
    cleared = []
    monkeypatch.setattr(throughput, "clear_device_cache", lambda garbage_collection: cleared.append(1))
    alone, measuring = {"a": 40, "b": 6}, []
    room = {name: lambda name=name: alone[name] * (0.75 if measuring else 1) for name in alone}
    models = [classifier(name, Fake(clock, itertools.repeat(1e5), room=room[name])) for name in alone]
    time_all = throughput._time_all
    monkeypatch.setattr(throughput, "_time_all", lambda *args: measuring.append(1) or time_all(*args))
    measured, _ = measure_throughput(models, runs=3)
    # 40 and 6 are found alone; with 7/8 twice they fit beside each other.
    assert {name: each.batch for name, each in measured.items()} == {"a": Batch(30, MEMORY), "b": Batch(4, MEMORY)}
    assert len(cleared) == 3 + 2 + 2  # of 64, 48 and 44 images, of 8 and 7, and twice together
    for name, model in zip(alone, models, strict=True):
        assert max(model.model.sizes) == alone[name]
        assert model.model.sizes[-5:] == [measured[name].batch.size] * 4 + [1]  # memory is counted of one image


def test_on_a_cpu_a_batch_stays_within_half_of_the_free_memory(clock, monkeypatch):
    model = Fake(clock, itertools.repeat(1000.0), device="cpu")
    bytes_of_an_image = 4 * (12 + 10)
    free = type("Memory", (), {"available": 2 * 9 * bytes_of_an_image})
    monkeypatch.setattr(throughput.psutil, "virtual_memory", lambda: free)
    model._speeds = iter(
        [*[1.0] * 2, *itertools.chain.from_iterable([size] * 4 for size in (1.0, 2.0, 4.0, 8.0))] + [1] * 9
    )
    measured, _ = measure_throughput([classifier("a", model)], runs=3)
    assert measured["a"].batch == Batch(8, MEMORY)
    assert measured["a"].memory == 4 * 120 + 8 * bytes_of_an_image


def test_on_a_cpu_models_of_one_shape_have_one_batch(clock, monkeypatch):
    found = iter([Batch(4, SPEED), Batch(2, SPEED)])
    monkeypatch.setattr(throughput, "_batch_of", lambda *args: next(found))
    models = [classifier(name, Fake(clock, itertools.repeat(1000.0), device="cpu")) for name in "ab"]
    models.append(classifier("c", type("Other", (Fake,), {})(clock, itertools.repeat(1000.0), device="cpu")))
    measured, _ = measure_throughput(models, runs=3)
    assert [measured[name].batch.size for name in "abc"] == [4, 4, 2]


def test_a_given_batch_that_does_not_fit_is_refused(clock):
    model = classifier("a", Fake(clock, itertools.repeat(1.0), room=lambda: 3))
    with pytest.raises(InputError, match="batches of 4 images need more memory than there is: give a smaller one"):
        measure_throughput([model], batch_size=4)
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput([classifier("a", Fake(clock, itertools.repeat(1.0), room=lambda: 0))])


@pytest.fixture(scope="module")
def section():
    models = {"student": student().eval(), "resnet": resnet().eval(), "unlabelled": student(distilled=False).eval()}
    classifiers = [Classifier(name, model, processor(), (IMAGE_SIZE,) * 2) for name, model in models.items()]
    accuracies = {"student": Estimate(0.9, 0.8, 0.95), "resnet": Estimate(0.95, 0.9, 0.97)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "_SIDES_ON_CPU", (64,))
        return speed_section(classifiers, accuracies=accuracies, teacher="resnet", runs=3, batch_size=2)


def test_a_section_states_what_was_measured_and_on_what(section):
    table = section.tables[0]
    assert [row[0] for row in table.rows] == ["student", "resnet", "unlabelled"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    numbers = section.numbers["models"]["student"]
    model = student().eval()
    assert row["input, pixels"] == "16 x 16, float32" and (row["batch"], row["bound of the batch"]) == (2, GIVEN)
    assert row["GFLOP per image"] * 1e9 == numbers["flop_per_image"] == deit_flop(model.config, distilled=True)
    assert numbers["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert row["images/s"] == 2 / statistics.mean(numbers["seconds_of_runs"]) and len(numbers["seconds_of_runs"]) == 3
    peak = section.numbers["matmul_peak"]["float32"]["flop_per_second"]
    assert row["part of the peak"] == numbers["peak_fraction"]
    assert row["part of the peak"] == pytest.approx(row["images/s"] * row["GFLOP per image"] * 1e9 / peak)
    assert row["top-1"] == Estimate(0.9, 0.8, 0.95) and table.rows[2][-1] is None
    assert section.numbers["measured_on"]["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(section.numbers)) == section.numbers
    picture = section.pictures[0]
    assert picture.png.startswith(b"\x89PNG") and "student" in picture.alt and "unlabelled" not in picture.alt


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"seconds": -1.0}, {"seconds": float("nan")}, {"batch_size": 0}])
def test_what_cannot_be_measured_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} of the measurement of speed must be more than 0, got"):
        speed_section([], accuracies={}, **wrong)
    assert speed_section([], accuracies={}) is None


@pytest.mark.parametrize("number", [1, 2, 15])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_model_is_named_where_its_name_covers_no_other(monkeypatch, number, seed):
    generator = np.random.default_rng(seed)
    figures = []
    monkeypatch.setattr(speed_picture, "as_png", lambda figure: figures.append(figure) or b"")
    points = []
    for index in range(number):
        speed, top1 = 10 ** generator.uniform(0, 2), generator.uniform(0.7, 0.85)
        bars = (speed, 0.9 * speed, 1.05 * speed), Estimate(top1, top1 - 0.004, top1 + 0.004)
        points.append(SpeedPoint(f"deit_$1${'small' * (index % 3)}_{{$_patch16_{index}", *bars, is_teacher=index == 1))
    draw_speed(points, device="a device")
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log" and "a device" in axes.get_xlabel()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert {text.get_text() for text in axes.texts} == {point.name.replace("$", r"\$") for point in points}
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    places = [axes.transData.transform((point.images_per_second[0], point.top1.value)) for point in points]
    assert not any(box.contains(*place) for box in boxes for place in places)
    assert all(axes.bbox.containsx(edge) for box in boxes for edge in (box.x0, box.x1))
    colours = {tuple(container[0].get_markerfacecolor()) for container in axes.containers}
    assert len(colours) == min(number, 2)  # the teacher's is another
    assert bool(figures[0].legends) == (number > 1)


def test_a_model_at_another_size_costs_what_it_costs_there(monkeypatch):
    monkeypatch.setattr(throughput, "_SIDES_ON_CPU", (64,))
    config = student().config
    sizes = {name: getattr(config, name) for name in (*SIZES, "num_labels")}
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes)).eval()
    wide = Classifier("a", model, None, (16, 24), forward_options={"interpolate_pos_encoding": True})
    section = speed_section([wide], accuracies={}, runs=1, seconds=1e-9)
    numbers = section.numbers["models"]["a"]
    assert numbers["flop_per_image"] == deit_flop(config, distilled=True, patches=2 * 3, is_whole=True)
    assert (numbers["batch_size"], numbers["batch_bound"]) == (1, TIME)
    assert section.pictures == () and section.tables[0].rows[0][1] == "16 x 24, float32"
