"""Contract: OpenVINO, ExecuTorch and torch.export answer as the trained classifier does, from the image on.

- The exported files, run where what was trained cannot be imported, give the probabilities of the image processor and
  the model, on images of any size and in batches; of every filter, statistics, order of channels and fusion.
- What makes pixels of images beside a program that cannot (ExecuTorch's), in Python and in JavaScript, gives its
  golden values and, to the last level, what the image processor does.
- Labels and preprocessing are in the files. Nothing is said on the terminal; nothing that was given is changed.
- What a format cannot hold is refused in a line that names the operator.
"""

import dataclasses
import io
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
import torchvision.transforms.v2.functional as tvF
import transformers
from PIL import Image
from support import tiny
from support.families import CAIT, DEIT, DISTILLED_CAIT, DISTILLED_DEIT, TINY
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_deit import DistilledDeiTImageProcessor
from hf_deit.errors import InputError
from hf_deit.export.parity import running
from hf_deit.export.programs import executorch_program, openvino_program, reference, torch_program
from hf_deit.export.programs.core import BATCH
from hf_deit.export.programs.onnx_preprocessing import preprocessing_model
from hf_deit.export.programs.preprocessing import Preprocessing
from hf_deit.export.programs.reference import preprocessing as reference_preprocessing
from hf_deit.export.programs.source import ExportSource, load_source
from hf_deit.export.quiet import quiet

FORMATS = ("openvino", "executorch", "torch")
EXPORT = {
    "openvino": openvino_program.export_openvino,
    "executorch": executorch_program.export_executorch,
    "torch": torch_program.export_torch,
}
LABELS = ["zebra", "ape", "naïve “bee”", "</script>", "# end of SETTINGS"]
SIZES = ((2, 31, 500), (1, 500, 31), (3, 8, 8), (1, 1, 1), (1, 1, 77), (2, 237, 200))  # (B, H, W)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here to run JavaScript")
# Each by itself, the runtimes answer where the named packages cannot be imported.
ANSWERING = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked or name.startswith("hf_deit.models"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
blocked = {"torch", "torchvision", "transformers", "timm"}
import numpy as np
from hf_deit.export.parity import running
folder = sys.argv[1]
images = np.load(f"{folder}/images.npz")
given = {}
for name in ("openvino", "executorch", "torch"):
    if name != "openvino":
        blocked = {"transformers", "timm"}
    answer = getattr(running, f"open_{name}")(f"{folder}/{name}")
    given |= {f"{name}-{key}": answer(images[key]) for key in images}
np.savez(f"{folder}/answers.npz", **given)
print(*sorted(name for name in sys.modules if name in ("transformers", "timm", "hf_deit.models")))
"""


def noise(height: int, width: int, batch_size: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (batch_size, height, width, 3), dtype=np.uint8)


def source_of(folder: Path, model: PreTrainedModel, labels: list[str] = LABELS, **settings: Any) -> ExportSource:
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    defaults = {"crop_size": 32, "crop_ratio": 0.9, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    DistilledDeiTImageProcessor(**{**defaults, **settings}).save_pretrained(folder)
    return load_source(str(folder))


def answers(source: ExportSource, images: np.ndarray, fusion: str | None = None, **changed: Any) -> np.ndarray:
    """Probabilities of the image processor, with some settings changed, and the model."""
    classifier = source.classifier
    processor = DistilledDeiTImageProcessor(**{**classifier.processor.to_dict(), **changed})
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    own = getattr(classifier.model.config, "fusion", None)
    classifier.model.config.fusion = fusion or own
    with torch.no_grad():
        given = classifier.model(pixel_values=pixels, **classifier.forward_options).logits.softmax(dim=-1).numpy()
    classifier.model.config.fusion = own
    return given


def state_of(model: PreTrainedModel) -> list[Any]:
    weights = [(name, value.requires_grad, value.sum().item()) for name, value in model.named_parameters()]
    return [weights, model.config.to_dict(), model.config._attn_implementation, model.training]


def decided(model: nn.Module) -> nn.Module:
    """A random model whose answers differ from image to image."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name and name.endswith("weight"):
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[ExportSource, Path]:
    """A tiny DeiT⚗ in every format, and the answers of each in a process of its own."""
    folder = tmp_path_factory.mktemp("exported")
    source = source_of(folder / "model", decided(DISTILLED_DEIT.tiny(fusion="softmax", num_hidden_layers=1)))
    before = state_of(source.classifier.model)
    for name in FORMATS:
        (folder / name).mkdir()
        EXPORT[name](source, str(folder / name))
    assert str(state_of(source.classifier.model)) == str(before)  # what was given is as it was
    images = {f"{height}x{width}": noise(height, width, batch) for batch, height, width in SIZES}
    np.savez(folder / "images.npz", **images)
    done = subprocess.run([sys.executable, "-c", ANSWERING, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    return source, folder


@pytest.mark.parametrize("name", FORMATS)
def test_images_of_any_size_are_answered_as_by_the_processor_and_the_model(exported, name):
    source, folder = exported
    images, given = np.load(folder / "images.npz"), np.load(folder / "answers.npz")
    for key in images:
        expected = answers(source, images[key])
        assert given[f"{name}-{key}"].dtype == np.float32 and given[f"{name}-{key}"].shape == expected.shape
        np.testing.assert_allclose(given[f"{name}-{key}"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changed",
    [
        {"resample": 2},
        {"image_mean": [0.48, 0.4, 0.3]},
        {"image_std": [0.3, 0.25, 0.2]},
        {"image_mean": [0.3, 0.4, 0.5]},
        {"size": {"shortest_edge": 32}},
        {"rescale_factor": 1 / 256},
        {"fusion": "logits"},
        {"fusion": "cls"},
        {"fusion": "distillation"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FORMATS)
def test_it_would_be_seen_if_something_were_changed(exported, name, changed):
    """The answers of the exported files are not those of another filter, other statistics, … by a wide margin."""
    source, folder = exported
    images, given = np.load(folder / "images.npz"), np.load(folder / "answers.npz")
    differences = [abs(given[f"{name}-{key}"] - answers(source, images[key], **changed)).max() for key in images]
    assert max(differences) > 1e-3


@pytest.mark.parametrize("name", FORMATS)
def test_it_would_be_seen_if_channels_or_labels_stood_in_another_order(exported, name):
    source, folder = exported
    images, given = np.load(folder / "images.npz"), np.load(folder / "answers.npz")
    key = "31x500"
    expected = answers(source, images[key])
    assert abs(given[f"{name}-{key}"] - answers(source, images[key][..., ::-1])).max() > 1e-3
    assert abs(given[f"{name}-{key}"] - expected[:, ::-1]).max() > 1e-3


def test_files_hold_labels_preprocessing_and_origin(exported):
    source, folder = exported
    values = {"labels": list(source.labels), "preprocessing": source.preprocessing.to_dict(), "model": source.facts}
    expected = json.loads(json.dumps(values))
    assert expected["labels"] == LABELS and expected["model"]["fusion"] == "softmax"
    model = openvino.Core().read_model(str(folder / "openvino" / "classifier.xml"))
    section = model.get_rt_info("hf_deit").value
    assert {name: json.loads(section[name]) for name in expected} == expected
    extra = {f"{name}.json": "" for name in expected}
    torch.export.load(folder / "torch" / "classifier.pt2", extra_files=extra)
    assert {name: json.loads(extra[f"{name}.json"]) for name in expected} == expected
    here = os.path.dirname(transformers.__file__).encode()  # as in the stack traces that torch.export keeps
    with zipfile.ZipFile(folder / "torch" / "classifier.pt2") as archive:
        assert not any(here in archive.read(name) for name in archive.namelist())
    in_python = (folder / "executorch" / "preprocessing.py").read_text(encoding="utf-8")
    assert reference.settings_of(in_python) == expected
    assert runpy.run_path(str(folder / "executorch" / "preprocessing.py"))["SETTINGS"] == expected


def test_weights_are_and_stay_float32(exported):
    source, folder = exported
    weights = sum(parameter.numel() for parameter in source.classifier.model.parameters())
    assert (folder / "openvino" / "classifier.bin").stat().st_size >= 4 * weights
    constants = openvino.Core().read_model(folder / "openvino" / "classifier.xml").get_ops()
    types = {node.get_element_type().to_string() for node in constants if node.get_type_name() == "Constant"}
    assert not types & {"f16", "bf16"}


def test_golden_values_are_those_of_the_processor(exported):
    source, folder = exported
    golden = json.loads((folder / "executorch" / "golden.json").read_text())
    assert len(golden["cases"]) == 5
    for case in golden["cases"]:
        image = reference_preprocessing.golden_image(case["kind"], case["width"], case["height"])
        pixels = source.classifier.preprocess(image).numpy()
        values = [pixels[channel, row, column] for channel, row, column, _ in case["pixel_values"]]
        np.testing.assert_allclose(values, [place[3] for place in case["pixel_values"]], atol=1e-5)
        expected = answers(source, np.asarray(image)[None])[0]
        np.testing.assert_allclose(case["probabilities"], expected, atol=1e-5)


def test_the_preprocessor_in_python_runs_by_itself(exported, tmp_path):
    """Copied to another place, without this package, from a terminal; and golden.json finds a change of it."""
    _, folder = exported
    for name in ("preprocessing.py", "golden.json"):
        shutil.copy(folder / "executorch" / name, tmp_path)
    Image.fromarray(noise(50, 40)[0]).save(tmp_path / "image.png")
    run = [sys.executable, "-I", "-S", "-c", "import sys; sys.path += sys.argv.pop().split(':'); import runpy; "]
    run[-1] += "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    paths = ":".join(path for path in sys.path if "site-packages" in path)

    def out(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*run, tmp_path / "preprocessing.py", *arguments, paths], capture_output=True, text=True, check=False
        )

    assert out().stdout == "differs from golden.json by 0.000 levels at most\n"
    assert "pixel_values (1, 3, 32, 32), float32, mean of the channels" in out(str(tmp_path / "image.png")).stdout
    text = (tmp_path / "preprocessing.py").read_text(encoding="utf-8")
    (tmp_path / "preprocessing.py").write_text(text.replace("'bicubic'", "'bilinear'"), encoding="utf-8")
    assert out().returncode == 1


@needs_node
def test_the_preprocessor_in_javascript_does_the_same(exported, tmp_path):
    source, folder = exported
    (tmp_path / "image.bin").write_bytes(np.dstack([noise(50, 41)[0], noise(50, 41, seed=1)[0, ..., 0]]).tobytes())
    script = """
        const api = require(`${process.argv[1]}/preprocessing.js`), fs = require("fs");
        const data = new Uint8Array(fs.readFileSync(process.argv[2]));
        const pixels = api.pixelValues({ data, width: 41, height: 50 });
        const [name] = api.best(api.probabilities([0, 3, 1, 0, 0]))[0];
        const difference = api.check(require(`${process.argv[1]}/golden.json`));
        console.log(JSON.stringify({ pixels: Array.from(pixels), name, difference, labels: api.SETTINGS.labels }));
    """
    arguments = [folder / "executorch", tmp_path / "image.bin"]
    done = subprocess.run(["node", "-e", script, *arguments], capture_output=True, text=True, check=True)
    given = json.loads(done.stdout)
    assert given["difference"] == 0 and given["name"] == "ape" and given["labels"] == LABELS
    rgba = Image.frombytes("RGBA", (41, 50), (tmp_path / "image.bin").read_bytes())
    rgba.save(tmp_path / "image.png")
    expected = source.classifier.preprocess(reference_preprocessing.load(str(tmp_path / "image.png")))
    np.testing.assert_allclose(given["pixels"], expected.numpy().ravel(), atol=1e-5)


FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def prepared(preprocessing: Preprocessing, images: np.ndarray) -> dict[str, np.ndarray]:
    """`pixel_values` of each implementation."""
    graph = preprocessing_model(preprocessing).SerializeToString()
    model = openvino.Core().read_model(io.BytesIO(graph))
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    settings = json.loads(json.dumps(preprocessing.to_dict()))
    return {
        "onnx": onnxruntime.InferenceSession(graph).run(None, {"images": images})[0],
        "openvino": compiled([images])[0],
        "torch": torch_program.Prepare(preprocessing)(torch.from_numpy(images)).numpy(),
        "python": np.concatenate(
            [reference_preprocessing.pixel_values(Image.fromarray(image), settings) for image in images]
        ),
    }


def levels(**changed: Any) -> Preprocessing:
    """Of whose pixels the levels can be read."""
    plain = Preprocessing("exact", (24, 40), "bicubic", None, 1.0, 0.0, (0.0,) * 3, (1.0,) * 3, "RGB", (24, 40))
    return dataclasses.replace(plain, **changed)


@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_is_the_processors_and_pillows(filter):
    for number, (height, width) in enumerate(((50, 33), (24, 17), (9, 200), (1, 1))):
        images = noise(height, width, 2, seed=number)
        with_pillow = [Image.fromarray(image).resize((40, 24), FILTERS[filter]) for image in images]
        pillow = np.stack([np.asarray(image) for image in with_pillow]).transpose(0, 3, 1, 2)
        expected = pillow
        if filter not in ("box", "hamming"):  # which torchvision does not have
            mode = tvF.InterpolationMode(filter.replace("nearest", "nearest-exact"))
            tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
            expected = tvF.resize(tensor, [24, 40], interpolation=mode, antialias=True).numpy()
        for name, given in prepared(levels(filter=filter), images).items():
            difference = abs(given - expected)
            assert difference.max() <= (name != "python") and (difference > 0).mean() < 0.01, (name, height, width)
            assert abs(given - pillow).max() <= 2, name


@pytest.mark.parametrize("rounding", ["zero", "down", "even"])
@pytest.mark.parametrize("crop", [(24, 40), (23, 41), (51, 31), (54, 62)], ids=str)
def test_the_centre_is_cropped_and_black_is_added(crop, rounding):
    images = noise(48, 49)
    settings = levels(resize=None, size=None, crop=crop, input_size=crop, crop_rounding=rounding)
    expected = np.zeros((1, 3, *crop), dtype=np.uint8)
    begins = [
        reference_preprocessing.crop_start(length, side, settings.to_dict())
        for length, side in zip((48, 49), crop, strict=True)
    ]
    for row in range(crop[0]):
        for column in range(crop[1]):
            y, x = begins[0] + row, begins[1] + column
            if 0 <= y < 48 and 0 <= x < 49:
                expected[0, :, row, column] = images[0, y, x]
    if rounding == "zero":
        processor = DistilledDeiTImageProcessor(
            crop_size={"height": crop[0], "width": crop[1]}, do_resize=False, do_rescale=False, do_normalize=False
        )
        assert (processor(Image.fromarray(images[0]), return_tensors="np")["pixel_values"] == expected).all()
    for name, given in prepared(settings, images).items():
        np.testing.assert_array_equal(given, expected, err_msg=name)


def test_a_narrow_stripe_is_not_blown_up():
    """Its shorter side of 256 would give a million columns, whose places do not fit into 32 bits."""
    settings = levels(resize="shortest", size=(256, 256), crop=(224, 224), input_size=(224, 224))
    image = noise(1, 5000)
    middle = Image.fromarray(image[0, :, 2490:2510]).resize((256 * 20, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(middle, dtype=np.float32)[16:240, 2560 - 112 : 2560 + 112].transpose(2, 0, 1)
    for name, given in prepared(settings, image).items():
        assert abs(given[0] - expected).max() <= 2, name


def test_shortest_side_channels_and_statistics():
    settings = levels(
        resize="shortest", size=(20, 20), crop=(20, 20), input_size=(20, 20), scale=1 / 127.5, offset=-1.0,
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channel_order="BGR",
    )  # fmt: skip
    image = noise(31, 50)
    resized = tvF.resize(torch.from_numpy(image).permute(0, 3, 1, 2), [20, 32], interpolation=3, antialias=True)
    shown = resized[..., 6:26].numpy() / 127.5 - 1
    mean, std = (np.array(values)[:, None, None] for values in (settings.mean, settings.std))
    expected = ((shown - mean) / std)[:, ::-1]
    for name, given in prepared(settings, image).items():
        np.testing.assert_allclose(given, expected, atol=1e-5, err_msg=name)


def check_answers(folder: Path, model: PreTrainedModel, name: str) -> None:
    source = source_of(folder / "model", model, [f"class {index}" for index in range(model.config.num_labels)])
    EXPORT[name](source, str(folder))
    images = noise(40, 50, 3)
    given = getattr(running, f"open_{name}")(str(folder))(images)
    np.testing.assert_allclose(given, answers(source, images), atol=1e-3, rtol=0)


@pytest.mark.parametrize("make", [CAIT.tiny, tiny.resnet], ids=["cait", "resnet"])
def test_other_students(tmp_path, make):
    check_answers(tmp_path, make().eval(), "torch")


VIT = {**{key: value for key, value in TINY.items() if key != "num_labels"}, "num_labels": 7}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
OTHERS = {
    "plain DeiT": DEIT.tiny,
    "CaiT": DISTILLED_CAIT.tiny,
    "ViT": lambda: ViTForImageClassification(ViTConfig(**VIT)),
    "BEiT": lambda: BeitForImageClassification(BeitConfig(**VIT, use_relative_position_bias=True)),
    "ResNet": tiny.resnet,
    "ConvNeXt": lambda: ConvNextForImageClassification(ConvNextConfig(**CONVNEXT)),
    "Swin": lambda: SwinForImageClassification(SwinConfig(**SWIN)),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_student(tmp_path, name, model):
    check_answers(tmp_path, OTHERS[model]().eval(), name)


def test_what_exporters_say_is_kept_off_the_terminal(capfd):
    with pytest.raises(ZeroDivisionError), quiet("converting"):
        print("out")
        print("err", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        logging.getLogger("transformers").error("logged")
        logging.root.setLevel(logging.ERROR)
        os.write(2, b"from C++")
        subprocess.run(["echo", "from a program"], check=True)
        raise ZeroDivisionError
    print("said")
    assert capfd.readouterr() == ("said\n", "")
    assert logging.root.manager.disable == logging.NOTSET and logging.root.level == logging.WARNING


def test_a_conversion_that_takes_long_shows_a_clock_on_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr("hf_deit.export.quiet._DELAY", 0)
    with quiet("converting"):
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with quiet("converting"):
        time.sleep(1.2)
    assert "converting [00:01]" in capfd.readouterr().err


def test_executorch_tells_what_xnnpack_does_not_take_over(exported):
    _, folder = exported
    text = (folder / "executorch" / "README.md").read_text()
    # The fusion's softmax is left to ExecuTorch, and none of the attention's.
    assert "`aten::native_layer_norm` (3 times)" in text and "`aten::_log_softmax` (1 time)" in text
    assert "logical_not" not in text and "aten::any" not in text and "aten::_softmax" not in text
    assert "(1, 3, 32, 32)" in text and "(1, 5)" in text and "{" not in text.split("```")[0]


class Refused(nn.Module):
    """A model with an operator that no format has."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(3, 5)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        values = torch.linalg.eigvalsh(pixel_values[:, 0, :3, :3])
        return type("Output", (), {"logits": self.layer(values)})


@pytest.mark.parametrize("name", ["openvino", "executorch"])
def test_a_model_that_a_format_refuses_is_refused_by_the_operator(exported, tmp_path, name, capfd):
    source, _ = exported
    model = Refused(source.classifier.model.config)
    refused = dataclasses.replace(source, classifier=dataclasses.replace(source.classifier, model=model))
    with pytest.raises(InputError, match=r"eigh") as error:
        EXPORT[name](refused, str(tmp_path))
    assert "\n" not in str(error.value) and "another format" in str(error.value)
    assert "DeiTForImageClassificationWithTeacher" in str(error.value)
    assert capfd.readouterr() == ("", "") and not any(tmp_path.iterdir())


def test_torch_export_refuses_what_branches_by_values(exported, tmp_path):
    class Branching(Refused):
        def forward(self, pixel_values: torch.Tensor) -> Any:
            values = pixel_values.mean(dim=(2, 3))
            return type("Output", (), {"logits": self.layer(values if values.sum() > 0 else -values)})

    source, _ = exported
    model = Branching(source.classifier.model.config)
    refused = dataclasses.replace(source, classifier=dataclasses.replace(source.classifier, model=model))
    with pytest.raises(
        InputError, match=r"^torch\.export refuses DeiT.* decides by the values of its images"
    ) as error:
        EXPORT["torch"](refused, str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "file"), [("openvino", "classifier.xml"), ("executorch", "model.pte"), ("torch", "classifier.pt2")]
)
def test_a_file_that_is_none_is_an_input_error(exported, tmp_path, name, file, capfd):
    _, folder = exported
    shutil.copytree(folder / name, tmp_path, dirs_exist_ok=True)
    for content in (b"", b"no program", None):
        (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
        with pytest.raises(InputError, match=rf"cannot open .*{file}: .") as error:
            getattr(running, f"open_{name}")(str(tmp_path))
        assert "\n" not in str(error.value)


def test_any_number_of_images_is_taken():
    assert BATCH[0].min == 1 and BATCH[0].max >= 65535
