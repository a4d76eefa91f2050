"""The READMEs' commands and code are what works: they are run, with small data in place of the reader's."""

import ast
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.main_of import main_of
from transformers import ResNetConfig, ResNetForImageClassification

from hf_deit import DistilledDeiTImageProcessor, TeacherLabelStore, list_recipes
from hf_deit.commands.main import COMMANDS
from hf_deit.commands.probe import main as probe
from hf_deit.hub.usage import usage

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROOMS = ROOT / "hf_deit"
READMES = sorted(path for folder in (ROOT / "scripts", ROOMS) for path in folder.rglob("README.md"))


def blocks(language: str, path: Path = ROOT / "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


(INFERENCE,) = blocks("python")
(TRAINING,) = blocks("python", ROOMS / "training" / "README.md")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inference_block(here, capsys):
    model = tiny.student()
    model.save_pretrained("outputs/digits")
    tiny.processor().save_pretrained("outputs/digits")
    tiny.digits()[1][0]["image"].save("image.png")
    exec(compile(INFERENCE, "README.md", "exec"), {})
    answers = ast.literal_eval(capsys.readouterr().out.strip())
    assert {answer["label"] for answer in answers} <= {str(digit) for digit in range(10)}
    assert usage("outputs/digits") == INFERENCE.strip()


def make_images(**counts: int) -> None:
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for name in ("cat", "dog"):
            os.makedirs(f"images/{split}/{name}")
            for index in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"images/{split}/{name}/{index}.png")


def test_training_block(here):
    make_images(train=8, validation=4)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label={0: "cat", 1: "dog"}
    )
    ResNetForImageClassification(config).save_pretrained("teacher")
    DistilledDeiTImageProcessor(crop_size=224).save_pretrained("teacher")
    small = TRAINING.replace("my-name/my-finetuned-convnext", "teacher")
    small = small.replace("num_train_epochs=100", "num_train_epochs=1, use_cpu=True")
    small = small.replace("per_device_train_batch_size=64", "per_device_train_batch_size=8")
    assert small.count('teacher"') and "use_cpu" in small
    exec(compile(small, "README.md", "exec"), {})
    assert Path("outputs/mine/model.safetensors").is_file()


def test_three_commands_from_a_folder_to_a_student(here, capsys):
    (block,) = (block for block in blocks("bash") if "hf-deit preview" in block)
    teach, look, distil = (shlex.split(line)[1:] for line in block.replace("\\\n", " ").strip().splitlines())
    make_images(train=12, val=4)
    tiny.resnet().save_pretrained("dinov2-small")
    tiny.processor(crop_size=32).save_pretrained("dinov2-small")
    small = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--eval_strategy", "no"]
    small += ["--dataloader_num_workers", "0", "--dataloader_persistent_workers", "false", "--save_strategy", "no"]
    small += ["--load_best_model_at_end", "false", "--disable_tqdm", "true"]
    sizes = '{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}'
    student = ["--image_size", "32", "--student_overrides", sizes]
    assert look.pop(0) == "preview"
    assert main_of("preview")([*look, *student]) == 0
    assert Image.open("preview.png").size == (8 * (128 + 8), 2 * (128 + 8 + 45))
    teach = [argument.replace("facebook/", "./") for argument in teach]
    assert (teach.pop(0), distil.pop(0)) == ("probe", "train")
    assert probe(teach) == 0
    assert main_of("train")([*distil, *small, *student]) == 0
    printed = capsys.readouterr().out
    assert "The model lies in outputs/own_images" in printed
    assert "distillation head" in printed


def test_a_teacher_that_is_paid_once(here, capsys):
    (block,) = (
        block
        for block in blocks("bash", ROOMS / "labels" / "README.md")
        if "--teacher_labels out" in block and "hf-deit publish" in block
    )
    first, second, publish = (shlex.split(line) for line in block.replace("\\\n", " ").strip().splitlines())
    make_images(train=12, val=4)
    os.makedirs("outputs")
    names = {0: "cat", 1: "dog"}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label=names)
    ResNetForImageClassification(config).save_pretrained("outputs/teacher")
    tiny.processor(crop_size=32).save_pretrained("outputs/teacher")
    small = [
        "--num_train_epochs",
        "1",
        "--per_device_train_batch_size",
        "8",
        "--use_cpu",
        "true",
        "--image_size",
        "32",
    ]
    small += ["--dataloader_num_workers", "0", "--dataloader_persistent_workers", "false", "--warmup_epochs", "0"]
    small += ["--disable_tqdm", "true", "--student_overrides"]
    small += ['{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}']
    train = main_of("train")
    assert first[:2] == second[:2] == ["hf-deit", "train"]
    assert train([*first[2:], *small]) == 0
    shutil.rmtree("outputs/teacher")
    assert train([*second[2:], *small]) == 0
    printed = capsys.readouterr().out
    assert "The model lies in outputs/small" in printed
    assert re.search(r"kept labels replayed +24\n", printed)
    assert publish[:3] == ["hf-deit", "publish", "outputs/labels"]
    assert TeacherLabelStore.open("outputs/labels", readonly=True).complete_epochs == [0]


def test_every_recipe_has_its_place_in_the_table():
    names = set(re.findall(r"`([a-z0-9_]+)…?`", (ROOMS / "recipes" / "README.md").read_text()))
    shortened = {"deit_small_distilled_1000_epochs"}  # "deit_small_…"
    assert set(list_recipes()) - names == shortened


def test_every_accelerate_configuration_has_its_line_and_is_one():
    from accelerate.commands.config.config_args import load_config_from_file

    folder = ROOT / "scripts" / "accelerate_configs"
    files, readme = sorted(folder.glob("*.yaml")), (folder / "README.md").read_text()
    processes = {}
    for file in files:
        assert f"`{file.name}`" in readme
        assert file.read_text().startswith("# ")
        config = load_config_from_file(str(file))  # refuses unknown keys
        processes[file.stem] = (config.num_machines, config.num_processes, str(config.distributed_type).split(".")[-1])
    assert processes == {
        "cpu_1": (1, 1, "NO"),
        "cpu_2": (1, 2, "MULTI_GPU"),
        "deepspeed_zero2": (1, 8, "DEEPSPEED"),
        "fsdp2": (1, 8, "FSDP"),
        "gpu_1": (1, 1, "NO"),
        "gpu_8": (1, 8, "MULTI_GPU"),
        "nodes_2": (2, 16, "MULTI_GPU"),
    }


def test_ci_runs_the_readmes_own_test_command():
    commands = blocks("bash")
    assert '`python -m pip install -e ".[test]" && python -m pytest`' in README
    assert any("python -m pip install -e . && hf-deit train" in command for command in commands)
    assert '\npython -m pip install -e ".[test]" && python -m pytest\n' in (ROOT / ".ci" / "run").read_text()


NAMED_TEST = re.compile(r"`(\w+/test_\w+\.py)::(test_\w+)`")


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_the_tests_that_a_readme_names_are_there(path):
    named = set(NAMED_TEST.findall(path.read_text()))
    absent = [
        name for file, name in named if not re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.M)
    ]
    assert not absent


def test_every_row_of_the_comparison_with_the_authors_names_its_tests():
    text = (ROOMS / "recipes" / "README.md").read_text()
    _, _, table = text.partition(
        "| | the paper says | the authors' code does | here | test |\n|---|---|---|---|---|\n"
    )
    rows = [line.strip("|").split("|") for line in table.partition("\n\n")[0].splitlines()]
    assert len(rows) >= 30
    assert [row for row in rows if len(row) != 5 or not NAMED_TEST.sub("", row[4]).isspace()] == []
    assert [row for row in rows if not NAMED_TEST.search(row[4])] == []


def test_the_way_in_is_short():
    assert len(README.splitlines()) <= 150


def test_every_command_has_its_line():
    assert [name for name in COMMANDS if f"`hf-deit {name}`" not in README] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *READMES], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_readme_names_exist(path):
    targets = re.findall(r"\]\(((?!http)[^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []
    assert [target for target in targets if Path(target).is_absolute()] == []


def test_the_datas_way_names_what_is_there():
    """In the order of training/README.md: file and function, and the line that computes the loss."""
    text = (ROOMS / "training" / "README.md").read_text()
    for target, name in re.findall(r"\]\(([\w./]+\.py)\)\s+`(\w+)[\w.]*`", text):
        source = (ROOMS / "training" / target).read_text()
        assert re.search(rf"^(\s*(def|class) )?{name}\b", source, flags=re.MULTILINE), (target, name)
    assert "`loss = (1 - self.alpha) * class_loss + self.alpha * teacher_loss`" in text
    assert (
        "loss = (1 - self.alpha) * class_loss + self.alpha * teacher_loss\n"
        in (ROOMS / "training" / "objective.py").read_text()
    )
