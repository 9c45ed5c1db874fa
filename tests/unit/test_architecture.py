"""Imports point downward only, no module is long, and what is public is documented where a user looks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_vllm_stage
from pytest_vllm_stage.serving.target import SIMULATED_ENGINE
from pytest_vllm_stage.standins.engine import SERVER

PACKAGE = Path(__file__).parents[2] / "pytest_vllm_stage"
#: Re-exports what a suite's author needs, each name on first use.
PUBLIC = PACKAGE / "__init__.py"

#: From the top down; a module imports from its own room and from those below. Names are packages or modules.
LAYERS = (
    ("plugin", "fixtures"),
    ("session",),
    ("checks", "report", "resilience"),
    ("publication",),
    ("benchmark",),
    ("load", "slo"),
    ("measurement",),
    ("serving",),
    ("stage",),
    ("cluster", "engine"),
    ("run",),
    ("settings",),
    ("core", "standins", "__init__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[str]:
    """The layers that a module imports from, imports inside functions and for annotations included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == PACKAGE.name:
                    yield parts[1] if len(parts) > 1 else "__init__"


def test_the_walk_sees_the_package() -> None:
    assert len(modules()) > 20
    assert "session" in set(imports(PACKAGE / "plugin.py"))


def test_imports_point_downward() -> None:
    upward = {
        str(path.relative_to(PACKAGE)): above
        for path in modules()
        if path != PUBLIC
        and (above := sorted(name for name in imports(path) if RANK.get(name, 99) < RANK[layer_of(path)]))
    }
    assert not upward, f"modules that import from rooms above their own: {upward}"


def test_every_layer_is_declared() -> None:
    assert {layer_of(path) for path in modules()} <= set(RANK)


def test_no_module_has_two_jobs() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_no_two_test_modules_share_a_name() -> None:
    """Pytest imports them by their bare names: two of one name stop a run of all tests at collection."""
    paths = sorted(Path(__file__).parents[1].rglob("test_*.py"))
    assert len(paths) > 50
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, []).append(path)
    assert [same for same in by_name.values() if len(same) > 1] == []


def test_nothing_imports_a_stand_in_and_a_stand_in_imports_next_to_nothing() -> None:
    """A stand-in is a process of its own: product code must not know it, and a pod has no more than its modules."""
    importers = {layer_of(path) for path in modules() if "standins" in set(imports(path))}
    assert importers <= {"standins"}
    below = {name for path in modules() if layer_of(path) == "standins" for name in imports(path)}
    assert below <= {"standins", "core", "__init__"}


def test_the_mark_of_the_simulated_engine_is_the_one_that_it_sends() -> None:
    assert SIMULATED_ENGINE == SERVER


def test_the_public_names_are_sorted_and_import_what_they_say() -> None:
    assert pytest_vllm_stage.__all__ == sorted(pytest_vllm_stage.__all__)
    assert len(pytest_vllm_stage.__all__) > 20
    for name in pytest_vllm_stage.__all__:
        public = getattr(pytest_vllm_stage, name)
        assert public.__name__ == name, f"{name} is called {public.__name__} where it is defined"
        assert public.__module__.startswith("pytest_vllm_stage.")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pytest_vllm_stage.nothing


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    program = "import sys, pytest_vllm_stage; print([name for name in sys.modules if name.startswith('pytest_vllm_')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pytest_vllm_stage']"


def test_no_two_classes_share_a_name() -> None:
    """One name, one class: what an error, a search or a reader names is found in one place."""
    defined: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    shared = {name: paths for name, paths in defined.items() if len(paths) > 1}
    assert not shared
