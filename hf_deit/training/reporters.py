"""The trackers that a run reports to: their names, and whether they are installed, before anything is loaded."""

from collections.abc import Sequence

from transformers.integrations import integration_utils

from ..errors import InputError, did_you_mean, shortlist

# transformers' check of each, and what to install.
REPORTERS = {
    "tensorboard": ("is_tensorboard_available", "tensorboard"),
    "wandb": ("is_wandb_available", "wandb"),
    "trackio": ("is_trackio_available", "trackio"),
    "mlflow": ("is_mlflow_available", "mlflow"),
    "comet_ml": ("is_comet_available", "comet-ml"),
    "clearml": ("is_clearml_available", "clearml"),
    "codecarbon": ("is_codecarbon_available", "codecarbon"),
    "dagshub": ("is_dagshub_available", "dagshub mlflow"),
    "dvclive": ("is_dvclive_available", "dvclive"),
    "flyte": ("is_flytekit_available", "flytekit"),
    "neptune": ("is_neptune_available", "neptune"),
    "swanlab": ("is_swanlab_available", "swanlab"),
    "azure_ml": ("is_azureml_available", "azureml-sdk"),
    "kubeflow": ("is_kubeflow_available", None),
}


def reporters_of(given: str | Sequence[str] | None) -> list[str]:
    """The names, of which "none" and "all" stand alone.

    Args:
        given: a name, several, or several in one text, with commas.

    Raises:
        InputError: a name that is none, with the nearest.
    """
    texts = [given] if isinstance(given, str) else given or ["none"]
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()] or ["none"]
    for name in names:
        if name not in (*REPORTERS, "all", "none"):
            known = [*REPORTERS, "all", "none"]
            raise InputError(
                f"report_to has no tracker {name!r}: expected {shortlist(REPORTERS, 4)}, all or none"
                f"{did_you_mean(name.lower(), known)}"
            )
        if name in ("all", "none") and len(set(names)) > 1:
            raise InputError(f"report_to {name} stands alone, got {', '.join(names)}: leave one of them out")
    if names == ["all"] and not any(_is_installed(name) for name in REPORTERS):
        raise InputError(
            "report_to all reports to every tracker that is installed, and there is none: pip install tensorboard, or "
            "leave --report_to out"
        )
    return list(dict.fromkeys(names))


def check_reporters(names: Sequence[str]) -> None:
    """Refuses trackers that are not installed.

    Raises:
        InputError: with the line that installs them.
    """
    absent = [name for name in names if name in REPORTERS and not _is_installed(name)]
    if not absent:
        return
    packages = [package for name in absent if (package := REPORTERS[name][1]) is not None]
    remedy = f"pip install {' '.join(packages)}" if packages else "it is there within a Kubeflow TrainJob alone"
    raise InputError(f"report_to {', '.join(absent)} is not installed: {remedy}, or leave --report_to out")


def _is_installed(name: str) -> bool:
    return getattr(integration_utils, REPORTERS[name][0])()
