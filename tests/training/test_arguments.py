"""Contract: every option of transformers is sorted: it works here, it is refused with the reason, or it does no harm.

A version of transformers that brings another option fails this table until the option is sorted.
"""

import dataclasses
import json
import math
import os
from typing import get_args, get_type_hints

import pytest
import torch
from support import tiny
from transformers import TrainingArguments

from hf_deit import DistillationTrainingArguments, InputError
from hf_deit.data import arguments as data_arguments
from hf_deit.data.arguments import DataArguments
from hf_deit.recipes import ARGUMENT_CLASSES
from hf_deit.training import arguments
from hf_deit.training.arguments import UNFIT_OPTIONS, ModelArguments
from hf_deit.training.datasets import check_arguments

# Of each, a value that is refused at the start.
REFUSED = {
    "remove_unused_columns": True,
    "logging_nan_inf_filter": True,
    "auto_find_batch_size": True,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "label_names": ["target"],
    "dataloader_in_order": False,
    "ignore_data_skip": True,
    "prediction_loss_only": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "batch_eval_metrics": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "enable_jit_checkpoint": True,
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_cache": True,
    "include_num_input_tokens_seen": "all",
    "parallelism_config": object(),
}
# Refused for some of their values, or without a compute_metrics of one's own; each has a test, here or where it says.
REFUSED_IN_PART = {
    "accelerator_config",  # split_batches and dispatch_batches
    "dataloader_prefetch_factor",  # without workers
    "greater_is_better",  # means nothing without metric_for_best_model
    "include_for_metrics",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "metric_for_best_model",
    "optim",
    "optim_args",
    "optim_target_modules",  # recipes/test_uses.py
    "save_strategy",
    "fsdp",
}
# Defaults of this package's own, and what it does otherwise than transformers: tested throughout tests/training.
OWN_MEANING = {
    *("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing_factor", "logging_steps", "warmup_steps"),
    *("seed", "data_seed", "ddp_find_unused_parameters", "resume_from_checkpoint", "push_to_hub", "hub_always_push"),
    *("hub_strategy", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision", "dataloader_pin_memory"),
    *("dataloader_drop_last", "load_best_model_at_end", "do_train", "do_eval", "do_predict"),
}
# Other tests train with them.
TESTED = {
    *("output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "bf16", "use_cpu", "disable_tqdm", "report_to", "torch_compile"),
    *("eval_strategy", "eval_steps", "save_steps", "save_total_limit", "save_only_model", "activation_checkpointing"),
    *("gradient_checkpointing", "dataloader_num_workers", "dataloader_persistent_workers", "deepspeed", "ddp_timeout"),
}
# They change nothing of what is learnt or measured: `test_harmless_options_change_nothing` trains with them.
HARMLESS = {
    "average_tokens_across_devices": False,  # of a loss that is counted by tokens, which none is
    "dataloader_multiprocessing_context": None,
    "debug": "underflow_overflow",
    "ddp_static_graph": True,
    "ddp_bucket_cap_mb": 5,
    "ddp_broadcast_buffers": False,
    "eval_accumulation_steps": 1,
    "eval_delay": 1,
    "eval_on_start": True,
    "full_determinism": True,
    "logging_first_step": True,
    "logging_strategy": "steps",
    "log_level": "warning",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "restore_callback_states_from_checkpoint": True,
    "run_name": "run",
    "project": "project",
    "save_on_each_node": True,
    "skip_memory_metrics": False,
    "torch_empty_cache_steps": 1,
    "trackio_space_id": None,
    "trackio_bucket_id": None,
    "trackio_static_space_id": None,
}
# Numbers of torch's optimizer, and what only some devices and launchers have.
PASSED_ON = {
    *("adam_beta1", "adam_beta2", "adam_epsilon", "fp16", "tf32", "torch_compile_backend", "torch_compile_mode"),
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "fsdp_config", "ddp_backend", "local_rank"),
}


def test_every_option_of_transformers_is_sorted_once():
    sorts = [set(REFUSED), REFUSED_IN_PART, OWN_MEANING, TESTED, set(HARMLESS), PASSED_ON]
    listed = [name for names in sorts for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(REFUSED) == set(UNFIT_OPTIONS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_break_or_do_otherwise_is_refused_with_the_reason(tmp_path, name):
    reason = UNFIT_OPTIONS[name][1]
    with pytest.raises(InputError) as error:
        tiny.arguments(tmp_path, **{name: REFUSED[name]})
    assert str(error.value).startswith(f"{name} must be {UNFIT_OPTIONS[name][0][0]!r}, got {REFUSED[name]!r}")
    assert str(error.value).endswith(reason)


def test_what_arguments_derive_may_be_given_again(tmp_path):
    args = tiny.arguments(tmp_path)
    again = DistillationTrainingArguments(
        **{name: getattr(args, name) for name in UNFIT_OPTIONS}, output_dir=str(tmp_path), use_cpu=True
    )
    assert again.label_names == ["labels"]


IN_PART = [
    ({"accelerator_config": {"split_batches": True}}, "must not split or dispatch"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor"),
    ({"include_for_metrics": ["inputs"]}, "include_for_metrics is for a compute_metrics of one's own"),
    ({"metric_for_best_model": "accuracy"}, "must be one of .*top1"),
    ({"save_strategy": "best"}, "give --metric_for_best_model, say top1"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "cannot make the schedule .*num_decay_steps"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot make the schedule .*min_lr"),
    ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 2}}, "cannot make the schedule .*power"),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "cannot make the schedule .*lr_end"),
    ({"optim": "lomo"}, "cannot make the optimizer 'lomo'.*pip install"),
    ({"optim": "sgd", "optim_args": "momentum"}, "cannot make the optimizer 'sgd' with optim_args 'momentum'"),
    ({"optim": "sgd", "optim_args": "momentum=0.9,nestrov=True"}, "'sgd' takes no 'nestrov'"),
    ({"optim": "sgd", "optim_args": "momentum=-1"}, "cannot make the optimizer 'sgd' .*momentum"),
    ({"optim": "sgd", "optim_args": "nesterov=True"}, "cannot make the optimizer 'sgd' .*momentum"),
    ({"activation_checkpointing": True}, "leave --activation_checkpointing out"),
    ({"accelerator_config": {"even": True}}, "AcceleratorConfig.*'even'"),
    ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}}, "--gradient_accumulation_steps"),
    ({"save_strategy": "best", "metric_for_best_model": "top1", "eval_strategy": "no"}, "eval_strategy is .no"),
    (
        {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "no"},
        "got eval_strategy 'no' and save_strategy 'epoch'",
    ),
    ({"optim_args": "eps=1e-6"}, "takes no 'eps' .*--adam_epsilon"),
]


@pytest.mark.parametrize(("settings", "message"), IN_PART)
def test_what_cannot_be_made_is_refused_before_training(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        check_arguments(tiny.arguments(tmp_path, **settings), tiny.resnet(), tiny.processor())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (-0.5, math.nan, math.inf)) for name in ("warmup_steps", "warmup_epochs", "learning_rate")),
        *((name, (-0.5, math.nan, math.inf)) for name in ("max_grad_norm", "eval_delay", "mixup", "weight_decay")),
        *((name, (-0.1, 1.0, math.nan)) for name in ("adam_beta1", "adam_beta2", "ema_decay")),
        *((name, (-1, 0)) for name in ("adam_epsilon", "save_steps", "ddp_timeout", "gradient_accumulation_steps")),
        *((name, (-1, 0)) for name in ("eval_accumulation_steps", "dataloader_prefetch_factor")),
        *((name, (-1,)) for name in ("eval_steps", "save_total_limit", "logging_steps")),
        ("num_train_epochs", (0, -1, math.nan, math.inf)),
        *((name, (-1, 2**32, 2**64)) for name in ("seed", "data_seed")),
        *((name, (0, -1, 2**31)) for name in ("per_device_train_batch_size", "repeated_augmentation")),
        ("hub_push_timeout", (0, math.nan, 10**10)),
        ("max_steps", (0, -5, 2**31)),
    ],
)
def test_a_number_outside_its_range_is_refused_at_the_start(tmp_path, name, values):
    for value in values:
        with pytest.raises(InputError, match=rf"^{name} must lie in [\[(]\d, .*, got {value}$"):
            tiny.arguments(tmp_path, **{name: value})


# Numbers that are checked elsewhere, or that transformers itself does not look at.
CHECKED_ELSEWHERE = {"max_steps", "dataloader_num_workers", "neftune_noise_alpha", "local_rank"}


def test_every_number_has_a_range():
    ranges = (arguments._RANGES, arguments._RANGES_OF_MODELS, data_arguments._RANGES)
    ranged = {name for part in ranges for names in part.values() for name in names}
    hints = {name: hint for part in ARGUMENT_CLASSES for name, hint in get_type_hints(part).items()}
    numbers = {name for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)}}
    fields = {field.name for part in ARGUMENT_CLASSES for field in dataclasses.fields(part) if field.init}
    assert (numbers & fields) - ranged == CHECKED_ELSEWHERE and ranged <= numbers


def of_training(**settings):
    return lambda folder: tiny.arguments(folder, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_training(dataloader_num_workers=-1), "must be a number from 0, at most 512"),
        (of_training(dataloader_num_workers=10**6), "must be a number from 0, at most 512"),
        (of_training(learning_rate=[1]), r"learning_rate must be a number in \[0, ∞\), got"),
        (of_training(max_steps=[1]), "max_steps must lie in"),
        (of_training(torch_compile_mode="fast"), "torch_compile_mode must be one of default"),
        (of_training(torch_compile_backend="x"), "torch_compile_backend must be one of"),
        (of_training(dataloader_multiprocessing_context="spwan"), "did you mean 'spawn'"),
        (of_training(dataloader_multiprocessing_context="spawn"), "--dataloader_num_workers"),
        (lambda _: DataArguments(train_dir=["a"]), "train_dir must be a name or a path"),
        (lambda _: DataArguments(validation_seed=2**64), r"validation_seed must lie in \[0, 4294967296\)"),
        (lambda _: DataArguments(validation_fraction=math.nan), r"validation_fraction must lie in \(0, 1\)"),
        (lambda _: DataArguments(labels_kept=0), r"labels_kept must lie in \[1, "),
        (lambda _: ModelArguments(image_size=10**6), r"image_size must lie in \[1, 4096\]"),
        (lambda _: ModelArguments(crop_ratio=math.nan), r"crop_ratio must lie in \(0, 1\]"),
        (lambda _: ModelArguments(teacher_input_size="9" * 5000), "a number of pixels up to 4096"),
    ],
)
def test_what_would_end_a_run_later_is_refused_when_it_is_given(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path)


def test_what_can_be_made_is_taken(tmp_path):
    for settings in (
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True"},
        {"optim": "rmsprop", "optim_args": "alpha=0.9"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"lr_scheduler_type": "constant", "learning_rate": 0.0},
    ):
        check_arguments(tiny.arguments(tmp_path, **settings), tiny.resnet(), tiny.processor())


def test_what_needs_several_processes_is_refused_in_one_message(tmp_path):
    args = tiny.arguments(tmp_path, distillation_type="none", fsdp=True)
    with pytest.raises(InputError, match="fsdp only works in distributed training"):
        tiny.trainer(tiny.resnet(), args)


def test_metrics_of_ones_own_may_ask_for_more(tmp_path):
    args = tiny.arguments(tmp_path, distillation_type="none", include_for_metrics=["loss"])
    seen = []
    tiny.trainer(tiny.resnet(), args, compute_metrics=lambda given: seen.append(given.losses.shape) or {}).evaluate()
    assert seen == [(40,)]


def test_harmless_options_change_nothing(tmp_path, monkeypatch):
    """All at once, against none, and through a stop."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # full_determinism writes into it

    def trained(folder: str, checkpoint: bool | None = None, **settings):
        args = tiny.arguments(
            tmp_path / folder, distillation_type="none", max_steps=4, save_strategy="steps", save_steps=2, **settings
        )
        trainer = tiny.trainer(tiny.resnet(), args)
        deterministic = torch.are_deterministic_algorithms_enabled()
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
            return trainer.model.state_dict(), trainer.evaluate()
        finally:
            torch.use_deterministic_algorithms(deterministic)

    plain, metrics = trained("plain")
    settings = {**HARMLESS, "eval_strategy": "steps", "eval_steps": 2}
    other, others = trained("other", **settings)
    resumed, _ = trained("other", str(tmp_path / "other" / "checkpoint-2"), **settings)
    for name in plain:
        assert torch.equal(plain[name], other[name]) and torch.equal(plain[name], resumed[name])
    same = [name for name in metrics if "top" in name or "loss" in name]
    assert same and {name: others[name] for name in same} == {name: metrics[name] for name in same}
    state = json.loads((tmp_path / "other" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
