"""The Trainer that distils."""

import inspect
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, SchedulerType
from transformers.trainer_utils import EvalLoopOutput

from ..data.batch_augment import augment_batch
from ..data.streams import ImageStream
from ..data.view_dataset import EvaluationDataset, KeyedViews, ViewDataset, collate
from ..data.views import preserve_global_random_state
from ..errors import InputError
from ..hub.facts import RunFacts, RunSources, Source
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..models.modeling_common import ImageClassifierBase
from ..models.teacher import Teacher, TeacherDescription
from .arguments import DistillationTrainingArguments
from .averaging import AVERAGE_FOLDER, WeightAverage
from .callbacks import StepEndCallback, TeacherCheckCallback
from .datasets import as_evaluation, as_views, check_arguments, make_sampler
from .kept_labels import KeptLabels, LabelReport
from .losses import class_targets, hard_distillation_loss, soft_distillation_loss, soft_target_cross_entropy
from .metrics import HEADS, TEACHER_CHECK_IMAGES, head_accuracies, measure_teacher, rank_labels
from .optimization import deit_schedule, without_tokens_and_positions
from .processes import on_every_process
from .safe_trainer import SafeTrainer
from .step_record import StepRecord


class DistillationTrainer(SafeTrainer):
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
        teacher: from `load_teacher`; required unless `distillation_type` is "none", or `args.teacher_labels` has all
            that is needed. One from `describe_teacher` is loaded only if there are views that it must label.
        processing_class: the student's image processor; its statistics and crop size prepare all pixels.
        train_dataset: a `datasets.Dataset` with an `Image` and a `ClassLabel` column, an `ImageStream`, or views.
        unlabeled_dataset: with an `Image` column. The teacher's term learns from these images too. The class head
            does not, unless there are no others: then it also learns what the teacher says.
        eval_dataset: a `datasets.Dataset` likewise, or an `EvaluationDataset`.
        sources: what the card of the model says that it was made from.
        **kwargs: the other arguments of `transformers.Trainer`, and `repository` of `PublishingTrainer`.

    Attributes:
        kept_labels: of the store that `args.teacher_labels` names, or None.
        label_report: what became of the labels of the last call of `train`, if there is a store.

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
        teacher: Teacher | TeacherDescription | None = None,
        processing_class: DistilledDeiTImageProcessor,
        train_dataset: datasets.Dataset | ImageStream | KeyedViews | None = None,
        unlabeled_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | EvaluationDataset | None = None,
        sources: RunSources | None = None,
        **kwargs: Any,
    ) -> None:
        may_lack_teacher = args.distillation_type == "none" or args.teacher_labels is not None
        if (teacher is None and not may_lack_teacher) or (teacher is not None and args.distillation_type == "none"):
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
        if unlabeled_dataset is not None and args.distillation_type == "none":
            raise InputError("unlabelled images need a teacher, which labels them")
        is_custom = kwargs.get("compute_metrics") is not None or isinstance(eval_dataset, dict)
        check_arguments(args, model, processing_class, check_metric=not is_custom)
        if args.ddp_find_unused_parameters is None and isinstance(model, ImageClassifierBase):
            args.ddp_find_unused_parameters = False  # all of ours are used; others may have a mask token, say
        self._pixel_statistics = (processing_class.image_mean, processing_class.image_std)
        kwargs.setdefault("data_collator", collate)
        if kwargs.get("compute_metrics") is None:
            kwargs["compute_metrics"] = head_accuracies
            kwargs.setdefault("preprocess_logits_for_metrics", rank_labels)
        parts = {"args": args, "model": model, "processor": processing_class, "teacher": teacher}
        self.teacher = teacher if isinstance(teacher, Teacher) else None
        self.sources = sources or RunSources.of(model, teacher)
        self.teacher_report: dict[str, float] = {}
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=as_views(train_dataset, unlabeled_dataset, **parts),
            eval_dataset=as_evaluation(eval_dataset, **parts),
            **kwargs,
        )
        self._takes_view_seeds = "view_seeds" in inspect.signature(model.forward).parameters
        self._record = StepRecord(self.accelerator)
        self.weight_average = None
        if args.publish_weights == "ema":
            self._checkpoint_weights = AVERAGE_FOLDER
        if args.ema_decay:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise InputError(
                    "ema_decay needs the weights whole and in float32, which FSDP shards and DeepSpeed keeps in the "
                    "optimizer: pass --ema_decay 0"
                )
            self.weight_average = WeightAverage(self.model, args.ema_decay)
            self.add_callback(StepEndCallback(self.weight_average.update))
        keeps_labels = args.teacher_labels is not None and self.train_dataset is not None
        self.kept_labels = self._open_labels(teacher) if keeps_labels else None
        self.label_report: LabelReport | None = None
        if isinstance(teacher, TeacherDescription) and (self.kept_labels is None or self.kept_labels.needs_teacher):
            try:
                self.teacher = teacher.load()
            except InputError:
                if self.kept_labels is not None:
                    self.kept_labels.close()
                raise
        if self.teacher is not None:
            self.teacher.to(self.args.device)
        if args.distillation_type != "none":
            self.add_callback(TeacherCheckCallback(self.check_teacher))

    def _open_labels(self, teacher: Teacher | TeacherDescription | None) -> KeptLabels:
        kept = KeptLabels.open(
            self.train_dataset,
            self.args,
            self.processing_class,
            teacher=teacher.description if isinstance(teacher, Teacher) else teacher,
            num_labels=self.model.config.num_labels,
            sources=self.sources,
        )
        if self.sources.teacher is None:
            self.sources.teacher = kept.teacher_source
        if (on_hub := kept.store.source) is not None:
            self.sources.teacher_labels = Source(*on_hub, on_hub=True, is_dataset=True)
        return kept

    # Data

    def _as_evaluation(self, dataset: Any) -> Any:
        return as_evaluation(
            dataset, args=self.args, model=self.model, processor=self.processing_class, teacher=self.teacher
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        self._sampler = make_sampler(self.train_dataset if train_dataset is None else train_dataset, self.args)
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed after its end: one more step would be made
            self.control.should_training_stop = True
            return
        # When a run resumes in mid-epoch, accelerate's wrapper that skips batches hides the sampler of a sharded
        # loader from `set_epoch`.
        self._sampler.set_epoch(epoch)
        if self.kept_labels is not None:
            self.kept_labels.start_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)
        if self.kept_labels is not None:
            self._record.elsewhere(self.kept_labels.finish_epoch, self.teacher, self._prepare_inputs)
            self._log_verified()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return super().get_eval_dataloader(self._as_evaluation(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(self._as_evaluation(test_dataset))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if inputs["pixel_values"].dtype == torch.uint8:
            inputs = augment_batch(inputs, *self._pixel_statistics)
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
            inputs: `pixel_values` (B, 3, H, W) normalised, `labels` (B,) and, in training, `view_seeds` (B,) and, if
                views are mixed, `partner_labels` (B,) and `label_weights` (B,).
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
        answer = self._teacher_answer(inputs)
        class_loss = self._class_loss(class_logits, inputs, answer)
        means = {"class_loss": class_loss}
        if answer is not None:
            teacher_loss = self._teacher_loss(distillation_logits, answer)
            alpha = self.args.distillation_alpha
            loss = (1 - alpha) * class_loss + alpha * teacher_loss
            decisions = answer.argmax(dim=-1) if answer.is_floating_point() else answer
            agreement = (distillation_logits.argmax(dim=-1) == decisions).float().mean()
            means.update(distillation_loss=teacher_loss, teacher_agreement=agreement)
        elif distillation_logits is class_logits:
            loss = class_loss
        else:  # both heads must learn, else one stays random (and DDP waits for its gradient)
            loss = (class_loss + self._class_loss(distillation_logits, inputs, None)) / 2
        self._record.add(self.state.global_step + 1, loss, means, inputs)
        return (loss, outputs) if return_outputs else loss

    def _teacher_answer(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The teacher's logits, (B, num_labels), or what is kept of them, or its labels, (B,); or None."""
        if self.args.distillation_type == "none":
            return None
        if self.kept_labels is not None:
            return self.kept_labels.answer(inputs, self.teacher)
        return self.teacher(inputs["pixel_values"])

    def _class_loss(
        self, logits: torch.Tensor, inputs: dict[str, torch.Tensor], teacher_answer: torch.Tensor | None
    ) -> torch.Tensor:
        """Cross-entropy to the (mixed, smoothed) labels; where no image has one, the teacher's term."""
        if isinstance(self.train_dataset, KeyedViews) and not self.train_dataset.has_labels:
            return self._teacher_loss(logits, teacher_answer)
        targets = class_targets(
            inputs["labels"],
            logits.shape[-1],
            smoothing=self.args.label_smoothing_factor,
            partner_labels=inputs.get("partner_labels"),
            label_weights=inputs.get("label_weights"),
        )
        # The mean over all views, also those without label: so each view's loss is its own, and does not depend on how
        # many labels happen to be in its batch.
        return soft_target_cross_entropy(logits, targets)

    def _teacher_loss(self, logits: torch.Tensor, teacher_answer: torch.Tensor) -> torch.Tensor:
        if self.args.distillation_type == "hard":
            return hard_distillation_loss(logits, teacher_answer)
        return soft_distillation_loss(
            logits,
            teacher_answer,
            temperature=self.args.distillation_temperature,
            reduction=self.args.distillation_reduction,
        )

    # Kept labels

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; see `SafeTrainer.train`. Afterwards `label_report` says what became of kept labels."""
        if self.kept_labels is None:
            return super().train(*args, **kwargs)
        self.kept_labels.restart()
        try:
            output = super().train(*args, **kwargs)
            self.label_report = self.kept_labels.report()
        finally:
            self.kept_labels.close()
        return output

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.kept_labels is not None:  # a run that goes on from here finds the labels of all that was before
            self._record.elsewhere(on_every_process, self.kept_labels.flush)
        super()._save_checkpoint(*args, **kwargs)

    def _log_verified(self) -> None:
        if self.args.verify_teacher_labels:
            report = self.kept_labels.report()
            if report.verified:
                self.log(
                    {
                        "kept_labels_verified": report.verified,
                        "kept_labels_agreement": report.agreeing / report.verified,
                        "kept_labels_pixels_compared": report.pixels,
                    }
                )

    # Logs

    @property
    def images_per_second(self) -> float:
        """Of the last call of `train`, over all processes, without evaluation and saving."""
        return self._record.images / max(self._record.seconds, 1e-9)

    @property
    def skipped_images(self) -> int:
        """How many of the last call of `train` could not be decoded."""
        return self._record.skipped_images

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training log lines: class_loss, distillation_loss, teacher_agreement, images_per_second."""
        if self.is_in_train and {"loss", "train_loss"} & set(logs):
            logs.update(self._record.flush())
        super().log(logs, start_time)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return self._record.elsewhere(super()._evaluate, *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates the weights and, beside them, their moving average as `eval_ema_…`."""
        with preserve_global_random_state():  # loaders draw from it: how often is evaluated must not change training
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.weight_average is not None:
            with self.weight_average.in_place():
                prefix = f"{metric_key_prefix}_ema"
                average = super().evaluation_loop(dataloader, *args, metric_key_prefix=prefix, **kwargs)
            output.metrics.update(average.metrics)  # here, so that callbacks hear of both at once
        return output

    def run_facts(self) -> RunFacts:
        train, validation = self.train_dataset, self.eval_dataset
        return RunFacts.of(
            self.accelerator.unwrap_model(self.model),
            self.args,
            self.state,
            self.sources,
            image_size=self.processing_class.crop_size.height,
            metrics=self._published_metrics(),
            is_finished=self._has_ended,
            best_step=None if self._best_since is None else self.state.best_global_step,
            num_train=len(train) if isinstance(train, ViewDataset) else None,
            num_validation=len(validation) if isinstance(validation, EvaluationDataset) else None,
            teacher_report=self.teacher_report,
            images_per_second=self.images_per_second,
            num_replayed=None if self.label_report is None else self.label_report.replayed,
        )

    # Teacher

    def check_teacher(self) -> dict[str, float]:
        """Measures and logs how good the teacher is on this data, and warns if it is no better than guessing.

        Returns:
            See `hf_deit.teacher.measure_teacher`. Without teacher only `kept_labels_that_are_true`: how often a kept
            label is that of the view's own image, which others may be mixed into.
        """
        if self.teacher is None:
            agreement = self.kept_labels.agreement_with_labels(TEACHER_CHECK_IMAGES)
            self.teacher_report = {} if agreement is None else {"kept_labels_that_are_true": agreement}
            self.log(dict(self.teacher_report))
            self._record.restart_timer()
            return self.teacher_report
        keys = filter(None, make_sampler(self.train_dataset, self.args))  # None is another process's, of a stream
        keys = itertools.islice(keys, TEACHER_CHECK_IMAGES)
        self.teacher_report = measure_teacher(
            self.teacher,
            views=self._batches(self.train_dataset[key] for key in keys),
            validation=self._batches(self._validation_samples()),
        )
        self.log(dict(self.teacher_report))
        if "teacher_top1" in self.teacher_report:
            self.teacher_report["teacher_images"] = min(len(self.eval_dataset), TEACHER_CHECK_IMAGES)
        self._record.restart_timer()
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

    # Optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay applies to: no biases, norms, tokens or positions."""
        return without_tokens_and_positions(model, super().get_decay_parameter_names(model))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """transformers' optimizer, at the peak learning rate."""
        is_given = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if not is_given:
            for group in optimizer.param_groups:
                group["lr"] = self.args.peak_learning_rate
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """DeiT's schedule for the cosine, transformers' for all others."""
        args = self.args
        if args.lr_scheduler_type != SchedulerType.COSINE or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        steps_per_epoch = self.steps_per_epoch
        self.lr_scheduler = deit_schedule(
            self.optimizer if optimizer is None else optimizer,
            num_steps=num_training_steps,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=args.warmup_epochs * steps_per_epoch or args.get_warmup_steps(num_training_steps),
            peak=args.peak_learning_rate,
            warmup_learning_rate=args.warmup_learning_rate,
            min_learning_rate=args.min_learning_rate,
            per=args.schedule_per,
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def steps_per_epoch(self) -> int:
        return len(make_sampler(self.train_dataset, self.args)) // self.args.total_train_batch_size
