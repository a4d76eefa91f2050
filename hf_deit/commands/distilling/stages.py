"""The stages of `hf-deit distil`: commands that are done one after the other, and what is known of those done."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError, command, one_line
from ...export.formats import BY_NAME
from ...export.requirements import require
from ...hub.export_record import RECORD_FILE
from ...hub.files import read_json, remove_leftovers, write_json, writing
from ...hub.report_in_card import REPORT_FOLDER, RESULTS_FILE
from ...hub.run_folder import CARD_FILE, RECIPE_FILE, last_whole_checkpoint
from ...hub.space import PAGE_RECORD
from ...models.pretrained import weights_digest
from ...recipes.sameness import TRAINED_TEACHER
from ..output_folder import UNFINISHED_TEACHER, is_begun
from .images import Found
from .options import AUTO, NONE, DistilOptions
from .teacher import TeacherChoice

MODEL, LABELS, PAGE, RECORD = "model", "labels", "page", "distil.json"
_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """A command, or why it is left out.

    Attributes:
        name: of the command.
        purpose: in words.
        options: of the command.
        leaves: a file in the output folder that is there once the stage is done; None for what leaves none.
        left_out: why, and what to do about it; "" if it is not.
    """

    name: str
    purpose: str
    options: tuple[str, ...] = ()
    leaves: str | None = None
    left_out: str = ""

    @property
    def line(self) -> str:
        """The command line that does it here."""
        return command(self.name, *self.options)


def without_places(words: Sequence[str], options: DistilOptions) -> list[str]:
    """Words of a command line in which names stand for folders: the same wherever these lie."""
    places = {"OUTPUT": options.output_dir, "IMAGES": options.images}
    for name in ("unlabeled_dir", "validation_dir", "test_dir", "class_prompts", "dataset_name"):
        places[name.upper().removesuffix("_DIR")] = getattr(options, name) or ""
    for number, teacher in enumerate([*options.teacher, *([options.probe] if options.probe else [])]):
        places[f"TEACHER{number + 1 if number else ''}"] = teacher

    def without(word: str) -> str:
        for name, place in places.items():
            is_place = name == "OUTPUT" or os.path.exists(place)  # else it is on the Hub
            if place and is_place and (word == place or word.startswith(os.path.join(place, ""))):
                return name + word[len(place) :]
        return os.path.basename(os.path.normpath(word)) if os.path.isabs(word) else word

    return [word if word.startswith("--") else without(word) for word in words]


def stages_of(options: DistilOptions, found: Found, teacher: TeacherChoice, compared: Sequence[str]) -> list[Stage]:
    """What is to be done, in its order.

    Args:
        compared: the teachers that hf-deit evaluate can ask beside the student.
    """
    stages = [
        _train(teacher, train_line(options, found, teacher)),
        _evaluate(options, found, compared),
        _export(options, found),
        _page(options),
    ]
    if options.hub_model_id:
        line = [os.path.join(options.output_dir, MODEL), "--hub_model_id", options.hub_model_id]
        line += ["--hub_private_repo"] if options.hub_private_repo else []
        stages.append(Stage("publish", "the model, with its report and exports", tuple(line)))
    return stages


def _train(teacher: TeacherChoice, line: tuple[str, ...]) -> Stage:
    purpose = "the student" if teacher.kind == "none" else "the teacher's labels, which are kept, and the student"
    return Stage("train", purpose, line, os.path.join(MODEL, "config.json"))


def train_line(options: DistilOptions, found: Found, teacher: TeacherChoice) -> tuple[str, ...]:
    """The options of hf-deit train."""
    model = os.path.join(options.output_dir, MODEL)
    recipe = options.recipe or ("zero_shot" if teacher.is_zero_shot else "own_images")
    line = ["--recipe", recipe, *_flat(found.options), "--output_dir", model, *teacher.options]
    line += [] if teacher.kind == "none" else ["--teacher_labels", os.path.join(options.output_dir, LABELS)]
    line += _flat({"student": options.student, "class_prompts": options.class_prompts})
    for name in ("class_names", "templates"):
        if values := getattr(options, name):
            line += [f"--{name}", *values]
    if found.validation_fraction is not None:
        line += ["--validation_fraction", str(found.validation_fraction)]
    line += ["--use_cpu", "true"] if options.use_cpu else []
    return (*line, *options.train)


def _flat(options: dict[str, str | None]) -> list[str]:
    return [word for name, value in options.items() if value for word in (f"--{name}", value)]


def _evaluate(options: DistilOptions, found: Found, compared: Sequence[str]) -> Stage:
    purpose = "a report on it, beside its teacher" if compared else "a report on it"
    if not (found.have_validation or found.part("test")):
        why = "there are no labelled images to evaluate on: --validation_dir takes some, one folder per class"
        return Stage("evaluate", purpose, left_out=why)
    line = ["--model", os.path.join(options.output_dir, MODEL)]
    line += ["--compare", *compared[1:]] if compared[1:] else []
    line += ["--teacher", compared[0]] if compared else []
    line += ["--use_cpu"] if options.use_cpu else []
    return Stage("evaluate", purpose, tuple(line), os.path.join(MODEL, REPORT_FOLDER, RESULTS_FILE))


def _export(options: DistilOptions, found: Found) -> Stage:
    purpose = f"to {', '.join(options.to)}, with the proof that it answers the same"
    if NONE in options.to:
        return Stage("export", "to other runtimes", left_out=f"--to {NONE}")
    for name in options.to:
        if (extra := BY_NAME[name].extra) and (why := _missing(extra)):
            return Stage("export", purpose, left_out=why)
    line = ["--model", os.path.join(options.output_dir, MODEL), "--to", *options.to]
    if not found.have_validation:
        line += ["--check_dir", found.options["unlabeled_dir"]]
    return Stage("export", purpose, tuple(line), os.path.join(MODEL, options.to[-1], RECORD_FILE))


def _page(options: DistilOptions) -> Stage:
    purpose = "a page on which it can be tried in a browser"
    why = (
        f"--page {NONE}"
        if options.page == NONE
        else _missing("export") or (_no_runtime() if options.page == AUTO else "")
    )
    if why:
        return Stage("demo", purpose, left_out=why)
    line = ["--model", os.path.join(options.output_dir, MODEL), "--output_dir", os.path.join(options.output_dir, PAGE)]
    line += [] if options.page == AUTO else ["--runtime", options.page]
    return Stage("demo", purpose, tuple(line), os.path.join(PAGE, PAGE_RECORD))


def _missing(extra: str) -> str:
    """Why the packages of an extra cannot be used, and the line that installs them; "" if they can."""
    try:
        require(extra)
    except InputError as error:
        return str(error)
    return ""


def _no_runtime() -> str:
    """Why a page would have no runtime; "" if it has one, or one may be downloaded."""
    from huggingface_hub import constants

    from ...export.page.runtime import PLACE_VARIABLE, cached_archive

    if os.environ.get(PLACE_VARIABLE) or os.path.exists(cached_archive()) or not constants.is_offline_mode():
        return ""
    return (
        "onnxruntime-web is not in the cache, and HF_HUB_OFFLINE is set: --page FILE.tgz gives it, --page cdn lets "
        "the page load it from a network"
    )


class Record:
    """What is known of stages that were begun and done, in a file of the output folder.

    A stage counts as done if it was done by the same command, for the same weights and images, and what it leaves is
    still there. Whatever kills the command, the file says too little rather than too much: a stage is written down
    once it is done, and all of them may be done again.

    Args:
        options: of the command.

    Raises:
        InputError: the file cannot be read, or the output folder holds what is of no such command.
    """

    def __init__(self, options: DistilOptions) -> None:
        self._options = options
        self._path = os.path.join(options.output_dir, RECORD)
        self._content: dict[str, Any] = {"version": _VERSION, "images": None, "stages": {}}
        self._was_begun = False
        self._read()

    def _read(self) -> None:
        folder = self._options.output_dir
        try:
            found = read_json(self._path)
            stages = found["stages"]
            if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
                raise ValueError("its stages are none")
        except FileNotFoundError:
            self._refuse_others()
            return
        except NotADirectoryError as error:
            raise InputError(f"the output folder {folder!r} is a file: give another --output_dir") from error
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read {self._path!r}, which says what was done there ({one_line(error)}): give another "
                "--output_dir, or remove the file, and all stages are looked through again"
            ) from error
        self._content, self._was_begun = found, True

    def _refuse_others(self) -> None:
        folder = self._options.output_dir
        known = {MODEL, LABELS, PAGE, CARD_FILE}
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise InputError(f"the output folder {folder!r} is a file: give another --output_dir")
        others = sorted(name for name in os.listdir(folder) if name[0] != ".") if os.path.isdir(folder) else []
        if set(others) - known or (others and not os.path.isdir(os.path.join(folder, MODEL))):
            raise InputError(
                f"the output folder {folder!r} holds what hf-deit distil has not written ({others[0]}, …): give "
                "another --output_dir, or move that away"
            )

    def check_images(self, fingerprint: str | None) -> None:
        """Refuses images other than those that the folder was begun with, once anything was made of them.

        Args:
            fingerprint: of the images that are there now, or None.

        Raises:
            InputError: they are others.
        """
        model = os.path.join(
            self._options.output_dir, MODEL
        )  # a probe that is being fitted looks after its own images
        runs = (model, *(os.path.join(model, name) for name in (TRAINED_TEACHER, UNFINISHED_TEACHER)))
        has_trained = any(os.path.exists(os.path.join(run, RECIPE_FILE)) for run in runs)
        if self._was_begun and has_trained and self._content.get("images") != fingerprint:
            raise InputError(
                f"{self._options.output_dir!r} was begun with other images than those that are there now (files were "
                "added, removed or changed): give another --output_dir to begin anew, or put the images back"
            )
        self._content = {**self._content, "images": fingerprint}

    @property
    def teacher(self) -> list[str]:
        """The options of the teacher that was taken; empty if nothing was begun."""
        return self._content.get("teacher") or []

    def begin(self, teacher: Sequence[str]) -> None:
        """Makes the folder, and says of which images it is, and who teaches. For the process that holds it.

        Args:
            teacher: the options that say so.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._content = {**self._content, "teacher": list(teacher)}
        with writing(f"to the output folder {self._options.output_dir!r}"):
            os.makedirs(self._options.output_dir, exist_ok=True)
            remove_leftovers(self._options.output_dir)
            write_json(self._content, self._path)

    def of(self, stage: Stage) -> dict[str, Any]:
        """What is known of a stage that was done; empty if it was not."""
        return self._content["stages"].get(stage.name, {})

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage need not be done again."""
        known = self.of(stage)
        is_there = stage.leaves is None or os.path.exists(os.path.join(self._options.output_dir, stage.leaves))
        return is_there and known.get("command") == self._command(stage) and known.get("weights") == self._weights()

    def why_again(self, stage: Stage) -> str:
        """Why a stage that was done is done again; "" if it was not."""
        known = self.of(stage)
        if not known:
            return ""
        if known.get("command") != self._command(stage):
            return "it was done with other options"
        return "the model is another one now" if known.get("weights") != self._weights() else "its files are gone"

    def mark(self, stage: Stage, *, seconds: float) -> None:
        """Writes down that a stage is done.

        Raises:
            CheckpointError: it cannot be written.
        """
        done = {"command": self._command(stage), "weights": self._weights(), "seconds": round(seconds, 1)}
        self._content = {**self._content, "stages": {**self._content["stages"], stage.name: done}}
        with writing(f"{self._path!r}"):
            write_json(self._content, self._path)

    def _command(self, stage: Stage) -> list[str]:
        return without_places(stage.options, self._options)

    def _weights(self) -> str | None:
        """What tells the model from others; None if there is none."""
        try:
            return weights_digest(os.path.join(self._options.output_dir, MODEL))
        except InputError:
            return None


def resuming(stage: Stage, output_dir: str) -> Stage:
    """A stage as it goes on with what was begun: train must be told to."""
    model = os.path.join(output_dir, MODEL)
    if stage.name != "train" or not os.path.isdir(model):
        return stage
    if not (is_begun(model) or last_whole_checkpoint(model) is not None):
        return stage
    return replace(stage, options=(*stage.options, "--resume_from_checkpoint", "true"))


def run_stages(
    stages: Sequence[Stage],
    record: Record,
    output_dir: str,
    *,
    run: Callable[[Sequence[str]], int],
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> dict[str, int]:
    """Does what is not done yet; gives the exit status of each stage that was run.

    Without a model nothing else is begun; a report, an export, or a page that fails keeps the others from nothing.

    Args:
        run: a command, giving its exit status.
        say: something to whoever has started it.
        clock: seconds.

    Raises:
        CheckpointError: what was done cannot be written down.
    """
    statuses: dict[str, int] = {}
    for number, stage in enumerate(stages, start=1):
        where = f"{number}/{len(stages)} {stage.name}"
        if stage.left_out:
            say(f"\n{where}: left out: {stage.left_out}")
            continue
        if record.is_done(stage):
            say(f"\n{where}: done before")
            continue
        again = record.why_again(stage)
        going_on = resuming(stage, output_dir)
        say(f"\n{where}: {stage.purpose}{f' (again, as {again})' if again else ''}\n{going_on.line}\n")
        start = clock()
        statuses[stage.name] = run([going_on.name, *going_on.options])
        if statuses[stage.name] == 0:
            record.mark(stage, seconds=clock() - start)
        elif stage.name == "train":
            break
    return statuses
