"""Contract: a recipe may follow the images. What it takes for them is settled once, before anything is loaded; it is
the same for training, labelling and preview; the command line wins; a run keeps what it has begun with."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support import tiny
from support.images import parquet
from support.main_of import main_of

from hf_deit.commands.prepare import prepare
from hf_deit.commands.preview import preview_run
from hf_deit.data.arguments import DataArguments
from hf_deit.errors import InputError
from hf_deit.hub import looks
from hf_deit.recipes import by_data, load_recipe, resolve
from hf_deit.recipes.prospects import Prospects
from hf_deit.recipes.resolve import resolve_arguments, save_recipe
from hf_deit.recipes.survey import ImageSurvey, survey_images
from hf_deit.recipes.uses import DEFAULTS

TINY = "facebook/deit-tiny-distilled-patch16-224"


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """Which models the Hub or the cache has: none, unless a test adds some. The cache of data sets is the test's."""
    there: set[str] = set()
    monkeypatch.setattr(by_data, "has_weights", lambda name: name in there)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    return there


def photos(folder: Path, count: int, num_classes: int = 2, side: int = 40, depth: str = "") -> str:
    """A folder of class folders with so many images in all, of which a few differ in their pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
    for number in range(count):
        path = folder / f"class {number % num_classes}" / depth / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < num_classes:
            Image.fromarray(np.roll(pixels, number)).save(path)
        else:
            path.hardlink_to(folder / f"class {number % num_classes}" / depth / f"{number % num_classes}.png")
    return str(folder)


def resolved(*line: object) -> dict:
    arguments = resolve_arguments([*map(str, line), "--use_cpu", "true"], is_trained=False)
    output_dir = arguments.training.output_dir
    return {**DEFAULTS, "student_overrides": {}, "output_dir": output_dir, **resolve.resolved_recipe(arguments)}


def told(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def is_fine_tuned(values: dict) -> bool:
    return (values["layer_decay"], values["repeated_augmentation"]) == (load_recipe("fine_tune")["layer_decay"], 1)


def is_small(values: dict) -> bool:
    return values["teacher_recipe"] == "from_scratch_teacher" and "patch_size" in (values["student_overrides"] or {})


def is_the_papers(values: dict) -> bool:
    return values["student_overrides"] == {"drop_path_rate": 0.1} and values["repeats_placement"] == "spread"


# What the images are like


def test_folders_are_counted_at_any_depth_and_a_few_are_measured(tmp_path):
    train = photos(tmp_path / "train", 7, num_classes=3, side=30, depth="deep/deeper")
    (tmp_path / "train" / ".hidden").mkdir()
    assert survey_images(DataArguments(train_dir=train)) == ImageSurvey(7, 0, 3, 30)
    others = photos(tmp_path / "others", 5, side=60)
    beside = DataArguments(train_dir=train, unlabeled_dir=others, labels_kept=3)
    assert survey_images(beside) == ImageSurvey(3, 9, 3, 30)
    assert survey_images(DataArguments(unlabeled_dir=others)) == ImageSurvey(0, 5, 0, 60)


def test_data_sets_are_counted(tmp_path):
    train, validation = tiny.digits(30, 10)
    name = parquet(tmp_path / "set", train=train, validation=validation)
    assert survey_images(DataArguments(dataset_name=name)) == ImageSurvey(30, 0, 10, 8)
    assert survey_images(DataArguments(dataset_name="sklearn:digits")) == ImageSurvey(1437, 0, 10, 8)
    alone = DataArguments(unlabeled_dataset_name=name, unlabeled_split="validation")
    assert survey_images(alone) == ImageSurvey(0, 10, 0, 8)


def test_what_cannot_be_told_is_not_guessed(tmp_path):
    (tmp_path / "empty").mkdir()
    for data in (
        DataArguments(train_dir=str(tmp_path / "nowhere")),
        DataArguments(train_dir=str(tmp_path / "empty")),
        DataArguments(dataset_name="someone/something"),
        DataArguments(dataset_name="sklearn:digits", streaming=True),
        DataArguments(),
    ):
        assert survey_images(data) is None
    broken = tmp_path / "broken" / "cat"
    broken.mkdir(parents=True)
    (broken / "a.png").write_bytes(b"nothing")
    assert survey_images(DataArguments(train_dir=str(broken.parent))) == ImageSurvey(1, 0, 1, None)


def test_the_hub_is_asked_how_many_rows_it_has(monkeypatch):
    names = {"class_label": {"names": {"0": "cat", "1": "dog", "2": "eel"}}}
    config = {"features": [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": names}]}
    config["splits"] = [{"name": "train", "num_examples": 4321}, {"name": "test", "num_examples": 9}]

    class Card:
        card_data: dict = {"dataset_info": config}  # noqa: RUF012

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(looks.HfApi, "dataset_info", lambda self, name, **settings: Card)
    assert survey_images(DataArguments(dataset_name="ada/x")) == ImageSurvey(4321, 0, 3, None)
    assert looks.rows_of("ada/x", "nothing") is None
    Card.card_data = {"dataset_info": [{**config, "config_name": "a"}, {"config_name": "b", "splits": []}]}
    assert looks.rows_of("ada/x", "test", "a") == looks.Rows(9, 3)
    assert looks.rows_of("ada/x", "test") is None  # of two
    Card.card_data = {}
    assert looks.rows_of("ada/x", "train") is None


def test_weights_are_looked_for_in_the_cache_and_then_on_the_hub(monkeypatch, tmp_path):
    cached = {"ada/cached": "model.safetensors", "ada/torch": "pytorch_model.bin", "ada/half": "nothing"}

    def look(name, file, **settings):
        return "a path" if file in ("config.json", cached.get(name)) and name in cached else None

    def ask(self, name, timeout, **settings):
        assert timeout <= 10
        if name != "ada/there":
            raise OSError("no answer")

    monkeypatch.setattr(looks, "try_to_load_from_cache", look)
    monkeypatch.setattr(looks.HfApi, "model_info", ask)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    names = ("ada/cached", "ada/torch", "ada/half", "ada/there", "ada/not", str(tmp_path))
    assert [looks.has_weights(name) for name in names] == [True, True, False, True, False, True]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(looks.HfApi, "model_info", lambda *args, **settings: pytest.fail("asked while offline"))
    assert [looks.has_weights(name) for name in names] == [True, True, False, False, False, True]


# own_images chooses

MANY = ImageSurvey(12_000, 0, 10, 300)
FEW = ImageSurvey(1_000, 0, 10, 300)


@pytest.mark.parametrize(
    ("images", "options", "there", "taken"),
    [
        (FEW, [], True, is_fine_tuned),
        (FEW, [], False, is_small),
        (MANY, ["--distillation_type", "none"], True, is_the_papers),
        (ImageSurvey(12_000, 0, 25, 300), [], True, is_fine_tuned),  # 480 a class
        (ImageSurvey(12_500, 0, 25, 300), [], True, is_the_papers),
        (ImageSurvey(9_999, 0, 10, 300), [], True, is_fine_tuned),
        (ImageSurvey(10_000, 0, 10, 300), [], False, is_the_papers),
        # Unlabelled images count where somebody labels them.
        (ImageSurvey(200, 30_000, 10, 300), ["--teacher", "a/b"], True, is_the_papers),
        (ImageSurvey(200, 30_000, 10, 300), ["--distillation_type", "none"], True, is_fine_tuned),
        (ImageSurvey(0, 300, 0, 300), ["--teacher", "a/b"], True, is_fine_tuned),
        (ImageSurvey(0, 30_000, 0, 300), ["--teacher", "a/b"], True, is_the_papers),
        (
            ImageSurvey(0, 12_000, 0, 300),
            ["--teacher", "a/b", "--class_names", *map(str, range(25))],
            True,
            is_fine_tuned,
        ),
        (None, [], True, is_the_papers),
        # Whoever names a student has it.
        (FEW, ["--student", "deit_small_distilled_patch16_224"], True, None),
        (FEW, ["--student_overrides", '{"hidden_size": 96}'], True, None),
        (FEW, ["--student_overrides", '{"drop_path_rate": 0.2}'], True, is_fine_tuned),
        (FEW, ["--student", "a/checkpoint"], False, is_fine_tuned),
        (FEW, ["--image_size", "160"], True, is_fine_tuned),
    ],
)
def test_own_images_chooses_by_what_it_finds(monkeypatch, hub, caplog, images, options, there, taken):
    monkeypatch.setattr("hf_deit.recipes.survey.survey_images", lambda data: images)
    monkeypatch.setattr(resolve, "lacked_fields", lambda *args: [])
    hub |= {TINY} if there else set()
    values = resolved("--train_dir", "photos", *options)
    assert values["output_dir"] == "outputs/own_images"
    if taken is not None:
        assert taken(values)
    else:
        assert values["repeats_placement"] == "spread" and values["min_train_steps"] == 0
    assert told(caplog).count("own_images: ") == (images is not None)
    explicit = resolved("--recipe", "own_images", "--train_dir", "photos", *options)
    assert explicit == values


def test_it_says_what_it_takes_and_why_and_what_the_other_road_is(tmp_path, hub, caplog):
    train = photos(tmp_path / "train", 12)
    resolved("--train_dir", train)
    assert (
        "own_images: 12 labelled images of 2 classes (6 a class): taking from_scratch_small, as they are few and "
        f"{TINY} cannot be had; with it, --recipe fine_tune is the better road"
    ) in told(caplog)
    caplog.clear()
    hub.add(TINY)
    resolved("--train_dir", train)
    assert (
        "own_images: 12 labelled images of 2 classes (6 a class): taking fine_tune, as they are few and the "
        f"pretrained {TINY} can be had; --recipe from_scratch_small is the other road"
    ) in told(caplog)


def test_a_named_checkpoint_keeps_its_heads_unless_told(monkeypatch):
    monkeypatch.setattr("hf_deit.recipes.survey.survey_images", lambda data: FEW)
    monkeypatch.setattr(resolve, "lacked_fields", lambda *args: [])
    command = ["--train_dir", "photos", "--student", "microsoft/resnet-50", "--distillation_type", "none"]
    assert resolved(*command)["student"] == "microsoft/resnet-50"
    assert resolved(*command)["replace_head"] is False
    assert resolved(*command, "--replace_head")["replace_head"] is True
    assert resolved(*command, "--student", TINY)["replace_head"] is True  # as the recipe has it
    assert resolved("--recipe", "fine_tune", *command)["replace_head"] is True


def test_kept_labels_are_a_teacher(monkeypatch):
    monkeypatch.setattr("hf_deit.recipes.survey.survey_images", lambda data: FEW)
    command = ["--train_dir", "photos", "--teacher", "a/b"]
    assert resolved(*command)["distillation_type"] == "soft"
    values = resolved(*command, "--teacher_labels", "kept")  # of which logits are kept, then
    assert values["distillation_type"] == "soft" and is_small(values)
    assert not resolved("--train_dir", "photos", "--teacher_labels", "kept")["teacher_recipe"]  # they are the teacher


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (ImageSurvey(200, 0, 10, 28), "from 200, it reached"),
        (ImageSurvey(1000, 0, 10, 28), "from 1,000, it reached"),
        (ImageSurvey(6000, 0, 10, 28), "from 6,000, it reached"),
        (ImageSurvey(200, 20_000, 10, 28), None),
        (ImageSurvey(0, 200, 0, 28), None),
        (ImageSurvey(60_000, 0, 10, 28), None),
        (None, None),
    ],
)
def test_a_small_student_says_beforehand_where_it_does_not_win(monkeypatch, caplog, images, words):
    monkeypatch.setattr("hf_deit.recipes.survey.survey_images", lambda data: images)
    resolved("--recipe", "from_scratch_small", "--train_dir", "photos")
    assert (words in told(caplog) and "--recipe from_scratch_teacher" in told(caplog)) if words else not told(caplog)


def test_a_recipe_that_is_named_never_chooses(tmp_path, hub, caplog):
    train = photos(tmp_path / "train", 12)
    hub.add(TINY)
    assert is_small(resolved("--recipe", "from_scratch_small", "--train_dir", train))
    assert is_fine_tuned(resolved("--recipe", "fine_tune", "--train_dir", train))
    assert is_the_papers(resolved("--recipe", "from_scratch", "--train_dir", train))
    assert "own_images" not in told(caplog)


def test_a_recipe_of_ones_own_on_it_chooses_and_is_on_top(tmp_path, hub):
    train = photos(tmp_path / "train", 12)
    hub.add(TINY)
    (tmp_path / "mine.yaml").write_text(
        f"base: own_images\ntrain_dir: {train}\nmixup: 0.1\noutput_dir: outputs/mine\n"
    )
    values = resolved("--recipe", tmp_path / "mine.yaml", "--cutmix", "0.2")
    assert is_fine_tuned(values) and values["output_dir"] == "outputs/mine"
    assert (values["mixup"], values["cutmix"]) == (0.1, 0.2)


# Tables in recipes


@pytest.fixture
def recipe(tmp_path):
    def write(**keys) -> str:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(keys))
        return str(tmp_path / "mine.yaml")

    return write


TABLE = {
    "side": [
        {"up_to": 32, "student_overrides": {"image_size": 36, "patch_size": 6}},
        {"up_to": 48, "student_overrides": {"image_size": 48, "patch_size": 8}, "crop_scale_min": 0.5},
        {"student_overrides": {"image_size": 64, "patch_size": 16}},
    ],
    "images": [{"up_to": 12, "learning_rate": 1e-3}, {"learning_rate": 2e-3, "note": "told of many"}],
}


@pytest.mark.parametrize(
    ("count", "side", "patch", "rate"),
    [(12, 32, 6, 1e-3), (13, 33, 8, 2e-3), (5, 48, 8, 1e-3), (13, 49, 16, 2e-3)],
)
def test_rows_reach_to_their_limit(tmp_path, recipe, caplog, count, side, patch, rate):
    values = resolved(
        "--recipe", recipe(by_data=TABLE, learning_rate=7), "--train_dir", photos(tmp_path / "x", count, side=side)
    )
    assert values["student_overrides"]["patch_size"] == patch and values["learning_rate"] == rate
    assert values["crop_scale_min"] == (0.5 if patch == 8 else 0.08)
    assert ("told of many" in told(caplog)) == (rate == 2e-3)


def test_where_most_images_have_no_label_the_head_that_the_teacher_taught_answers(tmp_path):
    photos(tmp_path / "train", 4)
    line = ["--recipe", "from_scratch_small", "--train_dir", tmp_path / "train"]
    unlabelled = ["--unlabeled_dir", photos(tmp_path / "others", 5)]
    assert resolved(*line, *unlabelled)["student_overrides"]["fusion"] == "distillation"
    for plain in (line, [*line, "--unlabeled_dir", photos(tmp_path / "few", 3)]):
        assert "fusion" not in resolved(*plain)["student_overrides"]


def test_the_command_line_and_what_stands_on_the_recipe_win(tmp_path, recipe):
    train = photos(tmp_path / "x", 4, side=32)
    base = recipe(by_data=TABLE)
    (tmp_path / "upper.yaml").write_text(
        "base: mine.yaml\nlearning_rate: 3.0e-3\nstudent_overrides: {patch_size: 9}\n"
    )
    line = ["--recipe", tmp_path / "upper.yaml", "--train_dir", train]
    assert resolved(*line)["student_overrides"] == {"image_size": 36, "patch_size": 9}
    assert resolved(*line)["learning_rate"] == 3e-3
    values = resolved(*line, "--lr", "4e-3", "--student_overrides", '{"image_size": 72}')
    assert values["student_overrides"] == {"image_size": 72, "patch_size": 9} and values["learning_rate"] == 4e-3
    # A size that is named stands for the images'.
    assert (
        resolved("--recipe", base, "--train_dir", train, "--image_size", "48")["student_overrides"]["patch_size"] == 8
    )
    of_student = ["--student_overrides", '{"image_size": 48}']
    assert resolved("--recipe", base, "--train_dir", train, *of_student)["student_overrides"]["patch_size"] == 8
    assert load_recipe(base)["learning_rate"] == 2e-3  # without any images


def test_a_teachers_recipe_follows_the_images_of_the_run(tmp_path):
    images = DataArguments(train_dir=photos(tmp_path / "x", 4, side=30))
    line = ["--recipe", "from_scratch_teacher", "--use_cpu", "true"]
    alone, theirs = resolve_arguments(line), resolve_arguments(line, images=images)
    assert theirs.model.image_size < alone.model.image_size
    student = resolved("--recipe", "from_scratch_small", "--train_dir", images.train_dir)["student_overrides"]
    assert theirs.model.image_size == student["image_size"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"by_data": [1]}, "no mapping of side and images and labelled_part"),
        ({"by_data": {"sides": [{}]}}, "did you mean 'side'"),
        ({"by_data": {"side": {}}}, "expected a list of mappings"),
        ({"by_data": {"side": [{"up_to": 4}, {"up_to": 3}, {}]}}, "numbers that grow"),
        ({"by_data": {"side": [{"up_to": 4}, {"up_to": 5}]}}, "a last row without one"),
        ({"by_data": {"side": [{"up_to": "x"}, {}]}}, "numbers that grow"),
        ({"by_data": {"side": [{}, {}]}}, "numbers that grow"),
        ({"by_data": {"side": [{"learning_rat": 1}]}}, "did you mean 'learning_rate'"),
        ({"few_images": "fine_tune"}, "no list of recipes"),
        ({"few_images": ["fine_tun"]}, "did you mean 'fine_tune'"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(recipe, keys, words):
    with pytest.raises(InputError, match=words):
        load_recipe(recipe(**keys))


def test_auto_distils_where_something_teaches(tmp_path):
    line = ["--recipe", "fine_tune", "--train_dir", photos(tmp_path / "x", 4)]
    assert resolved(*line)["distillation_type"] == "none"
    assert resolved(*line, "--teacher", "a/b")["distillation_type"] == "hard"
    assert resolved(*line, "--teacher_recipe", "digits_teacher")["distillation_type"] == "hard"
    assert resolved(*line, "--teacher", "a/b", "--distillation_type", "soft")["distillation_type"] == "soft"
    assert resolved(*line, "--unlabeled_dir", "y")["distillation_type"] == "hard"  # or who would label them?
    assert resolved("--recipe", "digits", "--distillation_type", "auto")["distillation_type"] == "hard"


# A run keeps its choice


def test_the_values_are_recorded_and_a_run_that_goes_on_keeps_them(tmp_path, hub, caplog):
    train, run = Path(photos(tmp_path / "train", 12)), tmp_path / "run"
    line = ["--train_dir", train, "--output_dir", run, "--mixup", "0.3", "--distillation_type", "none"]
    begun = resolve_arguments([*map(str, line), "--use_cpu", "true"])
    run.mkdir()
    save_recipe(begun, run / "recipe.yaml")
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert not {"by_data", "few_images"} & written.keys()
    again = resolved("--recipe", run / "recipe.yaml", "--output_dir", run, "--resume_from_checkpoint", "true")
    # The pretrained weights can be had by now, and there are other images: the run goes on as it was begun.
    hub.add(TINY)
    photos(tmp_path / "more", 40, side=200)
    line[1] = tmp_path / "more"
    caplog.clear()
    for resume in ("true", run / "checkpoint-3"):
        later = resolved(*line, "--resume_from_checkpoint", resume)
        different = {name for name in later if later[name] != again[name]}
        assert different == {"train_dir"}
    assert "own_images" not in told(caplog)
    assert is_fine_tuned(resolved(*line))  # another run does not


def test_a_run_of_an_earlier_version_goes_on(tmp_path, hub):
    """It was begun with own_images, which knew one road."""
    hub.add(TINY)
    train, run = photos(tmp_path / "train", 12), tmp_path / "run"
    before = resolve_arguments(
        ["--recipe", "from_scratch", "--train_dir", train, "--use_cpu", "true", "--distillation_type", "none"]
    )
    run.mkdir()
    save_recipe(before, run / "recipe.yaml")
    line = ["--train_dir", train, "--output_dir", str(run), "--use_cpu", "true", "--distillation_type", "none"]
    after = resolve_arguments([*line, "--resume_from_checkpoint", "true"])
    resolve.check_same_run(str(run / "recipe.yaml"), after)
    assert is_the_papers(vars(after.model) | vars(after.training))
    with pytest.raises(InputError, match="was started with"):
        resolve.check_same_run(str(run / "recipe.yaml"), resolve_arguments(line))


def test_all_processes_take_what_the_main_one_sees(tmp_path, hub, monkeypatch, caplog):
    """One of another machine, which has no pretrained weights."""
    train = photos(tmp_path / "train", 12)
    hub.add(TINY)
    seen = []
    monkeypatch.setattr(resolve, "num_devices", lambda: 2)

    def broadcast(function):
        seen.append(pickle.loads(pickle.dumps(function())))
        return seen[-1]

    monkeypatch.setattr(resolve, "on_main_process", broadcast)
    assert resolved("--recipe", "digits")["dataset_name"] == "sklearn:digits"  # what nothing was seen for travels, too
    seen.clear()
    assert is_fine_tuned(resolved("--train_dir", train))
    hub.clear()
    monkeypatch.setattr(resolve, "on_main_process", lambda function: seen[0])
    assert is_fine_tuned(resolved("--train_dir", train))
    # Whatever its own recipe is, it waits for the others: their options are compared later.
    asked = []
    monkeypatch.setattr(resolve, "on_main_process", lambda function: asked.append(function) or seen[0])
    assert resolved("--recipe", "digits")["dataset_name"] == "sklearn:digits" and asked


def test_preview_and_label_make_the_same_choice(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "hf_deit.commands.preview.prepare",
        lambda arguments, *rest: seen.append(arguments) or prepare(arguments, *rest),
    )
    train = photos(tmp_path / "train", 12)
    preview_run(["--recipe", "own_images", "--train_dir", train], epoch=0, slots="0:2")
    assert is_small(vars(seen[0].model) | vars(seen[0].training))
    labelled = resolve_arguments(["--train_dir", train, "--teacher", "a/b", "--use_cpu", "true"], is_trained=False)
    assert labelled.model.student_overrides == seen[0].model.student_overrides
    views = ("crop_scale_min", "auto_augment", "repeated_augmentation", "mixup", "cutmix", "random_erasing")
    assert all(getattr(labelled.training, name) == getattr(seen[0].training, name) for name in views)


def test_the_whole_road_from_a_folder(tmp_path, monkeypatch, caplog):
    """With its own teacher, and taken up again."""
    monkeypatch.chdir(tmp_path)
    train = photos(tmp_path / "train", 40, side=28)
    line = ["--train_dir", train, "--use_cpu", "true", "--dataloader_num_workers", "0", "--max_steps", "2"]
    line += ["--dataloader_persistent_workers", "false", "--per_device_train_batch_size", "8"]
    (tmp_path / "teacher.yaml").write_text(
        "base: from_scratch_teacher\nmax_steps: 2\nper_device_train_batch_size: 8\n"
        "student_overrides: {hidden_sizes: [8, 16, 16], embedding_size: 8}\n"
    )
    line += ["--teacher_recipe", "teacher.yaml"]
    assert main_of("train")(line) == 0
    assert "taking from_scratch_small" in told(caplog)
    teacher = yaml.safe_load((tmp_path / "outputs/own_images/teacher/recipe.yaml").read_text())
    student = yaml.safe_load((tmp_path / "outputs/own_images/recipe.yaml").read_text())
    assert teacher["image_size"] == student["student_overrides"]["image_size"] == 36
    assert main_of("train")([*line, "--resume_from_checkpoint", "true"]) == 0
    assert yaml.safe_load((tmp_path / "outputs/own_images/recipe.yaml").read_text()) == student


# What a run cannot win


def doubts(*line: str, images: int, classes: int = 10, per_epoch: int | None = None, parameters: float = 5.5e6) -> str:
    arguments = resolve_arguments([*line, "--use_cpu", "true"])
    size = arguments.training.total_train_batch_size
    prospects = Prospects(
        arguments,
        num_images=images,
        num_classes=classes,
        steps_per_epoch=per_epoch or max(images // size, 1),
        num_parameters=int(parameters),
        is_transformer=True,
    )
    return "\n".join(prospects.doubts())


def test_a_large_student_made_anew_cannot_win_with_few_images():
    said = doubts("--recipe", "from_scratch", images=200)
    assert "300 steps of 64 views, 96 views of an image" in said
    assert "--recipe fine_tune" in said and "--recipe from_scratch_small" in said and "200 images" in said
    assert "1,000 images" in doubts("--recipe", "deit_tiny_distilled", images=1000)
    assert doubts("--recipe", "from_scratch", images=12_000, classes=100)  # 120 a class


def test_too_few_steps_and_views_are_told():
    small = ("--recipe", "from_scratch_small", "--min_train_steps", "0")
    said = doubts(*small, "--num_train_epochs", "6", images=200, parameters=5e5)
    assert "18 steps of 64 views, 6 views of an image" in said and "--min_train_steps 2000" in said
    assert "--min_train_steps" in doubts(*small, "--num_train_epochs", "7", images=9_900, classes=2, parameters=5e5)
    assert doubts("--recipe", "from_scratch_small", images=200, parameters=5e5) == ""


def test_a_pretrained_student_is_not_trained_as_if_made_anew():
    line = ["--recipe", "own_images", "--student", "a/b", "--num_train_epochs", "20"]
    said = doubts(*line, images=1000)
    assert "learning rate, 0.0005" in said and "--layer_decay 0.75" in said
    assert doubts(*line, "--lr", "5e-5", images=1000) == ""
    assert doubts(*line, "--freeze", "all_but_heads", images=1000) == ""
    assert "after 10 steps" in doubts(*line[:-1], "10", "--lr", "5e-5", images=60)
    assert doubts("--recipe", "fine_tune", images=60) == ""


@pytest.mark.parametrize(
    ("recipe", "images", "classes", "per_epoch", "parameters"),
    [
        ("digits", 1437, 10, 22, 0.5e6),
        ("fashion_mnist", 54_000, 10, 843, 0.5e6),
        ("debug", 1437, 10, 89, 24e3),
        ("deit_tiny_distilled", 1_281_167, 1000, 1251, 5.9e6),
        ("deit_base", 1_281_167, 1000, 1251, 86e6),
        ("deit_base_384", 1_281_167, 1000, 2502, 86e6),
        ("from_scratch", 100_000, 100, 1562, 5.5e6),
        ("small_data", 50_000, 10, 65, 21e6),
        ("fine_tune", 1_000, 10, 15, 5.5e6),
    ],
)
def test_there_are_no_false_alarms(recipe, images, classes, per_epoch, parameters):
    assert doubts("--recipe", recipe, images=images, classes=classes, per_epoch=per_epoch, parameters=parameters) == ""


def test_training_tells_its_doubts_before_the_first_step(tmp_path, caplog):
    train = photos(tmp_path / "train", 20)
    line = [
        "--recipe",
        "from_scratch",
        "--train_dir",
        train,
        "--output_dir",
        str(tmp_path / "run"),
        "--use_cpu",
        "true",
    ]
    assert main_of("train")([*line, "--teacher_model_name_or_path", tiny.teacher_folder(tmp_path / "digits")]) == 2
    assert "cannot be expected to win" in told(caplog)
