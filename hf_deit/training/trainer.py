"""The Trainer that distils: transformers' loop, with parts of its own where that has hooks."""

import copy
import functools
import inspect
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import DistributedType
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, SchedulerType, Trainer
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, SaveStrategy
from transformers.utils import logging

from ..data.batch_augment import augment_batch
from ..data.streams import ImageStream
from ..data.view_dataset import EvaluationDataset, KeyedViews, collate
from ..data.views import preserve_global_random_state
from ..errors import InputError, one_line
from ..hub.facts import RunFacts, RunSources
from ..hub.files import share_weights
from ..hub.record import read_facts, write_record
from ..hub.repository import HubRepository
from ..hub.run_lock import check_held, hold
from ..models.answers import NO_ANSWER, decisions_of, has_answer
from ..models.class_names import in_order
from ..models.heads import CLASS, DISTILLATION, HEADS, PLAIN
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..models.modeling_common import ImageClassifierBase, fuse_logits
from ..models.teacher import AnyDescription, AnyTeacher, Teacher, TeacherDescription
from .alike import check_alike
from .arguments import DistillationTrainingArguments
from .averaging import AVERAGE_FOLDER, WeightAverage, average_doubts, check_averaged
from .callbacks import StepEndCallback, TeacherCheckCallback, teacher_report
from .checkpoints import (
    RunFolder,
    check_best,
    check_resumable,
    check_same_labels,
    check_unchanged,
    remove_torn_checkpoints,
    restore_weights,
    restoring,
    unknown_fields_left_out,
)
from .datasets import as_evaluation, as_views, check_arguments, check_teaching, make_sampler, steps_per_epoch
from .early_stopping import EarlyStopping, has_stopped_early
from .kept_labels import KeptLabels, LabelReport
from .label_source import LabelSource, RunLabels
from .layer_decay import by_layer
from .log_table import LogTableCallback
from .metrics import (
    Hits,
    answers,
    answers_and_ranks,
    answers_of_teacher,
    count_hits,
    head_accuracies,
    mean_loss,
    rank_labels,
)
from .objective import DistillationObjective, evaluation_loss, image_losses
from .optimization import deit_schedule, schedule_doubts, without_tokens_and_positions
from .origin import RunOrigin, check_origin, check_student, describe_origin, teacher_in, teacher_of
from .pace import EvaluationPaceCallback, with_all_epochs, with_pace
from .predicted_classes import PredictedClasses, are_wanted, correct_priors, predict_classes, tell_doubts
from .processes import holding, on_every_process, on_main_process, share_buffers
from .pushes import RunPushes, check_future_card, repository_name, repository_of
from .run_record import RunRecord
from .sharding import (
    check_accelerator,
    check_same_sharding,
    check_sharding,
    prepared_for_fsdp,
    saved_whole,
    under_own_class,
    weights_here,
)
from .skipped_images import SkippedImages
from .step_record import StepRecord
from .teacher_answers import TeacherAnswers
from .teacher_speed import as_kept, decide, take_from
from .total_batch import check_total_batch

logger = logging.get_logger(__name__)

_WITH_WHOLE_GRADIENTS = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


class DistillationTrainer(Trainer):
    """transformers' Trainer with a teacher and with training views that are keyed by (seed, epoch, slot).

    What a student learns is said by `DistillationObjective`. The teacher sees exactly the view that the student
    sees, at its own input size; it stays outside of the student, the optimizer, the average and the checkpoints.

    Evaluation runs the student alone and reports `eval_top1` and `eval_top5` of what the model answers (the fused
    heads), the same per head as `eval_class_…` and `eval_distillation_…`, where transformers alone will answer
    otherwise as `eval_plain_…`, and for the moving average as `eval_ema_…`; top-5 from five labels on.
    A `compute_metrics` of one's own takes their place: it gets the logits of what the model answers, (N, num_labels),
    as with transformers, or what its `preprocess_logits_for_metrics` makes of them.

    Args:
        model: any image classifier of transformers, or of this package.
        args: see `DistillationTrainingArguments`.
        teacher: from `load_teacher`; required unless `distillation_type` is "none", or `args.teacher_labels` has all
            that is needed. One from `describe_teacher` is loaded only if there are views that it must label.
        processing_class: the student's image processor; its statistics and crop size prepare all pixels.
        train_dataset: a `datasets.Dataset` with an `Image` and a `ClassLabel` column, an `ImageStream`, or views.
        unlabeled_dataset: with an `Image` column. The teacher's term learns from these images too. The class head
            does not, unless there are no others: then it also learns what the teacher says.
        eval_dataset: a `datasets.Dataset` likewise, or an `EvaluationDataset`.
        test_dataset: the same, for `test`; the training never looks at it.
        sources: what the card of the model says that it was made from.
        repository: to push to, if it has been checked before; by default as the arguments say.
        labels: of the training views in the store that `args.teacher_labels` names, if that has been read before.
        **kwargs: the other arguments of `transformers.Trainer`.

    Attributes:
        teacher: that is loaded, or None.
        distillation_objective: what the student learns.
        run_folder: the output folder, with its checkpoints.
        record: what the card of the model says of the run.
        step_record: means and speed of the training steps.
        skipped_images: those that could not be decoded, in training and evaluation.
        teacher_answers: which training views the teacher gave none to.
        weight_average: the moving average of the weights, or None.
        kept_labels: of the store that `args.teacher_labels` names, or None.
        label_report: what became of the labels of the last call of `train`, if there is a store.
        pushes: to the Hub, or None.
        log_table: what shows the logs, or None if transformers' own callbacks do.
        stated_epochs: `num_train_epochs` as the arguments have it, where `min_train_steps` may have raised it.
        changes: what of the arguments was otherwise until the checkpoint that the run goes on from, in words.

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
        teacher: AnyTeacher | AnyDescription | None = None,
        processing_class: DistilledDeiTImageProcessor,
        train_dataset: datasets.Dataset | ImageStream | KeyedViews | None = None,
        unlabeled_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | EvaluationDataset | None = None,
        test_dataset: datasets.Dataset | EvaluationDataset | None = None,
        sources: RunSources | None = None,
        repository: HubRepository | None = None,
        labels: RunLabels | None = None,
        **kwargs: Any,
    ) -> None:
        check_sharding(args)
        check_teaching(args, model, teacher, has_unlabeled=unlabeled_dataset is not None)
        is_custom = kwargs.get("compute_metrics") is not None
        sets = list(eval_dataset) if isinstance(eval_dataset, dict) else ()
        check_arguments(args, model, processing_class, check_metric=not is_custom, validation_sets=sets)
        check_total_batch(args)
        if args.ddp_find_unused_parameters is None and isinstance(model, ImageClassifierBase):
            args = copy.copy(args)
            args.ddp_find_unused_parameters = False  # all of ours are used; others may have a mask token, say
        if kwargs.get("compute_metrics") is None:
            if kwargs.get("preprocess_logits_for_metrics") is not None:
                raise InputError("preprocess_logits_for_metrics goes with a compute_metrics of one's own: give both")
            kwargs["compute_metrics"] = head_accuracies
        kwargs.setdefault("data_collator", collate)
        self._fitted = {"args": args, "model": model, "processor": processing_class, "teacher": teacher}
        views = as_views(train_dataset, unlabeled_dataset, **self._fitted)
        steps_of_epoch = steps_per_epoch(views, args) if isinstance(views, KeyedViews) else None
        args = with_pace(args, steps_of_epoch)
        self.stated_epochs = args.num_train_epochs
        if steps_of_epoch:
            args = with_all_epochs(args, steps_of_epoch)
        self.record = RunRecord(sources or RunSources.of(model, teacher))
        self.run_folder = RunFolder(args.output_dir)
        self.repository, self.pushes = repository, None
        evaluations = as_evaluation(eval_dataset, **self._fitted)
        self.test_dataset = as_evaluation(test_dataset, **self._fitted, where="the test images")
        try:
            super().__init__(
                model=model,
                args=args,
                processing_class=processing_class,
                train_dataset=views,
                eval_dataset=evaluations,
                **kwargs,
            )
        except InputError:
            raise
        except ValueError as error:  # arguments that do not go together, or not here
            raise InputError(one_line(error)) from error
        has_labels = views.has_labels if isinstance(views, KeyedViews) else True
        self.distillation_objective = DistillationObjective.of(args, has_labels=has_labels)
        self.step_record = StepRecord(self.accelerator)
        self.skipped_images = SkippedImages()
        self._image_losses: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._flops: dict[int, int] = {}
        self.teacher_answers = TeacherAnswers(args, self._name_of_view)
        self._takes_view_seeds = "view_seeds" in inspect.signature(model.forward).parameters
        self.weight_average = self._make_average()
        self.kept_labels: KeptLabels | None = None
        self.label_report: LabelReport | None = None
        self.log_table: LogTableCallback | None = None
        self._take_teacher(teacher, labels)
        self.add_callback(EvaluationPaceCallback())
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping())
        self._run_origin, self.changes = RunOrigin(), []
        self.add_callback(self._run_origin)
        self.log_table = self._make_log_table()

    def _make_log_table(self) -> LogTableCallback | None:
        """What shows the logs in place of transformers' own; None where those were asked for, and in notebooks."""
        if self.args.log_format == "raw":
            return None
        default = self.pop_callback(ProgressCallback) or self.pop_callback(PrinterCallback)
        if default is None:
            return None
        table = LogTableCallback(self)
        self.add_callback(table)
        return table

    def _make_average(self) -> WeightAverage | None:
        if not self.args.ema_decay:
            return None
        check_averaged(self.model)
        average = WeightAverage(self.model, self.args.ema_decay, warmup=self.args.ema_warmup)
        self.add_callback(StepEndCallback(average.update))
        return average

    def _take_teacher(self, teacher: AnyTeacher | AnyDescription | None, labels: RunLabels | None) -> None:
        """Opens kept labels, and loads the teacher if there is anything for it to say."""
        self.teacher = None
        if self.args.teacher_labels is not None and self.train_dataset is not None:
            labels = labels or LabelSource(self.args).of_run(
                self.train_dataset,
                self.processing_class,
                num_labels=self.model.config.num_labels,
                sources=self.record.sources,
            )
            there = labels.source.identity
            teacher = as_kept(teacher, there and there.teacher, self._decide_teacher, self.args.device)
            self._fitted["teacher"] = teacher
            self.kept_labels = KeptLabels(labels, teacher.description if isinstance(teacher, AnyTeacher) else teacher)
            self.record.sources = self.kept_labels.named_in(self.record.sources)
        if isinstance(teacher, AnyDescription) and (self.kept_labels is None or self.kept_labels.needs_teacher):
            try:
                self.teacher = teacher.load()
            except InputError:
                if self.kept_labels is not None:
                    self.kept_labels.close()
                raise
        elif isinstance(teacher, AnyTeacher):
            self.teacher = teacher
        if self.teacher is not None:
            self.teacher.to(self.args.device)
            self.record.sources = self.record.sources.shown_by(self.teacher)
        if self.args.distillation_type != "none":
            self.add_callback(TeacherCheckCallback(self))

    def _decide_teacher(self, teacher: AnyTeacher | None, known: Mapping[str, Any] | None = None) -> None:
        """Lets a teacher that is undecided run as before, or as is fastest here; all processes must call it."""
        if teacher is None or not teacher.description.is_undecided:
            return
        args, views = self.args, self.train_dataset
        if known is not None or not isinstance(views, KeyedViews):
            words = take_from(teacher, known or {})
        else:
            steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.steps_per_epoch)
            num_views = steps * args.total_train_batch_size // args.world_size
            words = decide(teacher, views, args, self.prepare_batch, num_views=num_views)
        self.record.teacher_speed, self._fitted["teacher"] = words, teacher
        if words and self.log_table is None and self.is_world_process_zero():
            logger.warning("the teacher runs %s", words)

    @property
    def _is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed trains: transformers' own loaders and savers deal with the weights then."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        check_accelerator(self.args, self.accelerator)

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, checkpoint: str | None) -> Any:
        # In here DeepSpeed restores weights and optimizer.
        restores = self.is_deepspeed_enabled and checkpoint is not None
        reading = restoring(checkpoint, "DeepSpeed's parts") if restores else nullcontext()
        with prepared_for_fsdp(self.model, self.accelerator), reading:
            return super()._prepare_for_training(max_steps, train_dataloader, checkpoint)

    @property
    def sources(self) -> RunSources:
        """What the run is made from."""
        return self.record.sources

    # Data

    def _as_evaluation(self, dataset: Any, *, may_lack_labels: bool = False) -> Any:
        return as_evaluation(dataset, **{**self._fitted, "teacher": self.teacher}, may_lack_labels=may_lack_labels)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        self._sampler = make_sampler(self.train_dataset if train_dataset is None else train_dataset, self.args)
        return self._sampler

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return steps_per_epoch(self.train_dataset, self.args)

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        step, num_steps = self.state.global_step, self.state.max_steps
        if step >= num_steps or has_stopped_early(
            self.args, self.state.log_history, step=step, num_steps=num_steps
        ):  # resumed after its end: more steps would be made
            self.control.should_training_stop = True
            return
        # When a run resumes in mid-epoch, accelerate's wrapper that skips batches hides the sampler of a sharded
        # loader from `set_epoch`.
        self._sampler.set_epoch(epoch)
        if self.kept_labels is not None:
            self.kept_labels.start_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)
        if self.kept_labels is not None:
            self.step_record.elsewhere(self.kept_labels.finish_epoch, self.teacher, self.prepare_batch)
            if logs := self.kept_labels.verification_logs():
                self.log(logs)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """transformers' loader; `dataloader_drop_last` is for the training: an evaluation leaves no image out."""
        drops_last = is_training and self.args.dataloader_drop_last
        persists = self.args.dataloader_persistent_workers and self.args.dataloader_num_workers > 0  # torch refuses
        with self._with_arguments(dataloader_drop_last=drops_last, dataloader_persistent_workers=persists):
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)

    @contextmanager
    def _with_arguments(self, **changes: Any) -> Iterator[None]:
        """Lets transformers' methods find other arguments for a while."""
        own = self.args
        self.args = copy.copy(own)
        for name, value in changes.items():
            setattr(self.args, name, value)
        try:
            yield
        finally:
            self.args = own

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if eval_dataset is None or isinstance(eval_dataset, str) or eval_dataset is self.eval_dataset:
            return super().get_eval_dataloader(self._as_evaluation(eval_dataset))
        # Of persistent workers transformers keeps a loader, and would take it for any other images, too.
        kept = self.__dict__.pop("_eval_dataloaders", {})
        try:
            return super().get_eval_dataloader(self._as_evaluation(eval_dataset))
        finally:
            self._eval_dataloaders = kept

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(self._as_evaluation(test_dataset, may_lack_labels=True))

    def prepare_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What student and teacher see of a loader's batch: on the device, normalised, erased and mixed."""
        return self._prepare_inputs(batch)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(self.skipped_images.take(inputs))
        if inputs["pixel_values"].dtype == torch.uint8:
            inputs = augment_batch(inputs, self.processing_class.image_mean, self.processing_class.image_std)
        return inputs

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The objective's loss in training; in evaluation the cross-entropy of `logits`, without the teacher.

        Args:
            model: the student, wrapped or not.
            inputs: `pixel_values` (B, 3, H, W) normalised, `labels` (B,) and, in training, `view_seeds` (B,) and, if
                views are mixed, `partner_labels` (B,) and `label_weights` (B,).
        """
        if not model.training:
            outputs = model(pixel_values=inputs["pixel_values"])
            heads = {head.field: outputs[head.field] for head in HEADS if outputs.get(head.field) is not None}
            labels = inputs["labels"]
            loss = evaluation_loss(heads["logits"], labels)
            if self._image_losses is not None:
                losses = image_losses(heads["logits"], labels).detach()
                self._image_losses.append(self.accelerator.gather_for_metrics((losses, labels >= 0)))
            plain_fusion = getattr(self.model.config, "plain_fusion", None)
            if plain_fusion is not None and plain_fusion != self.model.config.fusion:
                heads[PLAIN.field] = fuse_logits(heads[CLASS.field], heads[DISTILLATION.field], plain_fusion)
            return (loss, heads) if return_outputs else loss
        seeds = {"view_seeds": inputs["view_seeds"]} if self._takes_view_seeds and "view_seeds" in inputs else {}
        answer = self._teacher_answer(inputs)  # first: what it takes is free again before the student needs as much
        outputs = model(pixel_values=inputs["pixel_values"], **seeds)
        if answer is not None:
            self.teacher_answers.note(has_answer(answer), inputs)
        loss, parts = self.distillation_objective(outputs, inputs, answer)
        self.step_record.add(self.state.global_step + 1, loss, parts, inputs)
        return (loss, outputs) if return_outputs else loss

    def _teacher_answer(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The teacher's logits, (B, num_labels), or what is kept of them, or its labels, (B,); or None."""
        if self.args.distillation_type == "none":
            return None
        if self.kept_labels is not None:
            return self.kept_labels.answer(inputs, self.teacher)
        return self.teacher(inputs["pixel_values"])

    def _name_of_view(self, epoch: int, slot: int) -> str:
        key = next(iter(self._sampler.keys(epoch, [slot])), None)
        return f"slot {slot} of epoch {epoch}" if key is None else self.train_dataset.name(key)

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains; arguments and return value of `transformers.Trainer.train`.

        Afterwards `label_report` says what became of kept labels.

        Raises:
            InputError: there is no checkpoint to resume from; another run is at work in the output folder; the run is
                sharded, and the Trainer has trained before; the teacher's answers are not finite, and are not to be
                passed over; or the processes do not have the same images and models.
            TrainingDivergedError: the loss is no longer finite; the checkpoints are those from before.
            CheckpointError: a checkpoint could not be written; those from before are whole.
        """
        if self._is_sharded and self.state.global_step:  # its optimizer would have other weights than the model
            raise InputError("a Trainer that FSDP or DeepSpeed shards trains once: make another one to go on")
        folder = self._get_output_dir(kwargs.get("trial"))  # trials of a search may run side by side, in folders of it
        with holding(folder, is_written=self.args.save_strategy != SaveStrategy.NO):
            return self._train_with_labels(resume_from_checkpoint, **kwargs)

    def _train_with_labels(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> Any:
        if self.kept_labels is None:
            return self._train(resume_from_checkpoint, **kwargs)
        self.kept_labels.restart()
        try:
            output = self._train(resume_from_checkpoint, **kwargs)
            self.kept_labels.finish(self.teacher, self.prepare_batch)
            self.label_report = self.kept_labels.report()
            self.record.num_replayed = self.label_report.replayed
        finally:
            self.kept_labels.close()
        return output

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> Any:
        self._check_alike()
        checkpoint = on_every_process(lambda: self._find_checkpoint(resume_from_checkpoint))
        if checkpoint is not None:
            self.check_checkpoint(checkpoint)
        else:
            self._decide_teacher(self.teacher)
            if self.args.save_strategy != SaveStrategy.NO:
                self._note_origin()
        self.accelerator.wait_for_everyone()  # all have looked
        if checkpoint is not None and self.args.should_save:
            remove_torn_checkpoints(self.args.output_dir)
            if self.pushes is not None:
                self.pushes.resume(checkpoint)
        self._flops = {}
        self.step_record.reset()
        self.teacher_answers.restart()
        self.record.restart()
        if self.weight_average is not None:
            self.weight_average.restart()
        try:
            with unknown_fields_left_out():
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            if self.log_table is not None:
                self.log_table.close()
        self._stop_if_diverged(check_weights=True)
        self.record.has_ended = True
        return output

    def _check_alike(self) -> None:
        check_alike(
            views=self.train_dataset,
            validation=self.eval_dataset,
            test=self.test_dataset,
            student=self.accelerator.unwrap_model(self.model),
            processor=self.processing_class,
            teacher=lambda: teacher_of(self._fitted["teacher"], self.kept_labels),
            views_per_step=self.args.total_train_batch_size,
        )

    def _find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        checkpoint = self.run_folder.find(resume_from_checkpoint)
        if checkpoint is not None and self.args.should_save:  # one process of those that see the same files
            check_unchanged(checkpoint)
        return checkpoint

    def check_checkpoint(self, checkpoint: str) -> None:
        """Refuses a checkpoint that this run cannot go on from as if nothing had happened; all processes must ask.

        Raises:
            InputError: it is of another student, teacher or images, or of another batch.
        """
        self._decide_teacher(self.teacher, on_main_process(lambda: teacher_in(checkpoint)))
        origin, args, teacher = self._note_origin(checkpoint), self.args, self._fitted["teacher"]
        is_one = isinstance(teacher, Teacher | TeacherDescription)
        is_own = is_one and os.path.dirname(teacher.name_or_path) == os.path.normpath(args.output_dir)

        def check() -> None:
            check_same_labels(checkpoint, self.model.config.id2label, "the run of")
            if isinstance(self.train_dataset, KeyedViews):
                check_resumable(checkpoint, self.steps_per_epoch)
            check_same_sharding(checkpoint, self.accelerator)
            check_student(checkpoint, self)
            check_origin(checkpoint, origin, trained_anew=is_own and args.resume_from_hub is not None)

        on_main_process(check)

    def _note_origin(self, checkpoint: str | None = None) -> dict[str, Any]:
        """Lets the next checkpoints say what the run was started with, and what has changed since."""
        origin = on_main_process(lambda: describe_origin(self, self._fitted["teacher"], checkpoint))
        self._run_origin.origin = origin
        self.record.sources = replace(self.record.sources, changes=origin["changes"])
        return origin

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """transformers', which counts the parameters anew at each step, once for each number of pixels of a run."""
        pixels = inputs["pixel_values"].numel()
        if pixels not in self._flops:
            self._flops[pixels] = super().floating_point_ops(inputs)
        return self._flops[pixels]

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> Any:
        """transformers', which, where nothing is clipped, multiplies all gradients by one besides."""
        is_plain = self.accelerator.distributed_type in _WITH_WHOLE_GRADIENTS and self.accelerator.scaler is None
        if grad_norm is None and is_plain and not self._has_mixed_mesh_grads(model):
            return torch.nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._stop_if_diverged(check_weights=self.control.should_save)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _check_answers(self) -> None:
        if self.args.distillation_type != "none":
            found = self.teacher_answers.check(self.teacher, way_back=self.run_folder.way_back)
            self.step_record.note_unanswered(found)

    def _stop_if_diverged(self, *, check_weights: bool) -> None:
        self._check_answers()  # first, as they may be the cause
        weights = weights_here(self.model) if check_weights else None
        self.step_record.stop_if_diverged(self.state.global_step, weights, way_back=self.run_folder.way_back)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to the training log lines: class_loss, distillation_loss, teacher_agreement, images_per_second."""
        if self.is_in_train and {"loss", "train_loss"} & set(logs):
            if "train_loss" in logs:  # before all others, answers have been looked at
                self._check_answers()
            logs.update(self.step_record.flush())  # transformers returns this very mapping from `train`
            self._tell_skipped()
        super().log(logs, start_time)

    # Evaluation

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return self.step_record.elsewhere(super()._evaluate, *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates the weights and, beside them, their moving average as `eval_ema_…`."""
        with preserve_global_random_state():  # loaders draw from it: how often is evaluated must not change training
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def test(self) -> dict[str, float]:
        """Evaluates the weights that `save_model` saves on the test images: `test_top1`, `test_class_top1`, …

        It is for the very end: whoever chooses between models by it has no test images left. The card states it.

        Raises:
            InputError: there is no `test_dataset`.
        """
        if self.test_dataset is None:
            raise InputError("there are no test images: give the Trainer a test_dataset")
        average, self.weight_average = self.weight_average, None
        is_average = average is not None and self.args.publish_weights == "ema"
        try:
            with average.in_place() if is_average else nullcontext():
                metrics = self.evaluate(self.test_dataset, metric_key_prefix="test")
        finally:
            self.weight_average = average
        self.record.note_test(metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """What the model answers: `predictions` (N, num_labels) are its logits, of fused heads if it has two.

        Args:
            test_dataset: a `datasets.Dataset` like `eval_dataset`, or without labels, or an `EvaluationDataset`.
            ignore_keys, metric_key_prefix: see `transformers.Trainer.predict`.

        Returns:
            With `label_ids` (N,), negative where an image has none, and `metrics` as `evaluate` has them.
        """
        with preserve_global_random_state():
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """transformers' loop over the weights and their average.

        `…_loss` is the mean over the labelled images, and is left out where there are none; `…_images` is how many
        they are.

        Raises:
            InputError: the run is to be sharded, and has not been trained yet.
        """
        if self._is_sharded and not self.accelerator._models:
            raise InputError(
                "FSDP and DeepSpeed shard a model together with its optimizer, when it is trained: call train first, "
                "or evaluate without them"
            )
        loop = functools.partial(self._exact_loop, dataloader, description, *args, **kwargs)
        output = loop(prefix=metric_key_prefix, logits=description == "Prediction")
        if self.compute_metrics is head_accuracies and isinstance(output.predictions, tuple):  # `answers_and_ranks`
            output = output._replace(predictions=output.predictions[0])
        published = output
        counted = int((output.label_ids >= 0).sum()) if isinstance(output.label_ids, np.ndarray) else None
        is_unlabelled = description == "Prediction" and counted == 0
        if self.weight_average is not None and not is_unlabelled:
            with self.weight_average.in_place():
                average = loop(prefix=f"{metric_key_prefix}_ema", logits=False)
            output.metrics.update(average.metrics)  # here, so that callbacks hear of both at once
            published = average if self.args.publish_weights == "ema" else output
        self._tell_skipped()
        if counted is not None:
            output.metrics[f"{metric_key_prefix}_images"] = counted
        if description == "Evaluation" and metric_key_prefix == "eval" and self.compute_metrics is head_accuracies:
            self.record.note_classes(published, self.state, num_labels=self.model.config.num_labels)
        return output

    def _exact_loop(
        self, dataloader: DataLoader, description: str, *args: Any, prefix: str, logits: bool, **kwargs: Any
    ) -> EvalLoopOutput:
        """transformers' loop with the mean loss of the images in place of its own.

        That is of the batches' means, and several processes fill their last batches up with images that were there
        before: it depends on how many processes there are.

        Args:
            prefix: of the metrics' names.
            logits: see `_keeping`.
        """
        losses = self._image_losses = []
        if self.state.global_step:  # before, all have those that were loaded, perhaps not on the device yet
            share_buffers(self.model)
        try:
            with self._keeping(logits=logits):
                output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=prefix, **kwargs)
        finally:
            self._image_losses = None
        name = f"{prefix}_loss"
        if losses and name in output.metrics:  # there are none where a subclass computes its own loss
            output.metrics[name] = mean_loss(losses)
            if output.metrics[name] is None:
                del output.metrics[name]
        return output

    def _tell_skipped(self) -> None:
        if self.args.on_bad_image == "skip":
            self.skipped_images.tell()

    @contextmanager
    def _keeping(self, *, logits: bool) -> Iterator[None]:
        """What an evaluation keeps of each batch: for the accuracies of heads five labels of each are enough.

        Args:
            logits: whether to keep those of what the model answers, too. A `compute_metrics` of one's own gets them.
        """
        given = self.preprocess_logits_for_metrics

        def keep(heads: Any, labels: torch.Tensor | None) -> Any:
            if self.compute_metrics is head_accuracies:
                return answers_and_ranks(heads, labels) if logits else rank_labels(heads)
            return answers(heads) if given is None else given(answers(heads), labels)

        self.preprocess_logits_for_metrics = keep
        try:
            yield
        finally:
            self.preprocess_logits_for_metrics = given

    def check_teacher(self) -> dict[str, float]:
        """Measures and logs how good the teacher is on this data, and warns if it is no better than guessing.

        Returns:
            See `hf_deit.training.callbacks.teacher_report`.

        Raises:
            InputError: its answers are not finite, and are not to be passed over.
        """
        self._ask_for_classes()
        self.record.teacher_report = teacher_report(self)
        self.log(dict(self.record.teacher_report))
        self.step_record.restart_timer()
        return self.record.teacher_report

    def _ask_for_classes(self) -> None:
        """Which classes the teacher says, where images have no labels, and its prior; all processes must call it.

        A run that goes on has both from its checkpoint, so that the teacher is the very same.
        """
        teacher, origin = self.teacher, self._run_origin.origin
        if (known := origin.get("predicted_classes")) is not None:
            predicted = PredictedClasses(**known)
            if teacher is not None:
                correct_priors(teacher, predicted)
        elif teacher is not None and are_wanted(teacher, self.train_dataset):
            predicted = predict_classes(
                teacher, self.train_dataset, self.processing_class, self.args, self.prepare_batch
            )
            self._run_origin.origin = {**origin, "predicted_classes": predicted.to_dict()}
        else:
            return
        self.record.predicted_classes = predicted
        if self.is_world_process_zero():
            if self.log_table is None:
                logger.warning("\n%s", predicted.text(in_order(self.model.config.id2label)))
            if teacher is not None:
                tell_doubts(predicted, teacher, self.args, self.processing_class)

    @torch.no_grad()
    def evaluate_teacher(self) -> float:
        """The teacher's top-1 accuracy in [0, 1] on the whole validation set, every process measuring its part.

        An image that it gives no answer to counts as wrong, and is warned of. Of several teachers it is that of their
        common answer; `record.teacher_report` has that of each, too, as `teacher_top1_of_1`, say.

        Raises:
            InputError: there is no teacher, as its labels were all kept.
        """
        if self.teacher is None:
            raise InputError("there is no teacher to evaluate: give the Trainer one from load_teacher")
        right, counted, unanswered = {"": 0}, 0, 0
        for batch in self.get_eval_dataloader():
            batch = self.prepare_batch(batch)
            said = answers_of_teacher(self.teacher, batch["pixel_values"])
            decisions = torch.stack([decisions_of(logits) for logits in said.values()], dim=1)
            decisions, labels = self.accelerator.gather_for_metrics((decisions, batch["labels"]))
            for which, column in zip(said, decisions.unbind(dim=1), strict=True):
                found = count_hits(column.unsqueeze(1), labels)
                right[which] = right.get(which, 0) + found.top1
            counted = counted + found.counted
            unanswered = unanswered + ((decisions[:, 0] == NO_ANSWER) & (labels >= 0)).sum()
        self._tell_skipped()
        if int(unanswered) and self.is_world_process_zero():
            logger.warning(
                "the teacher %s gives answers that are not finite to %d of %d validation images, which count as wrong",
                *(self.teacher.name_or_path, int(unanswered), int(counted)),
            )
        top1 = {
            f"teacher_top1{which}": Hits(hits, None, counted).accuracies()["top1"] for which, hits in right.items()
        }
        self.record.note_teacher_accuracy(top1, num_images=int(counted))
        return top1["teacher_top1"]

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the weights, or, if `publish_weights` is "ema", their moving average."""
        if _internal_call and output_dir is not None:  # a checkpoint has both
            with saved_whole(self.model, self.accelerator):
                super().save_model(output_dir, _internal_call)
            if self.weight_average is not None and self.args.should_save:
                self.weight_average.save(output_dir)
            return
        publishes_average = self.weight_average is not None and self.args.publish_weights == "ema"
        in_place = self.weight_average.in_place() if publishes_average else nullcontext()
        folder = output_dir or self.args.output_dir
        check_held(folder)
        writing = self.run_folder.writing("model", self.state.global_step)
        with writing, self._holding(folder), in_place, saved_whole(self.model, self.accelerator):
            super().save_model(output_dir, _internal_call)

    def _holding(self, folder: str) -> AbstractContextManager[None]:
        """Holds a folder in the process that writes there; what comes here need not be called in the others."""
        return hold(folder) if self.is_world_process_zero() else nullcontext()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with under_own_class(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            share_weights(output_dir or self.args.output_dir)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.kept_labels is not None:  # a run that goes on from here finds the labels of all that was before
            self.step_record.elsewhere(on_every_process, self.kept_labels.flush)
        on_main_process(lambda: check_held(self.args.output_dir))
        with self.run_folder.writing("checkpoint", self.state.global_step):
            self.step_record.elsewhere(self._write_checkpoint, *args, **kwargs)

    def _write_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        step, run_folder = self.state.global_step, RunFolder(self._get_output_dir(trial))
        if self.args.should_save:
            run_folder.unmark(step)
        with self._with_arguments(push_to_hub=False, save_total_limit=None):  # both come after the checksums
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            run_folder.seal(step)
        if self.args.push_to_hub:
            self._push_from_checkpoint(run_folder.checkpoint(step))
        if self.args.should_save:
            run_folder.rotate(self.args.save_total_limit, step=step, best=self.state.best_model_checkpoint)

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        with self._with_arguments(save_total_limit=None):  # at the end transformers removes all but the best one
            output = super()._finalize_training(trial, *args, **kwargs)
        best = self.state.best_model_checkpoint
        limit = self.args.save_total_limit if self.args.load_best_model_at_end else None
        if self.args.should_save and limit == 1 and best is not None:
            run_folder = RunFolder(self._get_output_dir(trial))
            run_folder.rotate(1, step=self.state.global_step, best=best, keeps_last=False)
        return output

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Rank 0 marks the checkpoint as whole next: by then every process must have written its part.
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring(str(checkpoint), "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with restoring(str(checkpoint), "scaler.pt"):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring(str(checkpoint), "rng_state.pth"):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_sharded:
            with restoring(resume_from_checkpoint, "FSDP's parts"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        check_best(best, self.run_folder.way_back(), weights_only=not self._is_sharded)
        self.record.note_best_weights(self.state)
        if self._is_sharded:
            super()._load_best_model()
        self._restore(best)

    def _restore(self, checkpoint: str) -> None:
        if not self._is_sharded:
            restore_weights(self.accelerator.unwrap_model(self.model), checkpoint)
        if self.weight_average is not None:
            self.weight_average.restore(checkpoint)

    # The Hub

    def run_facts(self, metrics: dict[str, float] | None = None) -> RunFacts:
        """What the card of the model says, as far as it is known now.

        Args:
            metrics: instead of those that were measured.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with under_own_class(model):
            return self.record.facts(
                model,
                self.args,
                self.state,
                image_size=self.processing_class.crop_size.height,
                train_dataset=self.train_dataset,
                eval_dataset=self.eval_dataset,
                images_per_second=self.step_record.images_per_second,
                num_skipped=len(self.skipped_images),
                metrics=metrics,
            )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Checks that the model can be pushed, and creates the repository.

        Raises:
            InputError: it cannot.
        """
        if self.is_world_process_zero():
            self.repository = self.repository or repository_of(self.args, token=token, private=private)
            self.pushes = RunPushes(self.repository, self.args, history=lambda: self.state.log_history)
            self.hub_model_id, self.push_in_progress = self.repository.repo_id, None

    def check_card(self) -> None:
        """Lets the Hub validate the card that will be pushed, before there is anything to push.

        Raises:
            InputError: it finds faults with the card, or is not there.
        """
        if self.repository is not None:
            check_future_card(self.run_facts(metrics={"eval_top1": 0.5, "eval_ema_top1": 0.5}), self.repository)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card and the record of the run into the output folder. It is written from the run alone."""
        if self.is_world_process_zero():
            facts = self.run_facts()
            with suppress(InputError):  # a record that cannot be read is written anew
                facts = facts.taken_up(read_facts(self.args.output_dir))
            self._write_record(self.args.output_dir, facts)

    def _write_record(self, folder: str, facts: RunFacts) -> None:
        repo_id = self.hub_model_id or repository_name(self.args)
        write_record(folder, facts, self.state.log_history, repo_id, self.args.hub_revision)

    def push_to_hub(self, commit_message: str | None = "End of training", *args: Any, **kwargs: Any) -> None:
        """Saves and pushes the model, and waits until it is there.

        Args:
            commit_message: of the commit.
            *args, **kwargs: `token` and `private` as in transformers; else ignored.

        Raises:
            InputError: it cannot be pushed.
            PublishError: the Hub refuses, fails or is not there. Nothing in the output folder is lost.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        self.save_model(_internal_call=True)
        if self.pushes is not None:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            with self._holding(self.args.output_dir):
                self.pushes.push_result(commit_message or "End of training", record=self.create_model_card)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        weights = os.path.join(checkpoint_folder, AVERAGE_FOLDER if self.args.publish_weights == "ema" else "")
        if self.pushes is None or not self.pushes.is_due:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_step = self.args.save_strategy == SaveStrategy.STEPS
        self.pushes.push_checkpoint(
            checkpoint_folder,
            weights,
            record=self._write_checkpoint_record,
            when=f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch)}",
        )

    def _write_checkpoint_record(self, folder: str) -> None:
        self.processing_class.save_pretrained(folder)
        self._write_record(folder, self.run_facts())

    def _finish_current_push(self) -> None:
        if self.pushes is not None:
            self.pushes.catch_up()

    # Optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay applies to: no biases, norms, tokens or positions."""
        return without_tokens_and_positions(model, super().get_decay_parameter_names(model))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """transformers' optimizer, at the peak learning rate, or, with `layer_decay`, at each layer's part of it."""
        is_given = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if not is_given:
            for group in optimizer.param_groups:
                group["lr"] = self.args.peak_learning_rate
            if self.args.layer_decay != 1:
                model = kwargs.get("model", args[0] if args else None)
                groups = by_layer(optimizer.param_groups, model or self.model, self.args.layer_decay)
                optimizer.param_groups[:] = groups
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """DeiT's schedule for the cosine, transformers' for all others; warns of one that cannot be meant.

        Raises:
            InputError: a polynomial that has no step to fall in, which would end in a division by zero.
        """
        args = self.args
        warmup, is_polynomial = args.get_warmup_steps(num_training_steps), args.lr_scheduler_type == "polynomial"
        if is_polynomial and self.lr_scheduler is None and warmup >= num_training_steps:
            raise InputError(
                f"the polynomial schedule falls after the warm-up, which takes {warmup} steps, and the run has "
                f"{num_training_steps}: give fewer --warmup_steps"
            )
        if self.is_world_process_zero():
            doubts = average_doubts(args, num_steps=num_training_steps, is_pretrained=bool(self.model.name_or_path))
            if self.lr_scheduler is None:
                doubts += schedule_doubts(args, num_steps=num_training_steps, steps_per_epoch=self.steps_per_epoch)
            for doubt in doubts:
                logger.warning(doubt)
        if args.lr_scheduler_type != SchedulerType.COSINE or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        steps_per_epoch = self.steps_per_epoch
        self.lr_scheduler = deit_schedule(
            self.optimizer if optimizer is None else optimizer,
            num_steps=num_training_steps,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=args.warmup_epochs * steps_per_epoch or warmup,
            peak=args.peak_learning_rate,
            warmup_learning_rate=args.warmup_learning_rate,
            min_learning_rate=args.min_learning_rate,
            per=args.schedule_per,
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler
