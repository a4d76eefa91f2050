"""Filling a label store without a student: the teacher labels the views of whole epochs."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import PartialState
from tqdm.auto import tqdm

from ..data.batch_augment import augment_batch
from ..errors import InputError
from ..labels.files import DATA
from ..models.teacher import Teacher
from ..recipes.resolve import Arguments
from ..training.arguments import DistillationTrainingArguments
from ..training.datasets import as_views, check_arguments, make_sampler
from ..training.kept_labels import Batch, KeptLabels
from ..training.label_source import views_needed, views_per_epoch
from .prepare import as_range, learnt_images, load_images, make_student, named_teacher
from .sources import describe_sources, resolve_sources

_FLUSH_SECONDS = 60.0


@dataclass
class LabellingResult:
    """What `label_epochs` has done.

    Attributes:
        folder: of the store.
        epochs: the complete ones there.
        views_per_epoch: of each.
        labelled: views that the teacher labelled now, over all processes.
        seconds: that it took.
        size: of the epochs on disk, in bytes.
    """

    folder: str
    epochs: list[int]
    views_per_epoch: int
    labelled: int
    seconds: float
    size: int

    def __str__(self) -> str:
        count, size = len(self.epochs), self.size / max(len(self.epochs) * self.views_per_epoch, 1)
        speed = self.labelled / max(self.seconds, 1e-9)
        return (
            f"{self.labelled:,} views labelled in {self.seconds / 60:.1f} minutes ({speed:.0f} views/s). "
            f"{self.folder} holds {count} epochs of {self.views_per_epoch:,} views, {size:.2f} bytes a view."
        )


def label_epochs(arguments: Arguments, *, epochs: str | None = None) -> LabellingResult:
    """Lets the teacher label all views of some epochs that have no label yet, each process its part.

    What was labelled is written every minute and at the end of an epoch: stopped and started again, it goes on there.

    Args:
        arguments: of the runs that shall replay the labels, with `teacher_labels`.
        epochs: "FIRST:LAST", LAST exclusive; by default those that a run with these arguments needs.

    Raises:
        InputError: the input cannot be used, or the store holds labels of other views.
    """
    start = time.perf_counter()
    arguments = resolve_sources(arguments)
    model_args, data_args, args = arguments
    if args.teacher_labels is None or args.teacher_labels_readonly:
        raise InputError("give --teacher_labels, the folder that the labels go to, and no --teacher_labels_readonly")
    if model_args.teacher_model_name_or_path is None:
        raise InputError("there is no teacher: give --teacher_model_name_or_path, a Hub id or a folder")
    data = load_images(model_args, data_args, args)
    learnt = learnt_images(data, arguments)
    student, processor = make_student(model_args, data, args.seed)
    check_arguments(args, student, processor)
    teacher = named_teacher(model_args, data, processor)
    views = as_views(learnt.train, learnt.unlabeled, args=args, model=student, processor=processor, teacher=teacher)
    if epochs is None:
        wanted = range(len(views_needed(args, make_sampler(views, args))))
    else:
        wanted = as_range("epochs", epochs, "0:300")
    kept = KeptLabels.open(
        views,
        args,
        processor,
        teacher=teacher,
        num_labels=student.config.num_labels,
        sources=describe_sources(arguments, data, None, teacher_recipe=None, start=start),
        needed=dict.fromkeys(wanted, views_per_epoch(views, args)),
    )
    try:
        if kept.store.source is not None:
            raise InputError(f"{args.teacher_labels!r} takes no labels, as it is on the Hub: give a folder")
        if kept.needs_teacher:
            _label(kept, teacher.load(args.device), wanted, args, (processor.image_mean, processor.image_std))
        data_folder = os.path.join(args.teacher_labels, DATA)
        return LabellingResult(
            folder=args.teacher_labels,
            epochs=kept.store.complete_epochs,
            views_per_epoch=kept.store.identity.views_per_epoch,
            labelled=kept.report().asked,
            seconds=time.perf_counter() - start,
            size=sum(os.path.getsize(os.path.join(data_folder, name)) for name in os.listdir(data_folder)),
        )
    finally:
        kept.close()


def _label(
    kept: KeptLabels,
    teacher: Teacher,
    epochs: range,
    args: DistillationTrainingArguments,
    statistics: tuple[Sequence[float], Sequence[float]],
) -> None:
    is_quiet = args.disable_tqdm or not PartialState().is_main_process
    last_flush = time.monotonic()

    def prepare(batch: Batch) -> Batch:
        on_device = {name: tensor.to(args.device, non_blocking=True) for name, tensor in batch.items()}
        return augment_batch(on_device, *statistics)

    for epoch in epochs:
        kept.start_epoch(epoch)
        slots = kept.absent()
        with tqdm(total=len(slots), desc=f"epoch {epoch}", unit=" views", disable=is_quiet or not len(slots)) as bar:

            def after_batch(num_views: int, bar: tqdm = bar) -> None:
                nonlocal last_flush
                bar.update(min(num_views * args.world_size, bar.total - bar.n))
                if time.monotonic() - last_flush > _FLUSH_SECONDS:
                    kept.flush()
                    last_flush = time.monotonic()

            kept.label(
                epoch, slots, teacher, prepare, num_workers=args.dataloader_num_workers, after_batch=after_batch
            )
        kept.finish_epoch(teacher, prepare)
