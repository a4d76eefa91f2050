"""Contract: several teachers answer with the logarithm of the weighted mean of their probabilities, in any order.

Each sees its own statistics and size and is matched by its names; what one cannot do is refused by its name.
"""

import math
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.zero_shot import clip_folder
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_deit import InputError, describe_teacher, load_teacher
from hf_deit.models.answers import has_answer
from hf_deit.models.ensemble import TeacherEnsemble, normalized_weights
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor
from hf_deit.models.teacher import load_labels
from hf_deit.training.losses import hard_distillation_loss, soft_distillation_loss

NAMES = ["ape", "bee", "cat", "dog"]
LABELS = dict(enumerate(NAMES))
PROCESSOR = DistilledDeiTImageProcessor(crop_size={"height": 32, "width": 32}, crop_ratio=1.0)
OWN = {
    "resnet": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "vit": {"image_mean": [0.1, 0.4, 0.7], "image_std": [0.2, 0.3, 0.5]},
    "third": {},
}
TINY_VIT = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48, patch_size=8)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A ResNet and a ViT with labels in another order each, and another ResNet with the student's."""
    root, saved = tmp_path_factory.mktemp("teachers"), {}
    for seed, (name, names) in enumerate({"resnet": NAMES[::-1], "vit": [*NAMES[1:], "Ape"], "third": NAMES}.items()):
        torch.manual_seed(seed)
        named = {"id2label": dict(enumerate(names)), "label2id": {label: i for i, label in enumerate(names)}}
        if name == "vit":
            model = ViTForImageClassification(ViTConfig(**TINY_VIT, image_size=16, **named))
        else:
            depths = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
            model = ResNetForImageClassification(ResNetConfig(**depths, **named))
        with torch.no_grad():  # answers that are far from alike
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
        model.save_pretrained(root / name)
        edge = 16 if name == "vit" else 32
        ViTImageProcessor(size={"height": edge, "width": edge}, **OWN[name]).save_pretrained(root / name)
        saved[name] = str(root / name)
    clip_folder(root / "clip")
    saved["clip"] = str(root / "clip")
    return saved


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    generator = np.random.RandomState(0)
    images = [Image.fromarray(generator.randint(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]
    return PROCESSOR(images, return_tensors="pt")["pixel_values"]


def loaded(folders, *names, labels=LABELS, **settings):
    paths = [folders.get(name, name) for name in names]
    return load_teacher(paths, student_processor=PROCESSOR, id2label=labels, **settings)


def own_logits(folders, name, pixels) -> torch.Tensor:
    """Of a member's own model, shown its own statistics and size, in the student's order: float64 throughout."""
    if name == "clip":
        return load_teacher(folders[name], student_processor=PROCESSOR, id2label=LABELS, templates=["a {}."])(
            pixels
        ).double()
    model = (ViTForImageClassification if name == "vit" else ResNetForImageClassification).from_pretrained(
        folders[name], dtype=torch.float64
    )
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (PROCESSOR.image_mean, PROCESSOR.image_std))
    own = ViTImageProcessor(**OWN[name])
    shown = pixels * std + mean
    shown = (shown - torch.tensor(own.image_mean).view(3, 1, 1)) / torch.tensor(own.image_std).view(3, 1, 1)
    if name == "vit":
        shown = torch.nn.functional.interpolate(shown, size=(16, 16), mode="bicubic", antialias=True)
    with torch.no_grad():
        logits = model.eval()(pixel_values=shown.double()).logits
    order = [[label.lower() for label in model.config.id2label.values()].index(label) for label in NAMES]
    return logits[:, order]


def mean_of(folders, pixels, weights: dict[str, float]) -> torch.Tensor:
    parts = [weight * own_logits(folders, name, pixels).softmax(dim=-1) for name, weight in weights.items()]
    return sum(parts) / sum(weights.values())


@pytest.mark.parametrize(
    "weights", [{"resnet": 1, "vit": 1}, {"vit": 2, "resnet": 1, "third": 0.5}, {"third": 1e-6, "vit": 1, "clip": 3}]
)
def test_the_answer_is_the_weighted_mean_of_the_probabilities(folders, pixels, weights):
    settings = {"templates": ["a {}."]} if "clip" in weights else {}
    teacher = loaded(folders, *weights, weights=[*weights.values()], **settings)
    answer, expected = teacher(pixels), mean_of(folders, pixels, weights)
    assert answer.shape == (6, 4) and answer.dtype == torch.float32 and has_answer(answer).all()
    assert expected.std(dim=0).max() > 0.01  # it depends on the image
    torch.testing.assert_close(answer.double().exp(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(answer.double(), expected.log(), atol=1e-3, rtol=1e-4)
    assert teacher.dtype == torch.float32 and teacher.id2label == LABELS and teacher.revision is None
    assert [member.shown_size for member in teacher.members] == [
        (16, 16) if name == "vit" else (32, 32) for name in weights
    ]


def test_without_weights_all_count_alike(folders, pixels):
    teacher = loaded(folders, "resnet", "vit", "third")
    torch.testing.assert_close(
        teacher(pixels).double().exp(),
        mean_of(folders, pixels, {"resnet": 1, "vit": 1, "third": 1}),
        atol=2e-5,
        rtol=1e-4,
    )
    assert teacher.weights == (0.333333333333,) * 3


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_soft_loss_softens_the_mean(folders, pixels, temperature):
    """KL(mean^(1/τ), normalised ‖ student), and the hard loss takes the mean's best class."""
    teacher = loaded(folders, "resnet", "vit", weights=[1, 3])
    student = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    mean = mean_of(folders, pixels, {"resnet": 1, "vit": 3})
    soft = mean ** (1 / temperature)
    soft = soft / soft.sum(dim=-1, keepdim=True)
    said = (student.double() / temperature).log_softmax(dim=-1)
    expected = temperature**2 * (soft * (soft.log() - said)).sum(dim=-1).mean()
    got = soft_distillation_loss(student, teacher(pixels), temperature=temperature)
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)
    hard = -student.double().log_softmax(dim=-1).gather(1, mean.argmax(dim=-1, keepdim=True)).mean()
    assert hard_distillation_loss(student, teacher(pixels)).item() == pytest.approx(hard.item(), rel=1e-5)


def test_the_order_makes_no_difference_to_the_last_bit(folders, pixels):
    one = loaded(folders, "resnet", "vit", "third", weights=[0.1, 0.2, 0.4])
    for names, weights in ((["third", "resnet", "vit"], [4, 1, 2]), (["vit", "third", "resnet"], [20, 40, 10])):
        other = loaded(folders, *names, weights=weights)
        assert torch.equal(one(pixels), other(pixels))
        assert one.description.identity() == other.description.identity()
    assert one.description.identity() != loaded(folders, "resnet", "vit", "third").description.identity()


def test_what_they_are_known_by(folders):
    description = describe_teacher(
        [folders["vit"], folders["resnet"]], student_processor=PROCESSOR, id2label=LABELS, weights=[3, 1]
    )
    identity = description.identity()
    alone = {
        name: describe_teacher(folders[name], student_processor=PROCESSOR, id2label=LABELS).identity()
        for name in ("vit", "resnet")
    }
    assert [one["revision"] for one in identity["members"]] == sorted(one["revision"] for one in alone.values())
    for name, member, weight in zip(identity["names"], identity["members"], identity["weights"], strict=True):
        assert member == {key: value for key, value in alone[name].items() if key not in ("name", "labels")}
        assert weight == {"vit": 0.75, "resnet": 0.25}[name]
    assert identity["labels"] == NAMES and identity["dtype"] == "float32"
    assert not any({"members", "weights", "names"} & one.keys() for one in alone.values())
    assert description.name_or_path == f"{folders['vit']} + {folders['resnet']}"


def test_they_never_train_and_keep_no_weights_in_a_gradient(folders, pixels):
    teacher = loaded(folders, "resnet", "third")
    before = teacher(pixels)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher(pixels), before) and not before.requires_grad


def test_a_size_and_a_precision_are_for_all(folders, pixels):
    teacher = loaded(folders, "resnet", "third", input_size=24, dtype="bfloat16")
    assert teacher.shown_size == (24, 24) and teacher.dtype == torch.bfloat16
    assert {member.dtype for member in teacher.members} == {torch.bfloat16}
    assert loaded(folders, "resnet", "vit").shown_size is None
    assert has_answer(teacher(pixels)).all()


def test_a_view_that_one_of_them_has_no_answer_to_has_none(folders, pixels):
    teacher = loaded(folders, "resnet", "third")
    good = teacher.each(pixels)
    assert teacher.without_answer() == []
    for bad in (math.nan, math.inf, -math.inf):
        teacher = loaded(folders, "resnet", "third")
        broken = good[1].clone()
        broken[2, 0] = bad
        answer = teacher.together([good[0], broken])
        assert has_answer(answer).tolist() == [index != 2 for index in range(6)]
        assert torch.equal(answer[3:], teacher.together(good)[3:])
        assert teacher.without_answer() == [folders["third"]]


def test_the_labels_are_the_first_classifiers_where_nobody_says_them(folders):
    for names in (("resnet", "third"), ("clip", "resnet", "third")):
        teacher = loaded(folders, *names, labels=None)
        assert list(teacher.id2label.values()) == NAMES[::-1]
        assert load_labels([folders[name] for name in names]) == NAMES[::-1]
    with pytest.raises(InputError, match="must be told them"):
        load_labels([folders["clip"]])


def test_a_list_of_one_is_one(folders):
    assert not isinstance(loaded(folders, "resnet"), TeacherEnsemble)


REFUSED = {
    "twice": (["resnet", "vit", "resnet"], {}, r"resnet' is given twice: .*--teacher_weights"),
    "no teacher": ([], {}, "there is no teacher"),
    "too few weights": (["resnet", "vit"], {"weights": [1]}, r"2 teachers, but 1 weights \(1\)"),
    "weights of one": (["resnet"], {"weights": [1]}, "weights are of several teachers, got one"),
    "no positive weight": (["resnet", "vit"], {"weights": [1, 0]}, "positive and finite, got 0"),
    "a negative weight": (["resnet", "vit"], {"weights": [-1, 2]}, "positive and finite, got -1"),
    "a weight in words": (["resnet", "vit"], {"weights": ["much", 2]}, "must be numbers, one for each, got"),
    "one weight for all": (["resnet", "vit"], {"weights": 2}, "must be numbers, one for each, got 2"),
    "no finite weight": (["resnet", "vit"], {"weights": [math.inf, 2]}, "positive and finite, got inf"),
    "no weight at all": (["resnet", "vit"], {"weights": [1e-20, 2]}, "nothing beside 2"),
    "a revision for all": (["resnet", "vit"], {"revision": "main"}, "write NAME@REVISION"),
    "texts for nobody": (["resnet", "vit"], {"templates": ["a {}"]}, "no(ne of the)? teachers? is one"),
    "other labels": (["resnet", "vit"], {"labels": {**LABELS, 3: "yak"}}, r"the teacher '.*resnet' has 4 labels"),
    "a size": (["resnet", "vit"], {"input_size": 24}, r"the teacher '.*vit' takes no images of 24"),
    "no such model": (["resnet", "./nowhere"], {}, r"no folder './nowhere'"),
    "a subset of none": (["clip"], {"label_subset": True}, "zero-shot model, which has none of its own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_one_is_refused_by_its_name(folders, case):
    names, settings, said = REFUSED[case]
    with pytest.raises(InputError) as refusal:
        loaded(folders, *names, **settings)
    assert re.search(said, str(refusal.value)), refusal.value


def test_one_that_is_broken_is_named(folders, tmp_path):
    broken = shutil.copytree(folders["third"], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="broken"):
        loaded(folders, "resnet", str(broken))


@pytest.mark.parametrize(
    ("given", "shares"),
    [([2, 1, 1], (0.5, 0.25, 0.25)), ([0.3, 0.1], (0.75, 0.25)), ([1e308] * 2, (0.5, 0.5)), (None, (0.5, 0.5))],
)
def test_weights_are_shares(given, shares):
    assert normalized_weights(given, len(shares)) == shares


def test_those_with_more_classes_teach_the_students_among_them(folders, pixels):
    """Two classes of the four: each one's probabilities of these are divided by their sum before the mean."""
    few = {0: "Dog", 1: "bee"}
    teacher = loaded(folders, "resnet", "vit", labels=few, label_subset=True, weights=[1, 2])
    parts = [own_logits(folders, name, pixels)[:, [3, 1]].softmax(dim=-1) for name in ("resnet", "vit")]
    torch.testing.assert_close(teacher(pixels).double().exp(), (parts[0] + 2 * parts[1]) / 3, atol=2e-5, rtol=1e-4)
    mixed = loaded(folders, "clip", "vit", labels=few, label_subset=True)
    assert mixed.id2label == few and has_answer(mixed(pixels)).all()
