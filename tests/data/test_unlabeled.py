"""Images without labels teach through the teacher alone, and each view has its own loss, whatever is in its batch.

Loss and gradient follow the formula, however a step is cut; a run finds its images wherever they lie, loses none of
them, and refuses in one message what cannot be used.
"""

import math
import re
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support import images, tiny
from support.images import class_folders, load, parquet
from support.main_of import main_of
from timm.data import ImageNetInfo
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    pipeline,
)

import hf_deit.commands.train
from hf_deit import DistillationTrainer, InputError, load_teacher
from hf_deit.commands.train import run
from hf_deit.data.image_data import ImageData
from hf_deit.data.view_dataset import collate
from hf_deit.hub.publishing import check_folder
from hf_deit.models.teacher import describe_teacher
from hf_deit.recipes.resolve import resolve_arguments

NUM_LABELED = 40  # of 96


def few_digits() -> ImageData:
    return images.few_digits(120)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """What needs no more digits than these should not take the time for all."""
    monkeypatch.setattr("hf_deit.data.load.load_digits", few_digits)
    monkeypatch.setattr("support.tiny.load_digits", few_digits)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny.teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def teacher(folder_of_teacher):
    return load_teacher(folder_of_teacher, student_processor=tiny.processor())


def halves() -> tuple[datasets.Dataset, datasets.Dataset]:
    train, _ = tiny.digits()
    return train.select(range(NUM_LABELED)), train.select(range(NUM_LABELED, 96)).select_columns("image")


def make_trainer(folder, teacher, *, labeled: bool = True, distilled: bool = True, **settings) -> DistillationTrainer:
    train, unlabeled = halves()
    student = tiny.student(distilled=distilled, drop_path_rate=settings.pop("drop_path_rate", 0.0))
    args = tiny.arguments(folder, **settings)
    parts = {"train_dataset": train if labeled else None, "unlabeled_dataset": unlabeled}
    return tiny.trainer(student, args, teacher, **parts)


# The objective


def content(image: Image.Image) -> bytes:
    return np.asarray(image).tobytes()


def epoch_of(trainer) -> list[tuple[list, dict[str, torch.Tensor]]]:
    """The batches of an epoch, each with its keys."""
    keys = list(trainer._get_train_sampler())
    batches = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
    return [(keys[8 * index : 8 * index + 8], batch) for index, batch in enumerate(batches)]


def teacher_term(kind: str, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    logits, teacher_logits = logits.double(), teacher_logits.double()
    if kind == "hard":
        return -logits.log_softmax(-1)[torch.arange(len(logits)), teacher_logits.argmax(-1)].mean()
    target = (teacher_logits / 2).softmax(-1)
    return 4 * (target * (target.log() - (logits / 2).log_softmax(-1))).sum(-1).mean()


def smoothed(labels: list[int | None]) -> torch.Tensor:
    """(B, 10) float64; zero where there is no label."""
    rows = [[0.0] * 10 if k is None else [0.9 * (j == k) + 0.01 for j in range(10)] for k in labels]
    return torch.tensor(rows, dtype=torch.float64)


SETTINGS = {"distillation_alpha": 0.3, "distillation_temperature": 2.0, "label_smoothing_factor": 0.1}


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8, "cutmix": 1.0, "mixup_group_size": 4}], ids=["plain", "mixed"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("distilled", [True, False], ids=["two heads", "one head"])
def test_the_class_head_learns_from_what_is_labelled(tmp_path, teacher, mixing, kind, distilled):
    trainer = make_trainer(tmp_path, teacher, distilled=distilled, distillation_type=kind, **SETTINGS, **mixing)
    model = trainer.model.train()
    labels_by_content = {content(row["image"]): row["label"] for row in halves()[0]}
    rows = [content(image) for image in trainer.train_dataset.dataset["image"]]
    known = Counter()
    for keys, batch in epoch_of(trainer):
        with torch.no_grad():
            loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        own = [labels_by_content.get(rows[key.index]) for key in keys]
        targets = smoothed(own)
        if mixing:  # the partner lies at the mirrored place of its group of four
            weights = batch["label_weights"].double()[:, None]
            assert (weights < 1).all()
            partners = [own[index // 4 * 4 + 3 - index % 4] for index in range(8)]
            targets = weights * targets + (1 - weights) * smoothed(partners)
        class_logits = outputs.cls_logits if distilled else outputs.logits
        class_term = -(targets * class_logits.double().log_softmax(-1)).sum() / 8
        other = outputs.distillation_logits if distilled else outputs.logits
        expected = 0.7 * class_term + 0.3 * teacher_term(kind, other, teacher(batch["pixel_values"]))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        known[sum(label is not None for label in own)] += 1
    assert sum(count * times for count, times in known.items()) == NUM_LABELED
    assert len(known) > 2  # batches differ in how many labels they have


def batch_of_rows(trainer, rows: list[int]) -> dict[str, torch.Tensor]:
    keys = list(trainer._get_train_sampler())
    chosen = [next(key for key in keys if key.index == row) for row in rows]
    return trainer._prepare_inputs(collate(trainer.train_dataset.__getitems__(chosen)))


def gradients(trainer, batch) -> dict[str, torch.Tensor]:
    trainer.model.train().zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return {name: parameter.grad for name, parameter in trainer.model.named_parameters()}


def test_without_labels_the_class_head_has_no_gradient(tmp_path, teacher):
    trainer = make_trainer(tmp_path, teacher)
    unlabeled = gradients(trainer, batch_of_rows(trainer, list(range(NUM_LABELED, NUM_LABELED + 8))))
    for name, gradient in unlabeled.items():
        is_class_head = name.startswith("cls_classifier")
        assert (gradient.abs().max() == 0) == is_class_head, name
    labeled = gradients(trainer, batch_of_rows(trainer, list(range(8))))
    assert all(gradient.abs().max() > 0 for gradient in labeled.values())


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8, "cutmix": 1.0, "mixup_group_size": 4}], ids=["plain", "mixed"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_unlabelled_images_alone_teach_both_heads(tmp_path, teacher, mixing, kind):
    settings = {**SETTINGS, **mixing}
    trainer = make_trainer(tmp_path, teacher, labeled=False, distillation_type=kind, **settings)
    model = trainer.model.train()
    for _, batch in epoch_of(trainer)[:2]:
        assert batch["labels"].tolist() == [-100] * 8
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        said = teacher(batch["pixel_values"])
        terms = [teacher_term(kind, logits, said) for logits in (outputs.cls_logits, outputs.distillation_logits)]
        assert loss.item() == pytest.approx((0.7 * terms[0] + 0.3 * terms[1]).item(), abs=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in gradients(trainer, batch).values())


@pytest.mark.parametrize("labeled", [True, False], ids=["beside labelled ones", "alone"])
def test_accumulation_is_equivalent(tmp_path, folder_of_teacher, labeled):
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path,
            load_teacher(folder_of_teacher, student_processor=tiny.processor()),
            labeled=labeled,
            drop_path_rate=0.2,
            max_steps=20,
            optim="sgd",
            learning_rate=0.05,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            mixup=0.8,
            cutmix=1.0,
            mixup_group_size=2,
        )
        trainer.train()
        results.append(trainer.model.state_dict())
    one, other = results
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-6
    start = tiny.student().state_dict()
    for head in ("cls_classifier.weight", "distillation_classifier.weight"):
        assert (one[head] - start[head]).abs().max() > 1e-3  # it did learn


def test_other_columns_are_left_out(tmp_path, teacher):
    train, _ = halves()
    more = tiny.digits()[0].select(range(NUM_LABELED, 96)).rename_columns({"image": "photo", "label": "guess"})
    trainer = tiny.trainer(
        tiny.student(), tiny.arguments(tmp_path), teacher, train_dataset=train, unlabeled_dataset=more
    )
    labels = [label for _, batch in epoch_of(trainer) for label in batch["labels"].tolist()]
    assert labels.count(-100) == 56  # whatever labels they have: they were given as having none
    two = more.add_column("second", [None] * 56, feature=datasets.Image())
    for wrong in (two, more.remove_columns("photo")):
        with pytest.raises(InputError, match="must have one image column"):
            tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher, unlabeled_dataset=wrong)


def test_unlabelled_images_need_a_teacher_and_rows(tmp_path, teacher):
    _, unlabeled = halves()
    with pytest.raises(InputError, match="need a teacher"):
        args = tiny.arguments(tmp_path, distillation_type="none")
        tiny.trainer(tiny.student(), args, unlabeled_dataset=unlabeled)
    views = tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher).train_dataset
    with pytest.raises(InputError, match=r"go with a datasets\.Dataset or alone, got a ViewDataset"):
        tiny.trainer(
            tiny.student(), tiny.arguments(tmp_path), teacher, train_dataset=views, unlabeled_dataset=unlabeled
        )


def test_unlabelled_images_alone_need_a_teacher_with_the_students_labels_in_order(tmp_path, folder_of_teacher):
    _, unlabeled = halves()
    reverse = {index: str(9 - index) for index in range(10)}
    backwards = load_teacher(folder_of_teacher, student_processor=tiny.processor(), id2label=reverse)

    def trainer_of(student, teacher):
        parts = {"train_dataset": None, "eval_dataset": None, "unlabeled_dataset": unlabeled}
        return tiny.trainer(student, tiny.arguments(tmp_path), teacher, **parts)

    with pytest.raises(InputError, match=r"the teacher has the student's labels in another order.*load_teacher"):
        trainer_of(tiny.student(), backwards)
    others = {index: f"thing {index}" for index in range(10)}
    with pytest.raises(InputError, match="the teacher has 10 labels as expected, but not the same"):
        trainer_of(tiny.student(id2label=others), backwards)
    # One that was made for the teacher's labels, or without names, learns them.
    assert trainer_of(tiny.student(id2label=reverse), backwards).model.config.id2label == reverse
    unnamed = {index: f"LABEL_{index}" for index in range(10)}
    assert trainer_of(tiny.student(id2label=unnamed), backwards).model.config.label2id["9"] == 0


# Labels kept


def contents(dataset: datasets.Dataset) -> Counter:
    return Counter(content(image) for image in dataset["image"])


def test_labels_kept_are_stratified_and_seeded_and_no_image_is_lost():
    data = few_digits()
    kept = {seed: data.with_labels_kept(50, seed) for seed in (5, 6)}
    label_of = {content(image): label for image, label in zip(data.train["image"], data.train["label"], strict=True)}
    totals = Counter(data.train["label"])
    for part in kept.values():
        assert len(part.train) == 50
        assert part.unlabeled.column_names == ["image"]
        assert contents(part.train) + contents(part.unlabeled) == contents(data.train)
        assert [label_of[content(image)] for image in part.train["image"]] == part.train["label"][:]
        counts = Counter(part.train["label"])
        assert all(abs(counts[digit] - totals[digit] * 50 / len(data.train)) < 1 for digit in range(10))
        assert part.validation is data.validation
    assert contents(kept[5].train) == contents(data.with_labels_kept(50, 5).train)
    assert contents(kept[5].train) != contents(kept[6].train)
    assert data.with_labels_kept(None, 5) is data


def test_labels_kept_go_beside_other_unlabelled_images(tmp_path):
    more = image_folder(tmp_path / "more", 7)
    data = load(dataset_name="sklearn:digits", unlabeled_dir=more)
    kept = data.with_labels_kept(50, 0)
    assert len(kept.unlabeled) == 120 - 50 + 7
    assert contents(kept.unlabeled) + contents(kept.train) == contents(data.train) + contents(data.unlabeled)


@pytest.mark.parametrize("feature", [datasets.Image(mode="RGB"), datasets.Image(decode=False)], ids=str)
def test_labels_kept_go_beside_images_of_another_mode(feature):
    data, (_, more) = few_digits(), halves()
    expected = len(data.train) - 50 + len(more)
    parts = [
        ImageData(data.train, None, data.label_names, more.cast_column("image", feature)),
        ImageData(data.train.cast_column("image", feature), None, data.label_names, more),
    ]
    for part in parts:
        kept = part.with_labels_kept(50, 0)
        assert len(kept.unlabeled) == expected
        assert kept.unlabeled.features == datasets.Features({"image": datasets.Image()})


def test_labels_that_cannot_be_kept_are_refused():
    data = few_digits()
    for count in (121, 9, 0, -3):  # more than there are; fewer than classes; none
        with pytest.raises(InputError, match=rf"cannot keep the labels of {count} of the 120 .*--labels_kept"):
            data.with_labels_kept(count, 0)
    with pytest.raises(InputError, match="labels_kept needs labelled training images"):
        ImageData(None, None, data.label_names, halves()[1]).with_labels_kept(10, 0)


# Runs


def image_folder(folder: Path, count: int, *, size: int = 20) -> str:
    """Images at several depths, each unlike the others."""
    for index in range(count):
        path = folder.joinpath(*["deep", "deeper"][: index % 3]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.noise(size, size, seed=index).save(path)
    return str(folder)


@pytest.fixture
def trainers(monkeypatch) -> list[DistillationTrainer]:
    """Those that a run makes."""
    made = []

    class Recorded(DistillationTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(hf_deit.commands.train, "DistillationTrainer", Recorded)
    return made


@pytest.fixture(scope="module")
def main():
    return main_of("train")


def command(tmp_path, *options: str, teacher: str | None = None) -> list[str]:
    line = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--ema_decay", "0"]
    line += ["--per_device_train_batch_size", "8", "--max_steps", "3"]
    return [*line, *(["--teacher_model_name_or_path", teacher] if teacher else []), *map(str, options)]


def labels_in(trainer) -> list[int]:
    return trainer.train_dataset.labels.tolist()


def test_a_run_with_unlabelled_images_beside_class_folders(tmp_path, trainers):
    train = class_folders(tmp_path / "train", {"ape": 12, "bee": 8})
    more = image_folder(tmp_path / "more", 30)
    # The teacher, too, is trained here: on the labelled images.
    result = run(resolve_arguments(command(tmp_path, "--train_dir", train, "--unlabeled_dir", more)))
    teacher, student = trainers
    assert (len(teacher.train_dataset), len(student.train_dataset)) == (18, 48)  # 2 of 20 are held out
    assert -100 not in labels_in(teacher)
    assert labels_in(student).count(-100) == 30
    assert result.num_validation_images == 2
    assert set(result.accuracies) == {"teacher", "class head", "distillation head", "fused"}
    losses = [entry["distillation_loss"] for entry in student.state.log_history if "distillation_loss" in entry]
    assert losses
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("is_validated", [True, False])
def test_a_run_on_unlabelled_images_alone_has_the_teachers_labels(
    tmp_path, trainers, folder_of_teacher, capsys, main, is_validated
):
    more = image_folder(tmp_path / "more", 30)
    options = ["--dataset_name", "", "--unlabeled_dir", more]
    if is_validated:
        options += ["--validation_dir", class_folders(tmp_path / "validation", {"3": 4, "7": 5})]
    else:
        asked = [*options, "--eval_strategy", "steps"]  # what a recipe asks for gives way
        assert main(command(tmp_path, *asked, teacher=folder_of_teacher)) == 2
        assert "give --validation_dir, or --eval_strategy no" in capsys.readouterr().err
    result = run(resolve_arguments(command(tmp_path, *options, teacher=folder_of_teacher)))
    (student,) = trainers
    assert labels_in(student) == [-100] * 30
    assert student.model.config.id2label == {index: str(index) for index in range(10)}
    published = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert published.config.label2id["7"] == 7
    if is_validated:
        assert result.num_validation_images == 9
        assert set(result.accuracies) == {"teacher", "class head", "distillation head", "fused"}
        # "3" and "7" are folders 0 and 1, but the teacher's labels 3 and 7.
        assert Counter(student.eval_dataset.labels.tolist()) == {3: 4, 7: 5}
    else:
        assert (result.num_validation_images, result.accuracies) == (0, {})
        assert str(result).startswith(
            "The model was not validated, as there were no labelled images: --validation_dir"
        )
        assert "---" not in str(result)


def imagenet_teacher(folder: Path) -> str:
    """A ResNet with the thousand names of ImageNet as timm has them, of which "crane" is two."""
    info = ImageNetInfo()
    names = {index: info.index_to_description(index) for index in range(1000)}
    names[639] = "maillot"  # as in lists that name each class by its first word
    assert len(set(names.values())) == 998
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label=names)
    ResNetForImageClassification(config).save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return str(folder)


UNIQUE = {134: "crane (134)", 517: "crane (517)", 638: "maillot (638)", 639: "maillot (639)", 0: "tench, Tinca tinca"}


def test_a_teacher_whose_names_repeat_gives_its_student_names_that_do_not(tmp_path, trainers):
    """ImageNet's names, on unlabelled images alone: a run, its kept labels, and what plain transformers opens."""
    teacher, more = imagenet_teacher(tmp_path / "teacher"), image_folder(tmp_path / "more", 10)
    validation = class_folders(tmp_path / "validation", {"crane (134)": 2, "crane (517)": 3})
    options = ["--dataset_name", "", "--unlabeled_dir", more, "--validation_dir", validation, "--max_steps", "1"]
    options += ["--teacher_labels", tmp_path / "labels", "--hub_model_id", "ada/birds"]
    for given in (teacher, None):  # then from kept labels alone
        result = run(resolve_arguments(command(tmp_path, *options, teacher=given)))
        config = trainers[-1].model.config
        assert {index: config.id2label[index] for index in UNIQUE} == UNIQUE
        assert len(set(config.id2label.values())) == len(config.label2id) == 1000
        assert Counter(trainers[-1].eval_dataset.labels.tolist()) == {134: 2, 517: 3}
        assert result.num_validation_images == 5
        folder = shutil.move(tmp_path / "run", tmp_path / f"run of {given is None}")
    assert trainers[-1].teacher is None
    published = AutoModelForImageClassification.from_pretrained(folder)
    assert {published.config.label2id[name]: name for name in UNIQUE.values()} == UNIQUE
    said = pipeline("image-classification", model=folder, top_k=1000)(images.noise(16, 16))
    assert len({answer["label"] for answer in said}) == 1000
    check_folder(str(folder))  # it can be published
    # It teaches in turn, students of either spelling.
    raw = AutoConfig.from_pretrained(teacher).id2label
    for names in (raw, UNIQUE | {index: name for index, name in published.config.id2label.items()}):
        again = describe_teacher(folder, student_processor=tiny.processor(), id2label=names)
        assert again.label_order == list(range(1000))


def test_a_folder_with_a_name_that_a_teacher_repeats_is_either(tmp_path):
    more = image_folder(tmp_path / "more", 2)
    validation = class_folders(tmp_path / "validation", {"crane": 2})
    with pytest.raises(InputError, match=r"training folder has not: crane; 'crane' is crane \(0\) or crane \(2\)"):
        load(unlabeled_dir=more, validation_dir=validation, label_names=["crane", "ape", "crane"])


def test_a_student_from_python_gets_unique_names_too(tmp_path):
    """From a teacher that names it, and where its own names repeat, as those of models on the Hub do."""
    raw = AutoConfig.from_pretrained(imagenet_teacher(tmp_path / "teacher")).id2label
    teacher = load_teacher(tmp_path / "teacher", student_processor=tiny.processor())
    nameless, named = (tiny.student(id2label={i: f"LABEL_{i}" for i in range(1000)}) for _ in range(2))
    named.config.id2label = dict(raw)
    for model in (nameless, named, tiny.student(id2label=raw)):
        parts = {"train_dataset": None, "unlabeled_dataset": halves()[1], "eval_dataset": None}
        trainer = tiny.trainer(model, tiny.arguments(tmp_path / "run"), teacher, **parts)
        assert model.config.id2label == teacher.id2label
        assert len(model.config.label2id) == 1000
        assert trainer.train_dataset.dataset.features["label"].names[517] == "crane (517)"


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_unlabelled_images_of_a_parquet(tmp_path, trainers, folder_of_teacher, kind):
    folder = tmp_path / "set"
    if kind == "parquet":
        folder.mkdir()
        data = tiny.digits()[0].select(range(20)).rename_column("image", "picture")
        data.to_parquet(str(folder / "unseen-0.parquet"))
    else:
        class_folders(folder / "unseen", {"x": 12, "y": 8})  # has labels of its own, which mean nothing here
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: unseen\n    path: unseen*"
        f"{'/**' if kind == 'imagefolder' else ''}\n---\n"
    )
    options = ["--unlabeled_dataset_name", folder, "--unlabeled_split", "unseen"]
    run(resolve_arguments(command(tmp_path, *options, teacher=folder_of_teacher)))
    (student,) = trainers
    assert len(student.train_dataset) == 120 + 20
    assert labels_in(student).count(-100) == 20


@pytest.mark.parametrize("split", ["validation", "test"])
def test_any_split_may_be_the_unlabelled_one(tmp_path, split):
    train, validation = few_digits().train.select(range(9)), few_digits().validation.select(range(5))
    folder = parquet(tmp_path / "set", train=train, **{split: validation})
    data = load(dataset_name="sklearn:digits", unlabeled_dataset_name=folder, unlabeled_split=split)
    assert contents(data.unlabeled) == contents(validation)


def test_broken_images_of_an_unlabelled_data_set_stop_the_run_at_its_start(tmp_path):
    columns = few_digits().train.select(range(20)).cast_column("image", datasets.Image(decode=False)).to_dict()
    columns["image"][7] = {"bytes": b"no picture", "path": "7.png"}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    broken = datasets.Dataset.from_dict(columns, features=features).rename_column("image", "photo")
    options = {"dataset_name": "sklearn:digits", "unlabeled_dataset_name": parquet(tmp_path / "set", train=broken)}
    with pytest.raises(InputError, match=r"1 of the 20 images .*: row 7 \(7\.png\)"):
        load(**options)
    assert len(load(**options, on_bad_image="skip").unlabeled) == 20


def test_a_run_that_keeps_few_labels(tmp_path, trainers, folder_of_teacher):
    options = ["--labels_kept", "50", "--seed", "11"]
    run(resolve_arguments(command(tmp_path, *options, teacher=folder_of_teacher)))
    (student,) = trainers
    dataset = student.train_dataset.dataset
    whole = few_digits()
    assert contents(dataset) == contents(whole.train)
    labeled = [index for index, label in enumerate(labels_in(student)) if label >= 0]
    assert Counter(dataset["label"][index] for index in labeled).keys() == set(range(10))
    assert contents(dataset.select(labeled)) == contents(whole.with_labels_kept(50, 11).train)


def test_without_distillation_only_the_labelled_images_are_used(tmp_path, trainers):
    options = ["--labels_kept", "50", "--distillation_type", "none"]
    run(resolve_arguments(command(tmp_path, *options)))
    (student,) = trainers
    assert contents(student.train_dataset.dataset) == contents(few_digits().with_labels_kept(50, 42).train)
    assert -100 not in labels_in(student)


def test_hidden_files_are_none_of_the_images(tmp_path):
    more = tmp_path / "more"
    image_folder(more, 6)
    (more / ".DS_Store").write_bytes(b"no image")
    (more / ".cache").mkdir()
    shutil.copy(more / "0.png", more / ".cache" / "small.png")
    shutil.copy(more / "0.png", more / "deep" / ".0.png")
    data = load(dataset_name="sklearn:digits", unlabeled_dir=str(more))
    assert len(data.unlabeled) == len(contents(data.unlabeled)) == 6


def test_a_folder_below_a_hidden_one_is_read(tmp_path):
    more = image_folder(tmp_path / ".hidden" / "more", 6)
    assert len(load(dataset_name="sklearn:digits", unlabeled_dir=more).unlabeled) == 6


def test_broken_files_stop_the_run_or_are_skipped(tmp_path, trainers, folder_of_teacher, main, capsys, caplog):
    more = tmp_path / "more"
    image_folder(more, 12, size=64)
    (more / "deep" / "notes.txt").write_text("no picture")
    options = ["--dataset_name", "", "--unlabeled_dir", more, "--eval_strategy", "no"]
    line = command(tmp_path, *options, teacher=folder_of_teacher)
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "1 of the 13 files" in error
    assert str(more / "deep" / "notes.txt") in error
    cut = more / "3.png"  # its header is whole: it shows only when it is decoded
    cut.write_bytes(cut.read_bytes()[:3000])
    assert main([*line, "--on_bad_image", "skip", "--max_steps", "9"]) == 0
    assert "broken images skipped: 2, " in capsys.readouterr().out
    for file in (cut, more / "deep" / "notes.txt"):  # met in several epochs
        assert caplog.text.count(f"cannot be decoded: {file}: ") == 1
    skipping = trainers[-1]
    sampler, paths = (
        skipping._get_train_sampler(),
        skipping.train_dataset.dataset.cast_column("image", datasets.Image(decode=False))["image"],
    )
    met = 0
    for epoch in range(9):  # of one step each
        sampler.set_epoch(epoch)
        met += sum(paths[key.index]["path"] in (str(cut), str(more / "deep" / "notes.txt")) for key in sampler)
    assert skipping.step_record.skipped_images == met > 0
    (more / "deep" / "notes.txt").unlink()
    shutil.rmtree(tmp_path / "run")
    assert main([*line, "--max_steps", "9"]) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(error) == 1
    assert str(cut) in error[0]
    for path in more.rglob("*.png"):
        path.write_text("no picture")
    with pytest.raises(InputError, match="12 of the 12 files"):
        load(dataset_name="sklearn:digits", unlabeled_dir=str(more), on_bad_image="skip")


MISTAKES = {
    "no teacher": (["--distillation_type", "none", "--unlabeled_dir", "MORE"], "no teacher labels them"),
    "alone without teacher": (["--dataset_name", "", "--unlabeled_dir", "MORE"], "alone need a teacher"),
    "alone to train a teacher on": (
        ["--dataset_name", "", "--unlabeled_dir", "MORE", "--distillation_type", "none"],
        "alone need a teacher",
    ),
    "both": (
        ["--unlabeled_dir", "MORE", "--unlabeled_dataset_name", "MORE"],
        "either --unlabeled_dir or --unlabeled_dataset_name",
    ),
    "empty": (["--unlabeled_dir", "EMPTY"], "no images in"),
    "missing": (["--unlabeled_dir", "nowhere"], "no folder 'nowhere'"),
    "no data set": (["--unlabeled_dataset_name", "nobody/nothing"], "cannot load the data set 'nobody/nothing'"),
    "no split": (["--unlabeled_dataset_name", "MORE", "--unlabeled_split", "rest"], "no split 'rest'; it has train"),
    "too many labels": (["--labels_kept", "5000"], "cannot keep the labels of 5000 of the 120"),
    "too few labels": (["--labels_kept", "3"], "cannot keep the labels of 3 of the 120"),
    "labels of none": (
        ["--dataset_name", "", "--unlabeled_dir", "MORE", "--labels_kept", "5", "TEACHER"],
        "labels_kept needs labelled",
    ),
    "other classes": (
        ["--dataset_name", "", "--unlabeled_dir", "MORE", "--validation_dir", "CLASSES", "TEACHER"],
        "has classes that the training folder has not: ape, bee",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_in_one_message(main, tmp_path, capsys, folder_of_teacher, mistake):
    options, message = MISTAKES[mistake]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitkeep").touch()
    places = {
        "MORE": image_folder(tmp_path / "more", 5),
        "EMPTY": str(tmp_path / "empty"),
        "CLASSES": class_folders(tmp_path / "classes", {"ape": 2, "bee": 2}),
    }
    teacher = folder_of_teacher if "TEACHER" in options else None
    options = [places.get(option, option) for option in options if option != "TEACHER"]
    assert main(command(tmp_path, *options, teacher=teacher)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert re.search(message, error[0]), error
    assert not list((tmp_path / "run").rglob("*"))
