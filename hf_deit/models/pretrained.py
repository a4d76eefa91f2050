"""What student and teacher need of a pretrained checkpoint: commit, processor, digest, absent weights, errors."""

import copy
import dataclasses
import hashlib
import json
import logging
import math
import os
import pickle
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ..errors import InputError, command, first_line, one_line, shortlist
from .configuration_deit import DeiTConfigBase, label2id_of, warn_of_foreign_code, without_foreign_code
from .extent import check_numbers, check_preprocessing
from .modeling_common import quantized_types

# What transformers, timm, safetensors and the Hub's client raise for checkpoints that are not there, or not whole.
LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError),
    *(StrictDataclassError, HfHubHTTPError, ArithmeticError, AssertionError, EOFError, pickle.UnpicklingError),
)
_NAMES_OF_CLASS = ("image_processor_type", "feature_extractor_type")
_TRAINED = (
    "take a checkpoint that was trained to classify, or fine-tune this one first (--distillation_type none "
    "--student …)"
)
_REMEDY = "save its image processor beside the weights (processor.save_pretrained), with the statistics of training"


# Files that hold weights, and files that hold a program, which neither learns nor gives its weights.
_OF_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar", ".pkl", ".npz", ".h5")
_OF_PROGRAMS = (".onnx", ".pte", ".tflite", ".torchscript")
_CHUNK = 1 << 24  # bytes that are read at once
_ARCHIVE = b"PK\x03\x04"  # with which a ZIP archive begins, and with it a file of torch


def is_weight_file(name_or_path: str) -> bool:
    """Whether a name is that of a file of weights or of an exported model, rather than of a folder or on the Hub."""
    is_named_so = name_or_path.lower().endswith((*_OF_WEIGHTS, *_OF_PROGRAMS))
    return os.path.isfile(name_or_path) or (is_named_so and not os.path.isdir(name_or_path))


def refuse_file(name_or_path: str, *, role: str) -> None:
    """Refuses a file in place of a folder or a name on the Hub, with the command that makes a folder of it.

    And what can only be a folder, and is not there.

    Args:
        role: of the model, "student", "teacher" or "model".

    Raises:
        InputError: it is one, see `is_weight_file`, or there is no such folder.
    """
    if not is_weight_file(name_or_path):
        is_path = name_or_path[:1] in ("/", ".", "~") or name_or_path.count("/") > 1
        if is_path and not os.path.exists(name_or_path):
            raise InputError(
                f"there is no folder {name_or_path!r} to load the {role} from, and it is no name on the Hub"
            )
        return
    option = "--teacher_model_name_or_path" if role == "teacher" else f"--{role}"
    folder, file = os.path.split(name_or_path)
    is_there = os.path.isfile(name_or_path)
    found = f"the {role} {name_or_path!r} is a file" if is_there else f"there is no file {name_or_path!r}"
    if file.lower().endswith(_OF_PROGRAMS):
        raise InputError(
            f"{found}; an exported model has no weights to load: give {option} the folder that it was exported from"
        )
    if os.path.isfile(os.path.join(folder, "config.json")):
        raise InputError(f"{found}, and a {role} is a folder with its configuration: {option} {folder or os.curdir}")
    stem = file
    while stem.lower().endswith(_OF_WEIGHTS):
        stem = os.path.splitext(stem)[0]
    converted = os.path.join(folder, stem or role)
    raise InputError(
        f"{found}, and a {role} is a folder or a name on the Hub: weights of a DeiT or CaiT are converted to one with "
        f"{command('convert', name_or_path, converted, '--to', 'hf_deit')}; then give {option} {converted}"
    )


def check_archive(path: str | os.PathLike[str]) -> None:
    """Compares what a file of `torch.save` holds with the CRC-32 that it keeps of each part; torch itself does not.

    It is read once. Files of torch before 1.6, and of other libraries, keep none: they are not read.

    Raises:
        InputError: a part is not what was written.
        OSError: the file cannot be read.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            return
        try:
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
                if not any(part.CRC for part in parts):  # torch.serialization.set_crc32_options(False)
                    return
                if sum(part.compress_size for part in parts) > os.path.getsize(path):
                    raise zipfile.BadZipFile("it lists more than it holds")
                for part in parts:
                    if part.compress_type == zipfile.ZIP_STORED:  # as torch writes all of them
                        with archive.open(part) as content:
                            while content.read(_CHUNK):
                                pass
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"cannot read {path!r}, it is damaged or no checkpoint: {one_line(error)}. Fetch or save it anew"
            ) from error


def unpickling_fault(error: BaseException) -> str:
    """Why torch could not read a file, in one line, without its advice to let the file run any code."""
    if found := re.search(r"\bGLOBAL (\S+)", str(error)):
        return f"unpickling it would run {found[1]}"
    _, is_known, reason = str(error).rpartition("WeightsUnpickler error: ")
    if not is_known and "weights_only" in str(error):
        return type(error).__name__
    return (reason.strip() or type(error).__name__).splitlines()[0]


def check_pickled(path: str | os.PathLike[str]) -> None:
    """Refuses a file of `torch.save` that is not what was written, or that torch does not read without running code.

    Its tensors are not loaded, except from files of torch before 1.6.

    Raises:
        InputError: the message names it, and what is wrong.
    """
    path = os.fspath(path)
    try:
        check_archive(path)
        with open(path, "rb") as file:
            is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
        torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {one_line(error)}") from error
    except Exception as error:
        raise InputError(
            f"cannot read {path!r}, it is damaged or holds more than tensors: {unpickling_fault(error)}"
        ) from error


def check_pickled_weights(name_or_path: str | os.PathLike[str], revision: str | None = None) -> None:
    """Refuses pickled weights that are damaged, where a checkpoint has no others; see `check_pickled`.

    Args:
        name_or_path: a folder, or a Hub id, of which only what was downloaded before is looked at.
        revision: branch, tag or commit.

    Raises:
        InputError: they are not what was written.
        OSError: the folder cannot be read.
    """
    folder = os.fspath(name_or_path)
    if not os.path.isdir(folder):
        folder = os.path.dirname(cached_file(folder, "config.json", revision=revision))
    names = sorted(os.listdir(folder))
    if not any(name.endswith(".safetensors") for name in names):  # which are taken where both are there
        for name in names:
            if name.endswith(".bin") and _PICKLED_FILES.fullmatch(name):
                check_pickled(os.path.join(folder, name))


def absent_weights(info: Mapping[str, Any]) -> list[str]:
    """Names of the weights that a checkpoint lacks, or has in another shape.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` returns beside the model.
    """
    return sorted(map(str, [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]))


def head_names(model: PreTrainedModel) -> set[str]:
    """Names of the heads' parameters: what changes its shape with the number of labels."""

    def shapes(num_labels: int) -> dict[str, torch.Size]:
        config = copy.deepcopy(model.config)
        config.num_labels = num_labels
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in type(model)(config).state_dict().items()}

    one, other = shapes(model.config.num_labels + 1), shapes(model.config.num_labels + 2)
    return {name for name in one if one[name] != other[name]}


def load_config(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    *,
    quantization: Mapping[str, Any] | None = None,
    **fields: Any,
) -> PreTrainedConfig:
    """The configuration of a checkpoint, as `AutoConfig` loads it, without what leads to others' code.

    That is neither run nor asked for, see `without_foreign_code`; what is left out is warned of once.

    Args:
        name_or_path: a Hub id or a folder.
        revision: branch, tag or commit.
        quantization: its quantization_config, if that is one to follow; see `stated_quantization`.
        **fields: of the configuration, instead of its own.

    Raises:
        InputError: transformers and timm have no such model, perhaps there is code of its own; or it has numbers that
            no model has, of which some cost memory as soon as they are loaded.
        LOADING_ERRORS: no such checkpoint, or a field that is none.
    """
    name_or_path = os.fspath(name_or_path)
    stated, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)
    model_type = stated.get("model_type")
    if not stated:  # as if it were a file without statements
        _refuse_open_clip(name_or_path, revision)
    if os.path.isdir(name_or_path) and not os.path.isfile(os.path.join(name_or_path, "config.json")):
        inside = sorted(
            entry.path for entry in os.scandir(name_or_path) if os.path.isfile(f"{entry.path}/config.json")
        )
        near = f": one of the models in it is {inside[0]!r}" if inside else ""
        raise InputError(f"the folder {name_or_path!r} has no config.json, so it is that of no model{near}")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        _, left_out = without_foreign_code(stated)
        named = "; ".join(item for item in left_out if item.startswith("auto_map "))
        code = f": it needs code of its own, which is not run ({named})" if named else ""
        raise InputError(
            f"{name_or_path!r} is of type {model_type!r}, which transformers has not{code}. Take a model of "
            "transformers or timm"
        )
    config_class = CONFIG_MAPPING[model_type]
    # transformers would set them all, and find no way to save the configuration after the training.
    if wrong := sorted(name for name in stated if name[:2] == "__" or callable(getattr(config_class, name, None))):
        raise InputError(
            f"config.json of {name_or_path!r} states {shortlist(wrong)}, expected fields alone: remove it"
        )
    # The others cost nothing: people write seeds and times beside them.
    used = {*fields_of(config_class), "num_classes"}
    check_numbers({name: stated[name] for name in stated if name in used}, f"config.json of {name_or_path!r}")
    kept, left_out = without_foreign_code(stated, own_code_of(config_class))
    if model_type == "timm_wrapper" and re.search(r"[:/\\]", str(kept.get("architecture"))):
        raise InputError(
            f"{name_or_path!r} names the architecture {kept['architecture']!r}, which leads elsewhere: expected the "
            "name of a model of timm"
        )
    if model_type == "timm_wrapper" and isinstance(model_args := kept.get("model_args"), Mapping):
        # timm saves it here, too, and transformers gives it to timm's model beside its own.
        kept = {**kept, "model_args": {name: value for name, value in model_args.items() if name != "num_classes"}}
    if quantization is not None:
        kept["quantization_config"] = dict(quantization)
        left_out = [item for item in left_out if not item.startswith("quantization_config ")]
    warn_of_foreign_code(left_out)
    return config_class.from_dict(kept, name_or_path=name_or_path, **fields)


def _refuse_open_clip(name_or_path: str, revision: str | None) -> None:
    """Refuses what holds open_clip's files, where there is no config.json of transformers.

    Raises:
        InputError: it does.
    """
    if path_of(name_or_path, "open_clip_config.json", revision):
        raise InputError(
            f"{name_or_path!r} has the files of open_clip and no config.json of transformers: take the same model in "
            "transformers' format, such as openai/clip-vit-base-patch32 or google/siglip2-base-patch16-224"
        )


def path_of(name_or_path: str, file: str, revision: str | None) -> str | None:
    """The path of a checkpoint's file; None if there is none, or if it cannot be known."""
    try:
        return cached_file(
            name_or_path,
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return None


def not_loadable(name_or_path: str, revision: str | None, error: Exception | str, *, role: str) -> InputError:
    """The message about a checkpoint that is no image classifier, or none that can be loaded.

    Args:
        role: of the model, "teacher" or "model".
    """
    at = f" at revision {revision!r}" if revision else ""
    return InputError(f"cannot load the {role} {name_or_path!r}{at} as an image classifier: {why_not_loaded(error)}")


def why_not_loaded(error: Exception | str) -> str:
    """What an error says of a checkpoint; of one that was looked for in vain without the Hub, in few words."""
    said = str(error).strip()
    if "couldn't connect to" not in said:  # transformers' words
        return said
    hub = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the Hub cannot be reached"
    return f"there is no such folder, none of that name in the Hub's cache, and {hub}"


def load_classifier(
    name_or_path: str,
    revision: str | None = None,
    *,
    dtype: torch.dtype,
    role: str,
    model_class: Any = AutoModelForImageClassification,
    remedy: str = _TRAINED,
    id2label: Mapping[int, str] | None = None,
) -> PreTrainedModel:
    """Loads an image classifier with all its weights, without others' code.

    Args:
        name_or_path: a Hub id or a folder, whose small files have been checked.
        revision: branch, tag or commit.
        dtype: of its weights.
        role: of the model, for the messages: "teacher" or "model".
        model_class: one of this package, or that which transformers takes.
        remedy: what to do about weights that are not there.
        id2label: of the new heads that a backbone shall get, whose weights are random; None keeps its own. With
            transformers' class only.

    Raises:
        InputError: it cannot be loaded, lacks weights (but for new heads), or has quantised ones that only others'
            code can read, or that no new head goes with.
    """
    try:
        check_pickled_weights(name_or_path, revision)
        quantization = None
        if types := quantized_types(name_or_path, revision=revision):
            quantization = stated_quantization(name_or_path, revision) if id2label is None else None
            if quantization is None:
                if id2label is not None:
                    raise InputError(
                        f"the {role} {name_or_path!r} has quantised weights ({', '.join(types)}), with which no new "
                        "head goes: take the checkpoint that they were made from"
                    )
                raise InputError(
                    f"the {role} {name_or_path!r} has quantised weights ({', '.join(types)}), which only code from "
                    "elsewhere can read: take the checkpoint that they were made from, or one of bitsandbytes"
                )
        settings = {}
        if hasattr(model_class, "_model_mapping"):  # one of transformers' own choice, which would follow the file's
            config = load_config(name_or_path, revision, quantization=quantization, **_fields_of_labels(id2label))
            settings = {"config": config, "trust_remote_code": False, "ignore_mismatched_sizes": id2label is not None}
        with _without_loading_report() if id2label is not None else nullcontext():
            model, info = model_class.from_pretrained(
                name_or_path, revision=revision, dtype=dtype, output_loading_info=True, **settings
            )
    except InputError:
        raise
    except LOADING_ERRORS as error:
        raise not_loadable(name_or_path, revision, error, role=role) from error
    random_weights = absent_weights(info)
    if random_weights and id2label is not None:
        heads = head_names(model)
        if random_weights := [name for name in random_weights if name not in heads]:
            raise InputError(
                f"the {role} {name_or_path!r} has no weights for {shortlist(random_weights, 4)}, which would be "
                "random below the new head: take a whole checkpoint"
            )
    if random_weights:
        raise InputError(
            f"the {role} {name_or_path!r} has no weights for {shortlist(random_weights, 4)}, which would be random: "
            + remedy
        )
    return model


@contextmanager
def _without_loading_report() -> Iterator[None]:
    """Leaves out transformers' table of weights that are new, or not used: those of heads are meant to be."""
    source = logging.getLogger("transformers.modeling_utils")

    def is_another(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    source.addFilter(is_another)
    try:
        yield
    finally:
        source.removeFilter(is_another)


def _fields_of_labels(id2label: Mapping[int, str] | None) -> dict[str, Any]:
    """The fields of a configuration with these labels; none of one that keeps its own."""
    if id2label is None:
        return {}
    # timm's wrapper goes by their number, and by names of its own where its file has some.
    return {"num_labels": len(id2label), "id2label": dict(id2label), "label2id": label2id_of(id2label)}


def fields_of(config: Any) -> set[str]:
    """What can be given to a configuration, or to one of its class."""
    return {field.name for field in dataclasses.fields(config)} | {"num_labels", *config.attribute_map}


def own_code_of(config_class: type) -> Mapping[str, str]:
    """The `auto_map` of models that are published with this package's code; empty for those that bring none."""
    return config_class.own_code if issubclass(config_class, DeiTConfigBase) else {}


def stated_quantization(name_or_path: str | os.PathLike[str], revision: str | None = None) -> Mapping[str, Any] | None:
    """The quantization_config of a checkpoint that follows from bitsandbytes, which is installed or not; else None.

    The other methods take kernels from the Hub, or code of packages for language models.
    """
    stated, _ = PreTrainedConfig.get_config_dict(os.fspath(name_or_path), revision=revision)
    stated = stated.get("quantization_config")
    if not isinstance(stated, Mapping):
        return None
    is_bits = bool(stated.get("load_in_4bit") or stated.get("load_in_8bit"))
    return stated if stated.get("quant_method", "bitsandbytes" if is_bits else None) == "bitsandbytes" else None


def load_image_processor(
    name_or_path: str | os.PathLike[str], revision: str | None, config: Any
) -> BaseImageProcessor:
    """Loads the image processor of a checkpoint that states its mean and standard deviation.

    transformers would fill in those of the processor's class, which may not be what the model was trained with.

    Args:
        name_or_path: a Hub id or a folder.
        revision: branch, tag or commit.
        config: the checkpoint's configuration.

    Raises:
        InputError: there is none to load, or it states no mean and standard deviation.
    """
    name_or_path = os.fspath(name_or_path)
    stated, where = _stated_preprocessing(name_or_path, revision, config)
    file, content = "preprocessor_config.json", stated
    wanted = ("image_mean", "image_std")
    try:
        if config.model_type == "timm_wrapper":
            wanted, file = ("mean", "std"), "config.json"
            content, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)
        elif any(map(stated.get, _NAMES_OF_CLASS)):
            config = None  # whose usual one transformers would take where it does not know the one that is stated
        elif isinstance(config, DeiTConfigBase):
            config = load_config(name_or_path, revision)  # transformers knows the class of the processor by its own
        with _without_backend_warning(), _without_code(file, content) as place:
            processor = AutoImageProcessor.from_pretrained(place, config=config, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise InputError(f"cannot load the image processor of {name_or_path!r}: {first_line(error)}") from error
    absent = [name for name in wanted if stated.get(name) is None]
    if absent and getattr(processor, "do_normalize", True):
        raise InputError(f"{name_or_path!r} states no {' and '.join(absent)} in {where}: {_REMEDY}")
    return processor


@contextmanager
def _without_code(file: str, stated: Mapping[str, Any]) -> Iterator[str]:
    """A folder to load an image processor from, with what does not lead to others' code.

    And with no other file: of two that a checkpoint may have transformers takes the one that nobody has looked at.

    Args:
        file: the name of its file.
        stated: what it holds.
    """
    kept, left_out = without_foreign_code(stated)
    warn_of_foreign_code(left_out)
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, file), "w", encoding="utf-8") as target:
            json.dump(kept, target)
        yield folder


@contextmanager
def _without_backend_warning() -> Iterator[None]:
    """Leaves out a line of transformers that says that torchvision is not there.

    It says so of image processors that have no variant with torchvision, such as timm's: where torchvision is really
    absent, transformers asks for none.
    """
    source = logging.getLogger("transformers.models.auto.image_processing_auto")

    def is_true(record: logging.LogRecord) -> bool:
        return "torchvision backend is not available" not in record.getMessage()

    source.addFilter(is_true)
    try:
        yield
    finally:
        source.removeFilter(is_true)


def _stated_preprocessing(name_or_path: str, revision: str | None, config: Any) -> tuple[Mapping[str, Any], str]:
    """What a checkpoint's files say of its preprocessing, without the defaults of any class, and where they do.

    Beside a model of images and texts transformers 5 writes no preprocessor_config.json, but the same in another file.
    """
    if config.model_type == "timm_wrapper":
        stated = getattr(config, "pretrained_cfg", None) or {}
        check_preprocessing(stated, f"pretrained_cfg in config.json of {name_or_path!r}")
        return stated, "pretrained_cfg of config.json"
    try:
        where, nested = "preprocessor_config.json", None
        path = path_of(name_or_path, where, revision)
        if path is None:
            nested = path_of(name_or_path, "processor_config.json", revision)
        with open(nested or path or cached_file(name_or_path, where, revision=revision), encoding="utf-8") as file:
            stated = json.load(file)
        if nested is not None:
            stated, where = stated["image_processor"], "image_processor of processor_config.json"
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise InputError(
            f"{name_or_path!r} has no readable preprocessor_config.json, so what its pixels must look like is "
            f"unknown: {_REMEDY}"
        ) from error
    check_preprocessing(stated, f"{where} of {name_or_path!r}")
    return stated, where


def stated_input_size(
    name_or_path: str | os.PathLike[str], revision: str | None, config: Any, processor: BaseImageProcessor
) -> tuple[int, int] | None:
    """The input's (height, width) that a checkpoint states, or None if it states none.

    Its image processor says it, as far as its file names a size: sizes that are a default of the processor's class say
    nothing of the model. Else its configuration does, if that names another size than its class does by default. Of a
    processor that does not resize the size in its file counts last, likewise.

    Args:
        name_or_path: a Hub id or a folder.
        revision: branch, tag or commit.
        config: the checkpoint's configuration.
        processor: from `load_image_processor`.

    Raises:
        InputError: its file cannot be read.
    """
    stated, _ = _stated_preprocessing(os.fspath(name_or_path), revision, config)
    if any(stated.get(name) for name in ("size", "crop_size", "input_size", "max_num_patches")):
        # One that does not resize gives back the size that it gets.
        _, _, size = measure_processor(str(name_or_path), processor)
        _, _, again = measure_processor(str(name_or_path), processor, edge=96)
        if size == again and stated.get("size") and not stated.get("crop_size"):
            # A centre crop by default of the class would fill up what is resized to less with black.
            edges = _edges_of(processor.size) or size
            size = again = (min(size[0], edges[0]), min(size[1], edges[1]))
        if size == again:
            return size
    size = configured_size(config)
    if size != configured_size(type(config)()):
        return size
    # What it would resize to, if it did, is written beside; perhaps by default.
    edges = _edges_of(getattr(processor, "size", None)) if stated.get("size") else None
    return None if edges == _edges_of(getattr(type(processor)(), "size", None)) else edges


def _edges_of(size: SizeDict | None) -> tuple[int, int] | None:
    """The (height, width) that an image processor's size makes of a square; None if it names none."""
    if size is None:
        return None
    height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
    return (height, width) if height and width else None


def configured_size(config: Any) -> tuple[int, int] | None:
    """The input's (height, width) in a model's configuration, which may be its class's default; None without one."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    size = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(edge, int) for edge in size)
    return (size[0], size[1]) if is_pair else None


def measure_processor(
    name: str, processor: BaseImageProcessor, *, edge: int = 64, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Measures what a processor makes of colours, on images of one colour each.

    Args:
        name: of the model, for the message.
        edge: height of the images, and their width where none is given.
        width: of the images.

    Returns:
        The change of each output channel (rows) when an input channel (columns) goes from 0 to 255, (3, 3) float64;
        the output for black, (3,) float64; and the output's (height, width).

    Raises:
        InputError: it fails, or the output is not of shape (B, 3, H, W), or not finite.
    """
    colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [Image.new("RGB", (width or edge, edge), colour) for colour in colours]
    try:
        made = processor(images=images, return_tensors="pt")
        pixels = made["pixel_values"]
        if "spatial_shapes" in made:
            pixels = _as_images(pixels, made["spatial_shapes"][0].tolist())
    except Exception as error:  # of any kind: libraries meet odd settings only as they come to use them
        raise InputError(
            f"the image processor of {name} fails on an image ({first_line(error)}): mend its preprocessor_config.json"
        ) from error
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.numel():
        raise InputError(f"the image processor of {name} must give (B, 3, H, W) pixels, got {tuple(pixels.shape)}")
    if not pixels.isfinite().all():
        raise InputError(
            f"the image processor of {name} gives pixels that are not finite: mend the mean, standard deviation and "
            "rescale_factor in its preprocessor_config.json"
        )
    height, width = pixels.shape[-2:]
    centre = pixels[:, :, height // 2, width // 2].double()
    return (centre[1:] - centre[0]).T, centre[0], (height, width)


def _as_images(patches: torch.Tensor, grid: list[int]) -> torch.Tensor:
    """Rows of patches (B, N, P · P · 3), padded, as SigLIP 2 takes images of any shape, as images (B, 3, H, W)."""
    rows, columns = grid
    edge = math.isqrt(patches.shape[-1] // 3)
    parts = patches[:, : rows * columns].reshape(-1, rows, columns, edge, edge, 3)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, rows * edge, columns * edge)


def resolve_revision(name_or_path: str | os.PathLike[str], revision: str | None = None) -> str | None:
    """The commit that a branch or tag of a model on the Hub stands for; None for a folder, or if it is not there."""
    name_or_path = os.fspath(name_or_path)
    if os.path.exists(name_or_path):
        return None
    try:
        return extract_commit_hash(cached_file(name_or_path, "config.json", revision=revision), None)
    except OSError:  # whoever loads the model says what is wrong
        return None


def name_and_revision(model: str) -> tuple[str, str | None]:
    """What "NAME@REVISION" says: a model's name, or its folder, and the revision, if it is one of the Hub."""
    name, at, revision = model.rpartition("@")
    if not at or os.path.exists(model) or not revision or name[:1] in ("", "/", ".", "~"):
        return os.path.expanduser(model), None
    return name, revision


_WEIGHT_FILES = re.compile(r"config\.json|.+\.py|.+\.safetensors(\.index\.json)?")
_PICKLED_FILES = re.compile(r"config\.json|.+\.py|pytorch_model.*\.bin(\.index\.json)?")


def weights_digest(folder: str | os.PathLike[str]) -> str:
    """A digest of a model in a folder, "sha256:…", over its configuration, weights and code.

    Raises:
        InputError: it holds no model.
    """
    folder = os.fspath(folder)
    try:
        names = sorted(os.listdir(folder))
        kept = [name for name in names if _WEIGHT_FILES.fullmatch(name)]
        if not any(name.endswith(".safetensors") for name in kept):  # which are taken where both are there
            kept = [name for name in names if _PICKLED_FILES.fullmatch(name)]
        if "config.json" not in kept or not any(name.endswith((".safetensors", ".bin")) for name in kept):
            raise InputError(f"there is no model in {folder!r}: expected config.json and model.safetensors")
        digest = hashlib.sha256()
        for name in kept:
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InputError(f"cannot read the model in {folder!r}: {first_line(error)}") from error
    return f"sha256:{digest.hexdigest()}"
