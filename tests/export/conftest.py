"""What several files need, and what takes seconds to make."""

from typing import Any

import pytest
from support.classifier_folders import save_classifier


@pytest.fixture(scope="session")
def of_page(tmp_path_factory) -> tuple[Any, Any]:
    """The source of a classifier with two heads, and what its page's model does after the preprocessing."""
    from hf_deit.export.programs.page_program import _core_model
    from hf_deit.export.programs.source import load_source

    source = load_source(save_classifier(tmp_path_factory.mktemp("classifier") / "my-model"))
    return source, _core_model(source)
