"""The package keeps its shape: imports point one way, its version stands in one place."""

import ast
from pathlib import Path

import pytest

import hf_deit

PACKAGE = Path(hf_deit.__file__).parent
# Modules of a layer import from earlier layers and, within a layer, only as listed order allows.
LAYERS = [
    ["errors", "processes"],
    ["configuration_deit", "configuration_cait", "losses", "metrics", "views", "environment", "hub", "plots"],
    ["modeling_common", "modeling_deit", "modeling_cait", "image_processing_deit", "augment", "batch_augment"],
    ["zoo", "view_dataset", "columns", "streams", "folders", "data", "label_identity", "label_files"],
    ["epoch_labels", "label_hub", "label_store", "label_names", "teacher", "student"],
    ["training_args", "checks", "loading", "checkpoints", "optimization", "averaging", "step_record", "callbacks"],
    ["run_facts", "label_access", "kept_labels"],
    ["run_card", "publishing", "publishing_trainer", "safe_trainer", "preview", "trainer"],
    ["checkpoint_formats", "conversion"],
    ["recipes", "sources", "inputs"],
    ["run", "labelling", "benchmarks"],
]
ORDER = [module for layer in LAYERS for module in layer]


def source_files() -> dict[str, Path]:
    files = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    return {**files, "recipes": PACKAGE / "recipes" / "__init__.py"}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, relatively."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add((node.module or "").split(".")[0])
    return found


def test_every_module_has_its_layer():
    assert set(source_files()) == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    allowed = set(ORDER[: ORDER.index(module)])
    assert imports_of(source_files()[module]) <= allowed


def test_files_stay_small_enough_to_read():
    # transformers' convention is one file per model, so that a reader finds all of it in one place.
    limits = {"modeling_deit": 500}
    lengths = {name: len(path.read_text().splitlines()) for name, path in source_files().items()}
    assert {name: length for name, length in lengths.items() if length > limits.get(name, 450)} == {}


def test_package_is_typed_and_versioned_in_one_place():
    assert (PACKAGE / "py.typed").is_file()
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f'version = "{hf_deit.__version__}"' in pyproject
