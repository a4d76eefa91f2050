"""The curves of a training, and what is told of where it ran."""

import getpass
import json
import socket

import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.facts import facts

from hf_deit.hub.curves import plot_curves
from hf_deit.hub.environment import describe_environment
from hf_deit.hub.record import write_record

LOGS = [
    {"step": 0, "teacher_top1": 0.9, "teacher_images": 512, "teacher_agreement_with_labels": 0.8},
    *(
        {
            "step": step,
            "loss": 2 / step,
            "class_loss": 3 / step,
            "distillation_loss": 1 / step,
            "learning_rate": 1e-3 / step,
        }
        for step in range(1, 6)
    ),
    {"step": 3, "eval_loss": 1.5, "eval_top1": 0.5, "eval_class_top1": 0.4, "eval_ema_top1": 0.6, "eval_images": 512},
    {"step": 5, "train_runtime": 1.0},
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """What a figure shows, by title: the legends' names and the curves' points."""
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, _save=Figure.savefig, **k: (figures.append(self), _save(self, *a, **k))
    )

    def draw(logs, **settings):
        plot_curves(logs, str(tmp_path / "curves.png"), **settings)
        panels = {}
        for axes in figures[-1].axes:
            panels[axes.get_title()] = {
                line.get_label(): list(map(float, line.get_ydata())) for line in axes.get_lines()
            }
        return panels

    draw.figures = figures
    return draw


def test_curves_are_those_of_the_log(drawn, tmp_path):
    panels = drawn(LOGS)
    assert panels["loss"] == {
        "training, total": [2 / step for step in range(1, 6)],
        "training, class head": [3 / step for step in range(1, 6)],
        "training, distillation head": [1 / step for step in range(1, 6)],
        "validation": [1.5],
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


def test_what_a_model_answers_is_called_by_its_fusion_and_shows_below_what_lies_on_it(drawn):
    one = {"step": 1, "eval_top1": 0.4, "eval_class_top1": 0.4, "eval_distillation_top1": 0.4, "eval_ema_top1": 0.4}
    for fusion, name in (("cls", "the model, by its class head"), ("logits", "fused heads"), (None, "fused heads")):
        names = drawn([one], fusion=fusion)["top-1 on the validation images"]
        assert list(names) == [name, "class head", "distillation head", "averaged weights"]
    lines = drawn.figures[-1].axes[0].get_lines()[:3]
    assert [line.get_linewidth() for line in lines] == sorted({line.get_linewidth() for line in lines}, reverse=True)


@pytest.mark.parametrize(("entry", "name"), [({}, "model"), ({"distillation_loss": 1.0}, "student")])
def test_one_head_is_a_students_where_there_is_a_teacher(drawn, entry, name):
    logs = [{"step": 1, "eval_top1": 0.5}, {"step": 1, "loss": 1.0, **entry}]
    assert set(drawn(logs)["top-1 on the validation images"]) == {name}


NO_PARTS = {
    "no teacher, one head": {"loss": 2.0, "class_loss": 2.0},
    "no teacher, two heads": {"loss": 2.0, "class_loss": 2.01},
    "all weight on the labels": {"loss": 2.0, "class_loss": 2.0, "distillation_loss": 1.0},
}


@pytest.mark.parametrize("case", NO_PARTS)
def test_no_curve_lies_under_another(drawn, case):
    losses = drawn([{"step": step, **NO_PARTS[case]} for step in (1, 2)])["loss"]
    one = {"training": [2.0, 2.0]}
    both = {"training, total": [2.0, 2.0], "training, distillation head": [1.0, 1.0]}
    assert losses == (both if "distillation_loss" in NO_PARTS[case] else one)


@pytest.mark.parametrize("best_step", [None, 2])
def test_the_evaluation_at_the_end_is_no_further_point(drawn, best_step):
    evaluations = [{"step": step, "eval_top1": step / 10, "eval_loss": 1.0} for step in (2, 4)]
    again = {"step": 5, "eval_top1": 0.2, "eval_loss": 1.0}  # of the best weights, or of the last ones
    panels = drawn([*evaluations, {"step": 5, "train_runtime": 1.0}, again, again], best_step=best_step)
    values = panels["top-1 on the validation images"]["model"]
    assert values == ([0.2, 0.4] if best_step else [0.2, 0.4, 0.2])
    assert ("published weights" in panels["loss"]) == (best_step is not None)


def test_the_teachers_line_is_the_figure_of_the_table(drawn):
    logs = [*LOGS[:-1], {"step": 5, "eval_top1": 0.55, "eval_class_top1": 0.45, "eval_images": 900}]
    assert drawn(logs, teacher_top1=0.85)["top-1 on the validation images"]["teacher"][0] == 0.85
    others = [{**line, "eval_images": 900} if "eval_images" in line else line for line in LOGS]
    assert drawn(others)["top-1 on the validation images"]["teacher (on 512 images)"][0] == 0.9


def test_a_record_draws_what_its_card_says(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("hf_deit.hub.curves.plot_curves", lambda logs, path, **settings: told.append(settings))
    write_record(tmp_path, facts(best_step=60), LOGS, "ada/pets")
    write_record(tmp_path, facts(teacher_images=100, fusion="cls"), LOGS, "ada/pets")
    assert told == [
        {"teacher_top1": 0.85, "best_step": 60, "fusion": "logits"},
        {"teacher_top1": None, "best_step": None, "fusion": "cls"},
    ]


def test_few_points_make_a_picture(drawn):
    logs = [{"step": step, "loss": 2.0, "learning_rate": 1e-4, "eval_top1": 0.5} for step in (1, 2)]
    drawn(logs)
    for axes in drawn.figures[-1].axes:
        (line,) = axes.get_lines()
        low, high = axes.get_ylim()
        assert line.get_marker() == "o"
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert axes.get_xlim()[1] > 2 and low < min(line.get_ydata()) and max(line.get_ydata()) < high
        assert high - low >= (0.1 if axes.get_title().startswith("top-1") else 0.1 * high)


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


def test_one_thread_is_no_threads(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for threads, words in ((1, "1 thread a process"), (4, "4 threads a process")):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        assert describe_environment(num_processes=1)["device"].endswith(words)


def test_what_computes_on_the_cpu_beside_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA T4")
    assert describe_environment()["device"] == describe_environment(device_type="cuda")["device"] == "NVIDIA T4"
    assert describe_environment(device_type="cpu")["device"].startswith("CPU, ")
    assert describe_environment(libraries=["scipy"])["libraries"].keys() >= {"scipy", "torch"}
