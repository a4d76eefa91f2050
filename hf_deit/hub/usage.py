"""The lines that use a published model with transformers and Pillow alone: the same wherever they are printed."""

import json

from ..errors import printable
from ..models.heads import CLASS, DISTILLATION
from .markdown import code_span

# What training makes of an image (see `hf_deit.data.decoding`): upright, white where it is transparent, and refused if
# its channels have more than 8 bits. `classify` is a pipeline.
CLASSIFY_AN_IMAGE = """\
image = Image.open(open("image.png", "rb"))
image.getexif()  # keeps the orientation
image.info.pop("exif", None)  # the rest may be damaged
image = ImageOps.exif_transpose(image)
if image.mode[0] in "IF":
    raise ValueError(f"mode {image.mode} has more than 8 bits per channel: scale the image to 8 bits")
image = image.convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
print(classify(image.convert("RGB")))"""

WHAT_OTHER_LINES_DO = (
    "These lines show the model what training and evaluation with hf_deit show it: images that are upright, and white "
    'where they are transparent. A plain `classify("image.png")` drops the transparency, so that the model sees what '
    "lies under it, and makes white of all that passes 255 in images of more than 8 bits per channel. `Image.open` "
    "alone, for an `AutoImageProcessor`, leaves a photograph lying as the camera was held."
)


def usage(model: str, *, revision: str | None = None, needs_code: bool = False) -> str:
    """Lines that load a model and classify an image.

    Args:
        model: a Hub id or a folder.
        revision: the branch; None for the main one.
        needs_code: whether its code comes with it.
    """
    branch = f", revision={_quoted(revision)}" if revision else ""
    code = ", trust_remote_code=True" if needs_code else ""
    return (
        "from PIL import Image, ImageOps\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("image-classification", model={_quoted(model)}{branch}{code})\n{CLASSIFY_AN_IMAGE}'
    )


def note_on_fusion(architecture: str, fusion: str | None, model: str) -> str | None:
    """What transformers alone makes of a model's two heads, if it is worth a word; None otherwise.

    Args:
        architecture: class of the model.
        fusion: of its configuration.
        model: a Hub id or a folder.
    """
    if architecture != "DistilledDeiTForImageClassification":
        return None
    load = code_span(f"hf_deit.{architecture}.from_pretrained({_quoted(model)})")
    if fusion == "softmax":
        return f"Of its two heads transformers averages the logits; {load} averages their softmaxes, as it was set to."
    if fusion in ("cls", "distillation"):
        head = {"cls": CLASS, "distillation": DISTILLATION}[fusion]
        other = {"cls": DISTILLATION, "distillation": CLASS}[fusion]
        return (
            f"The {head.words} answers. The {other.words} is in the file as well, for {load}; transformers reports it "
            "as unexpected when it loads the model, and leaves it out."
        )
    return None


def _quoted(text: str) -> str:
    """A string of Python's: a folder, or a branch, may have any name."""
    return printable(json.dumps(text, ensure_ascii=False))
