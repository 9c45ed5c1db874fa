"""--stage-disrupt: what it accepts, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.settings.disruptions import DISRUPTIONS
from pytest_vllm_stage.settings.profile import parse_profile
from pytest_vllm_stage.settings.resolver import resolve_settings

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "small"
[models.full]
inference_service = "one"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    (tmp_path / "small.toml").write_text(PROFILE)
    return tmp_path


def settings(folder: Path, **cli: str) -> StageConfig:
    given = {"profile": "small.toml", **cli}
    return resolve_settings(given.get, {}, lambda _name: None, folder)


def test_all_names_every_disruption_and_a_list_some_in_the_order_of_execution(folder: Path) -> None:
    assert settings(folder, disrupt="all").disruptions == tuple(DISRUPTIONS)
    assert settings(folder, disrupt="engine, rollout").disruptions == ("rollout", "engine")
    assert settings(folder).disruptions == ()


@pytest.mark.parametrize(
    ("cli", "refusal"),
    [
        ({"disrupt": "rolout"}, "--stage-disrupt: unknown disruption 'rolout' (did you mean rollout?)"),
        ({"disrupt": "all", "context": "prod"}, "--stage-context is only read without --stage-deploy"),
        ({"disrupt": "all", "endpoint": "http://h:1"}, "it cannot go with --stage-endpoint"),
        ({"disrupt": "all", "context": "prod", "deploy": "true"}, "--stage-disrupt-cluster=prod, which names it"),
        (
            {"disrupt": "all", "context": "prod", "deploy": "true", "disrupt_cluster": "test"},
            "expected --stage-disrupt-cluster=prod, which names it, got 'test'",
        ),
        ({"disrupt": "all", "reuse": "20261126-1"}, "--stage-disrupt-cluster=20261126-1, which names it, it is not"),
    ],
)
def test_a_stage_that_is_read_or_not_named_is_refused(folder: Path, cli: dict[str, str], refusal: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(folder, **cli)
    assert refusal in str(error.value)


def test_the_cluster_of_this_run_or_one_that_is_named_is_accepted(folder: Path) -> None:
    assert settings(folder, disrupt="pod", cluster="local").disruptions == ("pod",)
    named = {"context": "prod", "deploy": "true", "disrupt_cluster": "prod"}
    assert settings(folder, disrupt="pod", **named).disruptions == ("pod",)
    assert settings(folder, disrupt="pod", reuse="r1", disrupt_cluster="r1").disruptions == ("pod",)


def test_a_profile_cannot_ask_for_disruptions(folder: Path) -> None:
    (folder / "small.toml").write_text(PROFILE + '[options]\ndisrupt = "all"\n')
    with pytest.raises(ConfigError, match=r"options\.disrupt: unknown option"):
        settings(folder)


def test_a_table_of_a_disruption_overrides_and_removes_objectives(folder: Path) -> None:
    tables = {
        "name": "small",
        "overlay": "overlay",
        "namespace": "small",
        "models": {"full": {"inference_service": "one"}},
        "resilience": {"recovery_s": 60, "failed_requests_max": 3, "rollout": {"recovery_s": False, "ttft_p99_ms": 9}},
    }
    table = parse_profile(tables, folder / "small.toml").resilience
    assert table.objectives("rollout") == {"failed_requests_max": 3, "ttft_p99_ms": 9}
    assert table.objectives("pod") == {"recovery_s": 60, "failed_requests_max": 3}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"rolout": {}}, "unknown key (did you mean rollout?)"),
        ({"rollout": 3}, "expected a table, got 3"),
        ({"failed_requests_max": -1}, "expected a whole number from 0"),
        ({"roles": ["other"]}, "resilience.roles: unknown role"),
    ],
)
def test_a_wrong_table_is_refused(folder: Path, table: dict[str, object], problem: str) -> None:
    tables = {
        "name": "small",
        "overlay": "overlay",
        "namespace": "small",
        "models": {"full": {"inference_service": "one"}},
        "resilience": table,
    }
    with pytest.raises(ConfigError) as error:
        parse_profile(tables, folder / "small.toml")
    assert problem in str(error.value)
