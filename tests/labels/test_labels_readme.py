"""The manual of kept labels says what is so: its commands resolve, its code runs, its tables name what there is."""

import dataclasses
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support.stores import VIEWS, fill, identity, verdicts

import hf_deit.labels
from hf_deit import TeacherLabelStore
from hf_deit.labels.top_k import top_logits
from hf_deit.recipes import ARGUMENT_CLASSES
from hf_deit.recipes.resolve import resolve_arguments

ROOM = Path(hf_deit.labels.__file__).parent
README = (ROOM / "README.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").strip().splitlines()
]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[1] != "publish"], ids=" ".join)
def test_commands_resolve(command):
    program, name, *rest = command
    assert program == "hf-deit" and name in ("train", "label")
    if name == "label":
        at = rest.index("--epochs")
        assert re.fullmatch(r"\d+:\d+", rest[at + 1])
        del rest[at : at + 2]
    resolve_arguments([*rest, "--use_cpu", "true"])


def test_arguments_exist():
    known = {field.name for part in ARGUMENT_CLASSES for field in dataclasses.fields(part)}
    assert {*re.findall(r"--(\w+)", README)} <= known | {"recipe", "epochs"}


def test_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "outputs" / "labels")
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    labels, true_labels = verdicts()
    found = {"true_labels": true_labels}
    exec(compile(code, "README.md", "exec"), found)
    assert (found["labels"] == labels).all()
    assert capsys.readouterr().out == "big/teacher [0]\n"


def test_tables_name_the_columns_the_files_and_the_modules(tmp_path):
    with TeacherLabelStore.open(tmp_path, identity(top_k=2)) as store:
        logits = torch.randn(VIEWS, 10)
        store.record(0, torch.arange(VIEWS), logits.argmax(-1), torch.zeros(VIEWS), top=top_logits(logits, 2))
        store.flush()
        assert store.finish_epoch(0)
    rows = re.findall(r"^\| (`.*?) \|", README, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall("`(.*?)`", row)}
    assert {*pq.read_schema(tmp_path / "data" / "epoch-00000.parquet").names} <= named
    assert {path.name for path in ROOM.glob("*.py")} - {"__init__.py"} <= named
    assert {"store.json", "data/epoch-NNNNN.parquet", "parts/"} <= named
