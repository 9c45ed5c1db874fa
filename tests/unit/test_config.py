"""The resolver: order of the sources, and every refusal names the option, its source and the valid values."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.settings.config import StageConfig, resolve
from pytest_vllm_stage.settings.options import OPTIONS

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "from-profile"
[models.full]
inference_service = "one"
[options]
keep = "on-failure"
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    path = tmp_path / "small.toml"
    path.write_text(PROFILE)
    return str(path)


def settings(
    profile: str,
    cli: dict[str, str] | None = None,
    env: dict[str, str] | None = None,
    ini: dict[str, str] | None = None,
) -> StageConfig:
    cli = {"profile": profile, **(cli or {})}
    return resolve(cli.get, env or {}, (ini or {}).get, Path())


def test_each_source_beats_the_next(profile: str) -> None:
    cli, env, ini = {"keep": "never"}, {"VLLM_STAGE_KEEP": "always"}, {"keep": "on-failure"}
    seen = [
        settings(profile, cli, env, ini).settings["keep"],
        settings(profile, None, env, ini).settings["keep"],
        settings(profile, None, None, ini).settings["keep"],
        settings(profile).settings["keep"],
        settings(profile).settings["cluster"],
    ]
    assert [(s.value, s.source) for s in seen] == [
        ("never", "--stage-keep"),
        ("always", "VLLM_STAGE_KEEP"),
        ("on-failure", "ini vllm_stage_keep"),
        ("on-failure", "profile"),
        ("auto", "default"),
    ]


def test_an_empty_variable_is_unset(profile: str) -> None:
    assert settings(profile, env={"VLLM_STAGE_CONTEXT": ""}).get("context") is None


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.valid], ids=lambda option: option.name)
@pytest.mark.parametrize("layer", ["cli", "env", "ini"])
def test_a_bad_value_is_refused_with_source_and_valid_values(profile: str, option: object, layer: str) -> None:
    from pytest_vllm_stage.settings.options import Option

    assert isinstance(option, Option)
    key = option.env if layer == "env" else option.name
    with pytest.raises(ConfigError) as caught:
        settings(profile, **{layer: {key: "bogus"}})
    source = {"cli": option.cli, "env": option.env, "ini": f"ini {option.ini}"}[layer]
    assert str(caught.value) == f"{source}: 'bogus' is not valid; valid values: {', '.join(option.valid)}"


@pytest.mark.parametrize(
    ("cli", "named"),
    [
        ({"cluster": "local", "context": "c"}, ["--stage-context", "--stage-cluster"]),
        ({"cluster": "kubeconfig"}, ["--stage-context"]),
        ({"reuse": "latest", "keep": "always"}, ["--stage-reuse", "--stage-keep"]),
        ({"endpoint": "http://h", "cluster": "local"}, ["--stage-endpoint", "--stage-cluster"]),
        ({"endpoint": "http://h", "reuse": "latest"}, ["--stage-endpoint", "--stage-reuse"]),
        ({"endpoint": "http://h/v1"}, ["--stage-endpoint", "/v1"]),
        ({"endpoint": "h:8000"}, ["--stage-endpoint", "http[s]://"]),
        ({"endpoint": "http://u:p@h"}, ["VLLM_STAGE_API_KEY"]),
        ({"model": "m"}, ["--stage-model", "--stage-endpoint"]),
        ({"engine": "sim", "endpoint": "http://h"}, ["--stage-engine", "--stage-endpoint"]),
        ({"engine": "vllm", "endpoint": "http://h"}, ["--stage-engine", "--stage-endpoint"]),
        ({"engine": "sim", "context": "c"}, ["--stage-engine", "cluster that the run itself makes", "--stage-context"]),
        ({"engine": "sim", "context": "c", "deploy": "true"}, ["--stage-engine", "--stage-context"]),
        ({"engine": "sim", "cluster": "kubeconfig", "reuse": "r"}, ["--stage-engine", "--stage-cluster"]),
        ({"engine": "sim"}, ["--stage-engine", "profile small cannot be simulated", "overlay-sim"]),
        ({"ca_file": "no-such-file"}, ["--stage-ca-file", "no-such-file"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_contradictions_are_refused_by_name(profile: str, cli: dict[str, str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(profile, cli)
    assert all(name in str(caught.value) for name in named)


def test_a_password_in_the_url_is_not_repeated(profile: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(profile, {"endpoint": "http://user:hunter2@h"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("cli", "kind", "deploys"),
    [
        ({}, "local", True),
        ({"context": "prod"}, "kubeconfig", False),
        ({"context": "prod", "deploy": "true"}, "kubeconfig", True),
        ({"endpoint": "http://h:1"}, "local", False),
    ],
)
def test_an_existing_cluster_is_only_read_unless_told(
    profile: str, cli: dict[str, str], kind: str, deploys: bool
) -> None:
    config = settings(profile, cli)
    assert (config.cluster_kind, config.deploys) == (kind, deploys)


def test_the_simulated_engine_has_an_overlay_of_its_own_and_is_described_as_what_it_is(
    profile: str, tmp_path: Path
) -> None:
    assert (settings(profile).simulated, settings(profile).profile.overlay.name) == (False, "overlay")
    (tmp_path / "overlay-sim").mkdir()
    (tmp_path / "overlay-sim" / "kustomization.yaml").write_text("resources: []\n")
    config = settings(profile, {"engine": "sim"})
    assert (config.simulated, config.deploys) == (True, True)
    assert config.profile.overlay == tmp_path / "overlay-sim"
    assert config.profile.models["full"].description.startswith("simulated, ")
    assert "SIMULATED" in config.header()
    assert "SIMULATED" not in settings(profile).header()


def test_an_engine_that_the_profile_chose_does_not_pass_for_a_real_one(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(PROFILE + 'engine = "sim"\n')
    with pytest.raises(ConfigError, match=r"^profile: engine sim needs .* --stage-endpoint$"):
        settings(profile, {"endpoint": "http://h"})


def test_roles_come_from_the_profile_or_are_the_endpoint(profile: str) -> None:
    assert settings(profile).roles == ("full",)
    assert settings(profile, {"endpoint": "http://h:1"}).roles == ("endpoint",)


def test_the_header_shows_values_with_sources(profile: str) -> None:
    header = settings(profile, {"namespace": "mine"}).header()
    assert "namespace mine (--stage-namespace)" in header
    assert "keep on-failure (profile)" in header
    assert "cluster" not in header


def test_only_a_stage_that_the_run_deployed_is_published_to_unless_told(profile: str) -> None:
    attached = {"cluster": "kubeconfig", "context": "c"}
    assert settings(profile).publishes
    assert not settings(profile, attached).publishes
    assert settings(profile, attached | {"publish": "always"}).publishes
    assert not settings(profile, {"publish": "never"}).publishes


@pytest.mark.parametrize("url", ["registry:8080", "ftp://registry", "http://registry/api/model_registry", "http://"])
def test_a_registry_url_that_is_no_servers_is_refused(profile: str, url: str) -> None:
    with pytest.raises(ConfigError, match=r"--stage-registry-url: .* is no URL of a server"):
        settings(profile, {"registry_url": url})


@pytest.mark.parametrize("url", ["http://u:sesame@registry:8080", "ftp://u:sesame@registry"])
def test_a_token_in_the_registry_url_is_not_repeated(profile: str, url: str) -> None:
    with pytest.raises(ConfigError, match="put the token into VLLM_STAGE_REGISTRY_TOKEN") as caught:
        settings(profile, {"registry_url": url})
    assert "sesame" not in str(caught.value)
