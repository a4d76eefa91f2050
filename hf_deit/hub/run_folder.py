"""What a run writes into its folder: the names of its files, and its checkpoints."""

import os
import re

from transformers import TrainerState
from transformers.utils import logging

logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"
CURVES_FILE = "training_curves.png"
ENVIRONMENT_FILE = "environment.json"
RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"  # of a checkpoint: what the Trainer writes last


def list_checkpoints(output_dir: str | os.PathLike[str]) -> list[str]:
    """The folders checkpoint-N of a run, N ascending; none if there is no such run."""
    if not os.path.isdir(output_dir):
        return []
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", entry.name), entry.path) for entry in os.scandir(output_dir)]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def is_whole(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was written to its end: the Trainer writes its state last."""
    try:
        TrainerState.load_from_json(os.path.join(checkpoint, STATE_FILE))
    except (OSError, ValueError, TypeError):
        return False
    return True


def last_whole_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint in a folder that was written to its end, or None. Warns of those that were not."""
    for path in reversed(list_checkpoints(output_dir)):
        if is_whole(path):
            return path
        logger.warning_once("the checkpoint %s is torn, as of a run killed while it saved: it is left out", path)
    return None
