"""The package keeps its shape: rooms whose imports point one way, one version in one place."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_deit

PACKAGE = Path(hf_deit.__file__).parent
# A room imports from the rooms of earlier lines alone.
ORDER = [
    {"errors"},
    {"models"},
    {"data", "hub"},
    {"labels"},
    {"training"},
    {"evaluation"},
    {"export"},
    {"recipes"},
    {"commands"},
]
ROOMS = sorted(set().union(*ORDER))
INIT = (PACKAGE / "__init__.py").read_text()
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file of the package imports from, at its top or later."""
    package = ["hf_deit", *path.parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            names = [*parents, *(node.module or "").split(".")] if node.module else parents
            found |= {tuple(names)} if len(names) > 1 else {(*names, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
    return {name[1] for name in found if name[0] == "hf_deit" and len(name) > 1}


def test_the_package_has_these_rooms_and_no_others():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py") and path.name != "__pycache__"}
    assert names - {"__init__", "__main__"} == set(ROOMS)
    assert len(ROOMS) <= 10


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path):
    room = path.parts[0]
    number = next(index for index, rooms in enumerate(ORDER) if room in rooms)
    earlier = set().union(*ORDER[:number])
    assert imported_rooms(path) - {room} <= earlier


def imported_siblings(path: Path) -> set[str]:
    """Files of its own room that a file imports as it is loaded, by name."""
    nodes = ast.parse((PACKAGE / path).read_text()).body
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module}


@pytest.mark.parametrize("room", sorted({path.parts[0] for path in FILES}))
def test_the_files_of_a_room_do_not_import_each_other_in_circles(room):
    """Else it depends on which of them is asked for first whether they can be loaded."""
    graph = {path.stem: imported_siblings(path) for path in FILES if path.parts == (room, path.name)}
    assert set(TopologicalSorter(graph).static_order()) >= graph.keys()


def test_the_import_tests_can_tell():
    assert imported_rooms(Path("commands/train.py")) > {"errors", "training"}
    assert imported_rooms(Path("evaluation/benchmarks/label_store.py")) > {"labels", "models"}
    assert imported_siblings(Path("training/trainer.py")) > {"arguments", "origin"}


def test_every_room_says_in_a_sentence_what_is_in_it():
    for room in set(ROOMS) - {"errors"}:
        first_line = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())).splitlines()[0]
        assert first_line[0].isupper() and first_line.endswith(".") and len(first_line) > 30, room


def test_what_is_published_beside_cait_imports_siblings_alone():
    """transformers copies the files behind `from .x import`, and finds no others."""
    todo, seen = ["modeling_cait.py"], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((PACKAGE / "models" / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module, (name, ast.unparse(node))
                todo += [f"{node.module}.py"] if f"{node.module}.py" not in seen else []
    assert {"keyed.py", "modeling_common.py", "configuration_cait.py", "configuration_deit.py"} < seen


def test_importing_loads_nothing_before_it_is_asked_for():
    heavy = "['torch', 'transformers', 'datasets', 'evaluate', 'timm', 'matplotlib', 'sklearn', 'torchvision']"
    script = f"import hf_deit, sys; print([name for name in {heavy} if name in sys.modules])"
    script += f"; hf_deit.DistillationTrainer; print([name for name in {heavy}[3:7] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize("statement", ["from hf_deit import load_teacher", "import hf_deit.commands.publish"])
def test_auto_classes_know_cait_wherever_models_are_loaded(statement):
    script = f"{statement}; from transformers import CONFIG_MAPPING; from hf_deit import CaiTForImageClassification; "
    script += "print('cait' in CONFIG_MAPPING, CaiTForImageClassification._auto_class)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "AutoModelForImageClassification"]


def test_the_command_says_what_it_can_do_at_once():
    script = "import sys; from hf_deit.commands.main import main; main(['--help']); main(['--version']); main(['x'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("distil", ["--help"], "hf-deit distil IMAGES"),
        ("distil", ["x", "--to", "onxx"], "did you mean 'onnx'?"),
        ("evaluate", ["--help"], "the one to evaluate"),
        ("evaluate", ["--model", "m", "--image_dir", "x"], "--image_dir x; did you mean '--images_dir'?"),
        ("evaluate", ["--model", "m", "--sections", "acuracy"], "did you mean 'accuracy'?"),
        ("predict", ["--help"], "--min_probability P"),
        ("predict", ["--model", "m", "--images", "x", "--output", "x.cvs"], "did you mean '.csv'?"),
        ("export", ["--help"], "onnx, openvino, executorch, torch"),
        ("export", ["--model", "m", "--to", "onxx"], "did you mean 'onnx'?"),
        ("demo", ["--help"], "--to_space NAME"),
        ("demo", ["--model", "m", "--port", "80"], "--port is for --serve"),
        ("benchmark", ["inference", "--help"], "--batch_sizes"),
        ("benchmark", ["inference", "--rounds", "0"], "rounds must lie in"),
        ("benchmark", ["step", "--help"], "losses must agree"),
        ("benchmark", ["step", "--output", "x.csv"], "end in .json, .md or .png"),
    ],
)
def test_options_are_read_before_libraries_are_loaded(command, options, words):
    script = f"import sys; from hf_deit.commands.main import main; print(main(['{command}', *{options}]))"
    script += "; print([name for name in ('torch', 'transformers', 'datasets', 'sklearn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    status = "0" if "--help" in options else "2"
    assert done.stdout.splitlines()[-2:] == [status, "[]"] and words in done.stdout + done.stderr


def test_public_names_are_found_and_others_are_not():
    assert {"DistillationTrainer", "load_teacher", "TeacherLabelStore"} < set(hf_deit.__all__) <= set(dir(hf_deit))
    for name in hf_deit.__all__:
        assert getattr(hf_deit, name).__name__ == name
    for_checkers = ast.walk(next(node for node in ast.parse(INIT).body if isinstance(node, ast.If)))
    names = [alias.name for node in for_checkers if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(names) == hf_deit.__all__
    with pytest.raises(AttributeError, match="no attribute 'DistilationTrainer'"):
        hf_deit.DistilationTrainer  # noqa: B018


def test_package_is_typed_and_versioned_in_one_place():
    assert (PACKAGE / "py.typed").is_file()
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f'version = "{hf_deit.__version__}"' in pyproject


def test_templates_are_installed_with_the_package():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    templates = [path for path in PACKAGE.rglob("templates/*") if path.is_file()]
    rooms = {path: ".".join(("hf_deit", *path.relative_to(PACKAGE).parts[:-2])) for path in templates}
    assert set(rooms.values()) >= {"hf_deit.evaluation.report", "hf_deit.hub", "hf_deit.labels"}
    for path, room in rooms.items():
        assert any(map(path.match, settings["package-data"][room])), path
