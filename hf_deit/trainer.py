"""The Trainer that distils."""

import inspect
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer

from .augment import normalize
from .callbacks import TeacherCheckCallback
from .checks import HEADS, check_arguments, check_data, train_transform
from .errors import InputError, TrainingDivergedError, first_line
from .image_processing_deit import DistilledDeiTImageProcessor
from .losses import hard_distillation_loss, soft_distillation_loss
from .metrics import TopKAccuracy
from .modeling_deit import DeiTPreTrainedModelBase
from .teacher import LOADING_ERRORS, TEACHER_CHECK_IMAGES, Teacher, measure_teacher
from .training_args import DistillationTrainingArguments, find_checkpoint, last_whole_checkpoint
from .view_dataset import EvaluationDataset, ViewDataset, collate
from .views import ViewSampler

# Parameters that are no weights of a matrix product although they have two or more dimensions, in the names of
# transformers and timm. (The authors' code decays the distillation token: timm's list lacked it then.)
_TOKENS_AND_POSITIONS = (
    "cls_token",
    "distillation_token",
    "dist_token",
    "position_embeddings",
    "pos_embed",
    "relative_position_bias_table",
)


class DistillationTrainer(Trainer):
    """transformers' Trainer with a teacher and with training views that are keyed by (seed, epoch, slot).

    The class head learns the true label with label smoothing, the distillation head the teacher's answer on exactly
    the pixels that the student sees (paper, section 4): loss = (1 - α) · class + α · teacher. A student without
    distillation head takes both terms on its logits. Without a teacher (`distillation_type="none"`) both heads learn
    the true label.

    Evaluation runs the student alone and reports `eval_top1` and `eval_top5` of what the model answers (the fused
    heads), and the same per head as `eval_class_…` and `eval_distillation_…`; top-5 from five labels on.

    Args:
        model: any image classifier of transformers, or of this package.
        args: the arguments.
        teacher: from `load_teacher`; required unless `distillation_type` is "none".
        processing_class: the student's image processor; its statistics and crop size prepare all pixels.
        train_dataset: a `datasets.Dataset` with an `Image` and a `ClassLabel` column, or a `ViewDataset`.
        eval_dataset: a `datasets.Dataset` likewise, or an `EvaluationDataset`.
        **kwargs: the other arguments of `transformers.Trainer`.

    Raises:
        InputError: teacher, student and data do not fit together.
    """

    # compute_loss gives the mean of one micro-batch: the Trainer must divide it by the accumulation steps. Left to
    # itself it decides by the student's forward signature, and would not divide for models that take **kwargs.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationTrainingArguments,
        *,
        teacher: Teacher | None = None,
        processing_class: DistilledDeiTImageProcessor,
        train_dataset: datasets.Dataset | ViewDataset | None = None,
        eval_dataset: datasets.Dataset | EvaluationDataset | None = None,
        **kwargs: Any,
    ) -> None:
        if (teacher is None) != (args.distillation_type == "none"):
            raise InputError(
                f'distillation_type is "{args.distillation_type}" but '
                + ("there is no teacher: load one with load_teacher, or take" if teacher is None else "got a teacher:")
                + (' distillation_type="none"' if teacher is None else ' take "hard" or "soft"')
            )
        if teacher is not None and len(teacher.id2label) != model.config.num_labels:
            raise InputError(
                f"the teacher has {len(teacher.id2label)} labels, the student {model.config.num_labels}: pass the "
                "student's id2label to load_teacher"
            )
        is_custom = kwargs.get("compute_metrics") is not None or isinstance(eval_dataset, dict)
        check_arguments(args, model, processing_class, check_metric=not is_custom)
        if args.ddp_find_unused_parameters is None and isinstance(model, DeiTPreTrainedModelBase):
            args.ddp_find_unused_parameters = False  # all of ours are used; others may have a mask token, say
        self._pixel_statistics = (processing_class.image_mean, processing_class.image_std)
        kwargs.setdefault("data_collator", collate)
        if kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = self._accuracy
            kwargs.setdefault("preprocess_logits_for_metrics", _rank_labels)
        # Read by _as_views and _as_evaluation, before super().__init__ sets them.
        self.processing_class, self.args, self.teacher = processing_class, args, teacher
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=self._as_views(train_dataset, model),
            eval_dataset=self._as_evaluation(eval_dataset, model),
            **kwargs,
        )
        self._takes_view_seeds = "view_seeds" in inspect.signature(model.forward).parameters
        if teacher is not None:
            teacher.to(self.args.device)
        self.teacher_report: dict[str, float] = {}
        if self.teacher is not None:
            self.add_callback(TeacherCheckCallback(self.check_teacher))
        self._reset_totals()

    # Data

    def _as_views(self, dataset: Any, model: PreTrainedModel) -> Any:
        if not isinstance(dataset, datasets.Dataset):
            return dataset
        image_column, label_column = check_data(dataset, model, self.teacher)
        return ViewDataset(
            dataset,
            train_transform(self.args, self.processing_class),
            seed=self._data_seed,
            image_column=image_column,
            label_column=label_column,
            on_bad_image=self.args.on_bad_image,
        )

    def _as_evaluation(self, dataset: Any, model: PreTrainedModel) -> Any:
        if isinstance(dataset, dict):
            return {name: self._as_evaluation(part, model) for name, part in dataset.items()}
        if not isinstance(dataset, datasets.Dataset):
            return dataset
        image_column, label_column = check_data(dataset, model, self.teacher)
        return EvaluationDataset(
            dataset,
            self.processing_class,
            image_column=image_column,
            label_column=label_column,
            on_bad_image=self.args.on_bad_image,
        )

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _make_sampler(self, train_dataset: Dataset) -> ViewSampler:
        args = self.args
        return ViewSampler(
            len(train_dataset),
            seed=self._data_seed,
            total_batch_size=args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            repeats=args.repeated_augmentation,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> ViewSampler:
        self._sampler = self._make_sampler(self.train_dataset if train_dataset is None else train_dataset)
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        # When a run resumes in mid-epoch, accelerate's wrapper that skips batches hides the sampler of a sharded
        # loader from `set_epoch`.
        self._sampler.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return super().get_eval_dataloader(self._as_evaluation(eval_dataset, self.model))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(self._as_evaluation(test_dataset, self.model))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if inputs["pixel_values"].dtype == torch.uint8:
            inputs["pixel_values"] = normalize(inputs["pixel_values"], *self._pixel_statistics)
        return inputs

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The distillation loss in training; in evaluation the cross-entropy of `logits`, without the teacher.

        Args:
            model: the student, wrapped or not.
            inputs: `pixel_values` (B, 3, H, W) normalised, `labels` (B,) and, in training, `view_seeds` (B,).
        """
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        if not model.training:
            outputs = model(pixel_values=pixel_values)
            heads = {name: outputs[name] for name in HEADS if outputs.get(name) is not None}
            # A batch may be all of images that were skipped.
            loss = F.cross_entropy(heads["logits"].float(), labels, reduction="sum") / (labels >= 0).sum().clamp(min=1)
            return (loss, heads) if return_outputs else loss

        seeds = {"view_seeds": inputs["view_seeds"]} if self._takes_view_seeds and "view_seeds" in inputs else {}
        outputs = model(pixel_values=pixel_values, **seeds)
        class_logits = outputs.get("cls_logits", outputs.logits)
        distillation_logits = outputs.get("distillation_logits", outputs.logits)
        smoothing = self.args.label_smoothing_factor
        class_loss = F.cross_entropy(class_logits.float(), labels, label_smoothing=smoothing)
        means = {"class_loss": class_loss}
        if self.teacher is not None:
            teacher_logits = self.teacher(pixel_values)
            teacher_loss = self._teacher_loss(distillation_logits, teacher_logits)
            alpha = self.args.distillation_alpha
            loss = (1 - alpha) * class_loss + alpha * teacher_loss
            agreement = (distillation_logits.argmax(dim=-1) == teacher_logits.argmax(dim=-1)).float().mean()
            means.update(distillation_loss=teacher_loss, teacher_agreement=agreement)
        elif distillation_logits is class_logits:
            loss = class_loss
        else:  # both heads must learn, else one stays random (and DDP waits for its gradient)
            other_loss = F.cross_entropy(distillation_logits.float(), labels, label_smoothing=smoothing)
            loss = (class_loss + other_loss) / 2
        self._record(loss, means, inputs)
        return (loss, outputs) if return_outputs else loss

    def _teacher_loss(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        if self.args.distillation_type == "hard":
            return hard_distillation_loss(logits, teacher_logits)
        return soft_distillation_loss(
            logits,
            teacher_logits,
            temperature=self.args.distillation_temperature,
            reduction=self.args.distillation_reduction,
        )

    # Logs

    @property
    def images_per_second(self) -> float:
        """Of the last call of `train`, over all processes, without evaluation and saving."""
        return self._images_before / max(self._seconds_before, 1e-9)

    @property
    def skipped_images(self) -> int:
        """How many of the last call of `train` could not be decoded."""
        return self._skipped_before

    def _reset_totals(self) -> None:
        self._images_before, self._seconds_before, self._skipped_before = 0, 0.0, 0
        self._first_bad_step = torch.tensor(-1, device=self.args.device)
        self._reset_running_means()

    def _reset_running_means(self) -> None:
        self._running_sums: dict[str, torch.Tensor] = {}
        self._num_batches = 0
        self._num_images = 0
        self._bad_images = torch.tensor(0, device=self.args.device)
        self._timer, self._seconds_elsewhere = time.perf_counter(), 0.0

    @torch.no_grad()
    def _record(self, loss: torch.Tensor, means: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> None:
        """Adds up what the next log line says, and notes the first bad step, without waiting for the device."""
        for name, value in means.items():
            self._running_sums[name] = self._running_sums.get(name, 0) + value.detach().float()
        self._num_batches += 1
        self._num_images += len(inputs["labels"]) * self.args.world_size
        if "bad_images" in inputs:
            self._bad_images = self._bad_images + inputs["bad_images"].sum()
        is_first = ~loss.detach().isfinite() & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first, self.state.global_step + 1, self._first_bad_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training log lines: class_loss, distillation_loss, teacher_agreement, images_per_second."""
        if self.is_in_train and {"loss", "train_loss"} & set(logs) and self._num_batches:
            for name, total in self._running_sums.items():
                logs[name] = self.accelerator.gather(total / self._num_batches).mean().item()
            bad_images = int(self.accelerator.gather(self._bad_images).sum())
            if bad_images:
                logs["skipped_images"] = bad_images
            seconds = time.perf_counter() - self._timer - self._seconds_elsewhere
            logs["images_per_second"] = round(self._num_images / max(seconds, 1e-9), 1)
            self._images_before += self._num_images
            self._seconds_before += seconds
            self._skipped_before += bad_images
            self._reset_running_means()
        super().log(logs, start_time)

    def _elsewhere(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function whose time is not training time."""
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            self._seconds_elsewhere += time.perf_counter() - start

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return self._elsewhere(super()._evaluate, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        return self._elsewhere(super()._save_checkpoint, *args, **kwargs)

    # Divergence

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._stop_if_diverged(check_weights=self.control.should_save)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _stop_if_diverged(self, check_weights: bool) -> None:
        if check_weights and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # The loss of a step is computed before the update that may spoil the weights.
            norm = torch.nn.utils.get_total_norm(list(self.model.parameters()))
            is_first = ~norm.isfinite() & (self._first_bad_step < 0)
            self._first_bad_step = torch.where(is_first, self.state.global_step, self._first_bad_step)
        steps = self.accelerator.gather(self._first_bad_step)
        steps = steps[steps >= 0]
        if len(steps) == 0:
            return
        checkpoint = last_whole_checkpoint(self.args.output_dir)
        if checkpoint is None:
            advice = "no checkpoint was written before"
        else:
            advice = (
                f"the last good checkpoint is {checkpoint}; go on from it with --resume_from_checkpoint {checkpoint}"
            )
        raise TrainingDivergedError(
            f"loss or weights were not finite at step {int(steps.min())}: {advice}. Try a lower --learning_rate, more "
            "--warmup_steps, --max_grad_norm 1.0, or --bf16 instead of --fp16"
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains; arguments and return value of `transformers.Trainer.train`.

        Raises:
            InputError: there is no checkpoint to resume from.
            TrainingDivergedError: the loss is no longer finite; the checkpoints are those from before.
        """
        resume_from_checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        self._reset_totals()
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._stop_if_diverged(check_weights=True)
        return output

    # Teacher

    def check_teacher(self) -> dict[str, float]:
        """Measures and logs how good the teacher is on this data, and warns if it is no better than guessing.

        Returns:
            See `hf_deit.teacher.measure_teacher`.
        """
        keys = itertools.islice(self._make_sampler(self.train_dataset), TEACHER_CHECK_IMAGES)
        self.teacher_report = measure_teacher(
            self.teacher,
            views=self._batches(self.train_dataset[key] for key in keys),
            validation=self._batches(self._validation_samples()),
        )
        self.log(dict(self.teacher_report))
        self._timer = time.perf_counter()
        return self.teacher_report

    def _validation_samples(self) -> Iterator[dict[str, Any]]:
        dataset = self.eval_dataset
        dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
        if isinstance(dataset, EvaluationDataset):
            count = min(len(dataset), TEACHER_CHECK_IMAGES)
            for index in np.linspace(0, len(dataset) - 1, num=count, dtype=int).tolist():
                yield dataset[index]

    def _batches(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, torch.Tensor]]:
        samples = iter(samples)
        while chunk := list(itertools.islice(samples, self.args.eval_batch_size)):
            yield self._prepare_inputs(self.data_collator(chunk))

    # Metrics

    def _accuracy(self, prediction: EvalPrediction) -> dict[str, float]:
        rankings = prediction.predictions  # (N, heads, k)
        heads = list(HEADS.values())[: rankings.shape[1]]
        metrics = {}
        for index, head in enumerate(heads):
            result = TopKAccuracy(keep_in_memory=True).compute(
                predictions=rankings[:, index], references=prediction.label_ids
            )
            metrics.update({f"{head}{name}": value for name, value in result.items()})
        return metrics

    # Optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay applies to: no biases, norms, tokens or positions."""
        candidates = set(super().get_decay_parameter_names(model))
        return [
            name
            for name, parameter in model.named_parameters()
            if name in candidates and parameter.ndim >= 2 and not name.endswith(_TOKENS_AND_POSITIONS)
        ]

    # Checkpoints

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._reload_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._reload_weights(self.state.best_model_checkpoint)

    def _reload_weights(self, checkpoint: str) -> None:
        """Restores the weights of a checkpoint, through the conversion that they were saved with, or raises.

        transformers' own loader hands the file's keys to `load_state_dict(strict=False)`. Those of a model with a
        checkpoint conversion are in another layout, so that nothing is restored and only a warning tells.
        """
        model = self.accelerator.unwrap_model(self.model)
        try:
            restored, info = type(model).from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
        except LOADING_ERRORS as error:
            raise InputError(f"cannot restore this student from {checkpoint!r}: {first_line(error)}") from error
        absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if absent:
            raise InputError(f"the checkpoint {checkpoint!r} does not hold this student: it lacks {absent[:4]}")
        try:
            model.load_state_dict(restored.state_dict(), strict=True)
        except RuntimeError as error:
            raise InputError(f"the checkpoint {checkpoint!r} is of another student: {first_line(error)}") from error


def _rank_labels(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Keeps of each head's (B, K) logits the five best labels: (B, heads, min(5, K))."""
    heads = torch.stack(logits if isinstance(logits, tuple) else (logits,), dim=1)
    return heads.topk(min(5, heads.shape[-1]), dim=-1).indices
