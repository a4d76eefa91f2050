"""The curves of runs are what their logs say, whatever became of the runs, each told apart in all panels."""

import json
import math

import pytest
from support.facts import facts

from hf_deit.errors import InputError
from hf_deit.evaluation import run_curves
from hf_deit.evaluation.run_curves import run_curves_section
from hf_deit.hub.files import write_json

LOSSES = {"class_loss": 3.0, "distillation_loss": 1.0, "teacher_agreement": 0.5}


def history(steps=6, *, parts=LOSSES, evaluated=True, ended=True, speed=100.0):
    """A hand-made log: losses are 1 / step, accuracies step / 100."""
    lines = [{"step": 0, "epoch": 0, "teacher_top1": 0.99, "teacher_images": 40}] if parts == LOSSES else []
    for step in range(1, steps + 1):
        logged = {"loss": 2 / step, "learning_rate": 1e-3 / step, "images_per_second": speed * step, **parts}
        lines.append({"step": step, "epoch": step / 2, **logged})
        if evaluated and step % 2 == 0:
            lines.append({"step": step, "eval_loss": 1 / step, "eval_top1": step / 100, "eval_class_top1": step / 200})
    if ended:
        lines.append({"step": steps, "epoch": steps / 2, "train_runtime": 1.0, "train_loss": 0.1})
        if evaluated:
            lines.append({"step": steps, "eval_loss": 0.0, "eval_top1": 0.0})  # of the same step once more
    return lines


def run(folder, lines, *, checkpoint=None):
    folder = folder if checkpoint is None else folder / f"checkpoint-{checkpoint}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": lines}))
    return folder if checkpoint is None else folder.parent


@pytest.fixture
def drawn(monkeypatch):
    """The panels of a section's picture: by title the points of each curve, by its look."""
    figures = []
    monkeypatch.setattr(run_curves, "as_png", lambda figure: figures.append(figure) or b"png")

    def draw(*folders):
        section = run_curves_section(folders)
        figure = figures[-1]
        (legend,) = figure.legends or [axes.get_legend() for axes in figure.axes if axes.get_legend()]
        names = [text.get_text() for text in legend.get_texts()]
        looks = dict(zip(map(look, legend.get_lines()), names, strict=True))
        assert len(looks) == len(names) == len(folders)  # all of them are told apart
        panels = {}
        for axes in figure.axes:
            for line in axes.get_lines():
                points = [(x, y) for x, y in zip(*line.get_data(), strict=True) if not math.isnan(x)]
                if points:
                    assert axes.get_xlabel() and axes.get_ylabel()
                    panels.setdefault(axes.get_title(), {})[looks[look(line)]] = points
        return section, panels

    return draw


def look(line):
    return line.get_color(), line.get_linestyle()


def numbers_of(section, name, key):
    return section.numbers["runs"][name]["measures"][key]


def test_panels_show_what_is_in_the_logs_and_tables_what_it_came_to(drawn, tmp_path):
    long, short = run(tmp_path / "long", history(6)), run(tmp_path / "short", history(4, parts={}))
    section, panels = drawn(long, str(short))
    steps = range(1, 7)
    assert panels["training loss, total"] == {
        "long": [(step, 2 / step) for step in steps],
        "short": [(step, 2 / step) for step in steps[:4]],
    }
    assert panels["training loss, teacher's term"] == {"long": [(step, 1.0) for step in steps]}
    assert panels["agreement with the teacher in training"] == {"long": [(step, 0.5) for step in steps]}
    assert panels["validation top-1"] == {"long": [(2, 0.02), (4, 0.04), (6, 0.06)], "short": [(2, 0.02), (4, 0.04)]}
    assert panels["validation top-1, class head"]["long"] == [(2, 0.01), (4, 0.02), (6, 0.03)]
    assert panels["learning rate"]["short"] == [(step, 1e-3 / step) for step in steps[:4]]
    assert panels["images/s in training"]["long"] == [(step, 100.0 * step) for step in steps]
    assert set(panels) & {"validation top-1, distillation head", "validation top-1, averaged weights"} == set()
    last, best = section.tables
    row = dict(zip(last.columns, last.rows[0], strict=True))
    assert (row["run"], row["steps"], row["epochs"]) == ("long", 6, 3)
    assert (row["training loss, total"], row["validation top-1"], row["images/s in training"]) == (2 / 6, 0.06, 350)
    assert row["teacher's validation top-1"] == 0.99 and last.rows[1][-1] is None
    row = dict(zip(best.columns[:3], best.rows[0][:3], strict=True))
    assert row == {"run": "long", "best validation loss": 1 / 6, "at step": 6}
    assert numbers_of(section, "short", "loss") == {"last": 0.5, "last_step": 4, "best": 0.5, "best_step": 4}
    assert json.loads(json.dumps(section.numbers)) == section.numbers
    assert section.text[1:] == ()  # both are at their end


def test_the_best_value_is_the_lowest_loss_and_the_highest_accuracy(drawn, tmp_path):
    values = [(2, 0.5, 0.3), (4, 0.2, 0.8), (6, 0.4, 0.8)]
    lines = [{"step": step, "eval_loss": loss, "eval_top1": top1} for step, loss, top1 in values]
    section, panels = drawn(run(tmp_path / "run", lines))
    assert numbers_of(section, "run", "eval_loss") == {"last": 0.4, "last_step": 6, "best": 0.2, "best_step": 4}
    assert numbers_of(section, "run", "eval_top1") == {"last": 0.8, "last_step": 6, "best": 0.8, "best_step": 4}
    assert set(panels) == {"validation loss", "validation top-1"}


def test_the_weights_of_an_earlier_step_are_no_further_point(drawn, tmp_path):
    lines = [*history(5), {"step": 5, "eval_top1": 0.9, "eval_loss": 0.1}]
    assert drawn(run(tmp_path / "run", lines))[1]["validation top-1"]["run"][-1] == (5, 0.0)
    write_json(facts(best_step=2).to_dict(), tmp_path / "run" / "run.json")
    assert drawn(tmp_path / "run")[1]["validation top-1"]["run"][-1] == (4, 0.04)
    (tmp_path / "run" / "run.json").write_text("{}")  # of another version
    assert drawn(tmp_path / "run")[1]["validation top-1"]["run"][-1] == (5, 0.0)


def test_of_runs_that_did_not_end_the_newest_log_tells(drawn, tmp_path):
    killed = run(tmp_path / "killed", history(4, ended=False), checkpoint=4)
    run(killed, history(9, ended=False), checkpoint=9)
    torn = run(tmp_path / "torn", history(5, ended=False), checkpoint=5)
    run(torn, [], checkpoint=7)
    (torn / "trainer_state.json").write_text('{"log_history": [{"step": 1, "lo')
    again = run(
        run(tmp_path / "again", history(3)), history(8, ended=False), checkpoint=8
    )  # beyond its end, and killed
    pulled = tmp_path / "pulled"
    run(pulled / "last-checkpoint", history(6, ended=False))
    section, panels = drawn(killed, torn, again, pulled, killed / "checkpoint-4")
    last = {name: points[-1][0] for name, points in panels["training loss, total"].items()}
    assert last == {"killed": 9, "torn": 5, "again": 8, "pulled": 6, "checkpoint-4": 4}
    assert section.text[1].endswith(f"when they were read: {', '.join(last)}.")


def test_without_a_teacher_there_is_one_loss_and_without_validation_no_accuracy(drawn, tmp_path):
    alone = run(tmp_path / "alone", history(3, parts={"class_loss": 0.1}, evaluated=False))
    section, panels = drawn(alone)
    assert set(panels) == {"training loss, total", "learning rate", "images/s in training"}
    assert [table.name for table in section.tables] == ["runs"]
    assert "teacher's validation top-1" not in section.tables[0].columns
    panels = drawn(alone, run(tmp_path / "taught", history(3)))[1]
    assert set(panels["training loss, labels' term"]) == {"alone", "taught"}


def test_validation_sets_with_names_have_panels_of_their_own(drawn, tmp_path):
    """As transformers names them where there are several: a line of each at every step, and once more at the end."""
    lines = []
    for step in (1, 2, 2):
        for name, value in (("old", 0.1), ("a_b", 0.2)):
            metrics = {"loss": 1, "top1": value * step, "class_top1": 0.5, "ema_top1": 0.6, "ema_class_top1": 0.7}
            lines.append({"step": step, **{f"eval_{name}_{metric}": value for metric, value in metrics.items()}})
        lines.append({"step": step, "eval_ema_loss": 0.3, "eval_ema_class_top1": 0.4, "eval_plain_loss": 0.5})
    section, panels = drawn(run(tmp_path / "run", lines))
    assert panels["validation top-1, old"]["run"] == [(1, 0.1), (2, 0.2)]
    assert panels["validation top-1, a_b"]["run"] == [(1, 0.2), (2, 0.4)]
    kinds = ("validation loss", *(f"validation top-1{of}" for of in ("", ", class head", ", averaged weights")))
    named = {f"{kind}, {name}" for kind in kinds for name in ("old", "a_b")}
    assert set(panels) == {"validation loss, averaged weights", *named}
    assert numbers_of(section, "run", "eval_old_top1")["best"] == 0.2


def test_a_run_that_was_begun_again_after_its_end_has_its_later_evaluations(drawn, tmp_path):
    again = [{"step": 7, "loss": 0.1}, {"step": 8, "eval_top1": 0.08, "eval_loss": 0.1}]
    folder = run(tmp_path / "run", [*history(6), *again])
    write_json(facts(best_step=8).to_dict(), folder / "run.json")
    assert drawn(folder)[1]["validation top-1"]["run"] == [(2, 0.02), (4, 0.04), (6, 0.06), (8, 0.08)]


def test_what_is_no_number_is_left_out(drawn, tmp_path):
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": "high"}, {"loss": 5.0}]
    lines += [{"step": 4, "loss": True}, {"step": 5, "loss": 10**400}, {"step": 6, "loss": -math.inf}, "no line"]
    section, panels = drawn(run(tmp_path / "run", lines))
    assert panels == {"training loss, total": {"run": [(1, 1.0)]}}
    assert section.numbers["runs"]["run"]["epochs"] is None


@pytest.mark.parametrize("number", [1, 3, 12, 28])
def test_runs_keep_their_look_in_all_panels(drawn, tmp_path, number):
    folders = [run(tmp_path / f"run-{index}", history(2 + index % 3)) for index in range(number)]
    section, panels = drawn(*folders)
    assert all(set(curves) == {folder.name for folder in folders} for curves in panels.values())
    assert not any("come again" in words for words in section.text)
    assert "run-0" in section.pictures[0].alt


def test_more_runs_than_looks_are_drawn_and_that_is_said(tmp_path):
    folders = [run(tmp_path / f"run-{index}", history(2, parts={}, evaluated=False)) for index in range(30)]
    section = run_curves_section(folders)
    assert section.text[-1].endswith("from run 29 on, they come again.")
    assert section.pictures[0].png.startswith(b"\x89PNG")


def test_names_are_the_last_parts_that_tell_runs_apart(drawn, tmp_path):
    paths = ["a/seed-0", "a/seed-1", "b/seed-1", "a/b/seed-1", "b"]
    section, _ = drawn(*[run(tmp_path / path, history(2)) for path in paths])
    assert [*section.numbers["runs"]] == [
        "seed-0",
        "a/seed-1",
        f"{tmp_path.name}/b/seed-1",
        "a/b/seed-1",
        "b",
    ]
    assert len(set(section.numbers["runs"])) == len(paths)


def test_names_may_be_anything(tmp_path):
    names = ["a$_{b$", "_", "caf\udce9", "a\x1b[31m", "x" * 200]
    folders = [run(tmp_path / name, history(2)) for name in names]
    section = run_curves_section(folders)
    assert [*section.numbers["runs"]] == ["a$_{b$", "_", "caf\\xe9", "a\\x1b[31m", "x" * 200]
    assert section.pictures[0].png.startswith(b"\x89PNG")


def test_folders_that_tell_nothing_are_refused(monkeypatch, tmp_path):
    digits = run(tmp_path / "digits", history(2))
    with pytest.raises(InputError, match="no folder of a run to draw the curves of: give the --output_dir"):
        run_curves_section([])
    with pytest.raises(
        InputError, match=r"no folder '.*digitz': give the --output_dir of a run; did you mean 'digits'"
    ):
        run_curves_section([digits, tmp_path / "digitz"])
    with pytest.raises(InputError, match=r"trainer_state\.json' is no folder"):
        run_curves_section([digits / "trainer_state.json"])
    (tmp_path / "link").symlink_to(digits)
    for other in (str(digits), f"{digits}/", tmp_path / "link"):
        with pytest.raises(InputError, match="is given twice, first as"):
            run_curves_section([digits, other])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty' has no log of a run: it has no trainer_state.json, nor has"):
        run_curves_section([tmp_path / "empty"])
    for content in ("{", "[]", '{"log_history": null}', '{"log_history": []}', '{"log_history": [{"step": 1}]}'):
        (tmp_path / "empty" / "trainer_state.json").write_text(content)
        with pytest.raises(InputError, match=r"its trainer_state\.json has none that can be read"):
            run_curves_section([tmp_path / "empty"])
