"""Labels of the suites in Allure's behaviours view: epic, feature (the suite) and story (the module)."""

from __future__ import annotations

from pathlib import Path

import pytest

SUITES = Path(__file__).parent
EPIC = "vLLM serving stage"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the labels before allure-pytest selects tests by them (``--allure-features=inference``)."""
    for item in items:
        if not item.path.is_relative_to(SUITES):
            continue
        story = item.path.stem.removeprefix("test_").replace("_", " ")
        for kind, value in (("epic", EPIC), ("feature", item.path.parent.name), ("story", story)):
            item.add_marker(pytest.mark.allure_label(value, label_type=kind))
