"""The label store of a run: found, read and checked once, and handed on to whoever learns from it or fills it."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from transformers.utils import logging

from ..data.streams import StreamViewDataset
from ..data.view_dataset import ViewDataset
from ..data.views import ViewSampler
from ..errors import CheckpointError, InputError
from ..hub.facts import RunSources
from ..labels.files import has_labels, probe_store
from ..labels.identity import StoreIdentity, data_fingerprint
from ..labels.on_hub import hub_id
from ..labels.store import TeacherLabelStore
from ..models.class_names import label_changes, match_labels
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..models.single_teacher import size_in_words
from ..models.teacher import AnyDescription
from .arguments import DistillationTrainingArguments
from .datasets import data_seed, kept_side, make_sampler
from .pace import num_steps
from .processes import on_every_process, on_main_process

logger = logging.get_logger(__name__)

NOT_OF_STREAMS = (
    "the labels of a stream cannot be kept: which image a slot has depends on the number of processes and on all that "
    "was read before. Give the data set without --streaming, or leave --teacher_labels out"
)
_USUAL_TOP_K = 10  # logits of a view, for soft distillation
# Of how a view follows from (seed, epoch, slot): to be raised with every change that makes other views.
_VIEWS_VERSION = 1
# Libraries that make pixels.
_LIBRARIES = ("hf_deit", "numpy", "pillow", "timm", "torch", "torchvision")


def views_needed(args: DistillationTrainingArguments, sampler: ViewSampler) -> dict[int, int]:
    """How many of an epoch's first views a run trains on, by epoch."""
    steps_per_epoch = len(sampler) // args.total_train_batch_size
    steps = num_steps(args, steps_per_epoch)
    return {
        epoch: min(len(sampler), (steps - epoch * steps_per_epoch) * args.total_train_batch_size)
        for epoch in range(math.ceil(steps / steps_per_epoch))
    }


class LabelSource:
    """The label store that a run's arguments name.

    It is asked for the identity and the commit of what is there before there are images; `of_run` then says which
    views the labels shall be of.

    Args:
        args: with `teacher_labels`.

    Attributes:
        revision: branch, tag or commit of a store on the Hub.
    """

    def __init__(self, args: DistillationTrainingArguments) -> None:
        self.args = args
        self.name: str = args.teacher_labels
        self.revision = args.teacher_labels_revision
        self.is_folder = hub_id(self.name, bare=args.teacher_labels_readonly) is None

    @classmethod
    def of(cls, args: DistillationTrainingArguments) -> "LabelSource | None":
        """The source that arguments name, or None."""
        return None if args.teacher_labels is None else cls(args)

    @functools.cached_property
    def identity(self) -> StoreIdentity | None:
        """Of the store, or None if there is none yet, or none with labels. To be asked for by all processes.

        Raises:
            InputError: there must be one and there is none, or it cannot be read.
        """
        return on_main_process(lambda: self.reader.identity if self.is_there() else None)

    @property
    def label_names(self) -> list[str] | None:
        """The labels of the store's teacher by index, or None if there is no store."""
        return None if self.identity is None else self.identity.teacher.get("labels")

    @property
    def commit(self) -> str | None:
        """The commit of a store on the Hub, or None for a folder; for one process to ask.

        Raises:
            InputError: there is no such data set, or it cannot be read.
        """
        return None if self.is_folder else self.reader.source[1]

    def check_input_size(self, wanted: str) -> None:
        """Refuses labels that take the teacher's place, but are of one that was shown another size than is asked for.

        Args:
            wanted: `teacher_input_size` of a run that names no teacher; "own" is whatever it was shown.

        Raises:
            InputError: it was shown another one.
        """
        if wanted == "own":
            return
        student = self.identity.augmentation["image_size"]
        shown = (self.identity.teacher.get("preprocessing") or {}).get("input_size", student)
        if shown != (student if wanted == "student" else [int(wanted)] * 2):
            raise InputError(
                f"the teacher of the labels in {self.name!r} was shown {size_in_words(shown)} pixels, got "
                f"--teacher_input_size {wanted}: leave that out, or name a teacher and another --teacher_labels"
            )

    def is_there(self) -> bool:
        """Whether there is a store with labels, or must be one."""
        return not self.is_folder or self.args.teacher_labels_readonly or has_labels(self.name)

    @functools.cached_property
    def reader(self) -> TeacherLabelStore:
        """The store, only to be read; of this process.

        Raises:
            InputError: there is none, or it is broken.
        """
        return TeacherLabelStore.open(self.name, readonly=True, revision=self.revision, token=self.args.hub_token)

    def forget(self) -> None:
        """Lets `reader` be opened anew."""
        self.__dict__.pop("reader", None)

    def of_run(
        self,
        views: Any,
        processor: DistilledDeiTImageProcessor,
        *,
        num_labels: int,
        sources: RunSources,
    ) -> "RunLabels":
        """The labels of a run's views in this store; see `RunLabels`."""
        return RunLabels(self, views, processor, num_labels=num_labels, sources=sources)


class RunLabels:
    """The labels of a run's views in the store that the run names.

    Args:
        source: the store.
        views: of the run.
        processor: of the student, whose size and statistics the views have.
        num_labels: of the teacher and the student.
        sources: the names of the data set and its commit.

    Raises:
        InputError: what a slot of these views holds does not follow from (seed, epoch, slot) alone.
    """

    def __init__(
        self,
        source: LabelSource,
        views: Any,
        processor: DistilledDeiTImageProcessor,
        *,
        num_labels: int,
        sources: RunSources,
    ) -> None:
        _check_keyed_by_slot(views, source.args)
        self.source, self.args, self.views = source, source.args, views
        self.sampler = make_sampler(views, source.args)
        self._there = source.identity  # asked for by all processes, before one of them needs it
        _check_names(source, views)
        self._processor, self._num_labels, self._sources = processor, num_labels, sources

    @functools.cached_property
    def needed(self) -> dict[int, int]:
        """See `views_needed`."""
        return views_needed(self.args, self.sampler)

    @property
    def views_per_epoch(self) -> int:
        """The slots of an epoch of which labels are kept.

        As many as whole groups of views fit into the data set, whatever the batch is; where a single step takes more
        than the data set has, as many as the step.
        """
        group_size = 1 if self.views.mixing is None else self.views.mixing.group_size
        return max(len(self.views) // group_size * group_size, self.args.total_train_batch_size)

    def identity(self, teacher: Mapping[str, Any] | None) -> StoreIdentity:
        """What the labels depend on.

        Args:
            teacher: from `TeacherDescription.identity`; None takes the store's word for who it was.

        Raises:
            InputError: there is neither a teacher nor a store.
        """
        there = self._there
        if there is None and teacher is None:
            raise InputError(
                f"there is no label store in {self.source.name!r} and no teacher: give a teacher, which fills it, or "
                "another store"
            )
        args, views, mixing = self.args, self.views, self.views.mixing
        scaled = {"reduced_decoding": args.reduced_decoding, "shorter_side": kept_side(args, self._processor)}
        return StoreIdentity(
            teacher=there.teacher if teacher is None else teacher,
            data=self._data,
            augmentation={
                "views_version": _VIEWS_VERSION,
                "image_size": [self._processor.crop_size.height, self._processor.crop_size.width],
                "image_mean": list(self._processor.image_mean),
                "image_std": list(self._processor.image_std),
                "interpolation": "bicubic",
                "crop_scale_min": args.crop_scale_min,
                "horizontal_flip": args.horizontal_flip,
                "auto_augment": args.auto_augment,
                "random_erasing": None if views.erasing is None else asdict(views.erasing),
                "mixing": None if mixing is None else {k: v for k, v in asdict(mixing).items() if k != "group_size"},
                **{name: value for name, value in scaled.items() if value},  # stores without them have whole images
            },
            versions={name: version(name) for name in _LIBRARIES},
            seed=views.seed,
            group_size=1 if mixing is None else mixing.group_size,
            repeated_augmentation=args.repeated_augmentation,
            repeats_placement=args.repeats_placement,
            views_per_epoch=self.views_per_epoch,
            num_labels=self._num_labels,
            top_k=self._top_k(),
        )

    def _top_k(self) -> int:
        """How many logits of a view are kept, or, where nobody says it, are there, or are usual."""
        wanted, is_soft = self.args.teacher_labels_top_k, self.args.distillation_type == "soft"
        if wanted is not None:
            return wanted
        if self._there is None:
            return min(_USUAL_TOP_K, self._num_labels - 1) if is_soft else 0
        if is_soft and not self._there.top_k:
            raise InputError(
                f"the labels in {self.source.name!r} were kept without logits, from which soft distillation learns: "
                "give another --teacher_labels, or --distillation_type hard"
            )
        return self._there.top_k

    @functools.cached_property
    def _data(self) -> dict[str, Any]:
        views = self.views
        return {
            "name": self._sources.dataset.name,
            "config": self._sources.dataset_config,
            "revision": self._sources.dataset.commit,
            "rows": len(views),
            "fingerprint": data_fingerprint(
                views.dataset, image_column=views.image_column, label_column=views.label_column
            ),
        }

    def suffice(self, *, has_trained_teacher: bool) -> bool:
        """Whether the store has labels for all that the run trains on, so that a run that names no teacher needs none.

        If it needs one, which must be trained first, all else that can be wrong with the store is found out now.

        Args:
            has_trained_teacher: whether the run has trained its teacher before.

        Raises:
            InputError: labels of other views, or of a teacher that is not the one to be trained; or no store can be
                made.
            CheckpointError: nothing can be written there.
        """
        args, there = self.args, self._there
        identity = self.identity({"revision": "of one that is to be trained"} if there is None else there.teacher)
        if there is not None:
            self.source.reader.check_identity(identity)
            missing = self.source.reader.missing(self.needed)
            may_suffice = not missing or (self._may_stop_before(missing) and not has_trained_teacher)
            if may_suffice and not args.verify_teacher_labels:
                return True
            if not has_trained_teacher and not args.teacher_labels_readonly:
                why = f"lacks views of {len(missing)} epochs that the run needs" if missing else "is to be verified"
                raise InputError(
                    f"the label store {self.source.name!r} {why}, and has the labels of the teacher "
                    f"{there.teacher.get('name')!r} ({there.teacher['revision']}): name that one with "
                    "--teacher_model_name_or_path"
                )
        if not args.teacher_labels_readonly and self.source.is_folder:
            probe_store(self.source.name)
        return False

    def open(
        self, teacher: AnyDescription | None, needed: Mapping[int, int] | None = None
    ) -> tuple[TeacherLabelStore, StoreIdentity]:
        """Opens the store to be read if it has all that is needed or cannot be written, else to be written.

        Args:
            teacher: None takes the store's word for who it was.
            needed: how many of an epoch's first views are wanted, by epoch; by default those that the run trains on.

        Returns:
            The store, and the identity of the run's labels: its own may have more views an epoch.

        Raises:
            InputError: labels of other views; or a store that ends before the training does, without a teacher.
            CheckpointError: it must be written, and cannot be.
        """
        if teacher is None and self.args.verify_teacher_labels:
            raise InputError("verify_teacher_labels needs a teacher: name one, or leave it out")
        identity = on_main_process(lambda: self.identity(None if teacher is None else self._identity_of(teacher)))
        return self.open_again(identity, needed, has_teacher=teacher is not None), identity

    def _identity_of(self, teacher: AnyDescription) -> Mapping[str, Any]:
        """What its answers depend on, as the store has it where that says the same in an earlier version's words.

        Before there was a choice, no store named the teacher's input size: it was the student's or, of a teacher that
        does not take this, the one that its image processor makes. For the latter the weights must be asked.
        """
        identity, there = teacher.identity(), self._there
        if there is None or "input_size" not in identity.get("preprocessing", {}):  # several teachers are younger
            return identity
        unnamed = {name: value for name, value in identity["preprocessing"].items() if name != "input_size"}
        unnamed = {**identity, "preprocessing": unnamed}
        if any(name.startswith("teacher.") for name in there.differences(replace(there, teacher=unnamed))):
            return identity
        loaded = teacher.load()
        is_the_only_size = loaded.shown_size == teacher.processor_size and "student" not in loaded.other_sizes
        return unnamed if is_the_only_size else identity

    def open_again(
        self, identity: StoreIdentity, needed: Mapping[int, int] | None = None, *, has_teacher: bool
    ) -> TeacherLabelStore:
        """See `open`; the identity is known."""
        needed = self.needed if needed is None else needed
        name, opened = self.source.name, []
        if self.source.is_folder:  # others may have written to it meanwhile
            self.source.forget()

        def decide() -> bool:
            """In the main process: whether it is only read."""
            if self.source.is_there() and self._is_to_be_read(identity, needed, has_teacher):
                if not self._has_rest(identity, needed, has_teacher):
                    return True
                try:
                    opened.append(TeacherLabelStore.open(name, identity))
                except (InputError, CheckpointError) as error:  # the run has all that it needs
                    logger.warning("epochs in parts stay so: %s", error)
                return not opened
            opened.append(TeacherLabelStore.open(name, identity))
            return False

        readonly = on_main_process(decide)

        def follow() -> TeacherLabelStore:
            if opened:
                return opened[0]
            if readonly:
                self.source.reader.check_identity(identity)
                return self.source.reader
            return TeacherLabelStore.open(name, identity, is_main_process=False)

        return on_every_process(follow)

    def _has_rest(self, identity: StoreIdentity, needed: Mapping[int, int], has_teacher: bool) -> bool:
        """Whether the run can finish epochs of a store that has all that it needs.

        Parts that hold all views of their epoch become its file here already.
        """
        reader = self.source.reader
        if not self.source.is_folder or self.args.teacher_labels_readonly:
            return False
        if obstacle := reader.finish_covered():
            logger.warning("epochs in parts stay so: %s", obstacle)
            return False
        is_same_size = reader.identity.views_per_epoch == identity.views_per_epoch
        return has_teacher and is_same_size and bool(reader.missing(self.with_rest(needed, reader)))

    def with_rest(self, needed: Mapping[int, int], store: TeacherLabelStore) -> dict[int, int]:
        """How many of an epoch's first views a run wants that can label: also those of no step of an epoch in parts.

        A run that goes through an epoch labels these at its end, unless it was killed before.

        Args:
            needed: how many the run trains on, by epoch.
            store: that it may write to.
        """
        begun = [epoch for epoch in store.partial_epochs if needed.get(epoch, 0) >= len(self.sampler)]
        return {**needed, **dict.fromkeys(begun, store.identity.views_per_epoch)}

    def _may_stop_before(self, missing: Sequence[int]) -> bool:
        """Whether a run may stop early before it needs these epochs, as the one that filled the store has."""
        reader = self.source.reader
        there = {*reader.complete_epochs, *reader.partial_epochs}
        return self.args.early_stopping_patience is not None and bool(there) and min(there) <= missing[0]

    def _is_to_be_read(self, identity: StoreIdentity, needed: Mapping[int, int], has_teacher: bool) -> bool:
        """Whether the store that is there is only read."""
        source, reader = self.source, self.source.reader
        reader.check_identity(identity)
        missing = reader.missing(needed)
        if missing and (self.args.teacher_labels_readonly or not has_teacher):
            lacks = (
                f"the run needs the epochs {min(needed)} to {max(needed)}, but the label store {source.name!r} lacks "
                f"views of {len(missing)} of them, the first one {missing[0]}"
            )
            if self._may_stop_before(missing):
                logger.warning("%s: it suffices if the run stops early before it; else the run ends there", lacks)
                return True
            way = ", without --teacher_labels_readonly" if self.args.teacher_labels_readonly else ""
            least = " (with --min_train_steps 0)" if self.args.min_train_steps else ""
            raise InputError(
                f"{lacks}: train for fewer epochs{least}, or let a teacher label the others, in a folder{way}"
            )
        if missing and not source.is_folder:
            logger.warning(
                "the label store %s lacks views of %d epochs, which the teacher labels; they are not kept, as the "
                "store is on the Hub: to keep them, download it into a folder",
                source.name,
                len(missing),
            )
        return not missing or not source.is_folder


def _check_names(source: LabelSource, views: ViewDataset) -> None:
    """Refuses kept labels by the names of other classes. Stores keep indices, so that nothing else would tell.

    Raises:
        InputError: the names, or their order, are others.
    """
    kept, names = source.label_names, views.dataset.features[views.label_column].names
    if kept is None or len(kept) != len(names):  # another number is told with all else that differs
        return
    try:
        is_same = match_labels(dict(enumerate(kept)), dict(enumerate(names))) == list(range(len(names)))
    except InputError:
        is_same = False
    if not is_same:
        raise InputError(
            f"the labels in {source.name!r} are of other classes than those of the data "
            f"({label_changes(kept, names)}): give the data the names that it had, or another store"
        )


def _check_keyed_by_slot(views: Any, args: DistillationTrainingArguments) -> None:
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
