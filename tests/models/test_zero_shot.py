"""Contract: a zero-shot model teaches exactly what its own `logits_per_image` says of the texts of the classes.

Texts are read once, in the spelling and the padding that the model has learnt, and their tower goes. What says nothing
to a model of texts is refused before a weight is loaded.
"""

import builtins
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.checkpoints import edited, reweighted
from support.hub_client import connect
from support.hub_server import HubServer
from support.zero_shot import FOLDERS, OTHERS, clip_folder, gemma_tokenizer, naflex_folder, other_folder, siglip_folder
from torch import nn
from torchvision.transforms.v2 import functional as vision
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2Config,
    BlipConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    SiglipModel,
    SiglipVisionModel,
    VideoPrismConfig,
    pipeline,
)

from hf_deit import DistilledDeiTImageProcessor, InputError, describe_teacher, load_teacher
from hf_deit.models.teacher import load_labels
from hf_deit.models.zero_shot import tokens
from hf_deit.models.zero_shot.names import readable, without_meaning
from hf_deit.models.zero_shot.prompts import CHINESE_TEMPLATES, DEFAULT_TEMPLATES, Prompts

NAMES = {0: "cat", 1: "red_dog", 2: "fox and hare"}
READ = ("cat", "red dog", "fox and hare")
TEMPLATE = "a photo of a {}"  # without a mark or a capital, which SigLIP 2's tokenizers would keep
PADDED = ("siglip", "siglip2", "naflex", "tipsv2")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Any:
    """Folder and model of a kind, made when it is first asked for. Neither may be changed."""
    made: dict[str, tuple[Path, nn.Module]] = {}

    def model_of(kind: str) -> tuple[Path, nn.Module]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            model = FOLDERS[kind](folder) if kind in FOLDERS else other_folder(folder, kind)
            made[kind] = folder, model.eval()
        return made[kind]

    return model_of


@pytest.fixture
def clip(tmp_path) -> Path:
    clip_folder(tmp_path / "clip")
    return tmp_path / "clip"


def processor(size: int = 32) -> DistilledDeiTImageProcessor:
    return DistilledDeiTImageProcessor(crop_size=size, crop_ratio=1.0)


def images(size: int = 32) -> list[Image.Image]:
    generator = np.random.RandomState(size)
    return [Image.fromarray(generator.randint(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(4)]


def shown(size: int = 32) -> torch.Tensor:
    return processor(size)(images(size), return_tensors="pt")["pixel_values"]


def teacher_of(folder: Path, size: int = 32, **settings: Any):
    return load_teacher(folder, student_processor=processor(size), **{"id2label": NAMES, **settings})


def description_of(folder: Path, **settings: Any):
    return describe_teacher(folder, student_processor=processor(), **{"id2label": NAMES, **settings})


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        description_of(folder, **settings)
    return str(error.value)


def token_rows(folder: Path, kind: str, texts: list[str]) -> dict[str, torch.Tensor]:
    padding = {"padding": "max_length", "max_length": 64} if kind in PADDED else {"padding": True}
    found = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **padding)
    return {name: value for name, value in found.items() if kind != "blip" or name != "token_type_ids"}


@torch.no_grad()
def own_logits(folder: Path, kind: str, model: nn.Module, texts: list[str]) -> torch.Tensor:
    """Without the bias of SigLIP's, which a softmax does not see."""
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images(), return_tensors="pt")
    logits = model(**pixels, **token_rows(folder, kind, texts)).logits_per_image
    assert logits.std(dim=0).min() > 1e-3 and logits.std(dim=1).min() > 1e-3
    return logits - (model.logit_bias if hasattr(model, "logit_bias") else 0)


# Its answer


@pytest.mark.parametrize("kind", [*FOLDERS, *OTHERS])
def test_it_says_what_the_model_says(models, kind):
    folder, model = models(kind)
    teacher = teacher_of(folder, templates=[TEMPLATE])
    expected = own_logits(folder, kind, model, [TEMPLATE.replace("{}", name) for name in READ])
    torch.testing.assert_close(teacher(shown()), expected, atol=1e-5, rtol=0)
    assert teacher.id2label == NAMES and teacher.shown_size == (32, 32)
    # Its text tower is gone, and what is left does not learn.
    teacher.train().to(torch.float32)
    for names in (dict(teacher.named_parameters()), teacher.state_dict(), dict(teacher.named_modules())):
        assert not [name for name in names if "text" in name]
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert torch.equal(copy.deepcopy(teacher)(shown()), teacher(shown()))


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "chinese_clip", "naflex"])
def test_it_says_what_the_pipeline_says(models, kind):
    folder, _ = models(kind)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    rows = classify(images(), candidate_labels=list(READ), hypothesis_template=TEMPLATE)
    scores = torch.tensor([[{row["label"]: row["score"] for row in found}[name] for name in READ] for found in rows])
    if kind in PADDED:  # of which the pipeline takes sigmoids, with the bias
        scores = torch.logit(scores.double()).softmax(dim=1).float()
    got = teacher_of(folder, templates=[TEMPLATE])(shown()).softmax(dim=1)
    torch.testing.assert_close(got, scores, atol=1e-5, rtol=0)
    assert torch.equal(got.argsort(dim=1), scores.argsort(dim=1))


@pytest.mark.parametrize("kind", ["clip", "siglip2"])
def test_of_several_texts_the_mean_of_the_directions_counts(models, kind):
    folder, model = models(kind)
    templates = ["a photo of a {}", "{}", "the {} of the {}", "a drawing of a small {}"]
    texts = [[template.replace("{}", name) for template in templates] for name in READ]
    texts[1] = ["a dog as red as a fox", "red said the dog"]
    got = teacher_of(folder, templates=templates, prompts={"red_dog": texts[1]})(shown())
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        directions = []
        for own in texts:
            features = exact.get_text_features(**token_rows(folder, kind, own)).pooler_output
            mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
            directions.append(mean / mean.norm())
        pixels = AutoImageProcessor.from_pretrained(folder)(images=images(), return_tensors="pt")["pixel_values"]
        features = exact.get_image_features(pixel_values=pixels.double()).pooler_output
        cosines = features / features.norm(dim=1, keepdim=True) @ torch.stack(directions).T
        expected = exact.logit_scale.exp() * cosines
    torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=0)


def test_the_usual_templates_are_several_and_those_of_chinese_clip_are_chinese(models):
    for kind, usual in (
        ("clip", DEFAULT_TEMPLATES),
        ("siglip", DEFAULT_TEMPLATES),
        ("chinese_clip", CHINESE_TEMPLATES),
    ):
        texts = description_of(models(kind)[0]).prompts.texts
        assert texts[1] == tuple(template.replace("{}", "red dog") for template in usual)
        assert len(set(texts[1])) == 7


def test_texts_are_read_once(models, monkeypatch):
    folder, _ = models("clip")
    passes = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: passes.append(module) if isinstance(module, CLIPTextModel) else None
    )
    try:
        teacher = teacher_of(folder)
        whole = teacher.model.classes.clone()
        for _ in range(3):
            teacher(shown())
        assert len(passes) == 1
        monkeypatch.setattr(tokens, "_AT_ONCE", 4)  # 21 texts
        parts = teacher_of(folder).model.classes
        assert len(passes) == 1 + 6
    finally:
        hook.remove()
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "dtype"), [("clip", "bfloat16"), ("naflex", "bfloat16")])
def test_it_computes_in_half_precision_and_answers_in_single(models, kind, dtype):
    folder, _ = models(kind)
    exact, teacher = teacher_of(folder), teacher_of(folder, dtype=dtype)
    assert teacher.dtype == getattr(torch, dtype) and teacher.model.model.dtype == teacher.dtype
    got = teacher(shown())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact(shown()), atol=0.6, rtol=0)
    assert not torch.equal(got, exact(shown()))


# The size of its pixels


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_at_another_size_its_positions_are_interpolated(models, kind):
    folder, model = models(kind)
    assert teacher_of(folder, 48).shown_size == (32, 32)  # its own, unless another is asked for
    teacher = teacher_of(folder, 48, input_size="student", templates=[TEMPLATE])
    assert teacher.shown_size == (48, 48) and teacher.other_sizes == {"own": (32, 32)}
    pixels = shown(48) * teacher.scale + teacher.shift
    rows = token_rows(folder, kind, [TEMPLATE.replace("{}", name) for name in READ])
    with torch.no_grad():
        expected = model(pixel_values=pixels, interpolate_pos_encoding=True, **rows).logits_per_image
    expected = expected - (model.logit_bias if kind == "siglip" else 0)
    torch.testing.assert_close(teacher(shown(48)), expected, atol=1e-5, rtol=0)


def test_naflex_takes_any_number_of_whole_patches(models, tmp_path):
    folder, model = models("naflex")
    teacher = teacher_of(folder, 48, input_size="student", templates=[TEMPLATE])
    assert teacher.description.own_size == (32, 32) and teacher.shown_size == (48, 48)
    own = AutoImageProcessor.from_pretrained(folder)(images=images(48), max_num_patches=40, return_tensors="pt")
    assert own["spatial_shapes"].tolist() == [[6, 6]] * 4  # and four patches are padding
    rows = token_rows(folder, "naflex", [TEMPLATE.replace("{}", name) for name in READ])
    with torch.no_grad():
        expected = model(**own, **rows).logits_per_image - model.logit_bias
    torch.testing.assert_close(teacher(shown(48)), expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=r"takes no images of 44 pixels.*patches have 8 pixels"):
        teacher_of(folder, input_size=44)
    naflex_folder(tmp_path / "other")
    edited(tmp_path / "other", "preprocessor_config.json", max_num_patches=30)
    assert teacher_of(tmp_path / "other").description.own_size == (40, 40)
    edited(tmp_path / "other", "preprocessor_config.json", max_num_patches=10**6)
    assert "1,000,000 patches of 8 pixels" in refusal(tmp_path / "other")


# The image processor


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_image_processor_may_stand_within_the_processor(tmp_path, is_nested):
    model = clip_folder(tmp_path, is_nested=is_nested)
    assert (tmp_path / "preprocessor_config.json").exists() is not is_nested
    teacher = teacher_of(tmp_path, 48, templates=[TEMPLATE])
    assert teacher.description.own_size == (32, 32)
    small = vision.resize(shown(48), [32, 32], interpolation=vision.InterpolationMode.BICUBIC, antialias=True)
    rows = token_rows(tmp_path, "clip", [TEMPLATE.replace("{}", name) for name in READ])
    with torch.no_grad():
        expected = model(pixel_values=small * teacher.scale + teacher.shift, **rows).logits_per_image
    torch.testing.assert_close(teacher(shown(48)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_mean": None}, "states no image_mean in image_processor of processor_config.json"),
        ({"image_std": [1.0, 2.0]}, "expected three numbers"),
        ({"size": {"shortest_edge": 10**6}}, "which no model has"),
    ],
)
def test_a_nested_image_processor_is_checked_as_another_is(tmp_path, changes, words):
    clip_folder(tmp_path, is_nested=True)
    whole = json.loads((tmp_path / "processor_config.json").read_text())
    whole["image_processor"].update(changes)
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    assert words in refusal(tmp_path)


def test_a_classifier_may_have_a_nested_image_processor(tmp_path):
    model = CLIPForImageClassification(clip_folder(tmp_path, is_nested=True).config)
    model.save_pretrained(tmp_path)
    labels = model.config.id2label
    teacher = load_teacher(tmp_path, student_processor=processor(), id2label=labels)
    assert teacher.description.prompts is None and teacher.description.own_size == (32, 32)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(images=images(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(teacher(shown()), model.eval()(pixels).logits, atol=1e-5, rtol=1e-4)
    assert "prompts" not in teacher.description.identity()
    for given in ({"templates": [TEMPLATE]}, {"prompts": {"LABEL_0": "a cat"}}):
        assert "is a classifier, which knows its classes" in refusal(tmp_path, id2label=labels, **given)


# The tokenizer


@pytest.mark.parametrize("kind", ["siglip2", "naflex"])
def test_siglip_2_reads_small_letters_without_punctuation(models, kind):
    folder, _ = models(kind)
    loud = teacher_of(folder, templates=["A Photo, of_a: {}!"])
    quiet = teacher_of(folder, id2label=dict(enumerate(READ)), templates=["a photo of a {}"])
    assert torch.equal(loud.model.classes, quiet.model.classes)
    assert loud.description.prompts.texts == quiet.description.prompts.texts
    assert loud.description.identity()["prompts"] == quiet.description.identity()["prompts"]


def test_the_tokenizer_decides_on_the_spelling_and_not_the_type(tmp_path):
    siglip_folder(tmp_path / "one")
    assert description_of(tmp_path / "one", templates=["A {}!"]).prompts.texts[0] == ("A cat!",)
    gemma_tokenizer().save_pretrained(tmp_path / "one")
    assert description_of(tmp_path / "one", templates=["A {}!"]).prompts.texts[0] == ("a cat",)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_texts_that_are_too_long_are_refused(models, kind):
    folder, _ = models(kind)
    words = refusal(folder, prompts={"cat": "x" * 80})
    assert "reads 64 tokens" in words and "'cat' (8" in words
    description_of(folder, prompts={"cat": "x" * 60})


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_a_model_without_a_tokenizer_is_refused(models, tmp_path, kind):
    for file in models(kind)[0].iterdir():
        if "token" not in file.name:
            shutil.copy(file, tmp_path)
    words = refusal(tmp_path)
    assert "tokenizer" in words and str(tmp_path) in words and "Traceback" not in words


def test_packages_that_a_tokenizer_needs_are_named(models, monkeypatch):
    def absent(*_: Any, **__: Any):
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr(tokens.AutoTokenizer, "from_pretrained", absent)
    assert "pip install sentencepiece protobuf" in refusal(models("siglip")[0])


def test_no_code_of_a_tokenizer_or_a_model_is_run(clip, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(builtins, "input", lambda prompt: "y")
    trace = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (clip / "m.py").write_text(trace + "class T: ...\nclass C: ...\nclass M: ...\n")
    edited(clip, "tokenizer_config.json", auto_map={"AutoTokenizer": ["m.T", "m.T"]})
    code = {"AutoConfig": "m.C", "AutoModelForZeroShotImageClassification": "m.M", "AutoTokenizer": ["m.T", None]}
    edited(clip, auto_map=code, attn_implementation="evil/kernel")
    assert teacher_of(clip)(shown()).shape == (4, 3)
    assert not (tmp_path / "ran").exists() and "leads elsewhere" in caplog.text


# The names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red_fox", "red fox"),
        ("German-Shepherd", "German Shepherd"),
        ("AnnualCrop", "Annual Crop"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("Tomato___Early_blight", "Tomato Early blight"),
        ("  two   blanks ", "two blanks"),
        ("T-shirt", "T-shirt"),
        ("black-footed ferret", "black-footed ferret"),
        ("McDonald", "McDonald"),
        ("737-800", "737-800"),
        ("e\u0301clair", "éclair"),
        ("tench, Tinca tinca", "tench, Tinca tinca"),
    ],
)
def test_a_name_is_made_readable(name, expected):
    assert readable(name) == readable(expected) == expected


MEANINGLESS = [
    *("n01440764", "class_3", "Class 12", "LABEL_3", "category-b", "cls7", "folder 2", "0", "7", "42", "3.5", "-1"),
    *("", "   ", "a", "Z", "3f2a9c1b", "550e8400-e29b-41d4-a716-446655440000", "d41d8cd98f00b204e9800998ecf8427e"),
    *("--", "?", "20-29", "٣", "001.class_3"),
]


@pytest.mark.parametrize("name", MEANINGLESS)
def test_a_name_that_says_nothing_is_refused_before_anything_is_loaded(tmp_path, models, name):
    shutil.copy(models("clip")[0] / "config.json", tmp_path)  # and nothing else
    words = refusal(tmp_path, id2label={0: "cat", 1: name, 2: "dog"})
    assert repr(name) in words and "--class_prompts" in words and "'cat'" not in words


def test_letters_with_numbers_say_nothing_where_all_are_such():
    assert set(without_meaning(["c0", "c1", "c2"])) == {"c0", "c1", "c2"}
    assert without_meaning(["F-16", "A-10", "airliner"]) == without_meaning(["c0"]) == {}


@pytest.mark.parametrize(
    "name", ["cat_1", "fabaceae", "猫", "class action", "bin", "label", "type", "ox", "F-16", "18-wheeler"]
)
def test_a_name_that_says_something_is_taken(name):
    assert without_meaning([name, "dog"]) == {}


def test_digits_are_taken_with_prompts(models):
    words = ["zero", "one", "two"]
    labels = {index: str(index) for index in range(3)}
    teacher = teacher_of(
        models("clip")[0], id2label=labels, prompts={str(i): f"the digit {w}" for i, w in enumerate(words)}
    )
    assert teacher.id2label == labels
    named = teacher_of(models("clip")[0], id2label=dict(enumerate(words)), templates="the digit {}")
    assert torch.equal(teacher.model.classes, named.model.classes)
    some = refusal(models("clip")[0], id2label=labels, prompts={"0": "zero", "2": ["two"]})
    assert "'1'" in some and "'0'" not in some
    assert "'0'" in refusal(models("clip")[0], id2label=labels, prompts={**dict.fromkeys("12", "x"), "0": "a {}"})


# The texts


def test_prompts_and_templates_meet():
    found = Prompts.of(
        ["red_fox", "Cat", "gru\u0308n"],
        {"grün": ["green {}", "a leaf"], "Cat": "Felis {catus}"},
        ["a {}.", "{} {}"],
    )
    assert found.texts == (("a red fox.", "red fox red fox"), ("Felis {catus}",), ("green grün", "a leaf"))
    assert found.names[0] == "red_fox"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"templates": ["a photo of a {}.", "a photo"]}, "\"{}\" where the name of a class goes.*'a photo'"),
        ({"templates": "a photo of a {name}"}, "a photo of a {name}"),
        ({"templates": []}, "got none"),
        ({"prompts": {"red_dgo": "a dog"}}, "'red_dgo'.*none of the 3 classes.*did you mean 'red_dog'"),
        ({"prompts": {"cat": []}}, "'cat' must be a text or a list of texts"),
        ({"prompts": {"cat": ["a cat", " "]}}, "'cat' must be a text"),
        ({"prompts": {"cat": 3}}, "'cat' must be a text"),
        ({"prompts": ["a cat"]}, "must be a mapping of names to texts, got list"),
        ({"prompts": {"cat": ["x", "y"], "red_dog": ["x", "y"]}}, "'cat' and 'red_dog' are the same"),
        ({"id2label": {0: "red_fox", 1: "red-fox", 2: "cat"}}, "'red_fox' and 'red-fox' are the same"),
        ({"id2label": {0: "crane (1)", 1: "cat", 2: "crane (2)"}}, r"'crane \(1\)' and 'crane \(2\)' are the same"),
        ({"id2label": {0: "cat", 1: "cat"}}, "'cat' and 'cat' are the same"),
        ({"id2label": {0: "Cat", 1: "cat"}}, "are the same to the tokenizer"),  # which has no capitals
        ({"id2label": {0: "cat"}}, "there is but cat"),
    ],
)
def test_texts_that_cannot_be_asked_are_refused(models, settings, words):
    with pytest.raises(InputError, match=words):
        description_of(models("clip")[0], **settings)


def test_texts_of_which_punctuation_leaves_nothing_are_refused(models):
    assert "nothing is left of a text of 'cat'" in refusal(models("siglip2")[0], prompts={"cat": "?!"})


# What its answers depend on


def test_the_identity_changes_with_what_is_asked_and_with_nothing_else(clip):
    def prompts(**settings: Any) -> str:
        return description_of(clip, **settings).identity()["prompts"]

    first = prompts(templates=["a {}", "the {}"])
    assert first == prompts(templates=["a {}", "the {}"])
    assert first == prompts(prompts={"red_dog": ["a red dog", "the {}"]}, templates=["a {}", "the {}"])
    others = [
        prompts(templates=["the {}", "a {}"]),
        prompts(templates=["a {}"]),
        prompts(),
        prompts(prompts={"cat": "a cat"}, templates=["a {}", "the {}"]),
    ]
    tokenizer = json.loads((clip / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (clip / "tokenizer.json").write_text(json.dumps(tokenizer))
    others.append(prompts(templates=["a {}", "the {}"]))
    assert len({first, *others}) == 1 + len(others)


def test_the_loaded_teacher_is_of_its_description(models):
    description = description_of(models("clip")[0])
    assert torch.equal(description.load()(shown()), teacher_of(models("clip")[0])(shown()))
    json.dumps(description.identity())


def test_a_model_of_the_hub_teaches_and_asks_for_no_code(tmp_path, monkeypatch):
    clip_folder(tmp_path / "clip", is_nested=True)
    code = {"auto_map": {"AutoTokenizer": ["eve/code--m.M", None], "AutoConfig": "eve/code--m.M"}}
    for file in ("config.json", "tokenizer_config.json"):
        edited(tmp_path / "clip", file, **code)
    with HubServer(tmp_path / "hub") as hub:
        hub.add_user("eve")
        hub.add_repository("eve/code", {"m.py": b"class M: ..."})
        hub.add_repository("eve/clip", {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()})
        hub.add_repository("eve/open", {"open_clip_config.json": b"{}", "open_clip_model.safetensors": b""})
        connect(hub, tmp_path / "home", None, monkeypatch)
        teacher = teacher_of("eve/clip")
        asked = [target for _, target, _ in hub.requests]
        assert "files of open_clip" in refusal("eve/open")
    identity = teacher.description.identity()
    assert identity["revision"] == teacher.revision and len(teacher.revision) == 40
    here = teacher_of(tmp_path / "clip")
    assert torch.equal(teacher(shown()), here(shown())) and teacher.description.own_size == (32, 32)
    assert identity["prompts"] == here.description.identity()["prompts"]
    assert not [target for target in asked if "eve/code" in target]


# What is none


def test_a_zero_shot_model_has_no_labels_of_its_own(models):
    for ask in (load_labels, lambda name: describe_teacher(name, student_processor=processor())):
        with pytest.raises(InputError, match=r"zero-shot model.*--class_names.*id2label"):
            ask(models("clip")[0])


def test_one_tower_is_no_zero_shot_model(models, tmp_path):
    clip_model, siglip_model = models("clip")[1], models("siglip")[1]
    for name, tower in (
        ("text", CLIPVisionModel(clip_model.config.vision_config)),
        ("text", SiglipVisionModel(siglip_model.config.vision_config)),
        ("image", CLIPTextModel(clip_model.config.text_config)),
    ):
        folder = tmp_path / type(tower).__name__
        tower.save_pretrained(folder)
        assert f"it has no {name} tower: take the whole model" in refusal(folder)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_weights_that_are_not_there_are_not_random(clip, tower):
    reweighted(clip, lambda weights: {name: value for name, value in weights.items() if not name.startswith(tower)})
    with pytest.raises(InputError, match=rf"no weights for {tower}_model.*both its towers"):
        teacher_of(clip)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BlipConfig(architectures=["BlipForConditionalGeneration"]), "is a BlipForConditionalGeneration"),
        (Blip2Config(architectures=["Blip2ForImageTextRetrieval"]), "no features of images and of texts"),
        (VideoPrismConfig(architectures=["VideoPrismClipModel"]), "no features of images and of texts"),
    ],
)
def test_models_of_another_kind_are_refused_by_their_configuration(tmp_path, config, words):
    config.save_pretrained(tmp_path)
    assert words in refusal(tmp_path)


def test_files_of_open_clip_are_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    assert "files of open_clip" in refusal(tmp_path)
    with pytest.raises(InputError, match="files of open_clip"):
        load_labels(tmp_path)


def test_a_configuration_of_another_models_size_is_refused(clip):
    stated = json.loads((clip / "config.json").read_text())
    edited(clip, text_config={**stated["text_config"], "vocab_size": 2_000_000})
    assert "they are not of one model" in refusal(clip)


def test_these_are_all_that_transformers_has(models):
    from transformers import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING as KNOWN

    tried = {models(kind)[1].config.model_type for kind in [*FOLDERS, *OTHERS]}
    assert {config.model_type for config in KNOWN} == tried | {"blip-2", "videoprism"}
    assert (CLIPModel, SiglipModel) == (type(models("clip")[1]), type(models("siglip2")[1]))
