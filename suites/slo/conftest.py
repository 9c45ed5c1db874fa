"""A capacity is searched only on request: the search takes several steps per model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_stage.run.context import RUN


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the search out of an ordinary run."""
    if collection_path.name != "test_capacity.py":
        return None
    return not config.stash[RUN].config.find_capacity or None
