"""What a run knows of itself, made up."""

from typing import Any

from hf_deit.hub.facts import RunFacts, Source

METRICS = {
    "eval_top1": 0.75,
    "eval_top5": 0.9,
    "eval_class_top1": 0.7,
    "eval_distillation_top1": 0.72,
    "eval_ema_top1": 0.8,
    "eval_ema_class_top1": 0.78,
    "eval_ema_distillation_top1": 0.79,
}


def facts(**changes: Any) -> RunFacts:
    """Of a distilled DeiT-Ti with teacher and data on the Hub, trained to its end."""
    values = {
        "architecture": "DistilledDeiTForImageClassification",
        "model_type": "deit",
        "parameters": 5_500_000,
        "image_size": 224,
        "needs_code": False,
        "is_distilled": True,
        "fusion": "logits",
        "labels": ["cat", "dog"],
        "student": Source("deit_tiny_distilled_patch16_224"),
        "teacher": Source("lab/teacher", "a" * 40, on_hub=True),
        "dataset": Source("lab/pets", "b" * 40, on_hub=True, is_dataset=True),
        "weights": "raw",
        "step": 100,
        "num_steps": 100,
        "num_epochs": 4.0,
        "batch_size": 64,
        "environment": {
            "libraries": {"torch": "2.15"},
            "device": "CPU",
            "num_processes": 2,
            "hf_deit_commit": "c" * 40,
        },
        "teacher_top1": 0.85,
        "teacher_images": 500,
        "teacher_datasets": ["lab/pets"],
        "num_train": 1600,
        "num_validation": 500,
        "metrics": METRICS,
        "images_per_second": 321.0,
        "minutes": 12.5,
        "recipe": {"seed": 3},
        **changes,
    }
    return RunFacts(**values)
