"""The command as it is typed: what it says of itself, which words it takes, and that it needs no clone."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import transformers
from support.main_of import ROOT
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import hf_deit
from hf_deit.commands import command_line
from hf_deit.commands.command_line import run_command
from hf_deit.commands.main import COMMANDS, main
from hf_deit.errors import command

CONFIGURATIONS = ROOT / "scripts" / "accelerate_configs"


def printed_by(capsys, *arguments: str) -> tuple[int, str]:
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    return status, "".join(capsys.readouterr())


def test_what_it_can_do_is_told(capsys):
    for arguments in ((), ("--help",), ("-h",)):
        status, printed = printed_by(capsys, *arguments)
        assert status == 0 and all(re.search(rf"^  {name} ", printed, flags=re.MULTILINE) for name in COMMANDS)
    assert printed_by(capsys, "--version") == (0, f"{hf_deit.__version__}\n")


def test_a_command_that_does_not_exist_is_refused_with_those_that_do(capsys):
    status, printed = printed_by(capsys, "trian")
    assert status == 2 and "'trian'" in printed and ", ".join(COMMANDS) in printed


@pytest.mark.parametrize("name", ["train", "label", "preview", "convert", "evaluate", "predict", "publish"])
@pytest.mark.parametrize("options", [("--output_dir", "run/caf\udce9"), ("--recipe=caf\udce9.yaml",), ("caf\udce9",)])
def test_paths_that_are_not_utf_8_are_refused_as_they_can_be_written(capsys, name, options):
    """Python has the bytes of such paths as lone surrogates, which nothing can write."""
    status, printed = printed_by(capsys, name, *options)
    assert status == 2 and r"caf\xe9" in printed and "not UTF-8" in printed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian", "train"),
        ("distill", "distil"),
        ("Finetune", "train"),
        ("--upload", "publish"),
        ("conv", "convert"),
        ("eval", "evaluate"),
        ("classify", "predict"),
    ],
)
def test_a_command_that_does_not_exist_leads_to_the_one_that_was_meant(capsys, typed, meant):
    assert f"did you mean {meant!r}?" in printed_by(capsys, typed)[1]


def test_a_package_that_is_not_installed_is_refused_before_anything_is_done(capsys, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(command_line, "version", absent)
    status, printed = printed_by(capsys, "train")
    assert status == 2 and "pip install -e ." in printed


def test_what_libraries_say_as_they_are_loaded_is_not_for_users():
    script = "from hf_deit.commands.main import main; main(['train', '--help'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "" and "usage" in done.stdout


def test_options_may_be_written_with_dashes(capsys):
    for name in ("hub_model_id", "hub-model-id"):
        status, printed = printed_by(capsys, "publish", "nowhere", f"--{name}", "me/it", f"--{name}=me/it")
        assert status == 2 and "no model in 'nowhere'" in printed


def test_a_choice_that_does_not_exist_leads_to_the_nearest(capsys):
    status, printed = printed_by(capsys, "convert", "here", "there", "--to", "transformer")
    assert status == 2 and "did you mean 'transformers'?" in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys, name):
    status, printed = printed_by(capsys, name, "--help")
    assert status == 0 and f"hf-deit {name}" in printed and len(printed.splitlines()) < 60


@pytest.mark.parametrize("name", ["train", "label", "preview"])
def test_help_shows_what_people_use_and_help_all_everything(capsys, name):
    _, usual = printed_by(capsys, name, "--help")
    _, everything = printed_by(capsys, name, "--help-all")
    for option in ("--train_dir", "--recipe", "--output_dir"):
        assert option in usual
    assert "examples:" in usual and "--help-all" in usual
    assert "--recipe" in everything
    own = {"train": [], "label": ["--epochs"], "preview": ["--epoch", "--slots", "--output"]}[name]
    assert [option for option in own if option not in usual or option not in everything] == []
    assert "--adam_beta2" not in usual and "--adam_beta2" in everything and "--mixup_probability" in everything


def test_help_shows_the_aliases_but_where_a_command_has_the_word_itself(capsys):
    _, train = printed_by(capsys, "train", "--help")
    _, label = printed_by(capsys, "label", "--help")
    assert re.search("--num_train_epochs …, --epochs", train)
    assert "--lr" in train and "--teacher " in train and "--device" not in train
    assert len(re.findall(r"--epochs\b", label)) == 1


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (["train", "--train_dir", "nowhere"], "own_images"),
        (["train", "--dataset-name", "x", "--output", "y"], "own_images"),
        (["label", "--unlabeled_dir", "nowhere"], "own_images"),
        (["label"], "digits"),
        (["preview", "--train_dir=nowhere"], "own_images"),
        (["preview", "--student", "nothing"], "digits"),
        (["preview", "--recipe", "debug", "--student", "nothing"], None),
    ],
)
def test_the_recipe_that_nobody_named_is_named_in_one_line(capsys, tmp_path, monkeypatch, line, taken):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2  # for want of images, a teacher or a student
    said = [text for text in capsys.readouterr().err.splitlines() if "no --recipe" in text]
    assert len(said) == (taken is not None)
    assert taken is None or taken in said[0]
    assert ("outputs/own_images" in "".join(said)) == (line[0] == "train" and "--output" not in line)
    assert not list(tmp_path.iterdir())


def test_options_of_the_same_meaning_have_one_name(capsys):
    _, publish = printed_by(capsys, "publish", "--help")
    _, train = printed_by(capsys, "train", "--help-all")
    options = re.findall(r"^  (--\w+)", publish, flags=re.MULTILINE)
    assert {"--hub_model_id", "--hub_push_timeout", "--hub_revision", "--hub_private_repo"} <= set(options)
    assert [option for option in options if option not in train] == []


@pytest.mark.parametrize(("found", "program"), [("/bin/hf-deit", "hf-deit"), (None, "python -m hf_deit")])
def test_messages_name_the_command_that_works_here(monkeypatch, found, program):
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert command("publish", "my folder", "--hub_model_id", "me/it") == (
        f"{program} publish 'my folder' --hub_model_id me/it"
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of the programs of an environment that has a wheel of this package, and no clone."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # building writes into it
    shutil.copytree(ROOT / "hf_deit", source / "hf_deit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run(wheel, check=True, capture_output=True)
    venv.create(folder / "environment", symlinks=True)
    python = folder / "environment" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True
    )
    # Not a site folder of its own, so that what stands there for an editable installation is not followed.
    Path(site.stdout.strip(), "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (path,) = folder.glob("*.whl")
    install = [
        *pip[:3],
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        str(path),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return python.parent


def run_installed(installed: Path, folder: Path, *line: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [installed / line[0], *line[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_wheel_brings_all_that_the_commands_need(installed, tmp_path):
    script = "import hf_deit; from hf_deit.hub.zoo_cards import make_card; print(hf_deit.__file__)"
    script += "; print(len(make_card('deit_tiny_patch16_224')), *hf_deit.list_recipes())"
    where, what = run_installed(installed, tmp_path, "python", "-c", script).splitlines()
    assert Path(where).is_relative_to(installed.parent) and not Path(where).is_relative_to(ROOT)
    assert what.split()[1:] == hf_deit.list_recipes() and int(what.split()[0]) > 3000


def test_what_is_installed_is_launched(installed, tmp_path):
    line = ["launch", "--cpu", "train", "--recipe", "debug", "--output_dir", "run"]
    printed = run_installed(installed, tmp_path, "hf-deit", *line)
    assert "The model lies in run" in printed and (tmp_path / "run" / "model.safetensors").is_file()


# Several devices, and what is said beside a command


@pytest.fixture
def launched(monkeypatch):
    """What accelerate is asked to launch, without its doing so; it ends as `launched.ends` says."""
    import accelerate.commands.launch

    monkeypatch.setitem(os.environ, "TORCH_CPP_LOG_LEVEL", "")  # so that it is put back
    del os.environ["TORCH_CPP_LOG_LEVEL"]
    seen = SimpleNamespace(options=None, ends=None)

    def launch(options):
        seen.log_level = os.environ["TORCH_CPP_LOG_LEVEL"]
        seen.options = options
        if seen.ends is not None:
            raise seen.ends

    monkeypatch.setattr(accelerate.commands.launch, "launch_command", launch)
    return seen


def test_launch_takes_accelerates_options_and_a_command_with_its_own(launched):
    line = [
        "launch",
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
        "train",
        "--recipe",
        "debug",
        "--num_processes",
    ]
    assert main(line) == 0
    options = launched.options
    assert (options.module, options.training_script, options.num_processes) == (True, "hf_deit", 2)
    assert options.training_script_args == ["train", "--recipe", "debug", "--num_processes"]
    assert launched.log_level == "ERROR"  # torch's C++ warns each process of parameters that DDP need not look for


@pytest.mark.parametrize(
    ("options", "has_accelerator", "on_cpu"),
    [("--num_processes 2", False, True), ("--cpu --num_processes 2", True, True), ("--num_processes 2", True, False)],
)
def test_several_processes_are_launched_on_a_cpu_too(launched, monkeypatch, options, has_accelerator, on_cpu):
    """Accelerate would start one, and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    assert main(["launch", *options.split(), "train"]) == 0
    assert (launched.options.multi_gpu, launched.options.cpu) == (on_cpu, False)
    assert os.environ["ACCELERATE_USE_CPU"] == str(on_cpu).lower()


def failure(status: int) -> ProcessFailure:
    return ProcessFailure(local_rank=1, pid=1, exitcode=status, error_file="")


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        (subprocess.CalledProcessError(2, ["train"]), 2, ""),
        (
            subprocess.CalledProcessError(-9, ["train"]),
            137,
            "process was ended by SIGKILL, perhaps for want of memory",
        ),
        (ChildFailedError("train", {0: failure(3)}), 3, ""),
        (ChildFailedError("train", {1: failure(-15)}), 143, ""),
        (ChildFailedError("train", {1: failure(-11)}), 139, "process 1 was ended by SIGSEGV"),
        (SignalException("stopped", signal.SIGINT), 130, ""),
    ],
    ids=lambda value: type(value).__name__,  # without the time, which processes of tests would not agree on
)
def test_the_status_of_a_launched_command_is_its_own_and_what_it_could_not_say_is_added(
    launched, capsys, ends, status, said
):
    launched.ends = ends
    before = signal.getsignal(signal.SIGINT), logging.root.manager.disable
    assert printed_by(capsys, "launch", "train") == (status, said and f"\nerror: {said}\n")
    assert (signal.getsignal(signal.SIGINT), logging.root.manager.disable) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["tarin"], "there is no command 'tarin' to launch"),
        (["launch", "train"], "there is no command 'launch' to launch"),
        (["--num_prozesses", "2", "train"], "unrecognized arguments: --num_prozesses"),
        (["--num_processes", "two", "train"], "invalid int value: 'two'"),
        (["--num_processes", "2"], "the following arguments are required"),
        (["--num_processes", "0", "train"], "num_processes must lie in [1, 100000], got 0"),
        (["--main_process_port", "65536", "train"], "main_process_port must lie in [0, 65535]"),
        (["--config_file", "nowhere.yaml", "train"], "there is no file 'nowhere.yaml'"),
        (["--config_file", "/dev/zero", "train"], "there is no file '/dev/zero'"),
        (["--config_file", str(ROOT / "LICENSE"), "train"], "is no configuration of accelerate"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_a_line(launched, capsys, line, message):
    status, printed = printed_by(capsys, "launch", *line)
    assert status == 2 and message in printed and printed.count("\n") == 2 and launched.options is None


@pytest.mark.parametrize(
    "how", ["--use_deepspeed", f"--config_file={CONFIGURATIONS / 'deepspeed_zero2.yaml'}"], ids=["option", "file"]
)
def test_a_missing_deepspeed_is_named_with_its_line_before_anything_is_launched(launched, capsys, monkeypatch, how):
    monkeypatch.setattr("hf_deit.training.sharding.is_deepspeed_available", lambda: False)
    status, printed = printed_by(capsys, "launch", how, "train")
    assert status == 2 and 'python -m pip install "hf_deit[deepspeed]"' in printed and launched.options is None
    monkeypatch.setattr("hf_deit.training.sharding.is_deepspeed_available", lambda: True)
    assert printed_by(capsys, "launch", how, "train") == (0, "")


def test_a_refusal_on_two_processes_is_one_line(tmp_path):
    configuration = CONFIGURATIONS / "cpu_2.yaml"
    line = [sys.executable, "-m", "hf_deit", "launch", "--config_file", configuration, "--main_process_port", "0"]
    done = subprocess.run([*line, "train", "--recipe", "debog"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"\nerror: no recipe 'debog'.*did you mean 'debug'\?\n", done.stderr), done.stderr


def interrupted(arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("rank", "message"), [("0", "\ngo on with it\n"), ("1", "")])
def test_a_stopped_command_says_so_once(capsys, monkeypatch, rank, message):
    monkeypatch.setenv("RANK", rank)
    for stopped in (interrupted, lambda arguments: run_command(interrupted, [], if_interrupted="a part of it")):
        assert run_command(stopped, [], if_interrupted="go on with it") == 130
        assert capsys.readouterr().err == message


def test_libraries_show_no_bars_of_what_takes_no_time_unless_they_are_asked(capsys, caplog, monkeypatch):
    def load(arguments):
        list(transformers.utils.logging.tqdm(range(3), desc="Loading weights"))
        datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
        logging.getLogger("transformers.trainer_utils").warning("mtime may not be reliable on this filesystem, so")
        logging.getLogger("transformers.trainer_utils").warning("the disk is full")
        for _ in range(2):
            logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        return 0

    assert run_command(load, []) == 0
    assert capsys.readouterr().err == "" and caplog.messages == ["the disk is full", "Retrying in 1s"]
    for arguments, variable in (
        (["--log_level", "info"], None),
        (["--log-level=info"], None),
        ([], "DATASETS_VERBOSITY"),
    ):
        with monkeypatch.context() as patch:
            if variable:
                patch.setenv(variable, "info")
            caplog.clear()
            run_command(load, arguments)
        err = capsys.readouterr().err
        assert "Loading weights" in err and "Map" in err and len(caplog.messages) == 4
    list(transformers.utils.logging.tqdm(range(3), desc="after it"))
    assert "after it" in capsys.readouterr().err
