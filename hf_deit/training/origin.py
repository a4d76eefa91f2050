"""What a run was started with beside its arguments: noted in each checkpoint, and compared where the run goes on."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..data.view_dataset import EvaluationDataset, KeyedViews, ViewDataset
from ..errors import InputError
from ..hub.files import read_json
from ..hub.run_folder import STATE_FILE
from ..labels.identity import data_fingerprint
from ..models.configuration_cait import CaiTConfig
from ..models.modeling_common import ImageClassifierBase
from ..models.pretrained import LOADING_ERRORS, weights_digest
from ..models.teacher import AnyDescription, AnyTeacher

if TYPE_CHECKING:
    from .kept_labels import KeptLabels
    from .trainer import DistillationTrainer

logger = logging.get_logger(__name__)

_ANOTHER = "or begin another run with another --output_dir"
_WORDS = {
    "teacher": ("the teacher", f"put back the one that the run was started with, {_ANOTHER}"),
    "train": ("the images to train on, or their labels or order,", f"put back those that there were, {_ANOTHER}"),
    "validation": (
        "the images to validate with, or their labels or order,",
        f"put back those by which the results so far were measured, {_ANOTHER}",
    ),
    "views_per_step": (
        "the number of views in a step",
        "keep the total batch (processes · per_device_train_batch_size · gradient_accumulation_steps): "
        "--total_batch_size {before}",
    ),
}
_DROPOUT = "as the authors' --drop"
# Of configurations and image processors: what is derived, or of the libraries; class names are compared elsewhere.
_NOT_OF_THE_STUDENT = frozenset(
    ["transformers_version", "_name_or_path", "architectures", "dtype", "auto_map", "id2label", "label2id"]
)


class RunOrigin(TrainerCallback, ExportableState):
    """Lets transformers write what a run was started with into the state of each checkpoint.

    Attributes:
        origin: from `describe_origin`.
    """

    def __init__(self) -> None:
        self.origin: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"origin": self.origin}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # One that a checkpoint of an earlier version has given knows no such entry, and transformers asks for it.
        state.stateful_callbacks[type(self).__name__] = self.state()


def describe_origin(
    trainer: "DistillationTrainer", teacher: AnyTeacher | AnyDescription | None, checkpoint: str | None = None
) -> dict[str, Any]:
    """What a run's weights depend on and its arguments do not tell, as an object of JSON; for one process to ask.

    Args:
        trainer: of the run.
        teacher: that it was given, or None.
        checkpoint: that it goes on from, if it does.

    Returns:
        teacher: revision (a commit, or a digest of a folder), dtype, preprocessing, execution, and, of several,
            members and weights. Without one, of the kept labels'.
        student: a digest of the local folder that it comes from.
        train, validation: rows and fingerprint.
        views_per_step, views_at_once: over all devices and accumulation steps, and what the student sees at once, if
            it has layers that look at the whole batch.
        dropout: where it stands in a model of this package that has any; earlier versions had it elsewhere.
        predicted_classes: what a teacher has said of the training images, and its prior; of a run that goes on.
        changes: which of its arguments were otherwise until a step before, in words.
        What is not known is left out.
    """
    views, validation, args = trainer.train_dataset, trainer.eval_dataset, trainer.args
    changes = [*(changes_in(checkpoint) if checkpoint else ()), *trainer.changes]
    origin = {
        "teacher": teacher_of(teacher, trainer.kept_labels),
        "student": _digest(trainer.model.name_or_path),
        "train": images_of(views) if isinstance(views, ViewDataset) else None,
        "validation": images_of(validation) if isinstance(validation, EvaluationDataset) else None,
        "views_per_step": args.total_train_batch_size if isinstance(views, KeyedViews) else None,
        "views_at_once": args.train_batch_size if _looks_at_batches(trainer.model) else None,
        "dropout": _DROPOUT if _has_own_dropout(trainer.model) else None,
        "predicted_classes": _origin_in(checkpoint).get("predicted_classes") if checkpoint else None,
        "changes": list(dict.fromkeys(changes)),
    }
    return json.loads(json.dumps({name: value for name, value in origin.items() if value is not None}))


def teacher_of(
    teacher: AnyTeacher | AnyDescription | None, kept_labels: "KeptLabels | None" = None
) -> dict[str, Any] | None:
    """What a teacher, or else that of kept labels, is known by; None if there is none, or none to be found."""
    if isinstance(teacher, AnyTeacher):
        teacher = teacher.description
    try:
        if teacher is not None:
            identity = teacher.identity()
        elif kept_labels is not None:
            identity = kept_labels.store.identity.teacher
        else:
            return None
    except InputError:  # its folder is there no more
        return None
    decisive = {"revision", "dtype", "preprocessing", "execution", *identity} - {"name", "names", "labels"}
    return {name: identity.get(name) for name in decisive}


def _digest(name_or_path: str) -> str | None:
    try:
        return weights_digest(name_or_path) if name_or_path and os.path.isdir(name_or_path) else None
    except InputError:
        return None


def images_of(views: ViewDataset | EvaluationDataset) -> dict[str, Any]:
    """What tells the images of views, or of an evaluation, from others: `rows` and `fingerprint`."""
    columns = {"image_column": views.image_column, "label_column": views.label_column}
    return {"rows": len(views.dataset), "fingerprint": data_fingerprint(views.dataset, **columns)}


def _looks_at_batches(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _has_own_dropout(model: nn.Module) -> bool:
    if not isinstance(model, ImageClassifierBase):
        return False
    config = model.config
    return bool(config.hidden_dropout_prob or (isinstance(config, CaiTConfig) and config.attention_probs_dropout_prob))


def check_origin(checkpoint: str, origin: Mapping[str, Any], *, trained_anew: bool = False) -> None:
    """Refuses to go on with other models, images or batches than those that a run was started with.

    Of a checkpoint by an earlier version that says nothing of them, nothing is compared; one of a student with
    dropout, which then stood elsewhere, is refused.

    Args:
        checkpoint: its folder.
        origin: of the run as it is now, from `describe_origin`.
        trained_anew: whether the run's own recipe has trained its teacher once more, as that was left behind; on a GPU
            it is another one each time.

    Raises:
        InputError: names what differs, with both values.
    """
    before = _origin_in(checkpoint)
    if "dropout" in origin and "dropout" not in before:
        raise InputError(
            f"the run of {checkpoint!r} was started with an earlier version, whose dropout is not between GELU and "
            "the next linear, but in CaiT's class-attention layers; this one has it as the authors' --drop: begin "
            "another run with another --output_dir, or go on with the version that started it"
        )
    for name, (what, remedy) in _WORDS.items():
        if name not in before or name not in origin:
            continue
        for field, there, here in differences(before[name], origin[name]):
            changed = (
                f"{what} changed since the run of {checkpoint!r} was started: {field or name} {there} then, {here} now"
            )
            if field.rpartition(".")[2] == "execution":  # of a teacher, or of one of several
                remedy = f"give --teacher_speed auto, {_ANOTHER}"
            if name != "teacher" or not trained_anew:
                raise InputError(f"{changed}: {remedy.format(before=there)}")
            logger.warning("%s", changed)
    if "student" in before and before["student"] != origin.get("student", before["student"]):
        logger.warning(
            "the weights that the student was started from have changed in their folder since (%s then, %s now): the "
            "run goes on with those of its checkpoint",
            before["student"],
            origin["student"],
        )
    at_once, now = before.get("views_at_once"), origin.get("views_at_once")
    if at_once != now and None not in (at_once, now):
        logger.warning(
            "the student has BatchNorm, which looks at the views of a device at once: those were %d until here, and "
            "are %d from here on",
            at_once,
            now,
        )


def _origin_in(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint's state says of its run's origin; empty if it says nothing."""
    state = read_json(os.path.join(checkpoint, STATE_FILE)).get("stateful_callbacks") or {}
    noted = state.get(RunOrigin.__name__)
    attributes = noted.get("attributes") if isinstance(noted, dict) else None
    origin = attributes.get("origin") if isinstance(attributes, dict) else None
    return origin if isinstance(origin, dict) else {}


def teacher_in(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint says of its run's teacher, as `teacher_of`; empty if it says nothing."""
    return _origin_in(checkpoint).get("teacher") or {}


def compared_in(checkpoint: str) -> set[str]:
    """What `check_origin` compares with a checkpoint, which knows it itself: "teacher", "train" …

    One that cannot be read knows nothing; whoever goes on from it says why.
    """
    try:
        return {*_WORDS} & {*_origin_in(checkpoint)}
    except (OSError, ValueError):
        return set()


def changes_in(checkpoint: str) -> list[str]:
    """What of a run's arguments was otherwise until a step before a checkpoint, in words."""
    return list(_origin_in(checkpoint).get("changes", ()))


def views_per_step_in(checkpoint: str) -> int | None:
    """The total batch of a checkpoint's run; None if it does not say."""
    return _origin_in(checkpoint).get("views_per_step")


def check_student(checkpoint: str, trainer: "DistillationTrainer") -> None:
    """Refuses a student whose configuration or image processor is not that of a checkpoint.

    Args:
        checkpoint: its folder. What it does not hold is not compared.
        trainer: of the run.

    Raises:
        InputError: names the field, with both values.
    """
    processor = trainer.processing_class
    parts = [("config.json", trainer.model.config), ("preprocessor_config.json", processor)]
    for name, now in parts:
        if not os.path.isfile(os.path.join(checkpoint, name)):
            continue
        try:
            before = type(now).from_pretrained(checkpoint)
        except LOADING_ERRORS:  # whoever restores the weights says what is wrong
            continue
        for field, there, here in differences(settings_of(before), settings_of(now)):
            remedy = "give it the folder, --student_overrides, --image_size and --crop_ratio that it had"
            if field == "crop_ratio":  # also by another default of an earlier version
                remedy = f"give --crop_ratio {there:g}"
            raise InputError(
                f"the student of the run of {checkpoint!r} has {field} {there}, got {here}: {remedy}, {_ANOTHER}"
            )


def settings_of(part: Any) -> dict[str, Any]:
    """What a configuration or an image processor says of a student, as an object of JSON."""
    values = json.loads(json.dumps(part.to_dict(), default=str))
    return {name: value for name, value in values.items() if name not in _NOT_OF_THE_STUDENT}


def differences(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields that both have, by dotted name, whose values differ; numbers may by rounding."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() & now.keys()):
            yield from differences(before[name], now[name], f"{prefix}.{name}".lstrip("."))
    elif _are_of_objects(before, now):
        yield from differences(dict(enumerate(before)), dict(enumerate(now)), prefix)
    elif not _is_same(before, now):
        yield prefix, before, now


def _are_of_objects(before: Any, now: Any) -> bool:
    """Whether both are lists of as many objects, as of several teachers."""
    are_lists = isinstance(before, list) and isinstance(now, list) and len(before) == len(now)
    return are_lists and all(isinstance(item, dict) for item in [*before, *now]) and bool(before)


def _is_same(before: Any, now: Any) -> bool:
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_is_same, before, now))
    are_numbers = all(isinstance(value, int | float) for value in (before, now))
    if are_numbers and float in (type(before), type(now)):
        return math.isclose(before, now, rel_tol=1e-6, abs_tol=1e-9)
    return before == now  # whole numbers, too: a million images may be one fewer
