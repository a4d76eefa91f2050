"""An image classifier with its own preprocessing, whose logits are in the order of the data's classes."""

import inspect
import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ...errors import InputError, counted, nearest_names, not_one_of, one_line, shortlist
from ...models.class_names import are_unnamed, composed, in_order, match_labels
from ...models.configuration_deit import as_pair
from ...models.extent import LARGEST_IMAGE, check_extent
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.modeling_common import ImageClassifierBase
from ...models.modeling_deit import DistilledDeiTForImageClassification, PlainDeiTForImageClassification
from ...models.pretrained import (
    LOADING_ERRORS,
    configured_size,
    load_classifier,
    load_config,
    load_image_processor,
    name_and_revision,
    not_loadable,
    refuse_file,
    resolve_revision,
    weights_digest,
)
from ...models.single_teacher import size_in_words
from ...models.student import checkpoint_class
from ...models.zero_shot.architecture import is_zero_shot
from ..answers.verdicts import CLASS, DISTILLATION, RULE_OF_FUSION, RULES_OF_TWO_HEADS, SINGLE, SINGLE_HEAD, Rule
from ..arguments import DTYPES
from ..images.label_sets import imagenet_indices, imagenet_names, imagenet_synsets
from .input_size import at_test_size, crop_ratio_of, made_size
from .run_weights import Choice, RunWeights, weights_of_folder


@dataclass(frozen=True)
class Classifier:
    """A model that is evaluated.

    Attributes:
        name: short, unique among those that are compared.
        model: in evaluation mode, on its device.
        processor: makes `pixel_values` of an RGB image, as the model's users get them.
        input_size: (height, width) of these.
        label_order: (K,) int64, the model's index of each of the data's classes; None if they are in the same order.
        origin: of JSON's types: "name_or_path", "revision", "weights" ("raw" or "ema"), "architecture", …
        forward_options: what its `forward` is given beside the pixels.
    """

    name: str
    model: PreTrainedModel
    processor: BaseImageProcessor
    input_size: tuple[int, int]
    label_order: np.ndarray | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    forward_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_two_heads(self) -> bool:
        """Whether a teacher's answers have a head of their own; LeViT's has, without a token."""
        return hasattr(self.model, "distillation_classifier") or hasattr(self.model, "classifier_distill")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """By which its heads' logits can become answers."""
        return RULES_OF_TWO_HEADS if self.has_two_heads else (SINGLE_HEAD,)

    @property
    def rule(self) -> Rule:
        """By which it answers itself."""
        return RULE_OF_FUSION[getattr(self.model.config, "fusion", "logits")] if self.has_two_heads else SINGLE_HEAD

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """The pixels that the model gets of an RGB image: (3, H, W) float32, on the CPU."""
        return pixels_of(self.processor, image)

    def logits(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of its heads, in the order of the data's classes.

        Args:
            pixel_values: (B, 3, H, W), from `preprocess`.

        Returns:
            (B, K) float32 on the CPU, by name: of the class and the distillation head, or the model's only answer.
        """
        return self.logits_and_features(pixel_values, with_features=False)[0]

    @torch.no_grad()
    def logits_and_features(
        self, pixel_values: torch.Tensor, *, with_features: bool = True
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What `logits` gives, and the state that its heads have made them of.

        Returns:
            The logits; and (B, D) float32 on the CPU, each row of length 1: the input of the last linear layer, of
            two heads the mean of theirs. None without `with_features`, or if no linear layer makes the logits.
        """
        seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        shape = len(pixel_values), self.model.config.num_labels

        def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if output.shape == shape:  # what others make would fill the memory
                seen[layer] = inputs[0], output

        layers = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)] if with_features else []
        hooks = [layer.register_forward_hook(note) for layer in layers]
        try:
            pixel_values = pixel_values.to(self.model.device, self.model.dtype)
            outputs = self.model(pixel_values=pixel_values, **self.forward_options)
        finally:
            for hook in hooks:
                hook.remove()
        heads = self.heads_of(outputs)
        features = _inputs_of(heads.values(), seen.values()) if with_features else None
        heads = {name: logits.float().cpu() for name, logits in heads.items()}
        if self.label_order is None:
            return heads, features
        order = torch.from_numpy(self.label_order)
        return {name: logits[:, order] for name, logits in heads.items()}, features

    def heads_of(self, outputs: Any) -> dict[str, torch.Tensor]:
        """The logits of its heads in what the model gives, in its own order."""
        if not self.has_two_heads:
            return {SINGLE: outputs.logits}
        return {CLASS: outputs.cls_logits, DISTILLATION: outputs.distillation_logits}


def pixels_of(processor: BaseImageProcessor, image: Image.Image) -> torch.Tensor:
    """The pixels that an image processor makes of an RGB image: (3, H, W) float32, on the CPU."""
    return processor(image, return_tensors="pt")["pixel_values"][0]


def _inputs_of(
    heads: Collection[torch.Tensor], seen: Collection[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor | None:
    """The mean of what the layers were given that have made the logits of all heads; None if not all are linear."""
    found = []
    for logits in heads:
        inputs = [given for given, made in seen if made.shape == logits.shape and torch.equal(made, logits)]
        if not inputs:
            return None
        found.append(inputs[-1].float())
    return F.normalize(torch.stack(found).mean(dim=0), dim=-1).cpu()


@dataclass(frozen=True)
class ClassifierDescription:
    """What is known of a classifier from its small files, without its weights. Made by `describe_classifiers`.

    Attributes:
        name: short, unique among those that are compared.
        weights: where they lie; on the Hub the folder is a name there.
        revision: the commit it was resolved to, or None for a folder.
        wanted_revision: that commit or, where it is not known, what was asked for.
        model_class: to load it with.
        fusion: how a model with two heads makes one answer of them, of `RULE_OF_FUSION`; else None.
        processor, input_size, label_order, origin, forward_options: see `Classifier`.
        dtype: to compute in, by name.
    """

    name: str
    weights: RunWeights
    revision: str | None
    wanted_revision: str | None
    model_class: Any
    fusion: str | None
    processor: BaseImageProcessor
    input_size: tuple[int, int]
    label_order: np.ndarray | None
    dtype: str
    origin: dict[str, Any]
    forward_options: Mapping[str, Any]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """See `Classifier`."""
        return RULES_OF_TWO_HEADS if self.fusion else (SINGLE_HEAD,)

    @property
    def rule(self) -> Rule:
        """See `Classifier`."""
        return RULE_OF_FUSION[self.fusion] if self.fusion else SINGLE_HEAD

    def load(self, device: torch.device | str | None = None) -> Classifier:
        """Loads the weights.

        Args:
            device: to put them on; the CPU by default.

        Raises:
            InputError: they cannot be loaded, or are not whole; or the model takes no images of its size.
        """
        arguments = {"dtype": getattr(torch, self.dtype), "role": "model"}
        folder = self.weights.folder
        try:
            model = load_classifier(folder, self.wanted_revision, **arguments, model_class=self.model_class)
        except InputError:
            if self.model_class is not PlainDeiTForImageClassification:
                raise
            # A ViT with more than this package's has, or with pickled weights: transformers' class makes the same.
            model = load_classifier(folder, self.wanted_revision, **arguments)
        if isinstance(model, ImageClassifierBase) and as_pair(model.config.image_size) != self.input_size:
            try:
                model.resize_image_size(self.input_size)
            except ValueError as error:
                raise self._refuses_size(error) from error
        is_native = not isinstance(model, ImageClassifierBase)
        classifier = Classifier(
            name=self.name,
            model=model.to(device or "cpu").eval(),
            processor=self.processor,
            input_size=self.input_size,
            label_order=self.label_order,
            origin=self.origin,
            forward_options=self.forward_options if is_native else {},
        )
        resize = getattr(getattr(classifier.model, "timm_model", None), "set_input_size", None)
        try:
            try:
                self._check_answer(classifier)
            except Exception as error:  # of any kind: architectures refuse sizes as they come to it
                if resize is None or isinstance(error, torch.OutOfMemoryError | InputError):
                    raise
                resize(img_size=self.input_size)
                self._check_answer(classifier)
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as error:  # likewise
            raise self._refuses_size(error) from error
        return classifier

    def _check_answer(self, classifier: Classifier) -> None:
        named = len(classifier.model.config.id2label)
        for logits in replace(classifier, label_order=None).logits(torch.zeros(1, 3, *self.input_size)).values():
            if logits.shape != (1, named):
                raise InputError(
                    f"the model {self.name!r} gives logits of the shape {tuple(logits.shape)} for an image, and its "
                    f"config.json has {counted(named, 'label')}: set id2label there, in the order of its logits"
                )

    def _refuses_size(self, error: Exception) -> InputError:
        return InputError(
            f"the model {self.name!r} takes no images of {size_in_words(self.input_size)} pixels "
            f"({one_line(error)}): give another --image_size, or leave it out; where none is given, its image "
            "processor and its weights do not go together"
        )

    @cached_property
    def version(self) -> str:
        """What tells its weights from others: the commit, or a digest of the folder.

        Raises:
            InputError: it is neither on the Hub nor a folder with weights.
        """
        return self.revision or weights_digest(self.weights.folder)

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, beside the images, as an object of JSON. A folder's path is none of it."""
        settings = json.loads(json.dumps(self.processor.to_dict(), default=str, sort_keys=True))
        return {
            "model": self.origin["name_or_path"] if self.revision else None,
            "version": self.version,
            "preprocessing": {"type": type(self.processor).__name__, **settings},
            "input_size": list(self.input_size),
            "label_order": None if self.label_order is None else self.label_order.tolist(),
            "dtype": self.dtype,
            "forward_options": dict(self.forward_options),
        }


def architecture_of(config: Any) -> str:
    """The name of a model's class, or of timm's architecture."""
    return str(getattr(config, "architecture", None) or (config.architectures or [config.model_type])[0])


@dataclass(frozen=True)
class Showing:
    """How images are shown to models.

    Attributes:
        image_size: height and width in pixels; None for each model's own.
        crop_ratio: of the crop's side to the side that images are resized to, in (0, 1]; None for each model's own.
        dtype: to compute in, one of `DTYPES`.
    """

    image_size: int | None = None
    crop_ratio: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            raise InputError(f"image_size must lie in [1, {LARGEST_IMAGE}], got {self.image_size}")
        if self.crop_ratio is not None and not 0 < self.crop_ratio <= 1:
            raise InputError(f"crop_ratio must lie in (0, 1], got {self.crop_ratio}")
        if self.dtype not in DTYPES:
            raise InputError(not_one_of("dtype", self.dtype, DTYPES))


def describe_classifiers(
    models: Sequence[str],
    label_names: Sequence[str],
    *,
    class_indices: np.ndarray | None = None,
    weights: Choice = "published",
    shown: Showing = Showing(),
) -> list[ClassifierDescription]:
    """Reads and checks what is known of classifiers without their weights; gives them short names.

    Args:
        models: Hub ids, "my/model@revision" for another revision than main, or folders.
        label_names: the data's classes, K.
        class_indices: (K,) which class of a model each of the data's is, for models with other names, or with more
            classes than the data. Models with the same names are matched by these.
        weights: of the first of the models, which may make two of it; the others are taken as they are published.
        shown: how images are shown to all of them.

    Raises:
        InputError: one is given twice, is no classifier, states no preprocessing, or has other classes than the data.
    """
    found = []
    for position, model in enumerate(models):
        refuse_file(name_and_revision(model)[0], role="model")
        for kind in weights_of_folder(name_and_revision(model)[0], weights if position == 0 else "published"):
            found.append(_describe(model, kind, label_names, class_indices, shown))
    _refuse_repeats(found)
    names = short_names([(description.origin["name_or_path"], _words_of(description, found)) for description in found])
    return [replace(description, name=name) for description, name in zip(found, names, strict=True)]


def labels_of(model: str, weights: Choice = "published") -> list[str]:
    """The labels of a model, by index, from its configuration alone.

    Args:
        model, weights: see `describe_classifiers`.

    Raises:
        InputError: there is no such model, or there are no such weights.
    """
    name_or_path, wanted = name_and_revision(model)
    refuse_file(name_or_path, role="model")
    folder = weights_of_folder(name_or_path, weights)[0].folder
    try:
        config = load_config(folder, resolve_revision(folder, wanted) or wanted)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        raise not_loadable(name_or_path, wanted, error, role="model") from error
    _check_has_classes(name_or_path, config)
    return in_order(config.id2label)


def _check_has_classes(name_or_path: str, config: Any) -> None:
    """Refuses a model of texts and images, which has no classes of its own.

    Raises:
        InputError: it is one.
    """
    if is_zero_shot(config):
        raise InputError(
            f"the model {name_or_path!r} is a zero-shot model ({config.model_type}), which has no classes of its own "
            "that it could be asked for: hf-deit train, which tells it the images' labels as a teacher "
            "(--teacher_model_name_or_path), measures it on the validation images first; and hf-deit probe --backbone "
            "makes a classifier of its features"
        )


def _describe(
    model: str,
    weights: RunWeights,
    label_names: Sequence[str],
    class_indices: np.ndarray | None,
    shown: Showing,
) -> ClassifierDescription:
    name_or_path, wanted = name_and_revision(model)
    commit = resolve_revision(name_or_path, wanted)
    revision = commit or wanted
    try:
        config = load_config(weights.folder, revision)
        _check_has_classes(name_or_path, config)
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise not_loadable(name_or_path, revision, f"{config.model_type} is none", role="model")
        model_class, fusion = _class_of(weights.folder, revision)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        raise not_loadable(name_or_path, revision, error, role="model") from error
    check_extent(weights.folder, config)
    processor = own_processor(weights.processor_folder, revision, config)
    processor = at_test_size(name_or_path, processor, image_size=shown.image_size, crop_ratio=shown.crop_ratio)
    size = made_size(name_or_path, processor)
    takes_positions = "interpolate_pos_encoding" in _forward_arguments(config)
    return ClassifierDescription(
        name=name_or_path,
        weights=weights,
        revision=commit,
        wanted_revision=revision,
        model_class=model_class,
        fusion=fusion,
        processor=processor,
        input_size=size,
        label_order=label_order(
            label_names, config.id2label, class_indices=class_indices, owner=f"the model {name_or_path!r}"
        ),
        dtype=shown.dtype,
        origin={
            "name_or_path": name_or_path,
            "revision": commit,
            "weights": weights.kind,
            "checkpoint": weights.checkpoint,
            "architecture": architecture_of(config),
            "input_size": list(size),
            "crop_ratio": shown.crop_ratio or crop_ratio_of(processor, size),
            "dtype": shown.dtype,
        },
        forward_options=(
            {"interpolate_pos_encoding": True} if takes_positions and size != configured_size(config) else {}
        ),
    )


def own_processor(name_or_path: str, revision: str | None, config: Any) -> BaseImageProcessor:
    """The image processor of a checkpoint, in this package's class where that has written it.

    Raises:
        InputError: see `load_image_processor`.
    """
    processor = load_image_processor(name_or_path, revision, config)
    if getattr(processor, "crop_ratio", None) is not None:  # written by ours, which transformers' class reads, too
        return DistilledDeiTImageProcessor.from_pretrained(name_or_path, revision=revision)
    return processor


def _class_of(name_or_path: str, revision: str | None) -> tuple[Any, str | None]:
    """The class to load a checkpoint with, and how it fuses its two heads, if it has two.

    The class is this package's where transformers' gives but one answer of two heads, or the same.
    """
    try:
        config, model_class = checkpoint_class(name_or_path, revision)
    except LOADING_ERRORS:  # of a ViT with what this package's has not
        return AutoModelForImageClassification, None
    if model_class is DistilledDeiTForImageClassification or getattr(config, "distillation_token", False):  # of a CaiT
        return model_class, config.fusion
    has_two = (config.architectures or [""])[0].endswith("ForImageClassificationWithTeacher")  # LeViT's
    return model_class, "logits" if has_two else None


def _forward_arguments(config: Any) -> Collection[str]:
    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    model_class = found[0] if isinstance(found, tuple) else found
    return inspect.signature(model_class.forward).parameters


def _refuse_repeats(found: Sequence[ClassifierDescription]) -> None:
    seen: dict[tuple[str, str | None], str] = {}
    for description in found:
        folder, given = description.weights.folder, description.origin["name_or_path"]
        key = (os.path.realpath(folder) if os.path.exists(folder) else folder, description.revision)
        if key in seen:
            other = "" if seen[key] == given else f", once as {seen[key]!r}"
            raise InputError(f"the model {given!r} is given twice{other}: compare it with others")
        seen[key] = given


def _words_of(description: ClassifierDescription, others: Sequence[ClassifierDescription]) -> str:
    """What tells a model from others of the same name: its weights and, of several revisions, which."""
    name = description.origin["name_or_path"]
    revisions = {other.revision for other in others if other.origin["name_or_path"] == name}
    parts = [description.weights.words, (description.revision or "")[:12] if len(revisions) > 1 else ""]
    return ", ".join(filter(None, parts))


def short_names(models: Sequence[tuple[str, str]]) -> list[str]:
    """Short names that tell models apart: the last part of a path or Hub id, with as much before it as that takes.

    Args:
        models: path or Hub id, and words on the weights, of each; no two are equal.
    """
    places = [os.path.abspath(path) if os.path.exists(path) else os.path.normpath(path) for path, _ in models]
    parts = [[part for part in place.split(os.sep) if part] for place in places]
    names = ["/".join(path[-1:]) or "model" for path in parts]
    for length in range(1, max(map(len, parts), default=0) + 1):
        together = [(name, words) for name, (_, words) in zip(names, models, strict=True)]
        twice = {pair for pair in together if together.count(pair) > 1}
        if not twice:
            break
        names = [
            "/".join(path[-length - 1 :]) if pair in twice else name
            for path, name, pair in zip(parts, names, together, strict=True)
        ]
    return [f"{name} ({words})" if words else name for name, (_, words) in zip(names, models, strict=True)]


def label_order(
    names: Sequence[str],
    id2label: Mapping[int, str],
    *,
    class_indices: np.ndarray | None = None,
    owner: str = "the model",
) -> np.ndarray | None:
    """The model's index of each of the data's classes, (K,) int64; None if they are in the same order.

    Args:
        names: of the data's K classes.
        id2label: of the model.
        class_indices: see `describe_classifiers`.
        owner: the subject of the error message.

    Raises:
        InputError: the classes do not match, with the nearest names of those that have no counterpart.
    """
    theirs, ours = {int(index): str(label) for index, label in id2label.items()}, dict(enumerate(names))
    if len(theirs) == len(ours):
        with suppress(InputError):
            return _order(match_labels(theirs, ours))
        with suppress(InputError):  # one has ImageNet's synsets, and the other its words
            return _order(match_labels(_in_words(theirs), _in_words(ours)))
    if class_indices is None:
        raise _other_classes(theirs, ours, owner)
    indices = np.asarray(class_indices, dtype=np.int64)
    if indices.shape != (len(ours),):
        raise InputError(f"class_indices must name {len(ours)} classes, one for each of the data, got {len(indices)}")
    if indices.min() < 0 or indices.max() >= len(theirs):
        raise InputError(
            f"class_indices names class {indices.max()}, and {owner} has {len(theirs)} (0 to "
            f"{len(theirs) - 1}): compare models of the same classes"
        )
    if len(theirs) == len(ours):
        return _order(indices.tolist())
    place = {composed(label): index for index, label in theirs.items()}
    by_name = [place.get(composed(label), -1) for label in ours.values()]
    # A model may have the same classes in another order; numbers are no names.
    is_named = min(by_name) >= 0 and not all(label.isdecimal() for label in ours.values())
    return np.array(by_name, dtype=np.int64) if is_named else indices


def _order(indices: list[int]) -> np.ndarray | None:
    return None if indices == sorted(indices) else np.array(indices, dtype=np.int64)


def _in_words(labels: Mapping[int, str]) -> Mapping[int, str]:
    """Labels with ImageNet's words in place of its synsets, if these are its 1,000 classes by synset."""
    names = in_order(labels)
    indices = imagenet_indices(names) if len(names) == len(imagenet_synsets()) else None
    return labels if indices is None else {place: imagenet_names()[index] for place, index in enumerate(indices)}


def _other_classes(theirs: Mapping[int, str], ours: Mapping[int, str], owner: str) -> InputError:
    if are_unnamed(theirs.values()):
        return InputError(
            f"{owner} has no names for its {counted(len(theirs), 'label')} (LABEL_0, …), so which of them "
            f"is which of the data's {len(ours)} ({shortlist(in_order(ours), 3)}) is not known: set id2label in its "
            "config.json, in the order of its logits, or give --class_indices, a file with the model's number of each "
            "of the data's classes, one a line"
        )
    known = {composed(label).casefold() for label in theirs.values()}
    absent = [label for label in ours.values() if composed(label).casefold() not in known]
    nearest = {label: nearest_names(label, theirs.values()) for label in absent[:5]}
    words = [f"{label!r}" + (f" (the nearest is {near[0]!r})" if near else "") for label, near in nearest.items()]
    lacks = f". It lacks {', '.join(words)}{', …' if len(absent) > 5 else ''}" if absent else ""
    remedy = "If only the names differ, set id2label in its config.json, in the order of its logits"
    if len(theirs) > len(ours):
        remedy = (
            "Where the data's classes are some of the model's, give --class_indices, a file with the model's number "
            "of each of the data's classes, one a line"
        )
    elif len(theirs) < len(ours):
        remedy = "Evaluate it on images of its own classes"
    return InputError(
        f"{owner} has {len(theirs)} classes "
        f"({shortlist(in_order(theirs), 3)}), and not those of the data, {len(ours)} "
        f"({shortlist(in_order(ours), 3)}){lacks}. {remedy}"
    )
