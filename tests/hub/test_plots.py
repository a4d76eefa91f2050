"""The curves of a training, and what is told of where it ran."""

import getpass
import json
import socket

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_deit.hub.curves import plot_curves
from hf_deit.hub.environment import describe_environment

LOGS = [
    {"step": 0, "teacher_top1": 0.9, "teacher_agreement_with_labels": 0.8},
    *({"step": step, "loss": 3 / step, "class_loss": 2 / step, "learning_rate": 1e-3 / step} for step in range(1, 6)),
    {"step": 5, "eval_top1": 0.5, "eval_class_top1": 0.4, "eval_ema_top1": 0.6},
    {"step": 5, "train_runtime": 1.0},
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """What a figure shows, by title: the legends' names and the curves' points."""
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, _save=Figure.savefig, **k: (figures.append(self), _save(self, *a, **k))
    )

    def draw(logs):
        plot_curves(logs, str(tmp_path / "curves.png"))
        panels = {}
        for axes in figures[-1].axes:
            panels[axes.get_title()] = {
                line.get_label(): list(map(float, line.get_ydata())) for line in axes.get_lines()
            }
        return panels

    return draw


def test_curves_are_those_of_the_log(drawn, tmp_path):
    panels = drawn(LOGS)
    assert panels["training loss"] == {
        "total": [3 / step for step in range(1, 6)],
        "class head": [2 / step for step in range(1, 6)],
    }
    accuracies = panels["top-1 on the validation images"]
    assert {name: values[-1] for name, values in accuracies.items()} == {
        "teacher": 0.9,
        "fused heads": 0.5,
        "class head": 0.4,
        "averaged weights": 0.6,
    }
    assert len(panels) == 3
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_a_student_with_one_head_is_called_so(drawn):
    assert set(drawn([{"step": 1, "eval_top1": 0.5}])["top-1 on the validation images"]) == {"student"}


@pytest.mark.parametrize("logs", [[], [{"step": 1, "loss": 0.0}], [{"loss": 1.0}]])
def test_short_logs_give_a_picture_too(drawn, tmp_path, logs):
    drawn(logs)
    assert Image.open(tmp_path / "curves.png").size[0] > 100


def test_the_environment_names_no_people_and_no_machine(tmp_path):
    environment = describe_environment(num_processes=4)
    text = json.dumps(environment)
    assert environment["num_processes"] == 4
    assert environment["libraries"]["torch"]
    assert socket.gethostname() not in text
    assert f"/{getpass.getuser()}" not in text
