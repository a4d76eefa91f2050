"""Which classes a teacher sees in the training images, before anything is learnt from it, and which it favours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from ..data.view_dataset import EvaluationDataset, KeyedViews, ViewDataset, collate
from ..errors import InputError, counted, shortlist
from ..models.answers import decisions_of, has_answer
from ..models.class_names import in_order
from ..models.ensemble import TeacherEnsemble
from ..models.image_processing_deit import SMALL_INPUT, DistilledDeiTImageProcessor
from ..models.teacher import AnyTeacher, members_of
from ..models.zero_shot.prior import PRIOR_IMAGES, log_prior
from .arguments import DistillationTrainingArguments
from .processes import on_main_process

logger = logging.get_logger(__name__)

PREDICTED_IMAGES = 512
NOT_ON_STREAMS = (
    "teacher_prior_correction looks at training images that are chosen evenly, and of a stream none can be chosen: "
    "leave --streaming out, or the correction"
)
_LISTED, _BAR, _NAME = 16, 24, 24  # classes in full; characters
_SAFE_CROP = 0.25
_EXPECTED, _NEARLY_ALL = 5, 0.9  # images of a class, for it to be missed where there are none; a class's share

Prepare = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class PredictedClasses:
    """How often a teacher says each class of some training images, resized and cropped as in an evaluation.

    Attributes:
        counts: images by class, as the teacher teaches.
        uncorrected: the same before its prior was corrected here; None if it was not.
        priors: of the teacher, or of each of several, what is taken off its logits, by class, or None; see
            `hf_deit.models.zero_shot.prior.log_prior`. None where nothing is.
    """

    counts: list[int]
    uncorrected: list[int] | None = None
    priors: list[list[float] | None] | None = None

    @property
    def num_images(self) -> int:
        """Those that it has answered."""
        return sum(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; the class takes it again."""
        return asdict(self)

    def text(self, names: Sequence[str], margin: str = "  ") -> str:
        """A histogram, a line a class; of many the most frequent ones.

        Args:
            names: of the classes, by index.
            margin: before each line.
        """
        order = sorted(range(len(names)), key=lambda index: -self.counts[index])
        shown = order[: _LISTED if len(order) > _LISTED + 1 else len(order)]
        width = min(_NAME, max(len(names[index]) for index in shown))
        most = max(self.counts) or 1
        lines = [f"the teacher says, of {counted(self.num_images, 'training image')}:"]
        for index in shown:
            count, name = self.counts[index], names[index]
            name = name if len(name) <= width else f"{name[: width - 3]}..."
            bar = "#" * math.ceil(count / most * _BAR)
            before = "" if self.uncorrected is None else f"  (uncorrected {self.uncorrected[index]:,})"
            lines.append(f"  {name:<{width}}  {bar:<{_BAR}} {self._share(index):6.1%} {count:>6,}{before}")
        if rest := order[len(shown) :]:
            number = sum(self.counts[index] for index in rest)
            lines.append(f"  {len(rest):,} others, {number / max(self.num_images, 1):.1%} in all")
        return "\n".join(margin + line.rstrip() for line in lines)

    def doubts(self, names: Sequence[str], *, is_zero_shot: bool) -> list[str]:
        """Sentences on classes that are never said, and on one that nearly all images get.

        Args:
            names: of the classes, by index.
            is_zero_shot: whether texts about the classes could be others.
        """
        remedy = "look whether the images show it, and whether the teacher is one for such images"
        if is_zero_shot:
            remedy = "look whether the images show it; other --templates or --class_prompts may tell it better"
            if self.priors is None:
                remedy += ", and --teacher_prior_correction true takes off what the teacher favours"
        doubts = []
        largest = max(range(len(names)), key=self.counts.__getitem__)
        if self._share(largest) >= _NEARLY_ALL:
            doubts.append(
                f"the teacher says {names[largest]!r} of {self._share(largest):.1%} of {self.num_images:,} training "
                f"images: {remedy}"
            )
        never = [names[index] for index, count in enumerate(self.counts) if not count]
        if 0 < len(never) < len(names) - 1 and self.num_images >= _EXPECTED * len(names):
            doubts.append(
                f"the teacher never says {len(never):,} of {len(names):,} classes on {self.num_images:,} training "
                f"images ({shortlist(map(repr, never))}): {remedy}"
            )
        return doubts

    def _share(self, index: int) -> float:
        return self.counts[index] / max(self.num_images, 1)


def are_wanted(teacher: AnyTeacher, views: Any) -> bool:
    """Whether to ask a teacher for the classes of training images: where it is all that tells some of their labels.

    Raises:
        InputError: its prior is to be corrected, and the images are a stream, of which none can be chosen.
    """
    if not isinstance(views, ViewDataset):
        if _to_correct(teacher) and isinstance(views, KeyedViews):
            raise InputError(NOT_ON_STREAMS)
        return False
    return teacher.description.is_zero_shot or bool((views.labels < 0).any())


def predict_classes(
    teacher: AnyTeacher,
    views: ViewDataset,
    processor: DistilledDeiTImageProcessor,
    args: DistillationTrainingArguments,
    prepare: Prepare,
) -> PredictedClasses:
    """Asks a teacher for the classes of training images, evenly chosen, and corrects its prior if that is to be done.

    The main process asks, so that all have the same numbers; all must call it. Nothing is drawn at random.

    Args:
        teacher: its prior is corrected here, if its description says so and it is not yet.
        views: of the run, whose images are looked at without augmentation, and without their labels.
        processor: of the student.
        prepare: makes what the student sees of a loader's batch: on the device, normalised.

    Raises:
        InputError: an image cannot be decoded, and is not to be skipped; or the teacher has answered none.
    """
    to_correct = _to_correct(teacher)

    def ask() -> PredictedClasses:
        most = PRIOR_IMAGES if to_correct else PREDICTED_IMAGES
        logits = _logits(teacher, views, processor, args, prepare, most=most)
        found = {place: log_prior(logits[place]) for place in to_correct}
        priors = [found.get(place, member.prior) for place, member in enumerate(members_of(teacher))]
        kept = [None if prior is None else prior.tolist() for prior in priors]
        kept = kept if any(kept) else None
        said = _counts(teacher, logits)
        if not to_correct:
            return PredictedClasses(said, priors=kept)
        corrected = [part - found[place] if place in found else part for place, part in enumerate(logits)]
        return PredictedClasses(_counts(teacher, corrected), uncorrected=said, priors=kept)

    predicted = on_main_process(ask)
    if to_correct:
        correct_priors(teacher, predicted)
    return predicted


def correct_priors(teacher: AnyTeacher, predicted: PredictedClasses) -> None:
    """Takes off a teacher's logits, or those of each of several, what was found before."""
    for member, prior in zip(members_of(teacher), predicted.priors or (), strict=predicted.priors is not None):
        if prior is not None:
            member.correct_prior(prior)


def _to_correct(teacher: AnyTeacher) -> list[int]:
    """Which of several teachers are to be corrected, and are not yet."""
    members = enumerate(members_of(teacher))
    return [place for place, one in members if one.description.corrects_prior and one.prior is None]


def tell_doubts(
    predicted: PredictedClasses,
    teacher: AnyTeacher,
    args: DistillationTrainingArguments,
    processor: DistilledDeiTImageProcessor,
) -> None:
    """Warns of what is doubtful, also of how a zero-shot teacher is asked; for the main process."""
    is_zero_shot = teacher.description.is_zero_shot
    doubts = predicted.doubts(in_order(teacher.id2label), is_zero_shot=is_zero_shot)
    is_cropped = max(processor.crop_size.height, processor.crop_size.width) > SMALL_INPUT
    if is_zero_shot and is_cropped and args.crop_scale_min < _SAFE_CROP:
        doubts.append(
            f"a zero-shot teacher's answer changes with the crop, and crops begin at {args.crop_scale_min:.0%} of an "
            f"image: --recipe zero_shot, or --crop_scale_min {_SAFE_CROP} and --distillation_type soft, are safer"
        )
    for doubt in doubts:
        logger.warning("%s", doubt)


def _counts(teacher: AnyTeacher, logits: Sequence[torch.Tensor]) -> list[int]:
    """Images by what teachers say of them together, of the logits of each, (N, num_labels) on the CPU."""
    together = logits[0]
    if isinstance(teacher, TeacherEnsemble):
        together = teacher.together([part.to(teacher.log_weights.device) for part in logits])
    return decisions_of(together).bincount(minlength=together.shape[1]).tolist()


class _SomeImages(Dataset):
    """Rows of training images as in an evaluation; `bad_images` is 1 where one could not be decoded."""

    def __init__(self, images: EvaluationDataset, rows: Sequence[int]) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        sample = self._images[self._rows[place]]
        return {"pixel_values": sample["pixel_values"], "bad_images": int(bool(sample.get("skipped")))}


@torch.no_grad()
def _logits(
    teacher: AnyTeacher,
    views: ViewDataset,
    processor: DistilledDeiTImageProcessor,
    args: DistillationTrainingArguments,
    prepare: Prepare,
    *,
    most: int,
) -> list[torch.Tensor]:
    """The answers of the teacher, or of each of several, to up to so many images: (N, num_labels) float32 on the CPU.

    An image that one of them does not answer is left out.
    """
    images = EvaluationDataset(
        views.dataset,
        processor,
        image_column=views.image_column,
        label_column=views.label_column,
        on_bad_image=args.on_bad_image,
        where="the training images",
    )
    rows = np.linspace(0, len(images) - 1, num=min(len(images), most), dtype=int).tolist()
    loader = DataLoader(
        _SomeImages(images, rows),
        batch_size=args.eval_batch_size,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers if len(rows) > PREDICTED_IMAGES else 0,
        generator=torch.Generator(),  # the global one is the training's
    )
    answers: list[list[torch.Tensor]] = [[] for _ in members_of(teacher)]
    for batch in loader:
        is_whole = batch.pop("bad_images") == 0
        pixels = prepare(batch)["pixel_values"]
        logits = [member(pixels).cpu()[is_whole] for member in members_of(teacher)]
        answered = torch.stack([has_answer(part) for part in logits]).all(dim=0)
        for kept, part in zip(answers, logits, strict=True):
            kept.append(part[answered])
    logits = [torch.cat(kept) for kept in answers]
    if not len(logits[0]):
        raise InputError(
            f"the teacher {teacher.name_or_path!r} gives no answer that is finite to any of {len(rows):,} training "
            "images: take another one, or another --teacher_dtype"
        )
    return logits
