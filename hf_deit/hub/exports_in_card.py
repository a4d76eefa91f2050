"""What a card says of the exports that are published with it: how good each file is, and the lines that use it."""

import json
from collections.abc import Iterator, Sequence

from ..errors import counted, printable
from .export_record import CLASSIFIER, MODEL, PRECISIONS, SUPPORT, ExportedFile, ExportRecord, ParityRecord
from .markdown import code_block, escape_markdown
from .report_in_card import INTERVAL, Cell, cell_text, table_markdown

TITLE = "Other formats"
_FLOAT = PRECISIONS[0]
# What the Hub finds models by; file formats beside it also by their files.
_TAGS = {"onnx": "onnx", "openvino": "openvino", "executorch": "executorch"}
_TRANSFORMERS_JS = "transformers.js"
TAGS = (*_TAGS.values(), _TRANSFORMERS_JS)
# Of transformers.js 4.3, src/models/registry.js: what its pipeline for image classification opens.
_MODEL_TYPES_OF_TRANSFORMERS_JS = {
    *("beit", "convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "efficientnet", "fastvit", "hiera"),
    *("ijepa", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "mobilenet_v4", "mobilevit", "mobilevitv2", "pvt"),
    *("resnet", "segformer", "swin", "vit", "vit_msn"),
}
_COLUMNS = (
    "File",
    "Takes",
    "Precision",
    "Size",
    "Same answer as the trained model",
    "Largest difference of a probability",
    "Accuracy",
    "Accuracy lost",
)
_TAKES = {CLASSIFIER: "images", MODEL: "pixel_values"}
# Lines that use files of the Hub and of a folder alike: {record} and {program} say where these are.
_IMAGE = """\
from PIL import Image, ImageOps
import json
import numpy as np

image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
images = np.array(image)[None]  # (1, H, W, 3), of any size
labels = json.load(open({record}, encoding="utf-8"))["labels"]"""
_ANSWER = "print(labels[probabilities[0].argmax()], probabilities[0].max())"
_NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch", "torch": "PyTorch alone"}
_IMPORTS = {
    "onnx": "import onnxruntime",
    "openvino": "import openvino",
    "executorch": "import runpy\nimport torch\nfrom executorch.runtime import Runtime",
    "torch": "import torch",
}
_LINES = {
    "onnx": """\
session = onnxruntime.InferenceSession({program})
(probabilities,) = session.run(["probabilities"], {{"images": images}})""",
    "openvino": """\
settings = {{"INFERENCE_PRECISION_HINT": "f32"}}  # by itself it would round to 16 bits where a processor can
model = openvino.compile_model({program}, "CPU", settings)
probabilities = model({{"images": images}})["probabilities"]""",
    "executorch": """\
beside = runpy.run_path(f"{{folder}}/preprocessing.py")  # runs it: read it before
method = Runtime.get().load_program({program}).load_method("forward")
(logits,) = method.execute([torch.from_numpy(beside["pixel_values"](image))])
probabilities = beside["probabilities"](logits.numpy())""",
    "torch": """\
classifier = torch.export.load({program}).module()
probabilities = classifier(torch.from_numpy(images)).numpy()""",
}
# Whose programs need what lies beside them.
_OF_SEVERAL_FILES = ("openvino", "executorch")
_WITH_RUNTIME = """\
import * as ort from "onnxruntime-web";

const session = await ort.InferenceSession.create("{address}/onnx/{file}");
const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]); // of a canvas's RGBA the first three
const {{ probabilities }} = await session.run({{ images }});"""
_WITH_TRANSFORMERS_JS = """\
import {{ pipeline }} from "@huggingface/transformers";

const classify = await pipeline("image-classification", {repo}, {{ dtype: "{dtype}"{revision} }});
console.log(await classify("image.png"));"""


def export_tags(exports: Sequence[ExportRecord]) -> list[str]:
    """The tags of a card, by which these exports are found on the Hub."""
    tags = [_TAGS[export.format] for export in exports if export.format in _TAGS]
    return [*tags, *([_TRANSFORMERS_JS] if any(map(_opens_in_browsers, exports)) else [])]


def exports_markdown(exports: Sequence[ExportRecord], repo_id: str, revision: str | None = None) -> str:
    """The section of a card about exports.

    Args:
        exports: at least one.
        repo_id: where they are published.
        revision: the branch; None for the main one.
    """
    parts = [
        f"## {TITLE}",
        "The same model for other runtimes, which need neither transformers nor hf_deit. Files that take images have "
        "the preprocessing inside: uint8 (B, H, W, 3), upright, RGB, of any size; they give probabilities in the "
        "order of the labels. Scale images of more than 8 bits per channel to 8 bits before. Files that take "
        "`pixel_values` hold the network alone: they leave the preprocessing to their user, and give logits.",
        table_markdown(_COLUMNS, [row for export in exports for row in _rows(export)]),
        *_comparisons(exports),
    ]
    repo, branch = json.dumps(repo_id), "" if revision is None else f", revision={json.dumps(revision)}"
    in_python = [(export, file) for export in exports if (file := _file_for_use(export)) is not None]
    if in_python:
        record = f'hf_hub_download({repo}, "{in_python[0][0].format}/export.json"{branch})'
        image = f"from huggingface_hub import hf_hub_download\n{_IMAGE.format(record=record)}"
        parts += ["An image and the labels, for each of the following:", code_block(image, "python")]
    for export, file in in_python:
        lines = _lines_of_the_hub(export.format, file.name, repo, branch)
        others = [other.name for other in _programs(export) if other.purpose == file.purpose and other != file]
        also = f" `{'`, `'.join(others)}` likewise:" if others else ""
        parts += [f"### {_NAMES[export.format]}", *([also.strip()] if also else [])]
        parts += [code_block(f"{lines}\n{_ANSWER}", "python")]
    for export in exports:
        parts += _in_browsers(export, repo_id, revision)
    return "\n\n".join(parts)


def lines_for_a_folder(format: str, folder: str, file: str) -> str:
    """Lines of Python that classify an image with an export in a folder.

    Args:
        format: such as "onnx".
        folder: where export.json lies.
        file: of the program.
    """
    imports, _, image = _IMAGE.format(record='f"{folder}/export.json"').partition("\n\n")
    lines = _LINES[format].format(program=f'f"{{folder}}/{file}"')
    place = printable(f"folder = {json.dumps(folder, ensure_ascii=False)}")
    return "\n".join((imports, _IMPORTS[format], "", place, image, lines, _ANSWER))


def _lines_of_the_hub(format: str, file: str, repo: str, branch: str) -> str:
    imports = _IMPORTS[format]
    if format not in _OF_SEVERAL_FILES:
        lines = _LINES[format].format(program=f'hf_hub_download({repo}, "{format}/{file}"{branch})')
        return f"{imports}\n\n{lines}"
    lines = _LINES[format].format(program=f'f"{{folder}}/{file}"')
    place = f'folder = snapshot_download({repo}, allow_patterns="{format}/*"{branch}) + "/{format}"'
    return f"{imports}\nfrom huggingface_hub import snapshot_download\n\n{place}\n{lines}"


def _programs(export: ExportRecord) -> list[ExportedFile]:
    return [file for file in export.files if file.purpose != SUPPORT]


def _file_for_use(export: ExportRecord) -> ExportedFile | None:
    """The one that is shown: in float32, and of the classifier if it has the preprocessing inside."""
    files = sorted(_programs(export), key=lambda file: (file.purpose != CLASSIFIER, file.precision != _FLOAT))
    is_usable = files and (files[0].purpose == CLASSIFIER or export.format == "executorch")
    return files[0] if is_usable else None


def _rows(export: ExportRecord) -> Iterator[tuple[Cell, ...]]:
    compared = {parity.precision: parity for parity in export.parity}
    purpose = CLASSIFIER if any(file.purpose == CLASSIFIER for file in export.files) else MODEL
    for file in _programs(export):
        weights = [
            other for other in export.files if other.purpose == SUPPORT and _is_weights_of(other.name, file.name)
        ]
        parity = compared.get(file.precision) if file.purpose == purpose else None
        size = file.num_bytes + sum(other.num_bytes for other in weights)
        yield (
            f"{export.format}/{file.name}",
            _TAKES[file.purpose],
            file.precision,
            _size(size),
            *(
                (None,) * 4
                if parity is None
                else (parity.agreement, parity.largest_difference, parity.accuracy, parity.cost)
            ),
        )


def _is_weights_of(name: str, program: str) -> bool:
    """OpenVINO's .bin beside its .xml, and ONNX's .onnx.data."""
    return name in (f"{program}.data", f"{program}_data", f"{program.removesuffix('.xml')}.bin")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.3g} GB"


def _comparisons(exports: Sequence[ExportRecord]) -> list[str]:
    """On which images, and by what, in a sentence for each."""
    lines = [_comparison(export, parity) for export in exports for parity in export.parity]
    if not lines:
        return []
    has_costs = any(parity.cost is not None for export in exports for parity in export.parity)
    about = f"In brackets stands the {INTERVAL}."
    if has_costs:
        about += " Accuracy lost is that of the trained model less that of the file, image by image."
    return ["\n".join(f"- {line}" for line in dict.fromkeys(lines)), about]


def _comparison(export: ExportRecord, parity: ParityRecord) -> str:
    runtime = ", ".join(f"{name} {version}" for name, version in parity.runtime.items())
    where = " in a process that cannot import PyTorch" if parity.without_torch else ""
    trained = ""
    if parity.trained_accuracy is not None:
        trained = f"; the trained model's accuracy on them is {parity.trained_accuracy['value']:.4f}"
    odd = ""
    if parity.odd_images is not None:
        agreement = cell_text(parity.odd_images["agreement"])
        odd = f"; on {counted(parity.odd_images['num_images'], 'odd image')} beside them it has the same answer: "
        odd += agreement
    return (
        f"{_NAMES[export.format]}, {escape_markdown(parity.precision)}: compared on "
        f"{counted(parity.num_images, 'image')}, {escape_markdown(parity.images)}, by {escape_markdown(runtime)}"
        f"{where}{trained}{odd}."
    )


def _opens_in_browsers(export: ExportRecord) -> bool:
    """Whether transformers.js opens it, in the layout of a repository that it reads."""
    return (
        export.format == "onnx"
        and export.model.get("model_type") in _MODEL_TYPES_OF_TRANSFORMERS_JS
        and bool({"model.onnx", "model_quantized.onnx"} & {file.name for file in _programs(export)})
    )


def _in_browsers(export: ExportRecord, repo_id: str, revision: str | None) -> list[str]:
    if export.format != "onnx":
        return []
    parts, file = [], _file_for_use(export)
    if file is not None:
        address = f"https://huggingface.co/{repo_id}/resolve/{revision or 'main'}"
        lines = _WITH_RUNTIME.format(address=address, file=file.name)
        parts += ["### Browsers, with onnxruntime-web", code_block(lines, "js")]
    if _opens_in_browsers(export):
        names = {file.name for file in _programs(export)}
        dtype = "fp32" if "model.onnx" in names else "q8"
        branch = "" if revision is None else f", revision: {json.dumps(revision)}"
        small = ' `dtype: "q8"` takes model_quantized.onnx.' if names >= {"model.onnx", "model_quantized.onnx"} else ""
        parts += [
            "### transformers.js",
            "It prepares images itself, and shrinks them without the filter that the model was trained with: where "
            f"they are much larger than the model's input, its answers are not those that were measured above.{small}",
            code_block(_WITH_TRANSFORMERS_JS.format(repo=json.dumps(repo_id), dtype=dtype, revision=branch), "js"),
        ]
    return parts
