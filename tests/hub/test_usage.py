"""Contract: the lines that are printed show a model what training showed it, and the figure beside them is theirs.

They are taken from every place that prints some, and run on files of every kind; what else people write does what the
cards say.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny
from support.facts import facts
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.image_utils import load_image

from hf_deit import CaiTConfig, CaiTForImageClassification
from hf_deit.commands.train import RunResult
from hf_deit.data.decoding import decode_image
from hf_deit.hub.card import make_card
from hf_deit.hub.usage import CLASSIFY_AN_IMAGE, note_on_fusion, usage
from hf_deit.models.configuration_deit import FUSIONS

ROOT = Path(__file__).parents[2]


def code_in(text: str) -> str:
    """The one block of Python in a text that classifies an image."""
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "classify" in block)
    return block


def result(**fields) -> RunResult:
    values = {"output_dir": "outputs/mine", "accuracies": {}, "num_validation_images": 0, "images_per_second": 1.0}
    return RunResult(**{**values, "skipped_images": 0, "minutes": 1.0, "weights": "raw", **fields})


PLACES = {
    "run table": lambda: result().usage,
    "run table, of a folder with an odd name": lambda: result(output_dir='a "b" \\n é').usage,
    "run table, with code": lambda: result(needs_code=True).usage,
    "card": lambda: code_in(make_card(facts(), "ada/pets")),
    "card, with code, on a branch": lambda: code_in(make_card(facts(needs_code=True), "ada/pets", "v1")),
    "README": lambda: code_in((ROOT / "README.md").read_text()),
    **{
        f"{name}'s card": lambda name=name: code_in((ROOT / "model_cards" / f"{name}.md").read_text())
        for name in ("deit_tiny_patch16_224", "deit_base_distilled_patch16_384", "cait_m48_448")
    },
}


def pixels(*shape: int) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, shape, dtype=np.uint8)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def of_a_maker_of_no_type() -> bytes:
    """EXIF data of a photograph that was held upright, which Pillow reads, and cannot write."""
    exif = oriented(6)
    exif[271] = "Maker"
    data = bytearray(exif.tobytes())
    data[data.index(b"\x01\x0f") + 3] = 0
    return bytes(data)


RGBA = Image.fromarray(pixels(20, 30, 4))
RGB, PALETTE = Image.fromarray(pixels(20, 30, 3)), Image.fromarray(pixels(20, 30, 3)).convert("P")
ALPHA = {"transparency": bytes(pixels(256))}
GOOD = {  # what is saved, in which format, with which settings
    "RGB": (RGB, "png", {}),
    "RGBA": (RGBA, "png", {}),
    "RGBA as WebP": (RGBA, "webp", {"lossless": True}),
    "RGBA, as a photograph that was held upright": (RGBA, "png", {"exif": oriented(6)}),
    "LA": (RGBA.convert("LA"), "png", {}),
    "LA, lying": (RGBA.convert("LA"), "tiff", {"exif": oriented(8)}),
    "palette": (PALETTE, "png", {}),
    "palette with one transparent colour": (PALETTE, "png", {"transparency": PALETTE.getpixel((3, 3))}),
    "palette with alpha": (PALETTE, "png", ALPHA),
    "palette with alpha, turned": (PALETTE, "png", {**ALPHA, "exif": oriented(5)}),
    "GIF with a transparent colour": (PALETTE, "gif", {"transparency": PALETTE.getpixel((3, 3))}),
    "RGB with a transparent colour": (RGB, "png", {"transparency": RGB.getpixel((3, 3))}),
    "grey with a transparent colour": (RGB.convert("L"), "png", {"transparency": RGB.convert("L").getpixel((3, 3))}),
    "grey": (RGB.convert("L"), "jpeg", {}),
    "1 bit": (RGB.convert("1"), "png", {}),
    "CMYK": (RGB.convert("CMYK"), "jpeg", {}),
    "CMYK as TIFF, lying": (RGB.convert("CMYK"), "tiff", {"exif": oriented(6)}),
    "CMYK as TIFF": (RGB.convert("CMYK"), "tiff", {}),
    "LAB": (Image.fromarray(pixels(20, 30, 3), "LAB"), "tiff", {}),
    "EXIF data that are damaged": (RGB, "jpeg", {"exif": of_a_maker_of_no_type()}),
    "EXIF data that are damaged, of a PNG": (RGBA, "png", {"exif": of_a_maker_of_no_type()}),
    "EXIF data that are damaged, of a WebP": (RGB, "webp", {"exif": of_a_maker_of_no_type(), "lossless": True}),
    **{f"orientation {number}": (RGB, "jpeg", {"exif": oriented(number)}) for number in range(1, 9)},
}
REFUSED = {
    "16 bits": (Image.fromarray(pixels(20, 30).astype(np.uint16) * 257), "png"),
    "16 bits, big-endian TIFF": (Image.fromarray(pixels(20, 30).astype(">u2")), "tiff"),
    "32 bits": (Image.fromarray(pixels(20, 30).astype(np.int32) * 1000), "tiff"),
    "float": (Image.fromarray(pixels(20, 30).astype(np.float32) / 255), "tiff"),
}


@pytest.fixture
def seen(tmp_path, monkeypatch) -> list[np.ndarray]:
    """What the printed lines give to a pipeline, whatever model it is of."""
    monkeypatch.chdir(tmp_path)
    images = []

    def classify(image: Image.Image) -> str:
        images.append(np.asarray(load_image(image)))  # as a pipeline takes it
        return "a cat"

    # Not a name of this file: transformers puts another module into its place as it is imported.
    monkeypatch.setattr(sys.modules["transformers"], "pipeline", lambda *args, **kwargs: classify)
    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", lambda *args, **kwargs: None)
    return images


def run(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "printed lines", "exec"), {})
    return printed.getvalue()


@pytest.mark.parametrize("place", PLACES)
def test_printed_lines_show_what_training_showed(seen, place):
    code = PLACES[place]()
    for kind, (image, format, settings) in GOOD.items():
        image.save("image.png", format, **settings)  # Pillow goes by the content
        assert run(code) == "a cat\n"
        expected = decode_image({"bytes": None, "path": "image.png"}, kind)
        assert np.array_equal(seen.pop(), np.asarray(expected)), kind


@pytest.mark.parametrize("kind", REFUSED)
def test_printed_lines_refuse_what_has_more_than_8_bits(seen, kind):
    image, format = REFUSED[kind]
    image.save("image.png", format)
    for place in PLACES.values():
        with pytest.raises(ValueError, match="more than 8 bits per channel"):
            run(place())
    assert seen == []


# Lines that use an export are few: what else an image may hold, such as broken EXIF data, is Pillow's error there.
OF_EXPORTS = 'Image.open("image.png")).convert("RGBA")'


def test_all_cards_and_the_readme_have_the_same_lines():
    files = [ROOT / "README.md", *(ROOT / "model_cards").glob("*.md")]
    assert len(files) == 19
    for path in files:
        assert path.read_text().count(f"{CLASSIFY_AN_IMAGE}\n```") == 1, path.name
    decoding = ROOT / "hf_deit" / "data" / "decoding.py"  # of training itself
    for path in {*files, *(ROOT / "hf_deit").rglob("*.md"), *(ROOT / "hf_deit").rglob("*.py")} - {decoding}:
        opened = re.findall(r"(?<!with )Image\.open\(.+", path.read_text())
        assert set(opened) <= {'Image.open(open("image.png", "rb"))', OF_EXPORTS}, path


def test_a_printed_pipeline_answers_as_the_model_on_what_training_decodes(tmp_path, monkeypatch):
    """With the real pipeline: an icon whose ink is in its alpha, lying on its side."""
    monkeypatch.chdir(tmp_path)
    ink = np.zeros((32, 32, 4), dtype=np.uint8)
    ink[4:12, 4:28, 3] = 255
    Image.fromarray(ink).save("image.png", exif=oriented(6))
    model = tiny.student(seed=2)
    with torch.no_grad():
        for head in (model.cls_classifier, model.distillation_classifier):
            head.weight.mul_(20)
    model.eval().save_pretrained("outputs/mine")
    tiny.processor().save_pretrained("outputs/mine")
    printed = eval(run(result().usage))
    image = decode_image({"bytes": None, "path": "image.png"}, "icon")
    with torch.no_grad():
        scores = model(**tiny.processor()(image, return_tensors="pt")).logits[0].softmax(-1)
    assert {answer["label"]: answer["score"] for answer in printed} == pytest.approx(
        {model.config.id2label[index.item()]: scores[index].item() for index in scores.topk(5).indices}, abs=1e-5
    )
    plain = pipeline("image-classification", model="outputs/mine")("image.png")  # sees black on black
    assert plain[0]["score"] != pytest.approx(printed[0]["score"], abs=1e-3)


def test_other_lines_do_what_the_cards_say(tmp_path):
    for name, (image, settings) in {
        "clear": (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), {}),
        "photograph": (RGB, {"exif": oriented(6)}),
        "deep": (Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)), {}),
    }.items():
        image.save(tmp_path / f"{name}.png", **settings)
    assert load_image(str(tmp_path / "clear.png")).getpixel((3, 3)) == (10, 20, 30)
    assert load_image(str(tmp_path / "deep.png")).getpixel((3, 3)) == (255, 255, 255)
    assert load_image(str(tmp_path / "photograph.png")).size == (20, 30)
    tiny.processor(do_resize=False, do_center_crop=False).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    lying = processor(Image.open(tmp_path / "photograph.png"), return_tensors="pt")["pixel_values"]
    assert lying.shape[-2:] == (20, 30)


# The figure beside them


def of_two_minds(model, data) -> None:
    """Fits the class head to the images, and gives the other one an opinion of its own: each fusion is another."""
    pixel_values = tiny.processor()(list(data["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model.eval().base_model(pixel_values).last_hidden_state[:, 0]
        wanted = torch.eye(10)[torch.tensor(data["label"])]
        torch.manual_seed(0)
        model.cls_classifier.weight.copy_(torch.linalg.lstsq(states, 4 * wanted).solution.T)
        model.distillation_classifier.weight.normal_(0, 0.5)


DIGITS = {index: str(index) for index in range(10)}
STUDENTS = {
    **{fusion: lambda fusion=fusion: tiny.student(fusion=fusion) for fusion in FUSIONS},
    "CaiT, softmax": lambda: CaiTForImageClassification(
        CaiTConfig(**tiny.SIZES, fusion="softmax", distillation_token=True, id2label=DIGITS)
    ),
}


@pytest.mark.parametrize(
    ("name", "published"), [*((name, "raw") for name in STUDENTS), ("softmax", "ema"), ("cls", "ema")]
)
def test_the_figure_beside_a_usage_is_what_that_usage_gives(tmp_path, name, published):
    train, validation = tiny.digits(num_validation=120)
    torch.manual_seed(0)
    model = STUDENTS[name]()
    of_two_minds(model, validation)
    settings = {"publish_weights": "ema", "ema_decay": 0.9} if published == "ema" else {}
    args = tiny.arguments(tmp_path, distillation_type="none", **settings)
    trainer = tiny.trainer(model, args, train_dataset=train, eval_dataset=validation)
    if published == "ema":  # not the weights as trained, whose accuracies are measured beside
        with torch.no_grad():
            trainer.model.cls_classifier.weight.neg_()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    stated = float(re.search(r"top-1 accuracy of (\d\.\d{4})", card)[1])

    code = {"trust_remote_code": True} if "CaiT" in name else {}
    served = AutoModelForImageClassification.from_pretrained(tmp_path, **code).eval()
    ours = type(model).from_pretrained(tmp_path).eval()
    batch = AutoImageProcessor.from_pretrained(tmp_path)(list(validation["image"]), return_tensors="pt")
    with torch.no_grad():
        answers, native = served(**batch).logits.argmax(-1), ours(**batch)
    labels = torch.tensor(validation["label"])
    assert stated == pytest.approx((answers == labels).float().mean().item(), abs=5e-5)
    assert trainer.run_facts(metrics).served_top1 == pytest.approx(stated, abs=5e-5)
    fused = (native.logits.argmax(-1) == labels).float().mean().item()
    average = "ema_" if published == "ema" else ""
    assert metrics[f"eval_{average}top1"] == pytest.approx(fused)
    if name == "softmax":  # which the format cannot express
        assert stated != pytest.approx(fused, abs=1e-3)
        assert f"| fused heads, by softmax | {fused:.4f} |" in card
        assert f"| transformers alone, which averages the logits | {stated:.4f} |" in card
        assert "hf_deit.DistilledDeiTForImageClassification.from_pretrained" in card
    else:
        assert torch.equal(answers, native.logits.argmax(-1))
        assert not any("plain" in metric for metric in metrics)
    if name in ("cls", "distillation"):
        mean = (native.cls_logits + native.distillation_logits).argmax(-1)
        assert not torch.equal(mean, answers)  # else the test would show nothing


def test_records_of_earlier_versions_state_no_figure_that_is_not_known():
    """How the heads were fused, they do not say; a table by head they have."""
    text = make_card(facts(fusion=None), "ada/pets")
    assert "top-1 accuracy of" not in text
    assert "| fused heads | 0.7500 |" in text
    assert "top-1 accuracy of 0.5000" in make_card(facts(fusion=None, metrics={"eval_top1": 0.5}), "ada/pets")
    assert "top-1 accuracy of" not in make_card(facts(metrics={}), "ada/pets")


def test_what_becomes_of_two_heads_is_said():
    note = note_on_fusion("DistilledDeiTForImageClassification", "cls", "ada/pets")
    assert note.startswith("The class head answers. The distillation head is in the file")
    assert 'from_pretrained("a \\"b\\"")' in note_on_fusion("DistilledDeiTForImageClassification", "cls", 'a "b"')
    assert note_on_fusion("DistilledDeiTForImageClassification", "logits", "ada/pets") is None
    assert note_on_fusion("CaiTForImageClassification", "cls", "ada/pets") is None
    assert note in make_card(facts(fusion="cls"), "ada/pets")
    assert "trust_remote_code=True" in usage("outputs/mine", needs_code=True)
