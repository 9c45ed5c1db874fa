"""The S3 API of a stage: found by its Secret, isolated from the environment, and its errors in words."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.stage import object_store, objects
from pytest_vllm_stage.stage.buckets import list_buckets
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.s3 import ATTEMPTS, ObjectStore
from tests.unit.web_server import Reply, Request, s3_error, s3_objects, self_signed, web_server

KEYS = {"accesskey": "someone", "secretkey": "correct-horse"}
NO_KUBE: Any = None
KSERVE = "serving.kserve.io/s3-"


def store_at(url: str, **changes: Any) -> ObjectStore:
    return ObjectStore(
        url, Secret("someone"), Secret("correct-horse"), credentials="secret minio-credentials", **changes
    )


def found_by_secret(
    monkeypatch: pytest.MonkeyPatch, data: dict[str, str], annotations: dict[str, str] | None = None, **stage: Any
) -> ObjectStore:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    secret = {"metadata": {"annotations": annotations or {}}, "data": encoded}
    monkeypatch.setattr(objects, "get", lambda *_: secret)
    facts = StageFacts("vllm-stage", "r", True, (), **{"minio_url": "http://10.0.0.9:9000"} | stage)
    return object_store.find_object_store(facts, NO_KUBE)


# --- the Secret -------------------------------------------------------------------------------------------------------


def test_minio_of_the_stage_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    store = found_by_secret(monkeypatch, KEYS)
    assert (store.url, store.region, store.path_style) == ("http://10.0.0.9:9000", "us-east-1", True)
    assert (store.access_key.reveal(), store.secret_key.reveal()) == ("someone", "correct-horse")
    assert "correct-horse" not in repr(store)


def test_a_data_connection_names_an_outside_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_S3_ENDPOINT": "https://s3.eu-central-1.amazonaws.com/",
    }  # fmt: skip
    store = found_by_secret(monkeypatch, data, {KSERVE + "usevirtualbucket": "true"}, minio_url=None)
    assert (store.url, store.region) == ("https://s3.eu-central-1.amazonaws.com", "eu-central-1")
    assert not store.path_style


@pytest.mark.parametrize(
    ("annotations", "url"),
    [
        ({"endpoint": "minio:9000", "usehttps": "0"}, "http://10.0.0.9:9000"),
        ({"endpoint": "s3.openshift-storage.svc"}, "http://10.0.0.9:9000"),
        ({"endpoint": "minio.vllm-stage.svc.cluster.local:9000"}, "http://10.0.0.9:9000"),
        ({"endpoint": "rgw.example.org", "region": "here"}, "https://rgw.example.org"),
        ({"endpoint": "rgw.example.org:8080", "usehttps": "0"}, "http://rgw.example.org:8080"),
    ],
)
def test_kserve_annotations_are_read(monkeypatch: pytest.MonkeyPatch, annotations: dict[str, str], url: str) -> None:
    store = found_by_secret(monkeypatch, KEYS, {KSERVE + name: value for name, value in annotations.items()})
    assert store.url == url
    assert store.region == annotations.get("region", "us-east-1")


def test_what_the_secret_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure, match='secret minio-credentials has no key "secretkey"'):
        found_by_secret(monkeypatch, {"accesskey": "a"})
    with pytest.raises(EnvironmentUnusable, match="has no MinIO that is reachable from here"):
        found_by_secret(monkeypatch, KEYS, minio_url=None)


# --- the client -------------------------------------------------------------------------------------------------------


def test_nothing_of_the_environment_reaches_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile other]\nregion = eu-west-3\ns3 =\n  addressing_style = virtual\n")
    for name, value in {
        "AWS_PROFILE": "absent", "AWS_CONFIG_FILE": f"{tmp_path}/config", "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other", "AWS_SESSION_TOKEN": "other", "AWS_DEFAULT_REGION": "eu-west-3",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_CA_BUNDLE": "/absent", "HTTP_PROXY": "http://127.0.0.1:1",
        "HTTPS_PROXY": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "50", "AWS_USE_FIPS_ENDPOINT": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with web_server(s3_objects({"models/key": b"content"})) as server:
        assert Bucket(store_at(server.url), "models").get("key") == b"content"
    (request,) = server.requests
    assert request.path == "/models/key"
    assert "Credential=someone/" in request.headers["Authorization"]
    assert "/us-east-1/s3/" in request.headers["Authorization"]
    assert "X-Amz-Security-Token" not in request.headers


def test_a_failing_server_is_asked_a_few_times() -> None:
    with web_server(lambda _: s3_error(503, "SlowDown")) as server, pytest.raises(StageFailure, match="SlowDown"):
        Bucket(store_at(server.url), "models").get("key")
    assert len(server.requests) == ATTEMPTS


@pytest.mark.parametrize("key", [None, "key"], ids=["list", "object"])
def test_the_anonymous_probe_trusts_the_ca_file(tmp_path: Path, key: str | None) -> None:
    certificate = self_signed(tmp_path)
    with web_server(s3_objects({"models/key": b"content"}), certificate) as server:
        trusting = store_at(server.url, ca_file=str(certificate))
        assert trusting.anonymous_status("models", key) == 403
        assert Bucket(trusting, "models").get("key") == b"content"
        assert Bucket(trusting, "models").find_public_access(key) == []
        with pytest.raises(StageFailure, match=f"certificate of {server.url} is not trusted") as caught:
            store_at(server.url).anonymous_status("models", key)
    assert "signed by 'loopback', an authority that is not trusted" in caught.value.message
    assert "--stage-ca-file=cluster" in caught.value.hint
    assert "openssl s_client" in caught.value.hint


def test_an_open_bucket_is_seen_without_credentials() -> None:
    with web_server(lambda _: Reply(200, "<ListBucketResult/>", {"content-type": "application/xml"})) as server:
        assert store_at(server.url).anonymous_status("models") == 200
    assert "Authorization" not in server.requests[0].headers


def limited_to(*owned: str, refusal: str) -> Callable[[Request], Reply]:
    """A store whose credentials may use these buckets alone."""

    def answer(request: Request) -> Reply:
        bucket = request.path.partition("?")[0].strip("/")
        if not bucket:
            return s3_error(501 if refusal == "NotImplemented" else 403, refusal)
        return Reply(200) if bucket in owned else Reply(404)

    return answer


@pytest.mark.parametrize("refusal", ["AccessDenied", "NotImplemented"])
def test_credentials_for_single_buckets_find_those_that_exist(refusal: str) -> None:
    with web_server(limited_to("models", refusal=refusal)) as server:
        store = store_at(server.url)
        assert list_buckets(store, store.client(), ["models", "results"]) == ["models"]


def test_wrong_credentials_find_no_buckets() -> None:
    with web_server(limited_to("models", refusal="InvalidAccessKeyId")) as server:
        store = store_at(server.url)
        with pytest.raises(StageFailure, match="rejects the credentials"):
            list_buckets(store, store.client(), ["models"])


def test_a_ready_minio_answers_its_health_check() -> None:
    def answer(request: Request) -> Reply:
        return Reply(200 if request.path == "/minio/health/ready" else 404)

    with web_server(answer) as server:
        assert store_at(server.url, path_style=False).minio_health_status() == 200


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "says", "hint"),
    [
        (
            s3_error(403, "InvalidAccessKeyId"),
            "rejects the credentials of secret minio-credentials: InvalidAcc",
            "renew",
        ),
        (s3_error(403, "RequestTimeTooSkewed"), "answers RequestTimeTooSkewed: as the server explains it", "clocks"),
        (s3_error(404, "NoSuchBucket"), "answers NoSuchBucket: as the server explains it", "logs job/minio-buckets"),
        (s3_error(403, "AccessDenied"), "answers AccessDenied: as the server explains it", "lacks the right"),
        (s3_error(400, "AuthorizationHeaderMalformed"), "answers AuthorizationHeaderMalformed", "names another region"),
        (s3_error(507, "XMinioStorageFull"), "answers XMinioStorageFull: as the server", "enlarge the store's volume"),
        (s3_error(503, "XMinioServerNotInitialized"), "answers XMinioServerNotInitialized", "or has lost drives"),
    ],
)
def test_refusal_names_bucket_and_key(reply: Reply, says: str, hint: str) -> None:
    with web_server(lambda _: reply) as server, pytest.raises(StageFailure) as caught:
        Bucket(store_at(server.url), "models").list_keys("some/prefix")
    assert caught.value.message.startswith("list models/some/prefix: ")
    assert server.url in caught.value.message
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert "<" not in caught.value.message
    assert "correct-horse" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(403, "RBAC: access denied", {"server": "istio-envoy"}), "the service mesh's proxy (istio-envoy)"),
        (Reply(200, "<html>Sign in with SSO</html>", {"content-type": "text/html"}), "a login page"),
        (Reply(302, "", {"location": "https://sso.example.org/login"}), "a redirect to sso.example.org/login"),
        (
            Reply(503, "<html>Application is not available</html>", {"content-type": "text/html"}),
            "the OpenShift router",
        ),
    ],
)
def test_a_gateway_that_answers_in_place_of_the_store_is_named(reply: Reply, says: str) -> None:
    """Its page is not an empty list, and its refusal does not make a bucket private."""
    with web_server(lambda _: reply) as server:
        with pytest.raises(EnvironmentUnusable) as caught:
            Bucket(store_at(server.url), "models").list_keys()
        with pytest.raises(EnvironmentUnusable, match="instead of the S3 API"):
            store_at(server.url).anonymous_status("models")
    assert caught.value.message.startswith(f"list models/: {says}")
    assert f"answers HTTP {reply.status} instead of the S3 API at {server.url}" in caught.value.message


def test_a_store_that_does_not_answer_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(StageFailure, match=f"get models/key: the S3 API at {url} does not answer: Endpoint") as caught:
        Bucket(store_at(url), "models").get("key")
    assert caught.value.hint == f"curl -i {url}"


def test_definition_of_the_api_is_read_for_the_first_client_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.loaders import JSONFileLoader

    store = store_at("http://127.0.0.1:9")
    store.client().close()
    read: list[str] = []
    load = JSONFileLoader.load_file

    def record_path(self: JSONFileLoader, path: str) -> Any:
        read.append(path)
        return load(self, path)

    monkeypatch.setattr(JSONFileLoader, "load_file", record_path)
    for client in (store.client(), store.anonymous_client()):
        client.close()
    assert [path for path in read if "/s3/" in path] == []
