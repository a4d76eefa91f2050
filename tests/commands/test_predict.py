"""`hf-deit predict`: one command from a model and images to a table, killed or not, in one process or several."""

import os
from pathlib import Path

import pytest
from support.checkpoints import our_folder
from support.images import noise
from support.kill_points import FULL, KILLED, READ_ONLY, attempt, evenly
from support.main_of import launch, main_of

from hf_deit.evaluation.predictions import predict as predict_module

predict = main_of("predict")
# In each of several processes: chunks of a few images.
_SMALL_CHUNKS = """
import sys
from hf_deit.commands.command_line import exit_command
from hf_deit.commands.predict import main
from hf_deit.evaluation.predictions import predict
predict.CHUNK = 8
exit_command(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(predict_module, "CHUNK", 8)
    monkeypatch.chdir(tmp_path)
    os.makedirs("out")


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> list[str]:
    """Of 26 images, of which one is broken."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "photos" / "deep").mkdir(parents=True)
    for index in range(25):
        noise(20, 30, seed=index).save(folder / "photos" / ("deep" if index % 2 else "") / f"{index}.png")
    (folder / "photos" / "broken.png").touch()
    model = str(our_folder(folder / "model"))
    return ["--model", model, "--images", str(folder / "photos"), "--batch_size", "4", "--num_workers", "0"]


def everything_in(folder: str) -> dict[str, bytes | str]:
    """What users see in a folder: what files hold, and where links lead."""
    found = (path for path in Path(folder).rglob("*") if not any(part[0] == "." for part in path.parts))
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in found
        if not path.is_dir()
    }


def test_what_has_come_of_it_is_told(line, capsys):
    assert predict([*line, "--output", "out/x.csv", "--sort_into", "sorted", "--min-probability=0"]) == 0
    printed, told = capsys.readouterr()
    assert "The predictions of 25 images: out/x.csv, " in printed and "images/s" in printed and "96.0%" in printed
    assert "1 file could not be used, see out/x.broken.csv: " in printed and "broken.png (no image" in printed
    assert "25 images sorted into sorted (symbolic links)" in printed
    assert "26/26" in told
    assert predict([*line, "--output", "out/x.csv"]) == 0
    assert "as it was there" in capsys.readouterr().out
    assert predict([*line, "--output", "out/x.csv", "--dtype", "bfloat16"]) == 2
    assert (
        "differs in --dtype (float32, now bfloat16): give another --output, or --overwrite" in capsys.readouterr().err
    )


def test_two_processes_write_what_one_does(line, tmp_path):
    assert predict([*line, "--output", "out/one.csv", "--heads"]) == 0
    script = tmp_path / "small_chunks.py"
    script.write_text(_SMALL_CHUNKS)
    printed = launch(script, *line, "--output", "out/two.csv", "--heads", "--sort_into", "sorted")
    assert Path("out/two.csv").read_bytes() == Path("out/one.csv").read_bytes()
    assert Path("out/two.broken.csv").read_bytes() == Path("out/one.broken.csv").read_bytes()
    assert printed.count("The predictions of 25 images") == 1 and len(everything_in("sorted")) == 25


def test_killed_anywhere_it_goes_on_to_the_same_files(line, tmp_path):
    whole = [*line, "--output", "out/x.parquet", "--sort_into", "out/sorted"]

    def run() -> int:
        return predict(whole)

    first = attempt(run, tmp_path / "out", log=tmp_path / "log")
    assert first.status == 0
    expected = everything_in("out")
    assert len(expected) == 27
    for at in evenly(range(len(first.operations)), 7):
        os.rename("out", f"out{at}")
        os.makedirs("out")
        assert attempt(run, tmp_path / "out", fault=KILLED, at=at, log=tmp_path / "log").status == -9
        seen = everything_in("out")
        assert seen.items() <= expected.items(), f"half of a file at {first.operations[at]}"
        assert attempt(run, tmp_path / "out", log=tmp_path / "log").status == 0
        assert everything_in("out") == expected
        assert [str(path) for path in Path("out").rglob("*.tmp")] == []


@pytest.mark.parametrize("fault", [FULL, READ_ONLY])
def test_a_disk_that_refuses_is_told(line, tmp_path, fault):
    def run() -> int:
        return predict([*line, "--output", "out/x.jsonl", "--sort_into", "out/sorted"])

    number = len(attempt(run, tmp_path / "out", log=tmp_path / "log").operations)
    expected = everything_in("out")
    for at in evenly(range(number), 3):
        os.rename("out", f"out{at}")
        os.makedirs("out")
        outcome = attempt(run, tmp_path / "out", fault=fault, at=at, log=tmp_path / "log")
        assert outcome.is_told, (at, outcome.printed)
        assert attempt(run, tmp_path / "out", log=tmp_path / "log").status == 0
        assert everything_in("out") == expected
