"""The options of `hf-deit distil`. Loads no library: a slip of the pen is told at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...errors import InputError, not_one_of
from ...hub.export_record import FORMATS
from ..command_line import CommandParser

NONE, AUTO = "none", "auto"
# What follows goes to hf-deit train as it stands.
_BEHIND = "--"
_EXAMPLES = """examples:
  hf-deit distil images --dry_run
  hf-deit distil images --output_dir outputs/pets
  hf-deit distil photos --class_names cat dog --teacher openai/clip-vit-base-patch32
  hf-deit distil images --teacher outputs/teacher --to onnx openvino -- --num_train_epochs 50
"""


@dataclass(frozen=True)
class DistilOptions:
    """What `hf-deit distil` is asked for.

    Attributes:
        images: folder of images; empty where a data set, or unlabelled images alone, are named instead.
        dataset_name: Hub id, local path or sklearn:digits.
        unlabeled_dir: images without labels, beside the others or alone.
        validation_dir, test_dir: a folder per class each, where they do not lie in `images`.
        class_names, class_prompts, templates: for a zero-shot teacher; see `ModelArguments`.
        teacher: Hub ids or folders; "none" for no teacher; empty to let the command choose.
        probe: a backbone that a teacher is fitted on.
        recipe: of the student; None for zero_shot with such a teacher, else own_images.
        student: instead of the recipe's.
        output_dir: of all that is made.
        to: formats to export to; "none" for no export.
        page: "auto" makes a page if its runtime can be had, "none" makes none; else see `hf-deit demo --runtime`.
        hub_model_id: repository to publish the model in, or None.
        hub_private_repo: whether it is made as a private one.
        use_cpu: whatever else there is.
        dry_run: whether the plan is all that is wanted.
        train: further options of hf-deit train.
    """

    images: str = ""
    dataset_name: str | None = None
    unlabeled_dir: str | None = None
    validation_dir: str | None = None
    test_dir: str | None = None
    class_names: Sequence[str] = ()
    class_prompts: str | None = None
    templates: Sequence[str] = ()
    teacher: Sequence[str] = ()
    probe: str | None = None
    recipe: str | None = None
    student: str | None = None
    output_dir: str = os.path.join("outputs", "distil")
    to: Sequence[str] = ("onnx",)
    page: str = AUTO
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    use_cpu: bool = False
    dry_run: bool = False
    train: Sequence[str] = ()


def read_options(command: Sequence[str]) -> DistilOptions:
    """What a command line asks for.

    Raises:
        InputError: an option that there is not, a value that it cannot have, or options that exclude each other.
        SystemExit: the help was asked for, and is printed.
    """
    own, behind = list(command), []
    if _BEHIND in own:
        place = own.index(_BEHIND)
        own, behind = own[:place], [word for word in own[place:] if word != _BEHIND]
    parser = _parser()
    read = vars(parser.parse_args(own))
    read |= {"images": read["images"] or "", "train": behind}
    if read["to"] is None:
        del read["to"]
    options = DistilOptions(**{field.name: read[field.name] for field in fields(DistilOptions) if field.name in read})
    _check(options)
    return options


def _check(options: DistilOptions) -> None:
    """Refuses what does not go together, before anything is looked at.

    Raises:
        InputError: it does not.
    """
    if options.images and options.dataset_name:
        raise InputError(
            f"give either a folder of images or --dataset_name, got {options.images!r} and {options.dataset_name!r}"
        )
    if not (options.images or options.dataset_name or options.unlabeled_dir):
        raise InputError(
            "there are no images: give a folder, with a folder of images per class, or images without labels and "
            "--class_names (or --dataset_name, or --unlabeled_dir)"
        )
    if options.teacher and options.probe:
        raise InputError(f"--probe fits a teacher where none is named, got --teacher {' '.join(options.teacher)}, too")
    if NONE in options.teacher and len(options.teacher) > 1:
        raise InputError(f"--teacher {NONE} is for no teacher at all, got {' '.join(options.teacher)}")
    unknown = [name for name in options.to if name not in (*FORMATS, NONE)]
    if unknown or (NONE in options.to and len(options.to) > 1):
        raise InputError(not_one_of("--to", " ".join(unknown or options.to), [*FORMATS, NONE]))
    is_zero_shot = options.class_names or options.class_prompts or options.templates
    if is_zero_shot and (options.probe or NONE in options.teacher):
        given = next(name for name in ("class_names", "class_prompts", "templates") if getattr(options, name))
        raise InputError(
            f"--{given} is for a zero-shot teacher: leave it out, or give --teacher openai/clip-vit-base-patch32, say"
        )
    repeated = sorted({name for name in options.class_names if list(options.class_names).count(name) > 1})
    if len(options.class_names) == 1 or repeated:
        got = f"{repeated[0]!r} twice" if repeated else f"{options.class_names[0]!r} alone"
        raise InputError(f"--class_names must be the names of at least two classes, each once, got {got}")
    for template in options.templates:
        if "{}" not in template:
            raise InputError(f"a template has {{}} in the place of the class's name, got --templates {template!r}")
    if options.page not in (NONE, AUTO, "cdn") and not os.path.exists(options.page):
        raise InputError(
            f"--page must be {AUTO}, {NONE}, cdn, or the npm package onnxruntime-web as a .tgz or a folder, got "
            f"{options.page!r}, which is not there"
        )
    if options.hub_private_repo and not options.hub_model_id:
        raise InputError("--hub_private_repo is for --hub_model_id: give both, or leave it out")
    _check_behind(options)


# What the command gives to train by itself, and the option that says it.
_OWN = {
    "train_dir": "IMAGES",
    "teacher_model_name_or_path": "--teacher",
    "teacher_probe": "--probe",
    "teacher_recipe": "--teacher FOLDER, of what hf-deit train has made by that recipe",
    "teacher_labels": "nothing: they are kept in OUTPUT_DIR/labels",
    "resume_from_checkpoint": "nothing: the same command goes on",
    **{
        name: f"--{name}"
        for name in (
            *("dataset_name", "unlabeled_dir", "validation_dir", "test_dir", "class_names", "class_prompts"),
            *("templates", "recipe", "student", "output_dir", "use_cpu"),
        )
    },
}


def _check_behind(options: DistilOptions) -> None:
    if options.train and not options.train[0].startswith("--"):
        raise InputError(f"behind {_BEHIND} stand options of hf-deit train, got {options.train[0]!r}")
    for word in options.train:
        name = word.partition("=")[0]
        if name.startswith("--") and (own := _OWN.get(name[2:].replace("-", "_"))):
            raise InputError(f"{name} cannot stand behind {_BEHIND}: give {own}")
    if f"--distillation_type {NONE}" in " ".join(options.train).replace("=", " "):
        raise InputError(f"--distillation_type {NONE} cannot stand behind {_BEHIND}: give --teacher {NONE}")


def _parser() -> CommandParser:
    parser = CommandParser(
        "distil",
        "The whole road: looks at your images, gets a teacher, keeps its labels, trains a student, evaluates and "
        "exports it, and puts all into one folder. Stopped or killed anywhere, the same command goes on.",
        usage="hf-deit distil IMAGES [options] [-- options of hf-deit train]",
        epilog=_EXAMPLES,
    )
    defaults = {field.name: field.default for field in fields(DistilOptions)}
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}

    def add(group: Any, name: str, words: str, **settings: Any) -> None:
        settings.setdefault("default", defaults[name])
        group.add_argument(f"--{name}", help=words, **settings)

    parser.add_argument(
        "images", nargs="?", metavar="IMAGES", help="a folder per class, perhaps in train, val and test; or no labels"
    )
    images = parser.add_argument_group("images")
    add(images, "dataset_name", "instead: Hub id, local path, or sklearn:digits", metavar="NAME")
    add(images, "unlabeled_dir", "images without labels, beside these or alone", metavar="DIR")
    add(images, "validation_dir", "a folder per class (default: some are held out)", metavar="DIR")
    add(images, "test_dir", "the same, looked at once, at the end", metavar="DIR")
    add(images, "class_names", "of images that have no labels", metavar="NAME", **several)
    teacher = parser.add_argument_group("the teacher (default: the plan says which)")
    add(teacher, "teacher", "classifier or zero-shot model; or none", metavar="MODEL", **several)
    add(teacher, "probe", "backbone to fit a teacher on", metavar="MODEL")
    add(teacher, "class_prompts", "YAML: texts of each class, for zero-shot", metavar="FILE")
    add(teacher, "templates", 'such as "a photo of a {}."', metavar="TEXT", **several)
    student = parser.add_argument_group("the student; further options of hf-deit train stand behind --")
    add(student, "recipe", "of its training (default: own_images; zero_shot)", metavar="NAME")
    add(student, "student", "instead of the recipe's", metavar="MODEL")
    result = parser.add_argument_group("what comes of it")
    add(result, "output_dir", f"folder of all (default: {defaults['output_dir']})", metavar="DIR")
    add(result, "to", f"{', '.join(FORMATS)}, none (default: onnx)", metavar="FORMAT", **{**several, "default": None})
    add(result, "page", "none, or what hf-deit demo has as --runtime", metavar="WHAT")
    add(result, "hub_model_id", "publish the model, my-name/my-deit", metavar="NAME")
    add(result, "hub_private_repo", "as a private repository", action="store_true")
    add(result, "use_cpu", "whatever else there is", action="store_true")
    add(result, "dry_run", "say what would be done, and how long it takes", action="store_true")
    return parser
