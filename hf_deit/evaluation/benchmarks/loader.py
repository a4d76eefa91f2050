"""Batches of training views from JPEG images: the Trainer's loader against timm's."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.data import create_transform
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader, default_collate

from ...errors import InputError, counted, rate
from ...hub.environment import describe_environment
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.zoo import create_model
from ...training.arguments import DistillationTrainingArguments
from ...training.trainer import DistillationTrainer
from .end_to_end import Photographs
from .figures import Bar, Chart, markdown_table, short_time
from .options import check_arms
from .stand_ins import photographs
from .timing import Ratio, time_in_turn

# This package's: views of an image that is drawn, and how images are decoded or kept.
_OURS: dict[str, tuple[int, dict[str, Any]]] = {
    f"hf_deit:{repeats}{name}": (repeats, settings)
    for name, settings in (
        ("", {}),
        ("-cached", {"cache_images": "decoded"}),
        ("-resized", {"cache_images": "resized"}),
        ("-reduced", {"reduced_decoding": True}),
    )
    for repeats in (3, 1)
}
_TIMM = ("timm:uint8", "timm:float")
ARMS = (*_OURS, *_TIMM)
_OTHER_PIXELS = ("-resized", "-reduced")  # measured where they are asked for: only larger images are other with them
_MOST_PIXELS = 256 * 500 * 375  # of all images together, which are made and held in memory
_FEWEST = 12  # different images


@dataclass(frozen=True)
class LoaderReport:
    """What a batch of views costs; printed as a table.

    Attributes:
        image_size: in pixels.
        photograph_size: (width, height) of the JPEG images.
        batch_size: views of a batch.
        num_workers: of each loader.
        seconds: of a batch, by arm and round.
        environment: see `describe_environment`.
    """

    image_size: int
    photograph_size: tuple[int, int]
    batch_size: int
    num_workers: int
    seconds: dict[str, list[float]]
    environment: dict[str, Any]

    def ratio(self, arm: str, other: str) -> Ratio | None:
        """An arm's time by another's; None where one was not measured."""
        return Ratio.between(self.seconds, arm, other)

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON; times are in seconds."""
        ratios = {
            ours: {timm: asdict(ratio) for timm in _TIMM if (ratio := self.ratio(timm, ours))}
            for ours in self.seconds.keys() & _OURS.keys()
        }
        return {**asdict(self), "ratio_to_ours": ratios}

    def charts(self) -> list[Chart]:
        """As a picture."""
        bars = []
        for arm, seconds in self.seconds.items():
            ratios = {timm: self.ratio(timm, arm) for timm in _TIMM if arm in _OURS}
            note = ", ".join(f"{timm} {ratio.brief} times as long" for timm, ratio in ratios.items() if ratio)
            bars.append(Bar.of_times(arm, self._of_a_view(seconds), note, is_ours=arm in _OURS))
        return [Chart("a view, from JPEG to a batch", "s", bars)]

    @property
    def title(self) -> str:
        width, height = self.photograph_size
        return (
            f"A view of {self.image_size} pixels from a JPEG image of {width} x {height}, in batches of "
            f"{self.batch_size}, {counted(self.num_workers, 'worker')}, medians, on {self.environment['device']}"
        )

    def __str__(self) -> str:
        rows = []
        for arm, seconds in self.seconds.items():
            median = statistics.median(self._of_a_view(seconds))
            ratios = [str((arm in _OURS and self.ratio(timm, arm)) or "-") for timm in _TIMM]
            rows.append((arm, short_time(median), rate(1 / median), *ratios))
        head = ("arm", "time", "views/s", *(f"{timm} / it" for timm in _TIMM))
        return f"{self.title}:\n\n{markdown_table(head, rows)}"

    def _of_a_view(self, seconds: Sequence[float]) -> list[float]:
        return [value / self.batch_size for value in seconds]


def measure_loader(
    *,
    image_size: int = 224,
    photograph_width: int = 500,
    batch_size: int = 48,
    batches: int = 4,
    num_workers: int = 0,
    rounds: int = 7,
    arms: Sequence[str] = (),
) -> LoaderReport:
    """Compares loaders of the same images with DeiT's augmentation: bicubic crops, flips, RandAugment, erasing.

    "hf_deit:3" and "hf_deit:1" are the Trainer's, with three views of an image that is drawn, as in the paper, and
    with one; like "timm:uint8", timm's transform with its collation for a prefetcher, they leave normalising and
    erasing to the device. "timm:float" does them, too, as the authors' loader. "-cached" and "-resized" have
    `cache_images`, and have decoded all images before; "-reduced" has `reduced_decoding`.

    Args:
        image_size: in pixels.
        photograph_width: of the JPEG images, in pixels; they are three quarters as high.
        batch_size: views of a batch; a multiple of 3.
        batches: of an arm in a round.
        num_workers: of each loader; 0 makes views in the process itself.
        rounds: that are counted.
        arms: some of `ARMS`; by default all that make the same pixels.

    Raises:
        InputError: an arm is not known, or a batch has no whole images.
    """
    check_arms(arms, ARMS)
    if batch_size % 3:
        raise InputError(f"--batch_size must be a multiple of 3, the views of an image, got {batch_size}")
    chosen = [arm for arm in ARMS if (arm in arms if arms else not arm.endswith(_OTHER_PIXELS))]
    size = (photograph_width, max(photograph_width * 3 // 4, 1))
    with tempfile.TemporaryDirectory() as folder:
        made = _Loaders(image_size, batch_size, batches, num_workers, folder, size)
        calls = {arm: made.round_of(arm) for arm in chosen}
        seconds = time_in_turn(calls, rounds=rounds)
    of_a_batch = {arm: [value / batches for value in seconds[arm]] for arm in calls}
    return LoaderReport(image_size, size, batch_size, num_workers, of_a_batch, describe_environment(device_type="cpu"))


class _Loaders:
    """Makes each arm's loader, of the same images."""

    def __init__(
        self,
        image_size: int,
        batch_size: int,
        batches: int,
        num_workers: int,
        folder: str,
        size: tuple[int, int] = (500, 375),
    ) -> None:
        self._image_size, self._batch_size, self._num_workers = image_size, batch_size, num_workers
        self._folder = folder
        different = min(256, max(_MOST_PIXELS // (size[0] * size[1]), _FEWEST))
        self._data = photographs(batches * batch_size, different=different, size=size)
        self._processor = DistilledDeiTImageProcessor(crop_size=image_size)

    def round_of(self, arm: str) -> Callable[[], None]:
        """Goes through the batches of an epoch."""
        loader = self._trainers(*_OURS[arm]) if arm in _OURS else self._timms(is_float=arm == "timm:float")

        def run() -> None:
            for _ in loader:
                pass

        return run

    def _arguments(self, repeats: int = 1, **settings: Any) -> DistillationTrainingArguments:
        return DistillationTrainingArguments(
            output_dir=self._folder,
            per_device_train_batch_size=self._batch_size,
            dataloader_num_workers=self._num_workers,
            dataloader_persistent_workers=self._num_workers > 0,
            repeated_augmentation=repeats,
            **settings,
            mixup=0.0,
            cutmix=0.0,
            distillation_type="none",
            max_steps=1,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )

    def _trainers(self, repeats: int, settings: dict[str, Any]) -> Any:
        names = dict(enumerate(self._data.features["label"].names))
        sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 12}
        student = create_model("deit_tiny_patch16_224", id2label=names, image_size=self._image_size, **sizes)
        trainer = DistillationTrainer(
            student, self._arguments(repeats, **settings), processing_class=self._processor, train_dataset=self._data
        )
        if "cache_images" in settings:
            for index in range(len(self._data)):  # an epoch of several views has but a part of the images
                trainer.train_dataset.decoded(index)
        return trainer.get_train_dataloader()

    def _timms(self, *, is_float: bool) -> DataLoader:
        args, data = self._arguments(), Photographs(self._data)
        data.transform = create_transform(
            self._image_size,
            is_training=True,
            use_prefetcher=not is_float,
            color_jitter=None,
            auto_augment=args.auto_augment,
            interpolation="bicubic",
            mean=tuple(self._processor.image_mean),
            std=tuple(self._processor.image_std),
            re_prob=args.random_erasing if is_float else 0.0,
            re_mode="pixel",
        )
        return DataLoader(
            data,
            batch_size=self._batch_size,
            shuffle=True,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            collate_fn=default_collate if is_float else fast_collate,
            generator=torch.Generator(),
        )
