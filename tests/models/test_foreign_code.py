"""Contract: no configuration of a model, wherever it comes from, leads to code that is not the model's class.

Students and teachers load as if `auto_map`, pipelines, quantisers and kernels were not named: nothing that they lead
to is run or asked for, and nothing of them is saved again. Quantised weights are never taken for floats.
"""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.checkpoints import LABELS as LABELS_OF_TIMM
from support.checkpoints import PLAIN, TINY_TIMM, edited, randomise, saved, timm_folder, weights_of
from support.hub_client import connect
from support.hub_server import HubServer
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.utils import logging

from hf_deit import (
    CaiTConfig,
    DistilledDeiTConfig,
    DistilledDeiTForImageClassification,
    InputError,
    create_model,
    load_student,
    load_teacher,
)
from hf_deit.hub.publishing import check_folder
from hf_deit.models.configuration_deit import PlainDeiTConfig, without_foreign_code
from hf_deit.models.pretrained import load_config, load_image_processor
from hf_deit.models.teacher import load_labels
from hf_deit.training.checkpoints import restore_weights

LABELS = {index: str(index) for index in range(10)}
KERNEL = "evil/kernel"
# What leads elsewhere, in the forms that people and attackers give it.
FOREIGN = {
    "auto_map of another repository": {"auto_map": {"AutoModelForImageClassification": "evil/code--m.M"}},
    "auto_map of everything": {"auto_map": {"AutoConfig": "m.C", "AutoModel": "m.M", "AutoImageProcessor": "m.P"}},
    "auto_map of files elsewhere": {"auto_map": {"AutoConfig": "/etc/passwd.C", "AutoModel": "../../m.M"}},
    "no auto_map": {"auto_map": None},
    "weights in another file": {"transformers_weights": "other.safetensors"},
    "a list": {"auto_map": ["m.M"]},
    "words": {"auto_map": "evil/code--m.M"},
    "nested": {"auto_map": {"AutoConfig": {"x": ["m.C"]}, "AutoModelForImageClassification": ["m.M", None]}},
    "pipelines": {"custom_pipelines": {"image-classification": {"impl": "m.P", "pt": ["M"]}}},
    "no pipelines": {"custom_pipelines": None},
    "quantiser": {"quantization_config": {"quant_method": "fp8"}},
    "quantiser without a name": {"quantization_config": {"load_in_8bit": True}},
    "no quantiser": {"quantization_config": None},
    "kernel": {"attn_implementation": KERNEL},
    "kernel of a version": {"attn_implementation": f"{KERNEL}@v1:forward"},
    "kernel behind a name": {"attn_implementation": "flash_attention_2"},
    "kernels of parts": {"attn_implementation": {"": KERNEL, "vision_config": KERNEL}},
    "no attention": {"attn_implementation": 3},
    "kernel by the inner name": {"_attn_implementation": KERNEL, "_attn_implementation_internal": KERNEL},
    "kernel by another name": {"attribute_map": {"x": "_attn_implementation"}, "x": KERNEL},
    "experts": {"experts_implementation": KERNEL, "_experts_implementation": KERNEL},
    "in a part": {"vision_config": {"auto_map": {"AutoModel": "evil/code--m.M"}, "attn_implementation": KERNEL}},
}
every_form = pytest.mark.parametrize("form", FOREIGN)


def distilled() -> PreTrainedModel:
    return tiny.student()


def plain() -> PreTrainedModel:
    return tiny.student(distilled=False)


def cait() -> PreTrainedModel:
    fields = {name: value for name, value in tiny.SIZES.items() if name != "intermediate_size"}
    return create_model("cait_xxs24_224", **fields, id2label=LABELS)


MODELS = {"distilled": distilled, "plain": plain, "cait": cait, "transformers": tiny.resnet}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {name: saved(home / name, randomise(make()), tiny.processor()) for name, make in MODELS.items()}


@pytest.fixture
def model_of(folders, tmp_path, monkeypatch):
    """A copy of a folder with a module that says when it runs. Whoever is asked whether it may run says yes."""

    def copied(name: str) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for path in folders[name].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        trace = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        (folder / "m.py").write_text(trace + "class M: ...\nclass C: ...\nclass P: ...\n")
        return folder

    monkeypatch.setattr(builtins, "input", lambda prompt: "y")
    yield copied
    assert not (tmp_path / "ran").exists()


def stated_in(folder: Path, name: str = "config.json") -> dict:
    return json.loads((folder / name).read_text())


def logits(model: PreTrainedModel) -> torch.Tensor:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(pixel_values=pixels).logits


FOREIGN_TOGETHER = {key: value for form in FOREIGN.values() for key, value in form.items() if value}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("transformers", form) for form in FOREIGN),
        *(
            (name, form)
            for name in ("plain", "distilled", "cait")
            for form in ("all together", "nested", "no auto_map")
        ),
    ],
)
def test_a_student_loads_and_is_saved_without_others_code(folders, model_of, tmp_path, name, form):
    before, _ = load_student(folders[name], id2label=LABELS)
    before.save_pretrained(tmp_path / "before")
    folder = model_of(name)
    stated = {**stated_in(folder), **(FOREIGN.get(form) or FOREIGN_TOGETHER)}
    (folder / "config.json").write_text(json.dumps(stated))
    model, _ = load_student(folder, id2label=LABELS)
    assert torch.equal(logits(model), logits(before))
    assert model.config._attn_implementation == before.config._attn_implementation
    model.save_pretrained(tmp_path / "after")
    written = stated_in(tmp_path / "after")
    assert written.pop("vision_config", {}) == {}
    written.pop("x", None)  # a field of no meaning
    assert written == stated_in(tmp_path / "before")
    assert {path.name for path in (tmp_path / "after").iterdir()} == {p.name for p in (tmp_path / "before").iterdir()}


@every_form
def test_a_teacher_loads_without_others_code(folders, model_of, form):
    before = load_teacher(folders["transformers"], student_processor=tiny.processor())
    folder = model_of("transformers")
    (folder / "config.json").write_text(json.dumps({**stated_in(folder), **FOREIGN[form]}))
    teacher = load_teacher(folder, student_processor=tiny.processor())
    assert torch.equal(logits(teacher.model), logits(before.model))
    assert load_labels(folder) == list(LABELS.values())


@pytest.mark.parametrize("form", ["auto_map of another repository", "nested", "kernel", "quantiser"])
def test_a_checkpoint_gives_its_weights_and_nothing_else(model_of, form):
    folder = model_of("transformers")
    (folder / "config.json").write_text(json.dumps({**stated_in(folder), **FOREIGN[form]}))
    model = tiny.resnet(seed=5)
    restore_weights(model, str(folder))
    name = "classifier.1.bias"
    assert torch.equal(model.state_dict()[name], load_file(folder / "model.safetensors")[name])


@pytest.mark.parametrize("form", [form for form in FOREIGN if "auto_map" in FOREIGN[form]])
@pytest.mark.parametrize("name", ["plain", "transformers"])
def test_an_image_processor_loads_without_others_code(folders, model_of, form, name):
    folder = model_of(name)
    before = load_image_processor(folder, None, load_config(folder)).to_dict()
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**stated_in(folder, path.name), **FOREIGN[form], "custom_pipelines": {"x": "m.P"}}))
    processor = load_image_processor(folder, None, load_config(folder))
    assert processor.to_dict() == before
    ours, expected = (load_student(place, id2label=LABELS)[1] for place in (folder, folders[name]))
    assert ours.to_dict() == expected.to_dict()


def test_an_image_processor_is_loaded_from_the_file_that_was_looked_at(model_of):
    folder = model_of("transformers")
    expected = load_image_processor(folder, None, load_config(folder))
    other = {"image_processor": {**stated_in(folder, "preprocessor_config.json"), "image_mean": [9, 9, 9]}}
    (folder / "processor_config.json").write_text(json.dumps(other))
    assert load_image_processor(folder, None, load_config(folder)).image_mean == expected.image_mean


def test_an_image_processor_of_own_code_alone_is_refused(model_of):
    folder = model_of("transformers")
    edited(folder, "preprocessor_config.json", image_processor_type=None, auto_map={"AutoImageProcessor": "m.P"})
    processor = load_image_processor(folder, None, load_config(folder))  # that of its architecture, as stated
    assert type(processor).__module__.startswith("transformers.")
    edited(folder, "preprocessor_config.json", image_processor_type="P", auto_map={"AutoImageProcessor": "m.P"})
    with pytest.raises(InputError, match="cannot load the image processor"):
        load_teacher(folder, student_processor=tiny.processor())


@pytest.mark.parametrize("load", ["student", "teacher"])
def test_a_model_that_is_code_alone_is_refused(model_of, load):
    folder = edited(model_of("transformers"), model_type="mine", auto_map={"AutoConfig": "m.C"})
    with pytest.raises(
        InputError, match=r"needs code of its own, which is not run \(auto_map {'AutoConfig': 'm.C'}\)"
    ):
        if load == "student":
            load_student(folder, id2label=LABELS)
        else:
            load_teacher(folder, student_processor=tiny.processor())


def test_what_is_left_out_is_said_and_cannot_command_a_terminal(model_of, caplog):
    logging.warning_once.cache_clear()  # what is said once may have been said in another test
    folder = edited(model_of("plain"), auto_map={"AutoModel": "evil/\x1b[2Jterminal--m.M"})
    load_student(folder, id2label=LABELS)
    (said,) = {record.getMessage() for record in caplog.records if "leads elsewhere" in record.getMessage()}
    assert r"auto_map {'AutoModel': 'evil/\x1b[2Jterminal--m.M'}" in said
    assert "\x1b" not in said


# timm's statements


def tiny_timm_folder(folder: Path, **fields: Any) -> Path:
    stated = {"architecture": PLAIN, "label_names": LABELS_OF_TIMM, "model_args": TINY_TIMM, **fields}
    return timm_folder(folder, weights_of(PLAIN), **stated)


def test_timms_architecture_leads_nowhere_else(tmp_path):
    wrong = tiny_timm_folder(tmp_path / "wrong", architecture="hf-hub:evil/code")
    for load in (lambda: load_student(wrong, id2label=dict(enumerate(LABELS_OF_TIMM))), lambda: load_labels(wrong)):
        with pytest.raises(InputError, match="'hf-hub:evil/code', which leads elsewhere"):
            load()
    for architecture in ("local-dir:/etc", "evil/code", "..\\code"):
        with pytest.raises(InputError, match="leads elsewhere"):
            load_config(edited(wrong, architecture=architecture))


def test_timms_architecture_is_looked_for_nowhere_else(tmp_path, monkeypatch):
    """Before it is refused, too: a model's extent is measured on one that timm makes."""
    import timm.models._factory

    asked = []
    for name in ("load_model_config_from_hf", "load_model_config_from_path"):
        monkeypatch.setattr(timm.models._factory, name, lambda *given, **named: asked.append(given))
    for architecture in ("hf-hub:evil/code", "local-dir:/etc"):
        wrong = tiny_timm_folder(tmp_path / architecture[:5], architecture=architecture)
        with pytest.raises(InputError, match="leads elsewhere"):
            load_student(wrong, id2label=dict(enumerate(LABELS_OF_TIMM)))
        with pytest.raises(InputError, match="leads elsewhere"):
            load_teacher(wrong, student_processor=tiny.processor())
        with pytest.raises(InputError, match="leads elsewhere"):
            check_folder(wrong)
    assert not asked


def test_timms_arguments_read_no_other_file(tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    folder = tiny_timm_folder(tmp_path / "model", auto_map=[], custom_pipelines=None)
    expected = load_student(folder, id2label=dict(enumerate(LABELS_OF_TIMM)))[0]
    arguments = {**stated_in(folder)["model_args"], "checkpoint_path": str(other)}
    model, _ = load_student(edited(folder, model_args=arguments), id2label=dict(enumerate(LABELS_OF_TIMM)))
    assert "checkpoint_path" not in model.config.model_args
    for one, two in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, two)


# Configurations alone


@pytest.mark.parametrize("config_class", [DistilledDeiTConfig, PlainDeiTConfig, CaiTConfig])
@every_form
def test_our_configurations_neither_read_nor_write_it(tmp_path, config_class, form):
    stated = {**config_class().to_diff_dict(), **FOREIGN[form]}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    for config in (
        config_class.from_dict(dict(stated)),
        config_class.from_pretrained(tmp_path),
        config_class.from_json_file(tmp_path / "config.json"),
        load_config(tmp_path) if config_class is CaiTConfig else config_class.from_dict(dict(stated)),
    ):
        assert config._attn_implementation is None
        assert not {"auto_map", "custom_pipelines", "quantization_config"} & vars(config).keys()
    config.auto_map, config.quantization_config, config.custom_pipelines = {"AutoModel": "evil--m.M"}, {"a": 1}, {}
    for written in (config.to_dict(), config.to_diff_dict(), json.loads(config.to_json_string())):
        assert not {"auto_map", "custom_pipelines", "quantization_config"} & written.keys()


def test_cait_keeps_its_own_code_and_no_other(tmp_path):
    own = {"AutoConfig": "configuration_cait.CaiTConfig"}
    theirs = {"AutoModelForImageClassification": "evil/code--modeling_cait.CaiTForImageClassification"}
    config = CaiTConfig.from_dict({**CaiTConfig().to_dict(), "auto_map": {**own, **theirs, "AutoModel": "m.M"}})
    assert config.auto_map == own
    model = create_model("cait_xxs24_224", **{k: v for k, v in tiny.SIZES.items() if k != "intermediate_size"})
    model.config.auto_map = {**theirs, "AutoModel": "m.M"}
    model.save_pretrained(tmp_path)
    assert stated_in(tmp_path)["auto_map"] == CaiTConfig.own_code


def test_only_what_leads_elsewhere_is_left_out():
    labels = {"auto_map": 0, "quantization_config": 1}  # which are names of classes here
    stated = {
        "id2label": {"0": "auto_map", "1": "quantization_config"},
        "label2id": labels,
        "hidden_size": 3,
        "attn_implementation": "sdpa",
        "parts": [{"attn_implementation": "eager", "depth": 2}],
        "dtype": None,
        "text_config": {"attn_implementation": {"": "flex_attention"}, "label2id": labels},
    }
    assert without_foreign_code(stated) == (stated, [])
    before = json.dumps(stated)
    assert without_foreign_code({**stated, "auto_map": None}) == (stated, [])
    assert json.dumps(stated) == before


def test_what_a_user_asks_for_is_done(folders):
    model, _ = load_student(folders["plain"], id2label=LABELS, overrides={"attn_implementation": "eager"})
    assert model.config._attn_implementation == "eager"
    config = DistilledDeiTConfig.from_pretrained(folders["distilled"], attn_implementation="eager")
    assert config._attn_implementation == "eager"


# On the Hub


def test_nothing_is_asked_of_the_hub_for_others_code(folders, tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as hub:
        hub.add_user("eve")
        stated = FOREIGN_TOGETHER | {
            "auto_map": {name: "eve/code--m.M" for name in ("AutoConfig", "AutoModelForImageClassification")}
        }
        trace = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass M: ...\n".encode()
        hub.add_repository("eve/code", {"m.py": trace})
        for name in ("plain", "transformers"):
            files = {path.name: path.read_bytes() for path in folders[name].iterdir()}
            files["config.json"] = json.dumps({**stated_in(folders[name]), **stated}).encode()
            preprocessor = stated_in(folders[name], "preprocessor_config.json")
            preprocessor["auto_map"] = {"AutoImageProcessor": "eve/code--m.M"}
            files["preprocessor_config.json"] = json.dumps(preprocessor).encode()
            hub.add_repository(f"eve/{name}", files)
        connect(hub, tmp_path / "home", None, monkeypatch)
        monkeypatch.setattr(builtins, "input", lambda prompt: "y")
        for name in ("plain", "transformers"):
            load_student(f"eve/{name}", id2label=LABELS)
        load_teacher("eve/transformers", student_processor=tiny.processor())
        asked = [target for _, target, _ in hub.requests]
    assert any("eve/plain" in target for target in asked)
    expected = ("eve/plain", "eve/transformers", "/lfs/download/")
    assert not [target for target in asked if not any(part in target for part in expected) or ".py" in target]
    assert not (tmp_path / "ran").exists()


# Quantised weights


def quantised(folder: Path, dtype: torch.dtype) -> Path:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight") and weights[name].ndim > 1)
    weights[name] = weights[name].to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
@pytest.mark.parametrize("stated", [None, {"quant_method": "fp8"}], ids=["unsaid", "said"])
def test_quantised_weights_are_no_floats(model_of, dtype, stated):
    folder = quantised(edited(model_of("transformers"), quantization_config=stated), dtype)
    with pytest.raises(InputError, match=r"has quantised weights .* which cannot be trained"):
        load_student(folder, id2label=LABELS)
    with pytest.raises(InputError, match=r"has quantised weights .* which only code from elsewhere can read"):
        load_teacher(folder, student_processor=tiny.processor())


def test_our_own_classes_refuse_quantised_weights(model_of):
    folder = quantised(model_of("distilled"), torch.int8)
    with pytest.raises(ValueError, match=r"holds quantised weights \(I8\), expected floats"):
        DistilledDeiTForImageClassification.from_pretrained(folder)


def test_quantised_weights_in_parts_are_found(tmp_path):
    model = tiny.student()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.processor().save_pretrained(tmp_path)
    (one, *_) = sorted(tmp_path.glob("model-*.safetensors"))
    weights = load_file(one)
    name = next(name for name in weights if name.endswith("weight"))
    save_file({**weights, name: weights[name].to(torch.int8)}, one, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"quantised weights \(I8\)"):
        load_student(tmp_path, id2label=LABELS)


def test_pickled_quantised_weights_are_no_floats(model_of):
    folder = quantised(model_of("transformers"), torch.int8)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"quantised weights \(int8\)"):
        load_teacher(folder, student_processor=tiny.processor())


def test_a_teacher_of_bitsandbytes_is_left_to_it(model_of):
    """Which is not installed here: the loader that would call it says so, instead of taking the numbers for floats."""
    stated = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = quantised(edited(model_of("transformers"), quantization_config=stated), torch.int8)
    assert load_config(folder, quantization=stated).quantization_config == stated
    with pytest.raises(InputError, match=r"(?i)bitsandbytes"):
        load_teacher(folder, student_processor=tiny.processor())


def test_integers_that_are_no_weights_are_none(tmp_path):
    """A count of batches, and a table of positions."""
    model = tiny.resnet()
    assert any(not tensor.is_floating_point() for tensor in model.state_dict().values())
    folder = saved(tmp_path, model, tiny.processor())
    load_student(folder, id2label=LABELS)


def test_transformers_itself_finds_nothing_in_what_is_saved(model_of, tmp_path):
    """As a user opens it who trusts the card."""
    folder = edited(model_of("plain"), **FOREIGN["auto_map of everything"])
    model, processor = load_student(folder, id2label=LABELS)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    config = AutoConfig.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert not hasattr(config, "auto_map")
    AutoImageProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
