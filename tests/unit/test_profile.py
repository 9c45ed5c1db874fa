"""Profiles: what is shipped parses, and every mistake is refused with the key's full name."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.benchmark.plans import horizon_of
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.settings.profile import DEFAULT_WAITS_S, Profile, load_profile, parse_profile
from pytest_vllm_stage.settings.profile_schema import (
    all_tables,
    fill_tables,
    marked_tables,
    profile_schema,
    schema_path,
)
from pytest_vllm_stage.settings.slo_tables import GATED_METRICS, OBJECTIVE_KEYS, RegressionTable
from pytest_vllm_stage.slo.growth import HORIZON_S
from pytest_vllm_stage.slo.objectives import ERROR_RATE, FLOORS, GATEWAY_ADDED_TTFT, LATENCY_KEYS
from pytest_vllm_stage.slo.regression import WORSE

DOCS = Path(__file__).parents[2] / "docs" / "profiles.md"


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


ONE = {"inference_service": "x"}
LOAD = {"duration_s": 60, "prompt_tokens": 256, "output_tokens": 128}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name: required key is missing"),
        ({"name": "a/b"}, "name: expected a name of letters, digits, '.', '_' and '-', got 'a/b'"),
        (
            {"namespace": ""},
            "namespace: expected a namespace of lower-case letters, digits and '-', at most 63, got ''",
        ),
        ({"description": 1}, "description: expected a string, got 1"),
        ({"models": {}}, "models: at least one model is required, as a table [models.<role>]"),
        ({"models": {"full": {}}}, "models.full.inference_service: required key is missing"),
        ({"models": {"full": 5}}, "models.full: expected a table, got 5"),
        ({"models": {"a/b": ONE}}, "models.a/b: expected a role of letters, digits, '.', '_' and '-'"),
        ({"models": {"endpoint": ONE}}, "models.endpoint: this role is reserved for the server of --stage-endpoint"),
        (
            {"models": {"full": ONE | {"gpu": 1}}},
            "models.full.gpu: unknown key; valid: inference_service, description,",
        ),
        ({"models": {"full": ONE | {"slos": {}}}}, "models.full.slos: unknown key (did you mean slo?); valid: "),
        (
            {"models": {"full": ONE | {"rate_limit_requests_per_s": -1}}},
            "models.full.rate_limit_requests_per_s: expected a number above 0, got -1",
        ),
        (
            {"models": {"full": ONE | {"cannot": {"tool": "x"}}}},
            "full.cannot.tool: unknown capability (did you mean tools?)",
        ),
        (
            {"models": {"full": ONE | {"cannot": {"tools": ""}}}},
            "cannot.tools: expected a string that is not empty, got ''",
        ),
        ({"models": {"full": ONE | {"tool_format": "x"}}}, "full.tool_format: unknown tool format 'x'; valid: hermes"),
        ({"models": {"full": ONE | {"reference": "x"}}}, "models.full.reference: there is no file x.json in "),
        ({"waits": {"minio": 1}}, "waits.minio: unknown key (did you mean minio_s?); valid: namespace_s, "),
        ({"waits": {"minio_s": True}}, "waits.minio_s: expected a number above 0, got true"),
        ({"waits": {"minio_s": float("nan")}}, "waits.minio_s: expected a number above 0, got nan"),
        ({"waits": {"minio_s": float("inf")}}, "waits.minio_s: expected a number above 0, got inf"),
        ({"waits": {"minio_s": "5"}}, "waits.minio_s: expected a number above 0, got '5'"),
        ({"waits": 5}, "waits: expected a table, got 5"),
        (
            {"overlay": "nowhere"},
            "overlay: there is no kustomization in fixtures/overlays/nowhere nor next to the profile",
        ),
        ({"overlay": "x" * 300}, "overlay: there is no kustomization in fixtures/overlays/xxx"),
        ({"overlay": 5}, "overlay: expected a string that is not empty, got 5"),
        ({"options": {"profile": "x"}}, "options.profile: unknown option; valid: cluster, "),
        ({"options": {"run_dir": "x"}}, "options.run_dir: unknown option; valid: cluster, "),
        ({"options": {"keeps": "x"}}, "options.keeps: unknown option (did you mean keep?); valid: "),
        (
            {"options": {"keep": "ever"}},
            "options.keep: unknown value 'ever' (did you mean never?); valid: never, on-fail",
        ),
        ({"options": {"deploy": "true"}}, "options.deploy: expected true or false, got 'true'"),
        ({"options": {"load_seed": True}}, "options.load_seed: expected a whole number from 0, got true"),
        ({"options": {"context": ""}}, "options.context: expected a string that is not empty, got ''"),
        (
            {"extra": 1},
            "extra: unknown key; valid: name, description, overlay, namespace, models, waits, options, load",
        ),
        ({"registry": {"buckets": "b"}}, "registry.buckets: unknown key (did you mean bucket?); valid: bucket, models"),
        ({"registry": {"models": {"quant": {}}}}, "registry.models.quant: unknown role; valid: full"),
        (
            {"registry": {"models": {"full": {"name": "m"}}}},
            "registry.models.full.name: unknown key; valid: model, version",
        ),
        ({"load": LOAD | {"rate": [1]}}, "load.rate: unknown key (did you mean rates?); valid: rates, "),
        ({"load": LOAD | {"rates": [0]}}, "load.rates: expected a list of numbers above 0, got [0]"),
        ({"load": LOAD | {"rates": 5}}, "load.rates: expected a list of numbers above 0, got 5"),
        ({"load": LOAD | {"rates": [1, True]}}, "load.rates: expected a list of numbers above 0, got [1, True]"),
        ({"load": LOAD | {"rates": [5, 5.0]}}, "load.rates: 5 is listed twice"),
        ({"load": LOAD | {"rates": [1, 1.0000001]}}, "load.rates: 1 is listed twice"),
        (
            {"load": LOAD | {"concurrencies": [2.5]}},
            "load.concurrencies: expected a list of whole numbers above 0, got [2.5]",
        ),
        (
            {"load": LOAD | {"arrivals": "closed"}},
            "load.arrivals: unknown arrival process 'closed'; valid: constant, poisson",
        ),
        ({"load": LOAD | {"arrivals": 5}}, "load.arrivals: expected a string, got 5; valid: constant, poisson"),
        (
            {"load": LOAD | {"api": "chats"}},
            "load.api: unknown API 'chats' (did you mean chat?); valid: chat, completions",
        ),
        ({"load": LOAD | {"duration_s": 0}}, "load.duration_s: expected a number above 0, got 0"),
        ({"load": LOAD | {"prompt_tokens": 2.5}}, "load.prompt_tokens: expected a whole number above 0, got 2.5"),
        ({"load": LOAD | {"warmup_requests": -1}}, "load.warmup_requests: expected a whole number from 0, got -1"),
        (
            {"load": {"duration_s": 1, "prompt_tokens": 1}},
            "models.full.load.output_tokens: required key is missing, here and in load",
        ),
        ({"models": {"full": ONE | {"load": {"rates": ["1"]}}}}, "models.full.load.rates: expected a list of numbers"),
        (
            {"slo": {"ttft_p99": 1}},
            "slo.ttft_p99: unknown objective (did you mean ttft_p99_ms?); valid: error_rate, ttft_p50",
        ),
        (
            {"slo": {"ttft_p99_ms": "fast"}},
            "slo.ttft_p99_ms: expected a number above 0, or false to remove the objective",
        ),
        (
            {"slo": {"ttft_p99_ms": True}},
            "slo.ttft_p99_ms: expected a number above 0, or false to remove the objective",
        ),
        (
            {"slo": {"ttft_p99_ms": 0}},
            "slo.ttft_p99_ms: expected a number above 0, or false to remove the objective, got 0",
        ),
        ({"slo": {"ttft_p99_ms": float("inf")}}, "slo.ttft_p99_ms: expected a number above 0"),
        (
            {"slo": {"error_rate": 1}},
            "slo.error_rate: expected a share from 0 to below 1, or false to remove the objective",
        ),
        ({"slo": {"error_rate": -0.1}}, "slo.error_rate: expected a share from 0 to below 1"),
        ({"slo": {"horizon_s": 0}}, "slo.horizon_s: expected a number above 0, got 0"),
        ({"slo": {"horizon_s": False}}, "slo.horizon_s: expected a number above 0, got false"),
        ({"slo": {"rate-5": {"horizon_s": 60}}}, "slo.rate-5.horizon_s: unknown key"),
        ({"slo": {"rate-5": {"ttft_p9_ms": 1}}}, "slo.rate-5.ttft_p9_ms: unknown key (did you mean "),
        (
            {"models": {"full": ONE | {"slo": {"rate-5": {"error_rate": True}}}}},
            "models.full.slo.rate-5.error_rate: expect",
        ),
        ({"regression": {"wors": 2}}, "regression.wors: unknown key (did you mean worse?); valid: metrics, worse"),
        ({"regression": {"worse": 1}}, "regression.worse: expected a factor above 1, got 1"),
        ({"regression": {"worse": True}}, "regression.worse: expected a factor above 1, got true"),
        ({"regression": {"metrics": []}}, "regression.metrics: expected at least one metric, got an empty list"),
        ({"regression": {"metrics": "ttft"}}, "regression.metrics: expected a list, got 'ttft'"),
        (
            {"regression": {"metrics": ["ttft_p50"]}},
            "regression.metrics.0: unknown metric 'ttft_p50' (did you mean ttft_p50_",
        ),
        ({"regression": {"metrics": ["ttft_p50_ms"] * 2}}, "regression.metrics: ttft_p50_ms is listed twice"),
    ],
)
def test_a_mistake_is_refused_by_the_key_path(parse: Any, change: dict[str, Any], message: str) -> None:
    data = {key: value for key, value in (minimal() | change).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert str(caught.value).startswith(f"profile p.toml: {message}") or f".{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_reported_together(parse: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(minimal() | {"namespace": 5, "waits": {"minio_s": 0, "teardown_s": -1}})
    headline, *lines = str(caught.value).splitlines()
    assert headline == "profile p.toml: 3 problems:"
    assert [line.split(": ")[0] for line in lines] == ["  namespace", "  waits.minio_s", "  waits.teardown_s"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name = \n", "not valid TOML: Invalid value (at line 1"),
        (b'name = "a"\nname = "b"\n', "not valid TOML: Cannot overwrite a value"),
        (b"a = " + b"[" * 5000, "not valid TOML: "),
        (b"a = " + b"9" * 5000, "not valid TOML: "),
        ('name = "ü"'.encode("latin-1"), ":1: not valid UTF-8"),
        ('name = "p"'.encode("utf-16-le"), " looks like UTF-16 LE without a byte order mark"),
        ('name = "p"'.encode("utf-16"), "problems:"),
        ('\ufeffname = "p"\r\n'.encode(), "problems:"),
    ],
)
def test_a_file_that_is_not_toml_is_one_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "p.toml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_profile("p.toml", tmp_path)
    assert message in str(caught.value)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(data=st.binary(max_size=60))
def test_any_bytes_give_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("profile")
    (folder / "p.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"p\.toml"):
        load_profile("p.toml", folder)


_KEYS = st.sampled_from(["name", "models", "full", "load", "slo", "rates", "rate-5", "regression", "options", "x"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(key=st.sampled_from(sorted(Profile.model_fields)), value=_VALUES)
def test_any_value_is_read_or_refused_by_its_key(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    overlay = tmp_path_factory.getbasetemp() / "overlay"
    overlay.mkdir(exist_ok=True)
    (overlay / "kustomization.yaml").touch()
    with contextlib.suppress(ConfigError):
        parse_profile(minimal() | {key: value}, tmp_path_factory.getbasetemp() / "p.toml")


def test_a_models_load_overrides_the_profiles_key_by_key(parse: Any) -> None:
    inner = {"rates": [1, 10], "arrivals": "poisson"}
    profile: Profile = parse(minimal() | {"load": LOAD | {"rates": [1]}, "models": {"full": ONE | {"load": inner}}})
    merged = profile.load.override(profile.models["full"].load)
    assert (merged.rates, merged.arrivals, merged.duration_s, merged.api) == ((1, 10), "poisson", 60, "chat")
    assert parse(minimal()).load.is_empty


def test_objectives_of_a_step_are_kept_apart_and_false_removes_one(parse: Any) -> None:
    slo = parse(minimal() | {"slo": {"error_rate": False, "rate-5": {"ttft_p99_ms": 3}, "ttft_p50_ms": 5}}).slo
    assert slo.limits() == {"error_rate": None, "ttft_p50_ms": 5.0}
    assert {name: table.limits() for name, table in slo.steps.items()} == {"rate-5": {"ttft_p99_ms": 3.0}}


def test_the_horizon_is_the_profiles_or_the_models(parse: Any) -> None:
    def horizons(slo: dict[str, Any], own: dict[str, Any]) -> float:
        profile = parse(minimal() | {"slo": slo, "models": {"full": ONE | {"slo": own}}})
        return horizon_of(StageConfig({}, profile), "full")

    assert horizons({}, {}) == HORIZON_S
    assert horizons({"horizon_s": 60}, {"error_rate": 0}) == 60
    assert horizons({"horizon_s": 60}, {"horizon_s": 1200}) == 1200


def test_the_schema_has_every_objective_and_every_metric_that_exists() -> None:
    assert set(OBJECTIVE_KEYS) == {ERROR_RATE, GATEWAY_ADDED_TTFT, *LATENCY_KEYS, *FLOORS}
    assert set(GATED_METRICS) == {*LATENCY_KEYS, *FLOORS.values()}
    assert RegressionTable().worse == WORSE


def test_the_published_schema_is_the_one_of_the_types() -> None:
    assert json.loads(schema_path().read_text()) == profile_schema(), (
        "write it: python -m pytest_vllm_stage.settings.profile_schema"
    )


@pytest.mark.parametrize("path", sorted((fixtures_dir() / "profiles").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_name_their_schema_which_declares_their_keys(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"#:schema ./{schema_path().name}"
    schema = profile_schema()
    assert list(undeclared_keys(tomllib.loads(path.read_text()), schema, schema["$defs"])) == []
    assert list(undeclared_keys({"models": {"full": {"loads": 1}}}, schema, schema["$defs"])) == ["loads"]


def undeclared_keys(data: Any, schema: Any, definitions: Any) -> Iterator[str]:
    """The keys that a schema does not declare; a missing ``additionalProperties`` declares none."""
    schema = definitions[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    for key, value in data.items() if isinstance(data, dict) else ():
        inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
        if inner:
            yield from undeclared_keys(value, inner, definitions)
        else:
            yield key


def test_the_documentation_lists_every_key_of_the_types() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert fill_tables(text) == text, "write it: python -m pytest_vllm_stage.settings.profile_schema"
    same_as_outer = {"models.*.load", "models.*.slo", "models.*.slo.*", "slo.*", "resilience.*"}
    assert sorted(marked_tables(text)) == sorted(set(all_tables()) - same_as_outer)
    for key in ("inference_service", "rates", "ttft_p99_ms", "worse", "bucket", "minio_s", "find_capacity", "tools"):
        assert f"\n| `{key}` | " in text, key


def test_the_examples_of_the_documentation_are_valid(parse: Any) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 10
    for example in examples:
        assert parse(minimal() | tomllib.loads(example) | {"overlay": "overlay"})


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'nope'; valid: .*local"):
        load_profile("nope", Path())


def test_where_results_go_has_a_default_and_is_overridden_by_role(parse: Any) -> None:
    assert parse(minimal()).registry.bucket == "test-results"
    found = parse(
        minimal() | {"registry": {"bucket": "b", "models": {"full": {"model": "m", "version": "v"}}}}
    ).registry
    assert (found.bucket, found.models["full"].model, found.models["full"].version) == ("b", "m", "v")


def test_a_model_is_known_by_its_role_or_its_served_name(parse: Any, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    cannot = {"tools": "no parser"}
    one = {"inference_service": "one", "cannot": cannot, "tool_format": "hermes", "reference": "r.json"}
    profile: Profile = parse(minimal() | {"models": {"full": one, "quantized": {"inference_service": "two"}}})
    assert profile.find_model("full", "whatever") is profile.models["full"]
    assert profile.find_model("endpoint", "two") is profile.models["quantized"]
    assert profile.find_model("endpoint", "three") is None
    full = profile.models["full"]
    assert (full.cannot, full.tool_format, full.reference) == (cannot, "hermes", (tmp_path / "r.json").resolve())
    assert not [key for key in profile.facts() if key.endswith(("cannot", "reference", "tool_format"))]
