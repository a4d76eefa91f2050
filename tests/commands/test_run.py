"""What a user types works from end to end, and what they get wrong is refused before training, in one message."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny
from support.files import rights_in, umask
from support.lock_holder import LockHolder
from support.main_of import main_of
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback

from hf_deit import DistillationTrainer, DistilledDeiTForImageClassification, load_teacher
from hf_deit.commands import resume
from hf_deit.commands.prepare import prepare
from hf_deit.commands.resume import Beginning
from hf_deit.errors import CheckpointError, InputError
from hf_deit.hub import run_lock
from hf_deit.hub.publishing import publish_folder
from hf_deit.recipes import load_recipe
from hf_deit.recipes.resolve import resolve_arguments, resolved_recipe

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train.py"


@pytest.fixture(scope="module")
def main():
    return main_of("train")


@pytest.fixture(scope="module")
def finished_run(main, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "debug"
    with umask(0o027):
        assert main(["--recipe", "debug", "--output_dir", str(folder), "--use_cpu", "true"]) == 0
    return folder


def image_folder(folder: Path, classes: dict[str, int], size: int = 20) -> str:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return str(folder)


def test_leaves_a_model_a_teacher_a_recipe_and_checkpoints(finished_run):
    files = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    expected = {"model.safetensors", "config.json", "preprocessor_config.json"}
    assert expected | {f"teacher/{name}" for name in expected} <= files
    assert {"recipe.yaml", "eval_results.json", "checkpoint-3/optimizer.pt", "checkpoint-6/model.safetensors"} <= files
    model = AutoModelForImageClassification.from_pretrained(finished_run)
    assert model.config.id2label == {index: str(index) for index in range(10)}
    image = tiny.digits()[1][0]["image"]
    pixels = AutoImageProcessor.from_pretrained(finished_run)(image, return_tensors="pt")["pixel_values"]
    ours = DistilledDeiTForImageClassification.from_pretrained(finished_run).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, ours(pixels).logits, atol=1e-6, rtol=0)
    teacher = load_teacher(
        str(finished_run / "teacher"), student_processor=tiny.processor(), id2label=model.config.id2label
    )
    assert type(teacher.model).__name__ == "ResNetForImageClassification"


def test_every_file_has_the_rights_that_the_user_gives_to_new_ones(finished_run):
    assert (finished_run / "checkpoint-3" / "ema" / "model.safetensors").is_file()
    assert rights_in(finished_run) == {"folder": {0o750}, "file": {0o640}}


def test_prints_a_table_that_agrees_with_the_model_and_lines_that_run(main, tmp_path, capsys):
    folder = tmp_path / "a run"
    assert main(["--recipe", "debug", "--output_dir", str(folder), "--use_cpu", "true"]) == 0
    printed = capsys.readouterr().out
    for row in ("teacher", "class head", "distillation head", "fused", "images/s", "minutes"):
        assert f"\n{row}" in printed
    assert f"The model lies in {folder}" in printed
    data = tiny.digits(num_validation=360)[1]
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(list(data["image"]), return_tensors="pt")).logits
    top1 = (logits.argmax(-1) == torch.tensor(data["label"])).float().mean().item()
    fused = next(line for line in printed.splitlines() if line.startswith("fused"))
    assert float(fused.split()[1]) == pytest.approx(top1, abs=1e-4)
    assert json.loads((folder / "eval_results.json").read_text())["eval_top1"] == pytest.approx(top1, abs=1e-4)
    teacher = next(line for line in printed.splitlines() if line.startswith("teacher"))
    student_processor = tiny.processor()
    decisions = load_teacher(str(folder / "teacher"), student_processor=student_processor)(
        student_processor(list(data["image"]), return_tensors="pt")["pixel_values"]
    ).argmax(-1)
    assert float(teacher.split()[1]) == pytest.approx(
        (decisions == torch.tensor(data["label"])).float().mean().item(), abs=1e-4
    )
    (evaluation,) = [shlex.split(line) for line in printed.splitlines() if " evaluate " in line]
    options = evaluation[evaluation.index("evaluate") + 1 :]
    assert options == ["--model", str(folder), "--teacher", str(folder / "teacher")]
    assert f"To use it, with a top-1 of {top1:.4f}:" in printed
    usage = printed[printed.index("from PIL") :]
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    done = subprocess.run([sys.executable, "-c", usage], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'score'" in done.stdout


@pytest.mark.parametrize("fusion", ["softmax", "cls"])
def test_what_is_stated_beside_the_lines_is_what_they_answer(main, tmp_path, capsys, fusion):
    folder = tmp_path / "run"
    command = ["--recipe", "debug", "--output_dir", str(folder), "--use_cpu", "true", "--distillation_type", "none"]
    command += ["--max_steps", "1", "--eval_strategy", "no", "--publish_weights", "ema"]
    assert main([*command, "--student_overrides", json.dumps({**tiny.SIZES, "fusion": fusion})]) == 0
    printed = capsys.readouterr().out
    data = tiny.digits(num_validation=360)[1]
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**AutoImageProcessor.from_pretrained(folder)(list(data["image"]), return_tensors="pt")).logits
    top1 = (logits.argmax(-1) == torch.tensor(data["label"])).float().mean().item()
    assert f"To use it, with a top-1 of {top1:.4f}:" in printed
    rows = dict(line.rsplit("  ", 1) for line in printed.splitlines() if re.search(r"  +\d\.\d{4}$", line))
    figures = {name.strip(): float(figure) for name, figure in rows.items()}
    row = {"softmax": "transformers alone, averaged", "cls": "the model, by its class head, averaged"}[fusion]
    assert figures[row] == pytest.approx(top1, abs=5e-5)
    assert ("transformers alone" in figures) == (fusion == "softmax")
    assert "`hf_deit.DistilledDeiTForImageClassification.from_pretrained(" in printed


def test_resolved_recipe_gives_the_same_arguments(finished_run):
    recipe = finished_run / "recipe.yaml"
    model_args, data_args, args = resolve_arguments(["--recipe", str(recipe), "--output_dir", "elsewhere"])
    assert yaml.safe_load(recipe.read_text())["max_steps"] == args.max_steps == 6
    assert model_args.teacher_model_name_or_path == str(finished_run / "teacher")
    assert data_args.dataset_name == "sklearn:digits"


CONFIGURATIONS = ROOT / "scripts" / "accelerate_configs"
LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--config_file", CONFIGURATIONS / "cpu_1.yaml", SCRIPT],
    "hf-deit launch, two": ["hf_deit", "launch", "--config_file", CONFIGURATIONS / "cpu_2.yaml", "train"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node=2", SCRIPT],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(tmp_path, launcher):
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "--recipe", "debug", "--use_cpu", "true"]
    command += ["--output_dir", tmp_path / "run", "--per_device_eval_batch_size", "50"]  # 360 is no multiple of it
    command += ["--dataloader_drop_last", "true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The model lies in") == 1
    assert "top-1 on 360 held-out images" in done.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()
    ranks = len(list((tmp_path / "run" / "checkpoint-6").glob("rng_state*.pth")))
    assert ranks == (1 if launcher == "accelerate" else 2)


def test_stopped_run_resumes_from_the_command_line(main, tmp_path, finished_run):
    command = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    assert main(command) == 0
    (tmp_path / "run" / "model.safetensors").unlink()  # as if it had been killed after step 3
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    one, other = (
        DistilledDeiTForImageClassification.from_pretrained(folder).state_dict()
        for folder in (finished_run, tmp_path / "run")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return DistilledDeiTForImageClassification.from_pretrained(folder).state_dict()


def test_a_torn_checkpoint_is_left_out(main, tmp_path, finished_run, caplog):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").unlink()  # as if killed while it saved
    command = ["--recipe", str(finished_run / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    assert "checkpoint-6 is torn" in caplog.text
    one, other = weights(finished_run), weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("resuming", [True, False])
def test_a_run_stopped_before_its_first_checkpoint_starts_again(main, tmp_path, finished_run, caplog, resuming):
    """With `--resume_from_checkpoint true` and without, and with the teacher that it had trained."""
    run, options = tmp_path / "run", ["--resume_from_checkpoint", "true"] if resuming else []
    for folder in ("checkpoint-3", "teacher.unfinished"):
        (run / folder).mkdir(parents=True)
    shutil.copytree(finished_run / "teacher", run / "teacher")
    shutil.copy(finished_run / "recipe.yaml", run)
    leftovers = [
        run / ".recipe.yaml.0123abcd.tmp",
        run / "teacher.unfinished" / "config.json",
        run / "checkpoint-3" / "torn",
    ]
    for path in leftovers:
        path.write_text("")
    before = (run / "teacher" / "model.safetensors").stat().st_mtime_ns
    command = ["--recipe", "debug", "--output_dir", str(run), "--use_cpu", "true"]
    assert main([*command, *options]) == 0
    assert "it starts again" in caplog.text
    assert not any(path.exists() for path in leftovers)
    assert (run / "teacher" / "model.safetensors").stat().st_mtime_ns == before
    one, other = weights(finished_run), weights(run)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_header_of_each_image_is_read_once(main, tmp_path, monkeypatch):
    """By the student's run and by that of its teacher: they have the same images."""
    train, validation = (image_folder(tmp_path / name, {"ape": 8, "cat": 8}) for name in ("train", "validation"))
    read = []
    for module in ("image_table", "columns"):
        monkeypatch.setattr(f"hf_deit.data.{module}.fault_of_header", lambda file: read.append(file))
    command = ["--recipe", "debug", "--train_dir", str(train), "--validation_dir", str(validation)]
    command += ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--max_steps", "1"]
    assert main([*command, "--per_device_train_batch_size", "8"]) == 0
    assert len(read) == len(set(read)) == 32


def test_after_control_c_in_its_teachers_run_it_goes_on_as_it_is_told(main, tmp_path, monkeypatch, capsys):
    run, recipe = tmp_path / "run", tmp_path / "teacher.yaml"
    command = ["--recipe", "debug", "--output_dir", str(run), "--use_cpu", "true", "--max_steps", "1"]
    resuming = ["--teacher_recipe", str(recipe), "--resume_from_checkpoint", "true"]
    recipe.write_text("base: debug_teacher\nmax_steps: 1\nsave_strategy: steps\nsave_steps: 1\n")
    with monkeypatch.context() as stopped:
        stopped.setattr("hf_deit.commands.train.DistillationTrainer.save_model", press_control_c)
        assert main(command) == 130
        assert not run.exists() and "the same command begins anew" in capsys.readouterr().err
    with monkeypatch.context() as stopped:
        train = DistillationTrainer.train
        stopped.setattr(DistillationTrainer, "train", lambda self: (train(self), press_control_c()))
        assert main([*command, "--teacher_recipe", str(recipe)]) == 130
    assert (run / "teacher.unfinished").is_dir()
    assert "the same command with --resume_from_checkpoint true goes on" in capsys.readouterr().err
    assert main([*command, *resuming]) == 0
    assert (run / "model.safetensors").is_file()


def press_control_c(*_, **__):
    raise KeyboardInterrupt


def test_a_teacher_that_the_run_trains_is_shown_the_size_that_it_was_trained_at(main, tmp_path):
    recipe = tmp_path / "teacher.yaml"
    recipe.write_text("base: debug_teacher\nimage_size: 24\nmax_steps: 1\n")
    command = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--max_steps", "1"]
    assert main([*command, "--teacher_recipe", str(recipe)]) == 0
    assert "at 24 x 24 pixels, resized from the student's" in (tmp_path / "run" / "README.md").read_text()
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml"))["teacher_input_size"] == "own"
    logs = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert {"teacher_top1_at_24", "teacher_top1_at_16"} <= logs[0].keys()


@pytest.mark.parametrize(
    "change",
    [
        *(["--seed", "7"], ["--max_steps", "9"], ["--teacher_input_size", "24"], ["--labels_kept", "300"]),
        *(["--adam_beta2", "0.5"], ["--teacher_dtype", "bfloat16"]),
    ],
)
def test_resuming_as_another_run_is_refused(main, tmp_path, capsys, finished_run, change):
    shutil.copytree(finished_run, tmp_path / "run")
    command = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    assert main([*command, "--resume_from_checkpoint", "true", *change]) == 2
    assert f"was started with {change[0][2:]}" in capsys.readouterr().err
    assert (tmp_path / "run" / "recipe.yaml").read_text() == (finished_run / "recipe.yaml").read_text()


def with_other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def with_other_statistics(folder: Path) -> None:
    tiny.processor(image_mean=[0.4] * 3).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_other_weights, r"the teacher changed since .*: revision sha256:\w+ then, sha256:\w+ now"),
        (with_other_statistics, r"the teacher changed since .*: preprocessing\.shift \[.*\] then, \[.*\] now"),
    ],
)
def test_a_teacher_that_was_changed_in_its_place_is_refused(main, tmp_path, capsys, finished_run, change, said):
    run = shutil.copytree(finished_run, tmp_path / "run")
    change(run / "teacher")
    command = ["--recipe", "debug", "--output_dir", str(run), "--use_cpu", "true"]
    assert main([*command, "--resume_from_checkpoint", str(run / "checkpoint-3")]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_how_often_is_saved_may_change_and_is_as_the_recipe_says(main, tmp_path, finished_run, caplog):
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-6")
    command = ["--recipe", "debug", "--output_dir", str(run), "--use_cpu", "true", "--save_steps", "1"]
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    assert "the run was begun with save_steps 3 and goes on with 1" in caplog.text
    assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (3, 4, 5, 6)}
    assert load_recipe(str(run / "recipe.yaml"))["save_steps"] == 1
    assert (run / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()


def test_a_run_at_its_end_states_what_it_was_trained_with(main, tmp_path, finished_run):
    run = shutil.copytree(finished_run, tmp_path / "run")
    command = ["--recipe", "debug", "--output_dir", str(run), "--use_cpu", "true", "--resume_from_checkpoint", "true"]
    assert main([*command, "--bf16", "true", "--save_steps", "2", "--publish_weights", "ema"]) == 0
    recipe, card = load_recipe(str(run / "recipe.yaml")), (run / "README.md").read_text()
    assert (recipe.get("bf16"), recipe["save_steps"], recipe["publish_weights"]) == (None, 3, "ema")
    assert "bf16" not in card and "save_steps: 3\n" in card and "publish_weights: ema\n" in card
    assert "teacher_model_name_or_path" not in card


def test_a_run_goes_on_in_another_place_with_its_best_checkpoint_or_without(main, tmp_path, capsys):
    def command(folder: Path, *options: str) -> list[str]:
        return ["--recipe", "debug", "--output_dir", str(folder), "--use_cpu", "true", *options]

    best = ["--load_best_model_at_end", "true"]
    again = ["--resume_from_checkpoint", "true"]
    assert main(command(tmp_path / "first", *best)) == 0
    run = Path(shutil.move(tmp_path / "first", tmp_path / "moved"))
    weights = {step: (run / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (3, 6)}
    (run / "model.safetensors").unlink()
    best += ["--teacher_model_name_or_path", str(run / "teacher")]
    assert main(command(run, *best, *again)) == 0
    assert (run / "model.safetensors").read_bytes() == weights[3]  # whose loss is the lower one
    damaged = run / "checkpoint-3" / "model.safetensors"
    damaged.write_bytes(weights[3][:-1] + b"\x7f")
    capsys.readouterr()
    assert main(command(run, *best, *again)) == 2
    assert "--load_best_model_at_end false" in capsys.readouterr().err
    assert main(command(run, *best, *again, "--load_best_model_at_end", "false", "--save_total_limit", "1")) == 0
    assert (run / "model.safetensors").read_bytes() == weights[6]
    assert "load_best_model_at_end" not in load_recipe(str(run / "recipe.yaml"))
    assert main(command(run, *best, *again)) == 2


def test_a_run_goes_on_with_its_images_in_another_place_and_with_no_others(main, tmp_path, capsys):
    images, run = tmp_path / "images", tmp_path / "run"
    image_folder(images, {"bee": 12, "wasp": 12})

    def command(folder: Path, *options: str) -> list[str]:
        line = ["--recipe", "debug", "--distillation_type", "none", "--output_dir", str(run), "--use_cpu", "true"]
        return [
            *line,
            "--train_dir",
            str(folder),
            "--eval_strategy",
            "no",
            "--max_steps",
            "1",
            "--save_steps",
            "1",
            *options,
        ]

    again = ["--resume_from_checkpoint", "true"]
    assert main(command(images)) == 0
    moved = Path(shutil.move(images, tmp_path / "moved"))
    assert main(command(moved, *again)) == 0
    assert load_recipe(str(run / "recipe.yaml"))["train_dir"] == str(moved)
    other = Path(shutil.copytree(moved, tmp_path / "other"))
    Image.new("RGB", (20, 20)).save(other / "bee" / "0.png")
    capsys.readouterr()
    assert main(command(other, *again)) == 2
    assert "the images to train on, or their labels or order, changed" in capsys.readouterr().err


def test_what_was_otherwise_until_a_checkpoint_is_in_the_card(main, tmp_path, finished_run):
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-6")
    command = ["--recipe", "debug", "--output_dir", str(run), "--use_cpu", "true", "--resume_from_checkpoint", "true"]
    row = "| changed on the way | bf16 false until step 3 |"
    assert row not in (run / "README.md").read_text()
    assert main([*command, "--bf16", "true"]) == 0
    assert load_recipe(str(run / "recipe.yaml"))["bf16"] is True
    for _ in range(2):  # and when it is taken up again
        assert row in (run / "README.md").read_text()
        assert main([*command, "--bf16", "true"]) == 0


def test_a_checkpoint_in_another_folder_is_of_the_run_there(main, tmp_path, capsys, finished_run):
    command = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    command += ["--resume_from_checkpoint", str(finished_run / "checkpoint-3")]
    assert main([*command, "--adam_beta2", "0.5"]) == 2
    assert f"the run in {str(finished_run)!r} was started with adam_beta2" in capsys.readouterr().err


def test_a_class_folder_that_was_renamed_is_refused_with_its_name(main, tmp_path, capsys):
    train = Path(image_folder(tmp_path / "train", {"ape": 8, "cat": 8, "dog": 8}))
    run = tmp_path / "run"
    command = ["--recipe", "debug", "--train_dir", str(train), "--validation_dir", str(train), "--use_cpu", "true"]
    command += [
        "--output_dir",
        str(run),
        "--max_steps",
        "2",
        "--save_steps",
        "1",
        "--per_device_train_batch_size",
        "8",
    ]
    assert main(command) == 0
    (train / "cat").rename(train / "zebra")
    changes = "(removed: 'cat'; added: 'zebra'; moved: 'dog' from 2 to 1)"
    shutil.rmtree(run / "teacher")  # it must not be trained anew before the refusal
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    for checkpoint in ("true", str(run / "checkpoint-1")):
        assert main([*command, "--resume_from_checkpoint", checkpoint]) == 2
        assert f"checkpoint-1' has learnt other classes than those of the data {changes}" in capsys.readouterr().err
    assert not (run / "teacher.unfinished").exists() and not (run / "teacher").exists()
    # A teacher that the run has trained before is taken up only for its classes.
    other = tmp_path / "other"
    other.mkdir()
    tiny.resnet().save_pretrained(other / "teacher")
    shutil.copy(run / "recipe.yaml", other)
    assert main([*command, "--output_dir", str(other), "--resume_from_checkpoint", "true"]) == 2
    assert "the teacher in" in (told := capsys.readouterr().err) and "10 labels then, 3 now" in told


def test_a_run_from_the_hub_of_other_classes_is_refused(finished_run):
    beginning = Beginning(arguments=None, labels=None, fetched=str(finished_run / "checkpoint-3"))
    names = {index: str(index) for index in range(10)}
    beginning.check_labels(names)
    with pytest.raises(InputError, match=r"checkpoint-3' has learnt other classes .*\(renamed: '7' to 'sieben'\)"):
        beginning.check_labels({**names, 7: "sieben"})


def test_going_on_in_another_precision_is_said(tmp_path, caplog):
    """As "auto" may do on another machine."""
    arguments = resolve_arguments(["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"])
    assert resume._go_on(arguments, resolved_recipe(arguments)).arguments.training.bf16 is False
    assert "goes on in" not in caplog.text
    resume._go_on(arguments, {**resolved_recipe(arguments), "bf16": True})
    assert "was begun in bfloat16 and goes on in float32" in caplog.text


@pytest.mark.parametrize("options", [["--bf16", "true"], ["--torch_compile", "true"]])
def test_precision_and_compilation_hold_after_a_teacher_was_trained(main, tmp_path, options):
    dtypes, compiled = set(), []

    def watch(module, args, output):
        if type(module).__name__ == "MLP" and module.training:
            dtypes.add(output.dtype)

    real_compile = torch.compile
    torch.compile = lambda model, *args, **kwargs: compiled.append(type(model).__name__) or model
    handle = torch.nn.modules.module.register_module_forward_hook(watch)
    try:
        command = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
        assert main([*command, *options]) == 0
    finally:
        handle.remove()
        torch.compile = real_compile
    if options[0] == "--bf16":
        assert dtypes == {torch.bfloat16}
    else:
        assert compiled == ["DistilledDeiTForImageClassification"]


def test_a_broken_image_that_the_second_process_meets_is_named(tmp_path):
    train = Path(image_folder(tmp_path / "train", {"cat": 16, "dog": 16}, size=64))
    for path in train.glob("*/1?.png"):
        path.write_bytes(path.read_bytes()[:3000])
    recipe = yaml.safe_load((ROOT / "hf_deit" / "recipes" / "start" / "debug_teacher.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**recipe, "per_device_train_batch_size": 1, "max_steps": 30}))
    command = [sys.executable, "-m", *LAUNCHERS["torchrun"], "--recipe", tmp_path / "mine.yaml"]
    command += ["--train_dir", train, "--validation_dir", train, "--output_dir", tmp_path / "run", "--use_cpu", "true"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert re.search(r"error: the image of row \d+ \(.*/1\d\.png\) cannot be decoded", done.stderr), done.stderr[
        -2000:
    ]


@pytest.mark.parametrize("option", ["train_dir", "validation_dir", "unlabeled_dir"])
def test_images_are_checked_before_a_run_as_far_as_it_is_told(tmp_path, option):
    folders = {name: image_folder(tmp_path / name, {"cat": 4, "dog": 4}, size=64) for name in ("good", "bad")}
    broken = Path(folders["bad"]) / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    line = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    for name in ("train_dir", "validation_dir", "unlabeled_dir"):
        line += [f"--{name}", folders["bad" if name == option else "good"]]
    for how in ("none", "headers"):
        assert len(prepare(resolve_arguments([*line, "--check_images", how])).images.train) == 8
    with pytest.raises(InputError, match=r"1 of the 8 files .*: 1 damaged behind the header: .*bad/cat/3\.png"):
        prepare(resolve_arguments([*line, "--check_images", "all"]))


def test_skipping_broken_images_holds_for_the_teacher_too(main, tmp_path, capsys, caplog):
    train = Path(image_folder(tmp_path / "train", {"cat": 16, "dog": 16}, size=64))
    broken = train / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    command = [
        "--recipe",
        "debug",
        "--train_dir",
        str(train),
        "--output_dir",
        str(tmp_path / "run"),
        "--use_cpu",
        "true",
    ]
    options = ["--validation_dir", str(train), "--on_bad_image", "skip", "--dataloader_drop_last", "true"]
    assert main([*command, *options, "--per_device_eval_batch_size", "7"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\nbroken images skipped +1\n", printed)
    # In training and validation, of the teacher and of the student.
    assert caplog.text.count(f"cannot be decoded: {broken}: ") == 1
    assert "top-1 on 31 held-out images" in printed
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Accuracy on 31 images of one's own (kept apart for validation)" in card
    assert "num_images: 31" in card and "Its top-1 accuracy on 31 of the validation images is" in card
    assert "| cat | " in card and "| 15 |" in card and "| 16 |" in card
    assert "| broken images | 1 could not be decoded and were skipped |" in card
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_images"] == 31


def test_own_images_and_own_teacher(main, tmp_path, capsys):
    train = image_folder(tmp_path / "train", {"cat": 12, "dog": 12})
    recipe = yaml.safe_load((ROOT / "hf_deit" / "recipes" / "start" / "debug_teacher.yaml").read_text())
    del recipe["dataset_name"], recipe["output_dir"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    teacher = ["--recipe", str(tmp_path / "mine.yaml"), "--train_dir", train, "--validation_fraction", "0.25"]
    assert main([*teacher, "--output_dir", str(tmp_path / "teacher"), "--use_cpu", "true"]) == 0
    table = capsys.readouterr().out.partition("top-1 on 6 held-out images")[2].partition("images/s")[0]
    assert "\nmodel " in table and "student" not in table  # in its own run a teacher is no student
    recipe = yaml.safe_load((ROOT / "hf_deit" / "recipes" / "start" / "debug.yaml").read_text())
    del recipe["dataset_name"], recipe["output_dir"], recipe["teacher_recipe"]
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(recipe))
    student = ["--recipe", str(tmp_path / "student.yaml"), "--train_dir", train, "--validation_fraction", "0.25"]
    student += ["--teacher_model_name_or_path", str(tmp_path / "teacher"), "--use_cpu", "true"]
    assert main([*student, "--output_dir", str(tmp_path / "student")]) == 0
    assert "top-1 on 6 held-out images" in capsys.readouterr().out
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog"}


def test_pretrained_student(main, tmp_path, finished_run):
    command = ["--recipe", "debug", "--student", str(finished_run), "--student_overrides", "{}", "--use_cpu", "true"]
    command += ["--teacher_model_name_or_path", str(finished_run / "teacher")]
    command += ["--learning_rate", "0", "--min_learning_rate", "0", "--warmup_learning_rate", "0"]
    assert main([*command, "--output_dir", str(tmp_path / "run")]) == 0
    one, other = (
        DistilledDeiTForImageClassification.from_pretrained(folder).state_dict()
        for folder in (finished_run, tmp_path / "run")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


MISTAKES = {
    "recipe": (["--recipe", "digit"], "did you mean 'digits'"),
    "argument": (["--learning_rat", "1"], "did you mean 'learning_rate'"),
    "value": (["--learning_rate", "fast"], "learning_rate"),
    "choice": (["--distillation_type", "hrd"], "hard"),
    "range": (["--distillation_alpha", "2"], r"\[0, 1\]"),
    "student": (["--student", "deit_tiny_destilled_patch16_224"], "did you mean 'deit_tiny_distilled_patch16_224'"),
    "override": (["--student_overrides", '{"hiden_size": 3}'], "did you mean 'hidden_size'"),
    "impossible student": (["--student_overrides", '{"hidden_size": 10, "num_attention_heads": 3}'], "divide"),
    "json": (["--student_overrides", "{hidden"], "JSON"),
    "teacher": (["--teacher_model_name_or_path", "nobody/nothing"], "cannot load the teacher 'nobody/nothing'"),
    "teacher dtype": (["--teacher_model_name_or_path", "TEACHER", "--teacher_dtype", "int3"], "float32, bfloat16"),
    "teacher and none": (["--distillation_type", "none", "--teacher_model_name_or_path", "TEACHER"], "drop one"),
    "data set": (["--dataset_name", "nobody/nothing"], "cannot load the data set 'nobody/nothing'"),
    "both data": (["--train_dir", "somewhere", "--dataset_name", "something"], "either --dataset_name or --train_dir"),
    "augmentation": (["--auto_augment", "nonsense"], "no policy of timm"),
    "fraction": (["--validation_fraction", "1.5"], r"\(0, 1\)"),
    "metric": (["--metric_for_best_model", "eval_accuracy"], "did you mean 'top1'"),
    "checkpoint": (["--resume_from_checkpoint", "nowhere"], "no whole checkpoint"),
    "nothing to resume": (["--resume_from_checkpoint", "true"], "no checkpoint to resume from"),
    "output is a file": (["--output_dir", "A_FILE"], "cannot write to the output folder"),
    "unwritable output": (["--output_dir", "/proc/run"], "cannot write to the output folder"),
    "another run": (["--output_dir", "FINISHED"], "holds another run"),
    "scheduler": (["--lr_scheduler_type", "cosinus"], "cosinus"),
    "other images": (["--train_dir", "somewhere", "--validation_split", "test"], "give --validation_dir, or leave it"),
    "images' size": (["--crop_scale_min", "0.2"], "crop_scale_min is of the random resized crops"),
    "new weights": (["--freeze", "all_but_heads"], "is made anew: leave it out, or name a checkpoint with --student"),
    "nothing to push": (["--hub_strategy", "checkpoint"], "give --push_to_hub true"),
    "no training": (
        ["--do_train", "false", "--do_eval", "true", "--do_predict", "true"],
        "hf-deit train always trains",
    ),
    "another action": (["--evaluate", "true"], "there is no argument .evaluate.: .*evaluate method"),
    "no predictions": (["--prediction_loss_only", "true"], "prediction_loss_only must be False"),
    "batches apart": (["--eval_do_concat_batches", "false"], "eval_do_concat_batches must be True"),
    "batch by batch": (["--batch_eval_metrics", "true"], "batch_eval_metrics must be False"),
    "optimizer": (["--optim", "lomo"], "cannot make the optimizer 'lomo'"),
    "tracker": (["--report_to", "neptune"], "pip install neptune"),
    "teacher recipe": (["--teacher_recipe", "digit_teacher"], "did you mean 'digits_teacher'"),
    "teacher recipe, labels": (["--teacher_recipe", "nothing", "--teacher_labels", "STORE"], "no recipe 'nothing'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_in_one_message(main, tmp_path, capsys, finished_run, mistake):
    arguments, message = MISTAKES[mistake]
    (tmp_path / "file").write_text("")
    places = {"TEACHER": finished_run / "teacher", "A_FILE": tmp_path / "file", "FINISHED": finished_run}
    places["STORE"] = tmp_path / "kept" / "labels"
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    base = [] if "--recipe" in arguments else ["--recipe", "debug"]
    output = [] if "--output_dir" in arguments else ["--output_dir", str(tmp_path / "new" / "run")]
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    assert main([*base, *output, "--use_cpu", "true", *arguments]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} == {"file"}  # no folder, so that the mended command can take it
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_teacher_of_other_classes_is_refused(main, tmp_path, capsys, finished_run):
    train = image_folder(tmp_path / "train", {"cat": 12, "dog": 12})
    recipe = yaml.safe_load((ROOT / "hf_deit" / "recipes" / "start" / "debug.yaml").read_text())
    del recipe["dataset_name"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    command = ["--recipe", str(tmp_path / "mine.yaml"), "--train_dir", train, "--output_dir", str(tmp_path / "run")]
    command += ["--teacher_model_name_or_path", str(finished_run / "teacher"), "--use_cpu", "true"]
    assert main(command) == 2
    assert "has 10 labels (0, 1, 2, …), expected 2 (cat, dog)" in capsys.readouterr().err


def test_broken_image_in_a_worker_stops_with_its_path_only(main, tmp_path, capsys, finished_run):
    train = image_folder(tmp_path / "train", {str(index): 4 for index in range(10)}, size=64)
    broken = tmp_path / "train" / "3" / "2.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    recipe = yaml.safe_load((ROOT / "hf_deit" / "recipes" / "start" / "debug.yaml").read_text())
    del recipe["dataset_name"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    command = ["--recipe", str(tmp_path / "mine.yaml"), "--train_dir", train, "--validation_dir", train]
    command += ["--teacher_model_name_or_path", str(finished_run / "teacher"), "--use_cpu", "true"]
    command += ["--dataloader_num_workers", "1", "--output_dir", str(tmp_path / "run")]
    assert main(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert str(broken) in error[0]


# One run at a time in a folder


@pytest.fixture(scope="module")
def lock_holder():
    holder = LockHolder()
    yield holder
    holder.end()


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = (path for path in folder.rglob("*") if path.name != ".run.lock")
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def test_a_second_run_in_a_folder_changes_nothing_there(main, lock_holder, tmp_path, capsys, finished_run):
    """Neither a new one, nor one that would go on, say after its torn checkpoints are removed, nor one from Python."""
    run, new = tmp_path / "run", tmp_path / "new"
    shutil.copytree(finished_run, run)
    (run / "checkpoint-6" / "trainer_state.json").unlink()  # the first one is just writing it
    (run / "_publishing").mkdir()
    (run / "_publishing" / "model.safetensors").touch()
    for folder in (run, new):
        assert lock_holder.take(folder) == "holds"
        before = contents(folder)
        command = ["--recipe", "debug", "--output_dir", str(folder), "--use_cpu", "true"]
        for wish in ([], ["--resume_from_checkpoint", "true"]):
            assert main([*command, *wish]) == 2
            message = capsys.readouterr().err
            assert f"holds the folder '{folder}' (process {lock_holder.process.pid} on " in message
            assert "give another folder (--output_dir)" in message
        trainer = tiny.trainer(tiny.student(), tiny.arguments(folder, distillation_type="none"))
        for call in (trainer.train, trainer.save_model, lambda folder=folder: publish_folder(folder, "ada/student")):
            with pytest.raises(InputError, match="another run holds the folder"):
                call()
        assert contents(folder) == before
        lock_holder.release()


def test_a_run_holds_its_folder_to_the_end_and_its_teachers_with_it(main, tmp_path, monkeypatch):
    run, held = tmp_path / "run", []
    save = DistillationTrainer.save_model

    def watch(trainer, *arguments, **settings):
        save(trainer, *arguments, **settings)
        held.append([path.relative_to(run) for path in tmp_path.rglob(".run.lock*")])

    monkeypatch.setattr(DistillationTrainer, "save_model", watch)
    (run / "teacher.unfinished").mkdir(parents=True)
    gone = {"host": "here", "machine": "", "pid": 1, "began": None, "since": "", "command": "", "token": ""}
    (run / ".run.lock").write_text(json.dumps(gone))  # of a run on another machine, which was killed
    os.utime(run / ".run.lock", (0, 0))
    command = ["--recipe", "debug", "--output_dir", str(run), "--use_cpu", "true", "--max_steps", "1"]
    assert main([*command, "--save_steps", "1"]) == 0
    assert held == [[Path(".run.lock")]] * len(held) and len(held) >= 3  # also while the teacher is saved
    assert not list(run.rglob(".run.lock*"))


def test_a_refused_run_leaves_no_lock(main, tmp_path, capsys):
    command = ["--recipe", "debug", "--use_cpu", "true", "--distillation_type", "none"]
    (tmp_path / "there").mkdir()
    for folder in ("there", "new"):
        assert main([*command, "--output_dir", str(tmp_path / folder), "--dataset_name", str(tmp_path / "none")]) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_who_trains_from_python_holds_the_folder_as_long(tmp_path):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none", max_steps=1))
    held = []
    trainer.add_callback(on_step_end(lambda: held.append((tmp_path / ".run.lock").exists())))
    trainer.train()
    trainer.save_model()
    assert held == [True] and not (tmp_path / ".run.lock").exists()
    trainer.add_callback(on_step_end(press_control_c))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (tmp_path / ".run.lock").exists()


def test_who_trains_from_python_and_saves_nothing_needs_no_folder_to_write_to(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(run_lock, "_write_new", refuse)
    settings = {"distillation_type": "none", "max_steps": 1}
    tiny.trainer(tiny.student(), tiny.arguments(tmp_path, **settings)).train()
    with pytest.raises(InputError, match=r"cannot write to the output folder .*Read-only"):
        tiny.trainer(tiny.student(), tiny.arguments(tmp_path, **settings, save_strategy="epoch")).train()


def test_who_has_lost_the_folder_writes_no_checkpoint(lock_holder, tmp_path):
    args = tiny.arguments(tmp_path, distillation_type="none", max_steps=2, save_strategy="steps", save_steps=1)
    trainer = tiny.trainer(tiny.student(), args)

    def lose() -> None:
        (tmp_path / ".run.lock").unlink()
        assert lock_holder.take(tmp_path) == "holds"

    trainer.add_callback(on_step_end(lose))
    with pytest.raises(CheckpointError, match=f"lost its folder: .*process {lock_holder.process.pid} on"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    lock_holder.release()


def on_step_end(function):
    callback = TrainerCallback()
    callback.on_step_end = lambda *_, **__: function()
    return callback
