"""The official client as an independent witness: what it reads, and what it fails on, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.publication import check
from pytest_vllm_stage.publication.document import make
from pytest_vllm_stage.publication.registry.values import encode
from tests.real import servers
from tests.unit.made_results import source, steps
from tests.unit.web_server import Reply, web_server

if TYPE_CHECKING:
    from model_registry import ModelRegistry

P99 = "benchmark_rate_5_ttft_p99"
LONG = {"metadataType": "MetadataIntValue", "int_value": "1234567890"}
RESULTS = make(steps(), source())


def connect_official_client(url: str, *, token: Secret | None = None) -> ModelRegistry:
    """Import the official client, which takes 0.4 s, only in the worker that uses it."""
    from pytest_vllm_stage.publication.registry import official

    return official.connect_official_client(url, token=token)


def read_properties(client: ModelRegistry, model: str, version: str, url: str) -> Mapping[str, Any]:
    from pytest_vllm_stage.publication.registry import official

    return official.read_properties(client, model, version, url)


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Standin]:
    with servers.standin(tmp_path_factory.mktemp("standin")) as server:
        yield server


@pytest.fixture
def version(standin: servers.Standin) -> str:
    """The id of version ``v_1`` of model ``m``, with every property of the results."""
    standin.reset()
    model = standin.call("POST", "registered_models", {"name": "m"})
    made = standin.call("POST", "model_versions", {"name": "v_1", "registeredModelId": model["id"]})
    standin.set_properties(made["id"], {name: encode(value) for name, value in RESULTS.values.items()})
    return str(made["id"])


@pytest.fixture
def client(standin: servers.Standin, version: str) -> ModelRegistry:
    return connect_official_client(standin.url)


def lines_of(client: ModelRegistry, standin: servers.Standin, version: str) -> list[str]:
    published = standin.call("GET", f"model_versions/{version}")["customProperties"]
    return check.compare_official_client(RESULTS, published, read_properties(client, "m", "v_1", standin.url))


def test_published_values_are_read_as_they_were_measured(
    client: ModelRegistry, standin: servers.Standin, version: str
) -> None:
    seen = read_properties(client, "m", "v_1", standin.url)
    assert dict(seen) == dict(RESULTS.values)
    assert lines_of(client, standin, version) == []


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (encode(1.0), f"{P99}: expected 119.7, the official client returns 1"),
        (encode("119.7"), f"{P99}: expected 119.7, the official client returns '119.7' (str)"),
        (
            {"metadataType": "MetadataBoolValue", "bool_value": True},
            f"{P99}: expected 119.7, the official client returns True (bool)",
        ),
    ],
    ids=["altered", "text", "boolean"],
)
def test_a_number_that_differs_is_named(
    client: ModelRegistry, standin: servers.Standin, version: str, raw: Any, line: str
) -> None:
    standin.set_properties(version, {P99: raw})
    assert lines_of(client, standin, version) == [line]


def test_a_number_that_the_client_leaves_out_is_named() -> None:
    (line,) = check.compare_official_client(RESULTS, {P99: encode(119.7)}, {})
    assert line == f"{P99}: expected 119.7, the official client returns nothing"


def test_a_whole_number_of_ten_digits_is_named_by_property_and_by_the_client(
    client: ModelRegistry, standin: servers.Standin, version: str
) -> None:
    standin.set_properties(version, {"tokens": LONG})
    published = standin.call("GET", f"model_versions/{version}")["customProperties"]
    (line,) = check.find_unreadable(published)
    assert line.startswith("tokens is the whole number 1234567890: notebooks cannot read the version")
    with pytest.raises(StageFailure, match=r"model-registry \S+\) cannot read the answer to get version v_1") as caught:
        read_properties(client, "m", "v_1", standin.url)
    assert "more than 9 digits" in caught.value.hint
    assert "errors.pydantic.dev" not in str(caught.value)


def test_nine_digits_are_readable() -> None:
    assert check.find_unreadable({"tokens": LONG | {"int_value": "-123456789"}, "name": encode("1234567890")}) == []


def test_a_version_that_the_client_does_not_find_is_named(client: ModelRegistry, standin: servers.Standin) -> None:
    """Names are SQL patterns to the find endpoint: two versions match, and the client takes its 404 for none."""
    model = standin.call("GET", "registered_model?name=m")
    standin.call("POST", "model_versions", {"name": "vX1", "registeredModelId": model["id"]})
    with pytest.raises(StageFailure, match="does not find version v_1 of model m, which exists"):
        read_properties(client, "m", "v_1", standin.url)


def test_a_server_without_v1_and_a_closed_port_are_named(tmp_path: Path) -> None:
    with (
        servers.standin(tmp_path, "v1alpha3") as old,
        pytest.raises(StageFailure, match="HTTP 404: 404 page not found"),
    ):
        connect_official_client(old.url)
    with pytest.raises(StageFailure, match=r"no answer from http://127\.0\.0\.1:9: Client"):
        connect_official_client("http://127.0.0.1:9")


def test_no_credentials_of_the_environment_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("service-account-token")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    page = '{"items": [], "nextPageToken": "", "pageSize": 0, "size": 0}'
    with web_server(lambda _: Reply(200, page, {"content-type": "application/json"})) as server:
        connect_official_client(server.url)
        connect_official_client(server.url, token=Secret("ours"))
    sent = [request.headers["Authorization"] for request in server.requests]
    assert sent == ["Bearer none", "Bearer ours"]
