"""Contract: a preview shows what training sees, bit for bit, and leaves nothing behind but the picture."""

import functools
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny
from support.main_of import main_of

import hf_deit.commands.prepare
import hf_deit.commands.train
import hf_deit.training.objective
import hf_deit.training.preview
from hf_deit import DistillationTrainer, InputError
from hf_deit.commands.preview import preview_run
from hf_deit.commands.train import run
from hf_deit.data.load import ImageData, load_digits
from hf_deit.data.streams import ImageStream
from hf_deit.recipes.resolve import resolve_arguments
from hf_deit.training.preview import _describe, contact_sheet, training_views

ROOT = Path(__file__).parents[2]
NAMES = {index: str(index) for index in range(10)}
AUGMENTATION = {
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_group_size": 4,
    "random_erasing": 0.25,
    "repeated_augmentation": 3,
    "horizontal_flip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
}


@functools.cache
def few_digits() -> ImageData:
    data = load_digits()
    return ImageData(data.train.select(range(96)), data.validation.select(range(40)), data.label_names)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_deit.data.load.load_digits", few_digits)
    monkeypatch.setattr("support.tiny.load_digits", few_digits)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def training(monkeypatch) -> dict[str, list[torch.Tensor]]:
    """What the steps of training get, from now on: the student's pixels and the class head's targets."""
    seen = {"pixel_values": [], "targets": []}
    compute_loss, class_targets = DistillationTrainer.compute_loss, hf_deit.training.objective.class_targets

    def recording_loss(self, model, inputs, *args, **kwargs):
        if not model.training:
            return compute_loss(self, model, inputs, *args, **kwargs)

        def record(module, positional, named):
            seen["pixel_values"].append(named["pixel_values"].clone())

        handle = model.register_forward_pre_hook(record, with_kwargs=True)
        try:
            return compute_loss(self, model, inputs, *args, **kwargs)
        finally:
            handle.remove()

    def recording_targets(*args, **kwargs):
        targets = class_targets(*args, **kwargs)
        seen["targets"].append(targets.clone())
        return targets

    monkeypatch.setattr(DistillationTrainer, "compute_loss", recording_loss)
    monkeypatch.setattr(hf_deit.training.objective, "class_targets", recording_targets)
    return seen


def make_trainer(folder, *, train_dataset=None, **settings) -> DistillationTrainer:
    # One head, so that targets are made once a step.
    settings = {"distillation_type": "none", "max_steps": 24, **AUGMENTATION, **settings}
    args = tiny.arguments(folder, **settings)
    data = few_digits().train if train_dataset is None else train_dataset
    return tiny.trainer(tiny.student(distilled=False, drop_path_rate=0.0), args, train_dataset=data)


def views_of(trainer, epoch: int, slots: range) -> dict[str, torch.Tensor]:
    return training_views(
        trainer.train_dataset, trainer.args, trainer.processing_class, num_labels=10, epoch=epoch, slots=slots
    )


# Slots of an epoch of 96: of batches of 8 and groups of 4; whole, within, across, at the ends.
RANGES = [(0, 96), (0, 8), (4, 8), (3, 9), (13, 14), (6, 7), (5, 8), (8, 11), (30, 67), (90, 96), (95, 96)]


def assert_previewed(trainer, training, epochs: int) -> None:
    for epoch in range(epochs):
        for name in ("pixel_values", "targets"):
            seen = torch.cat(training[name])[96 * epoch : 96 * (epoch + 1)]
            assert len(seen) == 96
            for first, last in RANGES:
                found = views_of(trainer, epoch, range(first, last))[name]
                assert torch.equal(found, seen[first:last]), (epoch, first, last, name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repeats_placement": "spread"},
        {"mixup": 0.0, "cutmix": 0.0, "mixup_group_size": None},
        {"repeated_augmentation": 1, "data_seed": 5},
    ],
    ids=["side by side", "spread", "unmixed", "other seed"],
)
def test_a_preview_is_what_training_gets(tmp_path, training, settings):
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    assert_previewed(trainer, training, 2)
    first, second = (torch.cat(training["pixel_values"])[part] for part in (slice(96), slice(96, 192)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("placement", ["adjacent", "spread"])
def test_a_preview_of_a_stream_is_what_training_gets(tmp_path, training, placement):
    stream = ImageStream(few_digits().train.to_iterable_dataset(num_shards=4), 96, shuffle_buffer_size=20)
    trainer = make_trainer(tmp_path, train_dataset=stream, repeats_placement=placement)
    trainer.train()
    assert_previewed(trainer, training, 2)


def test_slots_that_the_epoch_has_not_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    for epoch, slots in ((0, range(96, 97)), (0, range(90, 97)), (0, range(4, 4)), (-1, range(4)), (0, range(-1, 4))):
        with pytest.raises(InputError, match=rf"slots 0:96, got epoch {epoch}, {slots.start}:{slots.stop}"):
            views_of(trainer, epoch, slots)
    with pytest.raises(InputError, match="slots 0:96"):
        views_of(trainer, 0, range(0, 8, 2))


# The picture


def tile_of(sheet: Image.Image, index: int, columns: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a tile's image, of `size`, and the rest of the tile, below it."""
    width, height = size + 8, size + 8 + 45
    left, top = index % columns * width + 4, index // columns * height + 4
    pixels = np.asarray(sheet)
    return pixels[top : top + size, left : left + size], pixels[top + size : top + size + 49, left : left + size]


@pytest.mark.parametrize(("image_size", "scale"), [(16, 7), (56, 2), (120, 1)])
def test_a_sheet_shows_the_pixels(tmp_path, image_size, scale):
    processor = tiny.processor(crop_size=image_size)
    args = tiny.arguments(tmp_path, distillation_type="none", **AUGMENTATION)
    model = tiny.student(distilled=False, image_size=image_size)
    trainer = tiny.trainer(model, args, processing_class=processor)
    slots = range(5, 23)
    sheet = contact_sheet(trainer.train_dataset, args, processor, NAMES, epoch=1, slots=slots)
    size = image_size * scale
    assert sheet.size == (8 * (size + 8), 3 * (size + 8 + 45))  # 18 tiles in rows of 8
    mean, std = (np.array(s)[:, None, None] for s in (processor.image_mean, processor.image_std))
    for index, view in enumerate(views_of(trainer, 1, slots)["pixel_values"].double().numpy()):
        exact = ((view * std + mean) * 255).clip(0, 255).transpose(1, 2, 0)
        shown, text = tile_of(sheet, index, 8, size)
        enlarged = exact.repeat(scale, axis=0).repeat(scale, axis=1)
        assert np.abs(shown - enlarged).max() < 0.5 + 1e-3
        assert text.min() < 128 < text.max()  # dark on white
    assert (np.asarray(sheet)[2 * (size + 53) :, 2 * (size + 8) :] == 255).all()  # the third row has two tiles


def test_a_sheet_of_plain_views_has_their_very_bytes(tmp_path):
    settings = {"mixup": 0.0, "cutmix": 0.0, "mixup_group_size": None, "random_erasing": 0.0}
    trainer = make_trainer(tmp_path, **settings)
    sheet = contact_sheet(trainer.train_dataset, trainer.args, tiny.processor(), NAMES, epoch=0, slots=range(3))
    assert sheet.size == (3 * 120, 165)
    for index, key in enumerate(list(trainer._get_train_sampler())[:3]):
        raw = trainer.train_dataset[key]["pixel_values"].permute(1, 2, 0).numpy()
        assert np.array_equal(tile_of(sheet, index, 3, 112)[0], raw.repeat(7, axis=0).repeat(7, axis=1))


def test_a_sheet_has_the_targets_that_training_has(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    described = []
    monkeypatch.setattr(
        hf_deit.training.preview, "_describe", lambda *args: described.append(_describe(*args)) or described[-1]
    )
    contact_sheet(trainer.train_dataset, trainer.args, tiny.processor(), NAMES, epoch=0, slots=range(6, 30))
    targets = views_of(trainer, 0, range(6, 30))["targets"]
    for lines, target in zip(described, targets, strict=True):
        found = {int(line.split()[1]): float(line.split()[0]) for line in lines}
        expected = {label: weight for label, weight in enumerate(target.tolist()) if weight > 0.0101}
        assert found == pytest.approx(expected, abs=5e-4)
    assert {len(lines) for lines in described} == {1, 2}


def test_targets_are_described_by_weight_and_name():
    names = {0: "ape", 1: "bee", 2: "cat", 3: "dog"}
    described = {
        (0.925, 0.025, 0.025, 0.025): ["0.925 ape"],
        (0.025, 0.025, 0.655, 0.295): ["0.655 cat", "0.295 dog"],
        (0.295, 0.025, 0.025, 0.655): ["0.655 dog", "0.295 ape"],
        (0.0, 0.0, 0.0, 0.0): ["no label"],
        (0.0078, 0.2868, 0.0078, 0.0078): ["0.287 bee"],  # the rest is an unlabelled partner's
    }
    for target, lines in described.items():
        assert _describe(torch.tensor(target), 0.025, names) == lines
    assert _describe(torch.tensor([0.0, 1.0]), 0.0, {0: "a", 1: "b"}) == ["1.000 b"]
    names = {0: "two\nlines", 1: "\x1b[31mred"}
    assert _describe(torch.tensor([0.6, 0.4]), 0.0, names) == ["0.600 two lines", "0.400 \\x1b[31mred"]


def test_long_names_are_cut(tmp_path):
    trainer = make_trainer(tmp_path)
    names = {index: "name " * 40 + str(index) for index in range(10)}
    sheet = contact_sheet(trainer.train_dataset, trainer.args, tiny.processor(), names, epoch=0, slots=range(1))
    assert sheet.size == (120, 165)
    assert (np.asarray(sheet)[:, -4:] == 255).all()


# From the command line


@pytest.fixture(scope="module")
def main():
    return main_of("preview")


def files_below(*folders: Path) -> dict[Path, tuple]:
    found = [path for folder in folders for path in folder.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in found}


@pytest.fixture
def places(tmp_path, monkeypatch) -> list[Path]:
    """Everywhere that something could be left: the current folder, a run's folder, and that for temporary files."""
    folders = [tmp_path / name for name in ("current", "run", "temporary")]
    for folder in folders:
        folder.mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("of another run")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return folders


@pytest.fixture
def no_teacher(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("there shall be no teacher")

    monkeypatch.setattr(hf_deit.commands.train, "train_teacher", refuse)
    monkeypatch.setattr(hf_deit.commands.prepare.PreparedRun, "describe_teacher", refuse)


@pytest.mark.parametrize("teacher", [[], ["--teacher_model_name_or_path", "nobody/nothing"]])
def test_the_script_writes_a_picture_and_nothing_else(main, tmp_path, capsys, places, no_teacher, teacher):
    before = files_below(*places)
    command = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), *teacher]
    output = tmp_path / "sheet.png"
    assert main([*command, "--epoch", "2", "--slots", "10:20", "--output", str(output)]) == 0
    assert f"wrote {output}: 960 x 330 pixels" in capsys.readouterr().out
    with Image.open(output) as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (960, 330))
        expected = preview_run(command, epoch=2, slots="10:20")
        assert np.array_equal(np.asarray(sheet), np.asarray(expected))
    assert files_below(*places) == before


def test_the_script_writes_into_the_current_folder_by_default(main, places, no_teacher):
    assert main(["--recipe", "debug"]) == 0
    assert [path.name for path in places[0].iterdir()] == ["preview.png"]
    with Image.open("preview.png") as sheet:
        assert sheet.size == (8 * 120, 2 * 165)
    assert not list(places[2].iterdir())


MISTAKES = {
    "beyond": (["--slots", "90:97"], "slots 0:96, got epoch 0, 90:97"),
    "before": (["--epoch", "-1"], "epochs count from 0"),
    "empty": (["--slots", "5:5"], "FIRST:LAST"),
    "backwards": (["--slots", "5:3"], "FIRST:LAST"),
    "one": (["--slots", "5"], "FIRST:LAST"),
    "words": (["--slots", "a:b"], "FIRST:LAST"),
    "negative": (["--slots=-3:5"], "FIRST:LAST"),
    "three": (["--slots", "1:5:2"], "FIRST:LAST"),
    "argument": (["--learning_rat", "1"], "did you mean 'learning_rate'"),
    "recipe": (["--recipe", "debog"], "did you mean 'debug'"),
    "data": (["--dataset_name", "nobody/nothing"], "cannot load the data set"),
    "augmentation": (["--auto_augment", "nonsense"], "no policy of timm"),
    "metric": (["--metric_for_best_model", "acuracy"], "must be one of"),
    "unwritable": (["--output", "nowhere/sheet.png"], "nowhere/sheet.png"),
    "no number": (["--epoch", "x"], "argument --epoch: invalid int value: 'x'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_in_one_line(main, capsys, places, mistake):
    options, message = MISTAKES[mistake]
    before = files_below(*places)
    assert main(["--recipe", "debug", *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "it/s" not in line and line]
    assert len(lines) == 1
    assert re.search(f"^error: .*{message}", lines[0]), lines
    assert files_below(*places) == before


@pytest.mark.parametrize("name", ["sheet", "sheet.xyz", "sheet.pcd"])  # Pillow reads the last, but does not write it
def test_a_file_that_is_no_picture_is_refused_before_the_work(main, monkeypatch, capsys, places, name):
    monkeypatch.setattr(
        hf_deit.commands.prepare, "load_data", lambda *args, **options: pytest.fail("there shall be no data")
    )
    assert main(["--recipe", "debug", "--output", name]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"\nerror: .*'{name}'.*\.png.*\n", error)
    assert not list(places[0].iterdir())


def test_options_of_a_device_do_not_matter(monkeypatch, places, no_teacher):
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: False)
    plain = preview_run(["--recipe", "debug"], epoch=0, slots="0:4")
    for options in (["--tf32", "true"], ["--bf16", "true"], ["--fp16", "true"], ["--deepspeed", "zero2.json"]):
        assert preview_run(["--recipe", "debug", *options], epoch=0, slots="0:4").tobytes() == plain.tobytes()


@pytest.mark.parametrize(
    "options", [["--unlabeled_dir", "MORE"], ["--teacher_model_name_or_path", "nobody/nothing"]], ids=lambda o: o[0]
)
def test_a_preview_without_distillation_refuses_what_its_run_refuses(tmp_path, options):
    few_digits().train[0]["image"].save(tmp_path / "0.png")
    options = [str(tmp_path) if option == "MORE" else option for option in options]
    with pytest.raises(InputError, match='distillation_type is "none"'):
        preview_run(["--recipe", "debug", "--distillation_type", "none", *options], epoch=0, slots="0:4")


def test_a_broken_image_is_named(main, tmp_path, capsys, places):
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for number in range(20):
        path = images / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    assert main(["--recipe", "debug", "--train_dir", str(images), "--slots", "0:8"]) == 2
    assert re.search(r"error: .*\d+\.png.*cannot be decoded", capsys.readouterr().err)
    assert not list(places[0].iterdir())


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--labels_kept", "30", "--seed", "5"],
        ["--dataset_name", "", "--unlabeled_dir", "MORE", "--eval_strategy", "no"],
        ["--labels_kept", "48", "--distillation_type", "none", "--student", "deit_tiny_patch16_224"],
    ],
    ids=["debug", "few labels", "no labels", "few labels and no teacher"],
)
def test_a_preview_of_a_command_is_what_its_run_trains_on(tmp_path, monkeypatch, training, options):
    more = tmp_path / "more"
    more.mkdir()
    for index, row in enumerate(few_digits().train.select(range(40))):
        row["image"].save(more / f"{index}.png")
    options = [str(more) if option == "MORE" else option for option in options]
    command = ["--recipe", "debug", "--use_cpu", "true", "--max_steps", "3", *options]
    if "none" not in options:
        command += ["--teacher_model_name_or_path", tiny.teacher_folder(tmp_path / "teacher")]
    run(resolve_arguments([*command, "--output_dir", str(tmp_path / "run")]))
    shown = []

    def record(*args, **kwargs):
        shown.append(training_views(*args, **kwargs))
        return shown[-1]

    monkeypatch.setattr(hf_deit.training.preview, "training_views", record)
    preview_run(command, epoch=0, slots="5:29")
    seen = {name: torch.cat(batches) for name, batches in training.items() if batches}
    assert torch.equal(shown[0]["pixel_values"], seen["pixel_values"][5:29])
    if "targets" in seen:
        assert torch.equal(shown[0]["targets"], seen["targets"][5:29])
    else:  # the teacher's term takes the class head's place
        assert not shown[0]["targets"].any()
