"""`hf-deit label`: lets a teacher label training views without training a student; later runs then need no teacher."""

import functools
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accelerate import PartialState
from tqdm.auto import tqdm

from ..data.batch_augment import augment_batch
from ..errors import InputError, counted, printable
from ..labels.epoch_files import epoch_file
from ..models.teacher import AnyTeacher
from ..recipes.resolve import Arguments, resolve_arguments
from ..training.alike import check_alike
from ..training.arguments import DistillationTrainingArguments
from ..training.kept_labels import Batch, KeptLabels
from ..training.label_source import LabelSource
from ..training.origin import teacher_of
from ..training.predicted_classes import are_wanted, predict_classes, tell_doubts
from ..training.skipped_images import SkippedImages
from ..training.teacher_speed import as_kept, decide
from .command_line import run_command
from .prepare import PreparedRun, as_range, check_same_arguments, leaves_no_empty_folders, prepare
from .run_options import RunParser
from .sources import describe_sources, resolve_sources
from .zero_shot import check_told

_FLUSH_SECONDS = 60.0
_MOST_EPOCHS = 1_000_000


@dataclass
class LabellingResult:
    """What `label_epochs` has done.

    Attributes:
        folder: of the store.
        epochs: the complete ones there.
        views_per_epoch: of each.
        labelled: views that the teacher labelled now, over all processes.
        unanswered: those of them that it gave no answer to.
        seconds: that it took.
        size: of the epochs on disk, in bytes.
    """

    folder: str
    epochs: list[int]
    views_per_epoch: int
    labelled: int
    seconds: float
    size: int
    unanswered: int = 0

    def __str__(self) -> str:
        count, size = len(self.epochs), self.size / max(len(self.epochs) * self.views_per_epoch, 1)
        speed = self.labelled / max(self.seconds, 1e-9)
        unanswered = f", of which {self.unanswered:,} have no answer" if self.unanswered else ""
        return (
            f"{self.labelled:,} views labelled in {self.seconds / 60:.1f} minutes ({speed:.0f} views/s){unanswered}. "
            f"{self.folder} holds {counted(count, 'epoch')} of {self.views_per_epoch:,} views, {size:.2f} bytes a "
            "view."
        )


@leaves_no_empty_folders
def label_epochs(arguments: Arguments, *, epochs: str | None = None) -> LabellingResult:
    """Lets the teacher label all views of some epochs that have no label yet, each process its part.

    What was labelled is written every minute and at the end of an epoch: stopped and started again, it goes on there.

    Args:
        arguments: of the runs that shall replay the labels, with `teacher_labels`.
        epochs: "FIRST:LAST", LAST exclusive; by default those that a run with these arguments needs.

    Raises:
        InputError: the input cannot be used, or the store holds labels of other views; or the teacher gives views no
            answer, which are not to be passed over.
    """
    start = time.perf_counter()
    args = arguments.training
    if args.teacher_labels is None or args.teacher_labels_readonly:
        raise InputError("give --teacher_labels, the folder that the labels go to, and no --teacher_labels_readonly")
    if arguments.model.teacher_model_name_or_path is None:
        raise InputError(
            "there is no teacher: give --teacher_model_name_or_path, a Hub id or a folder"
            + ("" if arguments.model.teacher_probe is None else ", which hf-deit probe makes of a backbone")
        )
    check_same_arguments(arguments)
    source = LabelSource(args)
    resolved = resolve_sources(arguments, source)
    check_told(resolved)
    run = prepare(resolved, source)
    teacher = run.describe_teacher()
    check_alike(
        views=run.views,
        validation=None,
        student=run.student,
        processor=run.processor,
        teacher=lambda: teacher_of(teacher),
        views_per_step=args.total_train_batch_size,
    )
    sources = describe_sources(run.arguments, run.images, start=start)
    labels = source.of_run(run.views, run.processor, num_labels=run.student.config.num_labels, sources=sources)
    wanted = range(len(labels.needed)) if epochs is None else _epochs(epochs)
    skipped_images = SkippedImages()
    seen = functools.partial(_seen_by_teacher, run, args, skipped_images)

    def decide_speed(loaded: AnyTeacher) -> None:
        num_views = len(wanted) * labels.views_per_epoch // args.world_size
        words = decide(loaded, run.views, args, seen, num_views=num_views)
        if words and PartialState().is_main_process:
            tqdm.write(f"the teacher runs {words}")

    there = source.identity
    decided = as_kept(teacher, there and there.teacher, decide_speed, args.device)
    loaded = decided if isinstance(decided, AnyTeacher) else None
    teacher = decided if loaded is None else loaded.description
    kept = KeptLabels(labels, teacher, needed=dict.fromkeys(wanted, labels.views_per_epoch))
    try:
        if kept.store.source is not None:
            raise InputError(f"{args.teacher_labels!r} takes no labels, as it is on the Hub: give a folder")
        if kept.needs_teacher:
            _label(kept, loaded or teacher.load(args.device), wanted, run, seen, skipped_images)
        epochs_there = kept.store.complete_epochs
        report = kept.report()
        return LabellingResult(
            folder=args.teacher_labels,
            epochs=epochs_there,
            views_per_epoch=kept.store.identity.views_per_epoch,
            labelled=report.asked,
            seconds=time.perf_counter() - start,
            size=sum(os.path.getsize(os.path.join(args.teacher_labels, epoch_file(epoch))) for epoch in epochs_there),
            unanswered=report.unanswered,
        )
    finally:
        kept.close()


def _epochs(text: str) -> range:
    """The epochs that are asked for.

    Raises:
        InputError: it is no range, or one that nobody has the time for.
    """
    epochs = as_range("epochs", text, "0:300")
    if epochs.stop > _MOST_EPOCHS:
        raise InputError(f"epochs must be FIRST:LAST with LAST of at most {_MOST_EPOCHS:,}, got {text!r}")
    return epochs


def _seen_by_teacher(
    run: PreparedRun, args: DistillationTrainingArguments, skipped_images: SkippedImages, batch: Batch
) -> Batch:
    """What the teacher sees of a loader's batch: on the device, normalised, erased and mixed."""
    tensors = skipped_images.take(batch)
    on_device = {name: tensor.to(args.device, non_blocking=True) for name, tensor in tensors.items()}
    return augment_batch(on_device, run.processor.image_mean, run.processor.image_std)


def _label(
    kept: KeptLabels,
    teacher: AnyTeacher,
    epochs: range,
    run: PreparedRun,
    prepare: Callable[[Batch], Batch],
    skipped_images: SkippedImages,
) -> None:
    args = run.arguments.training
    is_quiet = args.disable_tqdm or not PartialState().is_main_process
    last_flush = time.monotonic()
    if are_wanted(teacher, run.views):
        predicted = predict_classes(teacher, run.views, run.processor, args, prepare)
        if PartialState().is_main_process:
            tqdm.write(f"\n{printable(predicted.text(run.images.label_names))}\n")
            tell_doubts(predicted, teacher, args, run.processor)
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
        skipped_images.tell()


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_label_command, arguments, if_interrupted="stopped: the same command goes on")


def _label_command(arguments: Sequence[str]) -> int:
    parser = RunParser(
        "label",
        "Lets a teacher label training views without training a student. Takes the recipe and the options of the runs "
        "that will replay the labels. What is there already is left as it is; several processes share the work.",
        examples=[
            "hf-deit label --recipe own_images --train_dir images/train --teacher_model_name_or_path NAME "
            "--teacher_labels outputs/labels",
        ],
        usual=("images", "student and teacher", "training"),
    )
    parser.add_argument("--epochs", help="FIRST:LAST, LAST exclusive; by default all that a run needs")
    options, rest = parser.parse_run(arguments)
    if options.epochs is not None and re.fullmatch(r"[\d.]+", options.epochs):
        raise InputError(
            f"epochs must be FIRST:LAST, those to label, say 0:300, got {options.epochs!r}: how many a run has is "
            "--num_train_epochs"
        )
    result = label_epochs(resolve_arguments(rest, is_trained=False), epochs=options.epochs)
    if PartialState().is_main_process:
        print(f"\n{result}")
    return 0
