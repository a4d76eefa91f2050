"""The options of commands that take those of a run: `--help` shows what people use, `--help-all` every field."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..recipes import ARGUMENT_CLASSES, list_recipes
from ..recipes.option_names import ALIASES
from ..recipes.resolve import argument_parser, describe_default_recipe
from .command_line import CommandParser, is_main_process

_STARTS = ", ".join(name for name in ("digits", "own_images", "zero_shot", "small_data") if name in list_recipes())
# The options that most runs need, by what they are about. Where no words are given, the field's own help is shown.
_USUAL = {
    "images": {"train_dir": None, "validation_dir": None, "dataset_name": None, "unlabeled_dir": None},
    "student and teacher": {
        "student": None,
        "image_size": None,
        "teacher_model_name_or_path": "Hub id or folder of the teacher, or of several: classifiers, or zero-shot "
        "models (CLIP, SigLIP, …).",
        "class_names": "Names of the classes, for CLIP and its kind.",
        "teacher_labels": None,
    },
    "training": {
        "recipe": f"Arguments to start from ({_STARTS}, …), or a YAML file; the command line comes on top. By default "
        "own_images if images are given, else digits.",
        "num_train_epochs": "How often the images are gone through.",
        "per_device_train_batch_size": "Views of a step, on each device.",
        "learning_rate": None,
        "output_dir": "Folder of the model and its checkpoints.",
        "resume_from_checkpoint": "true goes on with the run in output_dir, also after a kill.",
    },
    "publishing": {"push_to_hub": "Push the model when it is trained.", "hub_model_id": "Its name, my-name/my-deit."},
}


class RunParser(CommandParser):
    """Parses a command's own options, and leaves those of the run.

    Args:
        name, description: see `CommandParser`.
        examples: command lines, a line each.
        usual: which groups of usual options `--help` shows.
        writes_output: whether the command writes to output_dir.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        examples: Sequence[str],
        usual: Sequence[str] = tuple(_USUAL),
        writes_output: bool = False,
    ) -> None:
        super().__init__(name, description, add_help=False, usage=f"hf-deit {name} [options]")
        self._examples, self._usual, self._writes_output = examples, usual, writes_output

    def parse_run(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The command's own options, and the rest, which are the run's.

        Prints the help if that is asked for, and on stderr which recipe is taken if none is named.
        """
        if {"-h", "--help", "--help-all", "--help_all"} & set(arguments):
            self._print_help(is_whole="--help" not in arguments and "-h" not in arguments)
        options, rest = self.parse_known_args(arguments)
        recipe = describe_default_recipe(rest, has_output=self._writes_output)
        if recipe is not None and is_main_process():
            print(recipe, file=sys.stderr, flush=True)
        return options, rest

    def _print_help(self, *, is_whole: bool) -> NoReturn:
        if is_whole:
            self.add_argument("--recipe", metavar="…", help=_USUAL["training"]["recipe"])
            fields = argument_parser().format_help().partition("options:")[2]
            print(f"{self.format_help()}\nand those of the run:{fields}", end="")
            raise SystemExit(0)
        fields = {field.name: field for part in ARGUMENT_CLASSES for field in dataclasses.fields(part)}
        for title in self._usual:
            group = self.add_argument_group(title)
            for name, words in _USUAL[title].items():
                own = self._option_string_actions
                aliases = [
                    f"--{alias}" for alias, option in ALIASES.items() if option == name and f"--{alias}" not in own
                ]
                words = words or fields[name].metadata["help"]
                group.add_argument(f"--{name}", *aliases, metavar="…", help=words)
        self.epilog = "examples:\n" + "\n".join(f"  {example}" for example in self._examples)
        self.epilog += (
            "\n\n--help-all shows every option: the fields of transformers.TrainingArguments are options, too."
        )
        print(self.format_help(), end="")
        raise SystemExit(0)
