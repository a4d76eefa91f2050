"""The benchmark of start-up times what a user waits for: the real command, to its first step, stage by stage."""

import json
from pathlib import Path

import pytest
from support.main_of import main_of

from hf_deit.errors import InputError
from hf_deit.evaluation.benchmarks import figures, startup
from hf_deit.evaluation.benchmarks.startup_arms import STAGES

TINY = {"image_size": 32, "batch_size": 2, "num_workers": 0}


def test_the_command_is_followed_to_its_first_step(tmp_path):
    made = startup._make_images(str(tmp_path / "made"), "folders", 120)
    links = list(Path(made).glob("class */*.jpg"))
    assert len(links) == 120 and len({link.resolve() for link in links}) == 100
    start = startup.Start("hf_deit", "folders", made, "", **TINY, began=0)
    stages, memory = startup._begin(start, str(tmp_path), str(tmp_path / "cache"))
    assert list(stages) == list(STAGES) and all(seconds > 0 for seconds in stages.values())
    assert memory is None or 1e8 < memory < 1e10
    assert {path.name for path in tmp_path.iterdir()} == {"made", "cache"}  # no run is left


def test_an_arm_that_makes_no_step_says_why(tmp_path):
    start = startup.Start("jax", "folders", str(tmp_path / "none"), "", **TINY, began=0)
    with pytest.raises(InputError, match="jax came to no training step: KeyError: 'jax'"):
        startup._begin(start, str(tmp_path), str(tmp_path / "cache"))


def test_arms_take_turns_and_are_compared_with_ours(tmp_path, monkeypatch, capsys):
    began = []

    def begin(start, folder, cache):
        began.append(start.arm)
        slow = {"hf_deit": 1.0, "timm": 2.0}[start.arm] * len(Path(start.images).parent.name)
        return dict.fromkeys(STAGES, slow), 10**9

    monkeypatch.setattr(startup, "_begin", begin)
    files = [str(tmp_path / name) for name in ("x.json", "x.png")]
    options = ["startup", "--images", "100", "120", "--arms", "timm", "--rounds", "2", "--output", *files]
    assert main_of("benchmark")(options) == 0
    assert began[:8] == ["timm", "timm", "hf_deit", "hf_deit", "hf_deit", "hf_deit", "timm", "timm"]
    assert len(began) == 2 * 3 * 2 * 2
    found = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert [(one["arm"], one["images"], one["run"]) for one in found[:3]] == [
        ("hf_deit", 100, "first"),
        ("timm", 100, "first"),
        ("hf_deit", 100, "again"),
    ]
    assert found[1]["ratio_to_ours"]["median"] == 2 and found[1]["seconds"] == [2 * 5 * len("folders 100")] * 2
    assert "1000" in capsys.readouterr().out and (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    for wrong, words in (
        (["--layouts", "folder"], "did you mean 'folders'?"),
        (["--images", "3"], "at least 100, got 3"),
    ):
        assert main_of("benchmark")(["startup", *wrong]) == 2
        assert words in capsys.readouterr().err


def test_times_are_told_in_three_digits():
    words = {0.0387: "38.7 ms", 1.236: "1.24 s", 236.4: "236 s", 0.99949: "999 ms", 0.99951: "1.00 s"}
    words |= {0.009996: "10.0 ms", 4e-5: "40.0 µs", 12.34: "12.3 s"}
    assert {seconds: figures.short_time(seconds) for seconds in words} == words
