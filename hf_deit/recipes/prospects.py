"""What a run cannot win as it is set up, said before it trains: too few steps, too large a student, too fast."""

from dataclasses import dataclass

from ..errors import counted
from ..training.pace import num_steps
from .by_data import are_few
from .resolve import Arguments
from .uses import is_pretrained

# A student made anew with so many parameters needs many images: DeiT-Ti has 5.5 million.
_LARGE = 2_000_000
# Of a student made anew: below so many steps, or views of an image where these are few, it has hardly begun to learn.
_FEW_STEPS, _FEW_VIEWS, _ENOUGH_STEPS = 1_000, 20, 2_000
_FEW_STEPS_OF_FINE_TUNING = 100
# AdamW's rate from which on pretrained weights are soon lost; the paper trains with 5e-4 per 512 views from scratch.
_HIGH_RATE = 5e-4


@dataclass(frozen=True)
class Prospects:
    """What is known of a run before its first step.

    Attributes:
        arguments: of the run.
        num_images: that it trains on, those without labels among them.
        num_classes: that the student tells apart.
        steps_per_epoch: optimizer steps.
        num_parameters: of the student that are trained.
        is_transformer: whether the student is one: convnets need fewer images.
    """

    arguments: Arguments
    num_images: int
    num_classes: int
    steps_per_epoch: int
    num_parameters: int
    is_transformer: bool

    def doubts(self) -> list[str]:
        """Why the run will not make of its images what others would: a line each, with what will; empty as a rule."""
        if not self.is_transformer:
            return []
        return self._of_fine_tuning() if is_pretrained(self._options) else self._of_training_anew()

    @property
    def _options(self) -> dict[str, str]:
        return {"student": self.arguments.model.student}

    @property
    def _length(self) -> str:
        """Steps and views, in words."""
        args = self.arguments.training
        steps = num_steps(args, self.steps_per_epoch)
        views = f"{steps * args.total_train_batch_size / self.num_images:,.0f} views of an image"
        return f"{counted(steps, 'step')} of {counted(args.total_train_batch_size, 'view')}, {views}"

    def _of_training_anew(self) -> list[str]:
        args, is_few = self.arguments.training, are_few(self.num_images, self.num_classes)
        if is_few and self.num_parameters >= _LARGE:
            return [
                f"{self.arguments.model.student} with {self.num_parameters / 1e6:.1f} M parameters is made anew and "
                f"has {counted(self.num_images, 'image')} to learn from ({self._length}): it cannot be expected to "
                "win. --recipe fine_tune starts from pretrained weights; without them --recipe from_scratch_small "
                "makes a student of a fitting size"
            ]
        steps = num_steps(args, self.steps_per_epoch)
        views = steps * args.total_train_batch_size / self.num_images
        is_short = steps < _FEW_STEPS or (is_few and views < _FEW_VIEWS)
        if args.max_steps > 0 or not is_short:  # who says a number of steps means it
            return []
        least = max(_ENOUGH_STEPS, round(_FEW_VIEWS * self.num_images / args.total_train_batch_size))
        return [
            f"a student made anew has hardly begun to learn after {self._length} of {self.num_images:,}: give "
            f"--min_train_steps {least}"
        ]

    def _of_fine_tuning(self) -> list[str]:
        args, doubts = self.arguments.training, []
        is_adam, peak = "adam" in args.optim.value, args.peak_learning_rate
        if is_adam and peak >= _HIGH_RATE and args.layer_decay == 1 and self.arguments.model.freeze == "none":
            doubts.append(
                f"the learning rate, {peak:g}, is one to train from scratch with: a pretrained student soon loses "
                "what it knows, and may end with one class for all. --recipe fine_tune has 2.5e-4, and less in the "
                "lower layers (--layer_decay 0.75)"
            )
        if args.max_steps <= 0 and num_steps(args, self.steps_per_epoch) < _FEW_STEPS_OF_FINE_TUNING:
            doubts.append(
                f"new heads have hardly begun to learn after {self._length} of {self.num_images:,}: give "
                "--min_train_steps 600"
            )
        return doubts
