"""What people type who come from other training scripts, and the option that they mean.

The words are those of the authors' main.py, timm's train.py, torchvision's references, transformers' examples,
Lightning and ultralytics. Where a word says exactly what an option says, it is an alias on the command line
(`ALIASES`); any other is refused with the right option, before names that are merely spelt alike are thought of.
Recipes are files that are kept and compared, and take the options' own names alone.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Collection, Sequence

from transformers import PreTrainedConfig

from ..errors import InputError
from ..models.configuration_deit import DistilledDeiTConfig
from .uses import IN_ITS_CARD, IN_ITS_COMMAND

ALIASES = {
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "lr": "learning_rate",
    "min_lr": "min_learning_rate",
    "warmup_lr": "warmup_learning_rate",
    "wd": "weight_decay",
    "model": "student",
    "teacher": "teacher_model_name_or_path",
    "size": "image_size",
    "img_size": "image_size",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "output": "output_dir",
    "device": "use_cpu",  # of "cpu" alone
}

# Options, and the words for them that say it in another way, or something only alike.
_MEANT = {
    "recipe": "config cfg config_file yaml base preset c",
    "num_train_epochs": (
        "num_epochs n_epochs nb_epochs max_epochs total_epochs training_epochs train_epochs n_epoch epoch ep e "
        "nepoch num_epoch niter"
    ),
    "max_steps": (
        "steps num_steps max_iters max_iter iters iterations num_iterations num_train_steps max_train_steps "
        "total_steps train_iters num_iter niters step"
    ),
    "per_device_train_batch_size": (
        "b bs batch batches train_batch_size train_bs batch_size_per_gpu per_gpu_batch_size "
        "per_gpu_train_batch_size per_device_batch_size micro_batch_size samples_per_gpu bsize batch_sz train_batch "
        "batchsz mini_batch_size"
    ),
    "total_batch_size": (
        "global_batch_size effective_batch_size total_train_batch_size global_batch total_batch effective_batch "
        "global_bs total_bs batch_size_total overall_batch_size nbs nominal_batch_size"
    ),
    "per_device_eval_batch_size": (
        "vb eval_batch_size val_batch_size validation_batch_size test_batch_size eval_bs val_bs "
        "per_gpu_eval_batch_size eval_batch val_batch"
    ),
    "gradient_accumulation_steps": (
        "grad_accum grad_accum_steps grad_accumulation accum accum_iter accum_steps accumulation_steps accumulate "
        "accumulate_grad_batches update_freq gradient_accumulation"
    ),
    "learning_rate": "lr0 base_lr blr lr_base initial_lr init_lr max_lr peak_lr learning_rates start_lr",
    "scale_learning_rate": "scale_lr unscale_lr lr_scale lr_base_size auto_scale_lr linear_scaling lr_base_scale",
    "min_learning_rate": "lr_min final_lr end_lr eta_min lrf lr_final",
    "warmup_epochs": (
        "warmup lr_warmup_epochs warmup_epoch n_warmup_epochs num_warmup_epochs warmup_prefix lr_warmup_method"
    ),
    "warmup_steps": "warmup_ratio num_warmup_steps lr_warmup_steps warmup_iters warmup_updates warmup_t",
    "warmup_learning_rate": "warmup_lr_init lr_warmup_decay warmup_bias_lr warmup_start_lr",
    "weight_decay": "l2 decay weightdecay norm_weight_decay",
    "layer_decay": "llrd lr_layer_decay layerwise_lr_decay layer_wise_lr_decay",
    "early_stopping_patience": "patience early_stopping early_stop patience_epochs early_stop_patience",
    "min_train_steps": "min_steps least_steps",
    "teacher_probe": "probe probe_backbone",
    "teacher_label_subset": "label_subset subset_of_labels class_subset",
    "templates": "template prompt_template prompt_templates text_template hypothesis_template",
    "class_prompts": "prompts class_descriptions prompt_file",
    "teacher_prior_correction": "prior_correction debias logit_adjustment",
    "optim": "opt optimizer optimiser optim_name adafactor sgd adam adamw lamb lion",
    "optim_args": "momentum nesterov opt_kwargs optimizer_args optim_kwargs sgd_momentum mom",
    "adam_epsilon": "opt_eps eps adam_eps",
    "adam_beta1": "opt_betas betas beta1 adam_betas",
    "adam_beta2": "beta2",
    "lr_scheduler_type": (
        "sched scheduler schedule lr_scheduler lr_schedule lr_policy lr_decay cos_lr cosine linear poly "
        "plateau reduce_lr step_lr"
    ),
    "lr_scheduler_kwargs": (
        "decay_epochs decay_rate decay_milestones milestones lr_steps lr_step_size lr_gamma gamma "
        "cooldown_epochs lr_cycle_mul lr_cycle_decay lr_cycle_limit sched_kwargs lr_k_decay lr_decay_rate "
        "lr_decay_epochs factor"
    ),
    "schedule_per": "sched_on_updates",
    "max_grad_norm": (
        "clip_grad clip_grad_norm grad_clip grad_norm clip clip_norm max_norm gradient_clip gradient_clip_val "
        "gradient_clipping clip_gradient"
    ),
    "label_smoothing_factor": "smoothing label_smoothing smooth label_smooth ls_eps ls",
    "random_erasing": "reprob erasing random_erase re_prob erase random_erasing_prob remode recount resplit",
    "auto_augment": (
        "aa autoaugment aug augment augmentation data_augmentation rand_augment randaugment ra ra_magnitude "
        "trivial_augment augmix_severity train_aug"
    ),
    "repeated_augmentation": "repeated_aug repeat_aug ra_sampler ra_reps aug_repeats num_repeats epoch_repeats",
    "repeats_placement": "repeat_placement repeats_order repeat_order ra_placement repeated_augmentation_placement",
    "horizontal_flip": "hflip fliplr flip hflip_prob random_flip",
    "crop_scale_min": "scale rrc_scale crop_scale min_scale random_resized_crop",
    "mixup": "mixup_alpha mix_up mixup_mode mixup_off_epoch",
    "cutmix": "cutmix_alpha cut_mix cutmix_minmax",
    "mixup_probability": "mixup_prob mix_prob cutmix_prob",
    "mixup_switch_probability": "mixup_switch_prob switch_prob",
    "ema_decay": (
        "ema model_ema model_ema_decay use_ema ema_momentum ema_model with_ema model_ema_steps "
        "model_ema_force_cpu ema_rate ema_alpha ema_start ema_steps swa"
    ),
    "ema_warmup": "model_ema_warmup use_ema_warmup ema_use_warmup ema_ramp ema_rampup ema_warm_up ema_decay_warmup",
    "publish_weights": "eval_ema use_ema_weights",
    "seed": "random_seed manual_seed rng_seed random_state torch_seed",
    "full_determinism": "deterministic use_deterministic_algorithms determinism",
    "student": (
        "arch architecture net network backbone model_name model_name_or_path model_id model_type "
        "student_model student_name student_model_name student_model_name_or_path student_name_or_path "
        "base_model variant encoder pretrained pretrained_model pretrained_path weights initial_checkpoint "
        "init_checkpoint finetune fine_tune ckpt checkpoint checkpoint_path load load_from init_from a "
        "s_model ckpt_path pretrained_weights from_scratch init"
    ),
    "student_revision": "model_revision",
    "student_overrides": "model_kwargs model_args config_overrides model_config",
    "replace_head": (
        "reset_head reset_classifier new_head reinit_head reset_classifer ignore_mismatched_sizes head_init_scale"
    ),
    "freeze": (
        "freeze_backbone freeze_encoder freeze_base freeze_layers linear_probe linear_probing attn_only "
        "train_head_only head_only frozen freeze_bn unfreeze"
    ),
    "image_size": (
        "imgsz image_sz img_sz input_size in_size input_resolution img_resolution image_resolution resolution "
        "res pixels crop_size train_crop_size val_crop_size resize train_size input_shape img_shape img_dim "
        "img_h img_w img_height img_width height student_size student_image_size multi_scale rect"
    ),
    "crop_ratio": (
        "crop_pct eval_crop_ratio crop_percent val_resize_size test_crop_ratio eval_crop crop crop_fraction"
    ),
    "teacher_model_name_or_path": (
        "teacher_model teacher_name teacher_arch teacher_path teacher_checkpoint teacher_ckpt teacher_id "
        "teacher_dir teacher_model_path teacher_name_or_path teacher_model_name kd_model "
        "kd_model_name t_model kd_teacher"
    ),
    "distillation_type": (
        "distill distil distill_type distillation kd kd_type distillation_mode distill_mode loss loss_type "
        "criterion kd_loss distill_loss distillation_loss kd_distill_type hard_distillation soft_distillation "
        "no_teacher hard soft hard_label soft_label hard_labels soft_labels"
    ),
    "distillation_alpha": (
        "alpha distill_alpha kd_alpha kd_weight kd_ratio lambda lambda_kd lam distillation_lambda "
        "distill_weight distillation_weight teacher_weight task_loss_weight distill_loss_weight "
        "kd_loss_weight beta alpha_ce distil_alpha"
    ),
    "distillation_temperature": (
        "tau temperature temp t distillation_tau distill_temp distill_temperature kd_temp kd_t kd_temperature "
        "teacher_temperature teacher_temp distillation_temp"
    ),
    "train_dir": (
        "data data_path data_dir datadir data_root dataroot root path train train_path train_data train_folder "
        "training_dir training_data images image_dir image_folder img_dir imagenet_path folder input_dir input "
        "source src data_folder traindir train_root i"
    ),
    "validation_dir": (
        "val val_dir valid valid_dir val_path val_data val_folder eval_dir eval_data valid_path validation_data "
        "validation validation_path validation_folder dev_dir val_root valdir"
    ),
    "validation_fraction": (
        "val_fraction val_size val_ratio val_pct train_val_split validation_ratio validation_size test_size "
        "holdout split_ratio val_frac valid_pct holdout_fraction"
    ),
    "test_dir": "testdir test_path test_data test_folder",
    "test_split": "test_set",
    "validation_split": "val_split eval_split valid_split split_val validation_set",
    "train_split": "split training_split train_set split_train",
    "dataset_name": (
        "dataset data_set dataset_path hub_dataset dataset_id ds hf_dataset dataset_name_or_path dataset_dir "
        "dataset_root"
    ),
    "dataset_config_name": "dataset_config subset config_name inat_category dataset_subset",
    "image_column_name": "image_column image_key input_key img_column image_col img_key",
    "label_column_name": (
        "label_column label_key target_key target_column label_col labels_column label labels target targets"
    ),
    "streaming": "stream",
    "shuffle_buffer_size": "shuffle_buffer buffer_size",
    "teacher_speed": "teacher_compile compile_teacher teacher_channels_last fold_bn fuse_bn teacher_fast fast_teacher",
    "teacher_input_size": "teacher_size teacher_image_size teacher_img_size teacher_resolution",
    "unlabeled_dir": "unlabelled_dir unlabeled unlabelled unlabeled_data unlabelled_data extra_dir unsup_dir",
    "labels_kept": (
        "num_labels_kept n_labeled num_labeled labeled_samples few_shot shots label_fraction labeled_fraction "
        "n_labels n_labeled_samples"
    ),
    "images_per_epoch": (
        "max_train_samples train_num_samples num_train_samples samples_per_epoch num_samples "
        "limit_train_batches fraction n_samples max_samples subset_size data_fraction"
    ),
    "on_bad_image": "skip_bad_images ignore_errors skip_errors skip_broken bad_images skip_corrupt",
    "check_images": (
        "verify_images validate_images check_data check_dataset verify_data check_files check_headers skip_checks "
        "no_check no_verify check_corrupt verify check"
    ),
    "cache_images": (
        "cache_decoded ram_cache cache_in_memory cache_ram cache_disk decoded_cache cache_resized resized_cache "
        "max_resolution"
    ),
    "reduced_decoding": (
        "draft draft_mode use_draft jpeg_draft dct_scale dct_scaling scaled_decoding fast_decode reduced_decode "
        "decode_scale shrink_on_load"
    ),
    "cache_images_gb": "cache_gb cache_size cache_size_gb max_cache_gb",
    "on_bad_teacher_answer": "skip_nan ignore_nan nan_teacher teacher_nan on_nan on_teacher_nan skip_bad_answers",
    "dataloader_num_workers": (
        "j num_worker n_workers nworkers num_threads threads n_jobs jobs data_workers loader_workers "
        "preprocessing_num_workers cpus num_cpus nw tpu_num_cores"
    ),
    "dataloader_pin_memory": "pin_mem pin_memory no_pin_mem",
    "dataloader_prefetch_factor": "prefetch prefetch_factor no_prefetcher prefetcher",
    "dataloader_drop_last": "drop_last",
    "dataloader_persistent_workers": "persistent_workers",
    "use_cpu": (
        "cpu no_cuda no_gpu cpu_only disable_cuda use_cuda cuda use_gpu accelerator use_mps_device mps tpu use_ipex"
    ),
    "bf16": (
        "amp mixed_precision precision half use_amp fp16_opt_level amp_dtype amp_impl autocast bfloat16 dtype "
        "torch_dtype model_dtype half_precision use_bf16 use_fp16 native_amp apex_amp fp32 float16 "
        "fp16_backend half_precision_backend"
    ),
    "torch_compile": "compile torchcompile use_compile compile_model jit torchscript fuser jit_mode_eval",
    "torch_compile_mode": "compile_mode torchcompile_mode",
    "activation_checkpointing": "grad_checkpointing grad_checkpoint use_checkpoint grad_ckpt",
    "output_dir": (
        "out o out_dir outdir output_path output_folder save_dir savedir save_path save_to save_folder "
        "result_dir results_dir work_dir workdir work_dirs exp_dir experiment_dir model_dir checkpoint_dir "
        "ckpt_dir default_root_dir target_dir run_dir destination dest logging_dir log_dir logdir tb_dir "
        "tensorboard_dir result results"
    ),
    "resume_from_checkpoint": (
        "resume resume_from resume_path auto_resume resume_training continue resume_checkpoint resume_run "
        "load_checkpoint restore recover continue_from start_epoch"
    ),
    "save_steps": (
        "save_freq save_interval save_every save_period checkpoint_freq checkpoint_interval ckpt_freq "
        "ckpt_interval checkpointing_steps save_frequency recovery_interval every_n_train_steps "
        "save_every_n_steps checkpoint_every"
    ),
    "save_strategy": (
        "save_mode save_every_epoch save_checkpoint save_model save_best save_last save save_every_n_epochs "
        "no_save keep keep_best_only"
    ),
    "save_total_limit": (
        "checkpoint_hist keep_checkpoints max_checkpoints save_top_k max_to_keep keep_last "
        "checkpoints_total_limit save_limit"
    ),
    "eval_steps": (
        "eval_freq eval_interval eval_every val_freq val_interval val_every validation_steps validate_every "
        "eval_frequency check_val_every_n_epoch val_check_interval test_freq eval_period"
    ),
    "eval_strategy": "evaluation_strategy evaluate_during_training no_val validate noval do_validation",
    "load_best_model_at_end": "load_best keep_best best best_model",
    "metric_for_best_model": "eval_metric monitor metric best_metric early_stopping_metric",
    "logging_steps": (
        "log_interval log_freq log_every print_freq print_every log_steps logging_interval log_frequency "
        "print_interval disp_freq log_every_n_steps logging_freq print_steps"
    ),
    "report_to": (
        "log logger log_with wandb use_wandb log_wandb enable_wandb tensorboard tb use_tensorboard tracker "
        "tracking mlflow comet clearml trackio loggers with_tracking reporters logs"
    ),
    "project": "project_name",
    "run_name": "name exp_name experiment experiment_name exp wandb_name wandb_run_name job_name tag run",
    "disable_tqdm": "no_tqdm no_progress no_progress_bar progress quiet silent disable_progress_bar progress_bar",
    "log_level": "verbose verbosity loglevel",
    "push_to_hub": "push upload publish hub push_hub push_to_hf save_hf",
    "hub_model_id": (
        "repo_id repo hub_id repository push_to_hub_model_id hub_repo hub_repo_id repo_name hub_model_name "
        "hub_name push_to_hub_repo push_to_hub_organization organization org hub_user username"
    ),
    "hub_private_repo": "private hub_private make_private",
    "hub_token": "token hf_token use_auth_token auth_token push_to_hub_token api_token access_token",
    "hub_revision": "revision hub_branch",
}
# What to know beside the option's name, where the words do not mean quite the same.
_NOTES = {
    "recipe": "on the command line; a recipe stands on another one with base: NAME",
    "per_device_train_batch_size": "a step's views on each device; --gradient_accumulation_steps multiplies them",
    "total_batch_size": "a step's views over all devices and accumulation steps",
    "scale_learning_rate": "true trains at learning_rate · total batch / 512",
    "warmup_epochs": "a length in epochs; --warmup_steps is one in steps",
    "warmup_steps": "a number of steps, or below 1 a part of the run",
    "optim_args": "momentum and the like, as text: momentum=0.9,nesterov=True",
    "lr_scheduler_kwargs": "as JSON, for transformers' schedules; the cosine takes min_learning_rate",
    "auto_augment": 'timm\'s policy, say rand-m9-mstd0.5-inc1, or "" for none',
    "repeated_augmentation": "how many views of an image; 1 for none",
    "repeats_placement": "spread, as the authors, or adjacent",
    "ema_decay": "say 1 - 10 / the run's steps, 0.98 for 500 of them; 0 for none",
    "max_grad_norm": "a norm; 0 for none",
    "student": "a name of the zoo is made anew; a Hub id or a folder is trained on",
    "freeze": "none, all_but_heads or all_but_attention",
    "image_size": "one number of pixels",
    "teacher_model_name_or_path": "a Hub id, as timm/regnety_160.deit_in1k, or a folder",
    "distillation_type": "hard, soft or none",
    "distillation_alpha": "the weight of the teacher's term; the labels' is 1 less it",
    "train_dir": "a folder with one folder per class; --dataset_name takes a data set by name",
    "validation_split": "of --dataset_name; a folder is --validation_dir, a part of the training images "
    "--validation_fraction",
    "use_cpu": "true trains on the CPU; by default the accelerator that is there is taken",
    "bf16": "true, false or auto, which is true where the device has it; fp16 is an option of its own",
    "resume_from_checkpoint": "true goes on with the run in output_dir, after its last checkpoint",
    "save_strategy": "no, steps, epoch or best",
    "eval_strategy": "no, steps or epoch; steps are --eval_steps",
    "eval_steps": "with --eval_strategy steps",
    "save_steps": "with --save_strategy steps",
    "project": "of Trackio; wandb takes WANDB_PROJECT from the environment",
    "report_to": "by name: tensorboard, wandb, trackio, mlflow …",
    "metric_for_best_model": "top1, loss …",
}
# Words that no option stands for, by what to do instead.
_INSTEAD = {
    "the launcher says how many processes there are: hf-deit launch --num_processes N train …, and "
    "CUDA_VISIBLE_DEVICES which GPUs": (
        "gpus gpu gpu_id gpu_ids num_gpus n_gpu n_gpus ngpus ngpu devices device_ids num_devices nproc "
        "nproc_per_node num_processes nprocs world_size nnodes num_nodes distributed ddp strategy dist_url "
        "dist_backend launcher multi_gpu multiprocessing_distributed master_port master_addr parallel "
        "data_parallel num_machines rank machine_rank main_process_port port host node num_node no_ddp_bb "
        "sharded_ddp zero_stage"
    ),
    "the classes are those of the images: one folder per class, or the label column's": (
        "num_classes classes nb_classes n_classes num_labels n_class num_class class_map number_of_classes nc"
    ),
    "mean and std are the checkpoint's, or those of ImageNet": (
        "mean std normalize normalization image_mean image_std"
    ),
    "a run evaluates as it trains (--eval_strategy) and at its end, on --validation_dir, --validation_split or images "
    f"that it holds out; {IN_ITS_COMMAND}": (
        "eval evaluate evaluation eval_only evaluate_only validate_only test test_only do_test eval_first tta"
    ),
    IN_ITS_CARD: "predict prediction predictions infer inference classify predict_dir infer_dir",
    "hf-deit convert FOLDER DESTINATION --to FORMAT converts a trained model": (
        "export onnx to_onnx export_onnx save_onnx convert export_format"
    ),
    "hf-deit preview, with the options of the run, shows what training sees": (
        "preview visualize visualise show_batch"
    ),
    "hf-deit benchmark measures": "benchmark throughput",
    "images are enlarged and shrunk bicubically, as the authors' are": ("interpolation train_interpolation resample"),
    "colours and shapes are changed by --auto_augment": (
        "color_jitter colour_jitter jitter color_jitter_prob grayscale_prob gaussian_blur_prob hsv_h hsv_s hsv_v "
        "threeaugment rotate rotation degrees translate shear perspective mosaic copy_paste aug_splits bgr"
    ),
    "images are flipped from left to right alone: --horizontal_flip": "vflip flipud vertical_flip",
    "labels are learnt by cross-entropy, each class and image alike: --label_smoothing_factor and "
    "--distillation_type are what there is": (
        "bce_loss bce_sum bce_target_thresh bce_pos_weight jsd_loss ce mse loss_fn lossfn focal_loss class_weight "
        "class_weights weighted_loss pos_weight balanced sampler oversample cosub"
    ),
    "layers learn at --learning_rate, or by --layer_decay; --freeze keeps some as they are": (
        "lr_mult backbone_lr lr_backbone head_lr lr_head layer_decay_min_scale "
        "layer_decay_no_opt_scale lr_noise lr_noise_pct lr_noise_std"
    ),
    "BatchNorm layers of a student stay as its model has them": (
        "sync_bn sync_batchnorm dist_bn split_bn bn_momentum bn_eps bn"
    ),
    "gradients are clipped by their norm: --max_grad_norm": "clip_mode clip_value clip_grad_value",
    "images that a table lists are a data set for --dataset_name: a folder with metadata.csv, or Parquet files": (
        "csv train_csv val_csv ann_file annotations labels_file label_file parquet tfrecord lmdb hdf5 h5 wds "
        "webdataset zip tar"
    ),
    "views are always in a random order, which --seed draws": "shuffle no_shuffle worker_seeding",
    "the images are tried with hf-deit preview, the whole way with --recipe debug": (
        "dry_run fast_dev_run smoke_test"
    ),
    "all weights are trained in full": "lora peft adapter quantize int8 prune load_in_8bit load_in_4bit",
    "folds are folders or splits of their own: --train_dir and --validation_dir": (
        "fold folds kfold k_fold cross_validation"
    ),
    "to train without augmentation: --auto_augment '' --horizontal_flip 0 --crop_scale_min 1 --random_erasing "
    "0 --mixup 0 --cutmix 0 --repeated_augmentation 1": ("no_aug no_augment no_augmentation"),
    "a new run needs a new --output_dir, or an empty one": "overwrite_output_dir exist_ok overwrite force",
    "code that comes with a checkpoint is not run": "trust_remote_code dataset_trust_remote_code",
    "wandb takes what it is told from the environment: WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS": (
        "wandb_project wandb_entity entity group wandb_group wandb_tags tags wandb_resume_id wandb_id wandb_dir"
    ),
    "the cache is the Hub's: HF_HOME says where it lies": "cache_dir cache cache_dataset download_dir",
}
# timm's and others' words for fields of a student's configuration, whose own names are found in it.
_FIELDS = {
    "drop_path_rate": ("drop_path droppath stochastic_depth drop_connect stochastic_depth_prob dpr drop_path_prob sd"),
    "hidden_dropout_prob": "drop dropout drop_rate dropout_rate dropout_prob p_dropout proj_drop",
    "attention_probs_dropout_prob": "attn_drop attn_drop_rate attention_dropout attn_dropout",
    "hidden_size": "embed_dim embedding_dim hidden_dim width emb_dim dim d_model",
    "num_hidden_layers": "depth layers num_layers n_layers num_blocks blocks depths",
    "num_attention_heads": "num_heads heads n_heads nhead",
    "intermediate_size": "mlp_dim mlp_ratio ffn_dim",
    "patch_size": "patch patch_sz",
    "num_channels": "in_chans channels in_channels",
    "layer_norm_eps": "norm_eps ln_eps",
    "fusion": "fuse head_fusion",
}


def expand_aliases(arguments: Sequence[str]) -> list[str]:
    """A command line with the options' own names in place of their aliases.

    Args:
        arguments: for example ["--epochs", "5", "--device=cpu"].

    Raises:
        InputError: an option is given under two names, with two values; or a device that cannot be chosen so.
    """
    expanded: list[str] = []
    given: dict[str, tuple[str, str]] = {}
    for word, *values in _options(arguments):
        name, equals, value = word.removeprefix("--").partition("=")
        typed = name.replace("-", "_")
        if not word.startswith("--"):
            expanded += [word, *values]
            continue
        option = ALIASES.get(typed, typed)
        told = " ".join([value, *values] if equals else values)
        if typed == "device":
            told = value = _as_use_cpu(told)
            equals, values = "=", []
        told = told or "true"
        before, other = given.setdefault(option, (typed, told))
        if before != typed and other != told:
            raise InputError(
                f"--{before} and --{typed} are the same option ({option}), but were given {other!r} and {told!r}: "
                "leave one of them out"
            )
        expanded += [f"--{option}{equals}{value}" if typed in ALIASES else word, *values]
    return expanded


def _options(arguments: Sequence[str]) -> list[list[str]]:
    """A command line's options, each with the words behind it."""
    options: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not options:
            options.append([argument])
        else:
            options[-1].append(argument)
    return options


def _as_use_cpu(device: str) -> str:
    if device.lower() != "cpu":
        raise InputError(
            f"--device takes cpu alone, got {device!r}: by default the accelerator that is there is taken, and "
            "CUDA_VISIBLE_DEVICES=1 chooses one"
        )
    return "true"


def meant_by(name: str, known: Collection[str]) -> str:
    """The end of a message about an option that does not exist: what was meant, or what to do instead, or "".

    Args:
        name: as it was typed, without dashes.
        known: the options that exist.
    """
    said, spelt_known, words = _spelt_alike(name), {_spelt_alike(word): word for word in known}, _words_for_options()
    option = spelt_known.get(said) or words.get(said)
    if option is not None:
        return f"; did you mean {option!r}?" + (f" ({_NOTES[option]})" if option in _NOTES else "")
    if (field := _words_for_fields().get(said)) is not None:
        return f"; did you mean 'student_overrides'? (as JSON: '{json.dumps({field: '…'}, ensure_ascii=False)}')"
    for advice, others in _INSTEAD.items():
        if said in map(_spelt_alike, others.split()):
            return f": {advice}"
    if (positive := re.sub("^(no|enable|disable|use|with)_", "", name)) != name:
        return (
            f"; did you mean {positive!r}? (false, or 0, is off)" if positive in known else meant_by(positive, known)
        )
    nearest = difflib.get_close_matches(said, [*spelt_known, *words], n=1, cutoff=0.85)
    if nearest and nearest[0] in words:
        return meant_by(nearest[0], known)
    return ""


def _spelt_alike(name: str) -> str:
    """batch-size, batchSize and batch_size are one word."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@functools.cache
def _words_for_options() -> dict[str, str]:
    words = {_spelt_alike(word): option for option, words in _MEANT.items() for word in words.split()}
    return words | {_spelt_alike(word): option for word, option in ALIASES.items()}


@functools.cache
def _words_for_fields() -> dict[str, str]:
    """Of a student's configuration, with the fields' own names."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(DistilledDeiTConfig)} - inherited
    words = {_spelt_alike(word): field for field, words in _FIELDS.items() for word in words.split()}
    return words | {_spelt_alike(field): field for field in own}
