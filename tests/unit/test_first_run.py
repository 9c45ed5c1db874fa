"""A run builds and downloads what it needs, and nothing else."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import ahead, environment, simulated, weights
from pytest_vllm_stage.engine.environment import EngineEnvironment
from pytest_vllm_stage.session import lifecycle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_vllm_stage.run.context import Run

ENGINE = EngineEnvironment(Path("/engine/bin/python"), Path("/engine"), Path("/usr"), {})
CLUSTER = ClusterFacts("local", "/k", "c", "v1.34.4", "kubectl", True, True, "/state")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was built, in this order; nothing is."""
    done: list[str] = []

    def note(name: str, result: Any) -> Any:
        def build(*_: object, **__: object) -> Any:
            done.append(name)
            return result

        return build

    @contextmanager
    def create_engine() -> Iterator[None]:
        done.append("engine ahead")
        yield
        done.append("end of engine ahead")

    monkeypatch.setattr(local, "ensure_packages", note("packages", None))
    monkeypatch.setattr(local, "sweep", lambda journal: [])
    monkeypatch.setattr(local, "start", note("cluster", CLUSTER))
    monkeypatch.setattr(local.components, "ensure", note("components", {}))
    monkeypatch.setattr(environment, "ensure", note("engine", ENGINE))
    monkeypatch.setattr(weights, "ensure", note("weights", {"model": Path("/weights/model")}))
    monkeypatch.setattr(simulated, "ensure", note("simulated engine", (ENGINE, Path("/weights"))))
    monkeypatch.setattr(ahead, "creating_engine", create_engine)
    return done


def run(*, is_simulated: bool) -> Run:
    config = SimpleNamespace(simulated=is_simulated, reuse="", cluster_kind="local")
    identity = SimpleNamespace(controller_pid=1)
    return cast("Run", SimpleNamespace(config=config, identity=identity, run_id="r", journal=Journal()))


def set_components_built(monkeypatch: pytest.MonkeyPatch, are_built: bool) -> None:
    monkeypatch.setattr(local.components, "are_built", lambda: are_built)


def test_first_run_creates_the_engine_while_components_are_built(
    built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_components_built(monkeypatch, False)
    lifecycle.make_cluster(run(is_simulated=False))
    assert built == [
        *("engine ahead", "packages", "components", "engine", "weights", "end of engine ahead", "cluster"),
    ]


def test_later_run_starts_no_process_for_the_engine(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_components_built(monkeypatch, True)
    lifecycle.make_cluster(run(is_simulated=False))
    assert built == ["packages", "components", "engine", "weights", "cluster"]


@pytest.mark.parametrize("are_built", [False, True])
def test_simulated_run_creates_neither_engine_nor_weights(
    are_built: bool, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_components_built(monkeypatch, are_built)
    lifecycle.make_cluster(run(is_simulated=True))
    assert built == ["packages", "components", "simulated engine", "cluster"]
