"""Profiles: what is shipped parses, and every mistake is refused with the key's full name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.settings.profile import DEFAULT_WAITS_S, Profile, load_profile, parse_profile


def minimal() -> dict[str, Any]:
    return {
        "name": "p",
        "overlay": "overlay",
        "namespace": "n",
        "models": {"full": {"inference_service": "one"}},
    }


@pytest.fixture
def parse(tmp_path: Path) -> Any:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    return lambda data: parse_profile(data, tmp_path / "p.toml")


@pytest.mark.parametrize("path", sorted((fixtures_dir() / "profiles").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_parse_and_are_named_as_their_file(path: Path) -> None:
    profile = load_profile(path.stem, Path())
    assert profile.name == path.stem
    assert set(tomllib.loads(path.read_text())["models"]) == set(profile.models)


def test_waits_default_and_are_overridden_one_by_one(parse: Any) -> None:
    profile: Profile = parse(minimal() | {"waits": {"minio_s": 7}})
    assert profile.waits_s == DEFAULT_WAITS_S | {"minio_s": 7.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "p.toml: name: is missing"),
        ({"namespace": ""}, "p.toml: namespace: must be a text that is not empty"),
        ({"models": {}}, "p.toml: models.<role>: at least one model is needed"),
        ({"models": {"full": {}}}, "p.toml: models.full.inference_service: is missing"),
        ({"models": {"full": {"inference_service": "x", "gpu": 1}}}, "models.full.gpu: is unknown; valid keys: "),
        (
            {"models": {"full": {"inference_service": "x", "rate_limit_requests_per_s": -1}}},
            "models.full.rate_limit_requests_per_s: must be a number above 0, not -1",
        ),
        (
            {"models": {"full": {"inference_service": "x", "cannot": {"fly": "x"}}}},
            "cannot.fly: is no capability; valid: ",
        ),
        ({"models": {"full": {"inference_service": "x", "cannot": {"tools": ""}}}}, "cannot.tools: must be a text"),
        (
            {"models": {"full": {"inference_service": "x", "tool_format": "x"}}},
            "full.tool_format: is 'x'; valid: hermes",
        ),
        ({"models": {"full": {"inference_service": "x", "reference": "x"}}}, "reference: there is no file x.json in "),
        ({"waits": {"minio": 1}}, "waits.minio: is unknown; valid keys: "),
        ({"waits": {"minio_s": True}}, "waits.minio_s: must be a number above 0, not True"),
        ({"overlay": "nowhere"}, "overlay: there is no kustomization in fixtures/overlays/nowhere"),
        ({"options": {"profile": "x"}}, "options.profile: is no option; valid: "),
        ({"extra": 1}, "p.toml: extra: is unknown; valid keys: "),
    ],
)
def test_a_mistake_is_refused_by_the_keys_name(parse: Any, change: dict[str, Any], message: str) -> None:
    data = {key: value for key, value in (minimal() | change).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert message in str(caught.value)


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'nope'; valid: .*local"):
        load_profile("nope", Path())


def test_where_results_go_has_a_default_and_is_overridden_by_role(parse: Any) -> None:
    assert parse(minimal()).registry.bucket == "test-results"
    found = parse(
        minimal() | {"registry": {"bucket": "b", "models": {"full": {"model": "m", "version": "v"}}}}
    ).registry
    assert (found.bucket, found.models["full"].model, found.models["full"].version) == ("b", "m", "v")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"buckets": "b"}, "registry.buckets: is unknown; valid keys: bucket, models"),
        ({"models": {"quant": {}}}, "registry.models.quant: is no role; valid: full"),
        ({"models": {"full": {"name": "m"}}}, "registry.models.full.name: is unknown; valid keys: model, version"),
    ],
)
def test_a_wrong_registry_table_is_refused_by_its_key(parse: Any, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(minimal() | {"registry": table})
    assert message in str(caught.value)


def test_a_model_is_known_by_its_role_or_its_served_name(parse: Any, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    cannot = {"tools": "no parser"}
    one = {"inference_service": "one", "cannot": cannot, "tool_format": "hermes", "reference": "r.json"}
    profile: Profile = parse(minimal() | {"models": {"full": one, "quantized": {"inference_service": "two"}}})
    assert profile.model_of("full", "whatever") is profile.models["full"]
    assert profile.model_of("endpoint", "two") is profile.models["quantized"]
    assert profile.model_of("endpoint", "three") is None
    full = profile.models["full"]
    assert (full.cannot, full.tool_format, full.reference) == (cannot, "hermes", (tmp_path / "r.json").resolve())
    assert not [key for key in profile.facts() if key.endswith(("cannot", "reference", "tool_format"))]
