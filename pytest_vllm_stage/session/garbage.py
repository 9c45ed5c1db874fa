"""Python's garbage collector during pytest's collection, which makes many objects and next to no garbage.

Scanning them again and again took half of what a worker spent before its first test, and at its end once more.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import pytest

from pytest_vllm_stage.session.exclusive import uses_stage

#: The process that has collected: pytest may run within a test of another one, whose garbage must not be kept.
_collected_by: int | None = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Pause the garbage collector; a suite that has switched it off itself keeps it off."""
    if not gc.isenabled():
        return (yield)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what a run of a stage's checks has collected out of all later scans: it is needed until the end."""
    global _collected_by
    if _collected_by == os.getpid():
        return
    _collected_by = os.getpid()
    if any(uses_stage(item) for item in session.items):
        gc.freeze()
