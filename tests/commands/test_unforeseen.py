"""Contract: an error that nobody foresaw ends a command in one line and with status 70. Its traceback is kept in a
file that its user alone can read, without tokens, and where it does not stand in the way of the next start.
"""

import errno
import io
import os
import re
import stat
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from support.main_of import ROOT

from hf_deit.commands import command_line
from hf_deit.commands import main as main_module
from hf_deit.commands.command_line import CommandParser, run_command, use_streams
from hf_deit.commands.unforeseen import TRACEBACK_VARIABLE

TOKEN = "hf_" + "aB3" * 10


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files; and a user who has not asked for tracebacks."""
    monkeypatch.delenv(TRACEBACK_VARIABLE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def ended_by(error: BaseException, *arguments: str):
    def function(arguments):
        raise error

    return run_command(function, list(arguments))


def kept_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("hf_deit-traceback-*.txt"))


WORKER = (
    "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\nKeyError: 7"
)
UNPICKLING = "Weights only load failed. Re-running with `weights_only` set to `False` will likely succeed\nmore"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("it broke\nand more"), "RuntimeError: it broke (this was not foreseen"),
        (ValueError(), "ValueError: it says nothing more"),
        (SpeechlessError(), "SpeechlessError: it cannot say what"),
        (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum"),
        (AssertionError("a\x1b[31m\rb\u202ec"), r"AssertionError: a\x1b[31m ("),
        (MemoryError(), "give a smaller --per_device_train_batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory"), "give a smaller --per_device_train_batch_size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 4 bytes"),
            "give a smaller --per_device_train_batch",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "'a/b' (free some space; "),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "BrokenPipeError"),  # not that of the output, which is open
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit("a library has had enough"), "SystemExit: a library has had enough"),
        (RuntimeError(WORKER), "RuntimeError: KeyError: 7 ("),
        (RuntimeError(UNPICKLING), "RuntimeError: a file is damaged, or holds more than tensors ("),
    ],
)
def test_it_is_told_in_one_line_with_a_file_for_its_traceback(capsys, temporary, error, said):
    assert ended_by(error) == 70
    printed = capsys.readouterr()
    (path,) = kept_in(temporary)
    assert printed.out == "" and re.fullmatch(r"\nerror: [^\n]+\n", printed.err), printed.err
    assert said in printed.err and f"its traceback is in {path})" in printed.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "Traceback (most recent call last)" in path.read_text() and "in function" in path.read_text()


def test_help_is_no_error(capsys, temporary):
    assert ended_by(SystemExit(0)) == ended_by(SystemExit()) == 0
    assert "".join(capsys.readouterr()) == "" and not kept_in(temporary)


def test_a_traceback_is_shown_to_those_who_ask(capsys, temporary, monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert ended_by(RuntimeError("it broke")) == 70
    assert capsys.readouterr().err.startswith("\nTraceback (most recent call last)") and len(kept_in(temporary)) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        ([], {}, f"401 for {TOKEN}, said the server"),
        (["--hub_token", "s3cret-of-mine"], {}, "bad header 's3cret-of-mine'"),
        (["--hub-token=s3cret-of-mine"], {}, "bad header 's3cret-of-mine'"),
        (["--push_to_hub_token=s3cret-of-mine"], {}, "bad header 's3cret-of-mine'"),
        ([], {"HF_TOKEN": "s3cret-of-mine"}, "bad header 's3cret-of-mine'"),
        ([], {"WANDB_API_KEY": "s3cret-of-mine"}, "bad header 's3cret-of-mine'"),
        ([], {}, "cannot reach https://ada:s3cret-of-mine@example.org"),
    ],
)
def test_tokens_are_left_out(capsys, temporary, monkeypatch, arguments, variables, text):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert ended_by(RuntimeError(text), *arguments) == 70
    told = capsys.readouterr().err + kept_in(temporary)[0].read_text()
    assert "[token]" in told and TOKEN not in told and "s3cret" not in told


@pytest.mark.parametrize("option", ["--output_dir {}", "--output_dir={}", "--output-dir {}", "--output {}"])
def test_the_traceback_of_a_run_lies_in_its_folder(temporary, option):
    run = temporary / "run"
    run.mkdir()
    assert ended_by(RuntimeError("it broke"), *option.format(run).split()) == 70
    assert not list(run.iterdir()) and len(kept_in(temporary)) == 1  # where there is none yet, the next start is one
    (run / "recipe.yaml").touch()
    assert ended_by(RuntimeError("it broke"), *option.format(run).split()) == 70
    assert len(kept_in(run)) == 1


def test_where_no_file_can_be_written_the_way_to_see_it_is_told(capsys, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert ended_by(RuntimeError("it broke")) == 70
    assert f"{TRACEBACK_VARIABLE}=1 in the environment shows its traceback" in capsys.readouterr().err


def test_what_comes_up_in_one_process_alone_is_told_by_it_after_a_moment(capsys, temporary, monkeypatch):
    waited = []
    monkeypatch.setattr(command_line.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "3")
    assert ended_by(RuntimeError("it broke")) == 70
    assert waited == [5.0]  # in which a launcher ends it, if the main process has told the same
    assert "error in process 3: RuntimeError: it broke" in capsys.readouterr().err
    assert "-3-" in kept_in(temporary)[0].name


def test_a_command_that_does_not_load_is_told_likewise(capsys, temporary, monkeypatch):
    def load(name):
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(main_module.importlib, "import_module", load)
    assert main_module.main(["convert"]) == 70
    assert "ImportError: libcudart.so.13" in capsys.readouterr().err and len(kept_in(temporary)) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "first"), ("WORLD_SIZE", "two"), ("LOCAL_RANK", ""), ("MASTER_PORT", "a" * 5000)]
)
def test_a_launchers_variables_that_are_no_numbers_are_refused_before_anything_is_loaded(
    capsys, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    assert main_module.main(["train"]) == 2
    assert f"the environment's {name} must be a whole number" in capsys.readouterr().err


def test_a_working_directory_that_is_gone_is_told(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main_module.main(["convert", "a", "b"]) == 2
    assert "the working directory cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["0", "1", "2", "-5", "a"])
def test_a_terminal_may_be_narrow(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert "wraps" in CommandParser("name", "It wraps all words.").format_help()


def ended(*line: str, stdout: int, **more: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), TRACEBACK_VARIABLE: "0"}
    line = [sys.executable, "-m", "hf_deit", *line]
    return subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, **more)


def test_streams_that_are_closed_or_of_few_letters_change_no_status():
    for closed in ((), (1,), (0, 1, 2)):
        done = ended("nonsense", stdout=subprocess.PIPE, preexec_fn=lambda closed=closed: list(map(os.close, closed)))
        assert done.returncode == 2 and ("no command" in done.stderr) == (2 not in closed)
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(ascii_only):
        use_streams()
        print("naïve…", flush=True)
    assert ascii_only.buffer.getvalue() == b"na\\xefve\\u2026\n"


def test_output_that_nobody_reads_ends_a_command_without_a_word():
    reading, writing = os.pipe()
    os.close(reading)
    done = ended("--help", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_output_that_cannot_be_written_is_told():
    with open("/dev/full", "w") as full:
        done = ended("--help", stdout=full.fileno())
    assert done.returncode == 70 and re.fullmatch(r"\nerror: OSError: .*No space left.*\n", done.stderr), done.stderr
