"""Locks in files that are removed after use: who holds one excludes others, whatever is removed meanwhile."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from pytest_vllm_stage.session.access_lock import remove_unused, try_lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access" / "endpoint.lock"


def hold(path: Path, *, exclusive: bool) -> int:
    descriptor = try_lock(path, exclusive=exclusive)
    assert descriptor is not None
    return descriptor


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_exclusive_access_excludes_every_other(path: Path, first: bool, second: bool) -> None:
    held = hold(path, exclusive=first)
    assert try_lock(path, exclusive=second) is None
    os.close(held)
    os.close(hold(path, exclusive=second))


def test_shared_access_allows_others(path: Path) -> None:
    for held in (hold(path, exclusive=False), hold(path, exclusive=False)):
        os.close(held)


@pytest.mark.parametrize("exclusive", [True, False])
def test_only_unused_files_are_removed(path: Path, exclusive: bool) -> None:
    held = hold(path, exclusive=exclusive)
    abandoned = path.with_name("abandoned.lock")
    abandoned.touch()
    remove_unused(path.parent)
    assert not abandoned.exists()
    assert try_lock(path, exclusive=True) is None
    os.close(held)
    remove_unused(path.parent)
    assert list(path.parent.iterdir()) == []


def test_a_file_that_is_removed_between_opening_and_locking_is_not_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def remove_first(descriptor: int, kind: int) -> None:
        monkeypatch.undo()
        remove_unused(path.parent)
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    assert try_lock(path, exclusive=True) is None
    held = hold(path, exclusive=True)
    assert try_lock(path, exclusive=True) is None
    os.close(held)


def test_a_file_that_another_process_made_again_is_not_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    path.touch()
    flock, held = fcntl.flock, []

    def replace_first(descriptor: int, kind: int) -> None:
        monkeypatch.undo()
        path.rename(path.with_suffix(".removed"))
        held.append(hold(path, exclusive=True))
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    remove_unused(path.parent)
    assert try_lock(path, exclusive=True) is None
    os.close(held[0])
