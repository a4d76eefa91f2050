"""Which label store belongs to a run: what its labels depend on, how far they reach, and how it is opened."""

import math
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from transformers.utils import logging

from ..data.streams import StreamViewDataset
from ..data.view_dataset import ViewDataset
from ..data.views import ViewSampler
from ..errors import InputError
from ..hub.facts import RunSources
from ..labels.files import has_labels, probe_store
from ..labels.identity import StoreIdentity, data_fingerprint
from ..labels.on_hub import hub_id
from ..labels.store import TeacherLabelStore
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..models.teacher import TeacherDescription
from .arguments import DistillationTrainingArguments
from .datasets import data_seed, make_sampler
from .processes import on_every_process, on_main_process

logger = logging.get_logger(__name__)

NOT_OF_STREAMS = (
    "the labels of a stream cannot be kept: which image a slot has depends on the number of processes and on all that "
    "was read before. Give the data set without --streaming, or leave --teacher_labels out"
)
# Of how a view follows from (seed, epoch, slot): to be raised with every change that makes other views.
_VIEWS_VERSION = 1
# Libraries that make pixels.
_LIBRARIES = ("hf_deit", "numpy", "pillow", "timm", "torch", "torchvision")


def views_needed(args: DistillationTrainingArguments, sampler: ViewSampler) -> dict[int, int]:
    """By epoch, how many of its first views a run trains on."""
    steps_per_epoch = len(sampler) // args.total_train_batch_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return {
        epoch: min(len(sampler), (steps - epoch * steps_per_epoch) * args.total_train_batch_size)
        for epoch in range(math.ceil(steps / steps_per_epoch))
    }


def views_per_epoch(views: ViewDataset, args: DistillationTrainingArguments) -> int:
    """The slots of an epoch of which labels are kept.

    As many as whole groups of views fit into the data set, whatever the batch is; where a single step takes more than
    the data set has, as many as the step.
    """
    group_size = 1 if views.mixing is None else views.mixing.group_size
    return max(len(views) // group_size * group_size, args.total_train_batch_size)


def check_keyed_by_slot(views: Any, args: DistillationTrainingArguments) -> None:
    """Refuses views whose labels cannot be kept.

    Raises:
        InputError: what a slot holds does not follow from (seed, epoch, slot) alone.
    """
    if isinstance(views, StreamViewDataset):
        raise InputError(NOT_OF_STREAMS)
    if not isinstance(views, ViewDataset):
        raise InputError(f"teacher_labels are of a datasets.Dataset, got {type(views).__name__}")
    if views.seed != data_seed(args):
        raise InputError(
            f"views and their order have one seed in a run with teacher_labels, got {views.seed} and "
            f"{data_seed(args)}: give --data_seed {views.seed}"
        )


def resolve_identity(
    views: ViewDataset,
    args: DistillationTrainingArguments,
    processor: DistilledDeiTImageProcessor,
    *,
    teacher: TeacherDescription | None,
    num_labels: int,
    sources: RunSources,
) -> StoreIdentity:
    """`run_identity`, with what is not given taken from the store that the arguments name.

    Args:
        teacher: None takes the store's word for who it was.
        views, args, processor, num_labels, sources: see `run_identity`.

    Raises:
        InputError: there is neither a teacher nor a store.
    """
    there = identity_there(args)
    if there is None and teacher is None:
        raise InputError(
            f"there is no label store in {args.teacher_labels!r} and no teacher: give a teacher, which fills it, or "
            "another store"
        )
    said_by = there.teacher if teacher is None else teacher.identity()
    return run_identity(views, args, processor, teacher=said_by, there=there, num_labels=num_labels, sources=sources)


def run_identity(
    views: ViewDataset,
    args: DistillationTrainingArguments,
    processor: DistilledDeiTImageProcessor,
    *,
    teacher: dict[str, Any],
    there: StoreIdentity | None,
    num_labels: int,
    sources: RunSources,
) -> StoreIdentity:
    """What the labels of a run depend on.

    Args:
        views: of the run.
        args: of the run.
        processor: of the student, whose size and statistics the views have.
        teacher: from `TeacherDescription.identity`, or of another store.
        there: of the store that is there, or None: it says how many logits are kept, unless the arguments do.
        num_labels: of the teacher and the student.
        sources: how data set is named.
    """
    mixing, top_k = views.mixing, args.teacher_labels_top_k
    if top_k is None:
        top_k = 0 if there is None else there.top_k
    return StoreIdentity(
        teacher=teacher,
        data={
            "name": sources.dataset.name,
            "config": sources.dataset_config,
            "revision": sources.dataset.commit,
            "rows": len(views),
            "fingerprint": data_fingerprint(
                views.dataset, image_column=views.image_column, label_column=views.label_column
            ),
        },
        augmentation={
            "views_version": _VIEWS_VERSION,
            "image_size": [processor.crop_size.height, processor.crop_size.width],
            "image_mean": list(processor.image_mean),
            "image_std": list(processor.image_std),
            "interpolation": "bicubic",
            "crop_scale_min": args.crop_scale_min,
            "horizontal_flip": args.horizontal_flip,
            "auto_augment": args.auto_augment,
            "random_erasing": None if views.erasing is None else asdict(views.erasing),
            "mixing": None if mixing is None else {k: v for k, v in asdict(mixing).items() if k != "group_size"},
        },
        versions={name: version(name) for name in _LIBRARIES},
        seed=views.seed,
        group_size=1 if mixing is None else mixing.group_size,
        repeated_augmentation=args.repeated_augmentation,
        views_per_epoch=views_per_epoch(views, args),
        num_labels=num_labels,
        top_k=top_k,
    )


def labels_suffice(
    views: ViewDataset,
    args: DistillationTrainingArguments,
    processor: DistilledDeiTImageProcessor,
    *,
    num_labels: int,
    sources: RunSources,
    has_trained_teacher: bool,
) -> bool:
    """Whether the store has labels for all that a run trains on, so that it needs no teacher where none is named.

    If it needs one, which must be trained first, all else that can be wrong with the store is found out now.

    Args:
        views, args, processor, num_labels, sources: see `run_identity`.
        has_trained_teacher: whether the run has trained its teacher before.

    Raises:
        InputError: labels of other views, or of a teacher that is not the one to be trained; or no store can be made.
        CheckpointError: nothing can be written there.
    """
    check_keyed_by_slot(views, args)
    there = identity_there(args)
    said_by = {"revision": "of one that is to be trained"} if there is None else there.teacher
    identity = run_identity(
        views, args, processor, teacher=said_by, there=there, num_labels=num_labels, sources=sources
    )
    if there is not None:
        missing = _open_to_read(args, identity).missing(views_needed(args, make_sampler(views, args)))
        if not missing and not args.verify_teacher_labels:
            return True
        if not has_trained_teacher and not args.teacher_labels_readonly:
            why = f"lacks views of {len(missing)} epochs that the run needs" if missing else "is to be verified"
            raise InputError(
                f"the label store {args.teacher_labels!r} {why}, and has the labels of the teacher "
                f"{there.teacher['name']!r} ({there.teacher['revision']}): name that one with "
                "--teacher_model_name_or_path"
            )
    if not args.teacher_labels_readonly and _is_folder(args):
        probe_store(args.teacher_labels)
    return False


def labels_commit(args: DistillationTrainingArguments) -> str | None:
    """The commit of kept labels on the Hub, or None if there are none on the Hub.

    Raises:
        InputError: there is no such data set, or it cannot be read.
    """
    return None if args.teacher_labels is None or _is_folder(args) else _open_to_read(args).source[1]


def _is_folder(args: DistillationTrainingArguments) -> bool:
    """Whether the labels are in a folder, not on the Hub."""
    return hub_id(args.teacher_labels, bare=args.teacher_labels_readonly) is None


def _open_to_read(args: DistillationTrainingArguments, identity: StoreIdentity | None = None) -> TeacherLabelStore:
    return TeacherLabelStore.open(
        args.teacher_labels, identity, readonly=True, revision=args.teacher_labels_revision, token=args.hub_token
    )


def _is_there(args: DistillationTrainingArguments) -> bool:
    """Whether there is a store with labels, or must be one."""
    return not _is_folder(args) or args.teacher_labels_readonly or has_labels(args.teacher_labels)


def identity_there(args: DistillationTrainingArguments) -> StoreIdentity | None:
    """Of the store that the arguments name, or None if there is none yet, or none with labels."""
    return _open_to_read(args).identity if _is_there(args) else None


def open_store(
    args: DistillationTrainingArguments, identity: StoreIdentity, needed: dict[int, int], *, has_teacher: bool
) -> TeacherLabelStore:
    """Opens a store to be read if it has all that is needed or cannot be written, else to be written."""
    source, opened = args.teacher_labels, []

    def decide() -> bool:
        """In the main process: whether it is only read."""
        if _is_there(args):
            store = _open_to_read(args, identity)
            missing = store.missing(needed)
            if missing and (args.teacher_labels_readonly or not has_teacher):
                way = ", without --teacher_labels_readonly" if args.teacher_labels_readonly else ""
                raise InputError(
                    f"the run needs the epochs {min(needed)} to {max(needed)}, but the label store {source!r} lacks "
                    f"views of {len(missing)} of them, the first one {missing[0]}: train for fewer epochs, or let a "
                    f"teacher label the others, in a folder{way}"
                )
            if missing and not _is_folder(args):
                logger.warning(
                    "the label store %s lacks views of %d epochs, which the teacher labels; they are not kept, as the "
                    "store is on the Hub: to keep them, download it into a folder",
                    source,
                    len(missing),
                )
            if not missing or not _is_folder(args):
                opened.append(store)
                return True
        opened.append(TeacherLabelStore.open(source, identity))
        return False

    readonly = on_main_process(decide)

    def follow() -> TeacherLabelStore:
        if opened:
            return opened[0]
        if readonly:
            return _open_to_read(args, identity)
        return TeacherLabelStore.open(source, identity, is_main_process=False)

    return on_every_process(follow)
