"""The benchmark Jobs run after everything else, and only where GuideLLM is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_stage.run.context import RUN

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the Jobs with the simulated engine: GuideLLM is part of the real engine's environment."""
    if collection_path.name != "test_jobs.py":
        return None
    return config.stash[RUN].config.simulated or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the Jobs last; the plugin then sorts load steps among each other as they are here."""
    items.sort(key=lambda item: item.path.parent == HERE)
