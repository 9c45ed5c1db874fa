"""The S3 client of the scripts in pods: its signatures, against botocore's; and the bucket Job on it."""

from __future__ import annotations

import datetime
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.unit.pod_scripts import pod_scripts
from tests.unit.web_server import Reply, Request, s3_error, web_server

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    with pod_scripts("buckets", "s3") as modules:
        yield modules


@pytest.mark.parametrize(
    ("method", "path", "content", "headers"),
    [
        ("PUT", "models", b"", {}),
        ("GET", "test-results/a b/rate-5.json", b"", {}),
        (
            "PUT",
            "test-results/m/run/rate-5.json",
            b'{"a": 1}',
            {"content-type": "application/json", "x-amz-meta-a": "b"},
        ),
    ],
)
def test_requests_are_signed_as_botocore_signs_them(
    scripts: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
) -> None:
    s3 = scripts["s3"]
    monkeypatch.setattr(s3, "time", types.SimpleNamespace(gmtime=NOW.timetuple, strftime=time.strftime))
    monkeypatch.setattr(auth, "get_current_datetime", lambda: NOW)
    url = f"http://minio:9000/{s3.urllib.parse.quote(path)}"
    ours = s3.S3("http://minio:9000", "someone", "correct-horse", "eu-west-3").signed_headers(
        method, url, content, headers
    )
    request = AWSRequest(method=method, url=url, data=content, headers=headers)
    request.context["payload_signing_enabled"] = True
    auth.S3SigV4Auth(Credentials("someone", "correct-horse"), "s3", "eu-west-3").add_auth(request)
    assert ours["Authorization"] == request.headers["Authorization"]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Starts a server that answers a PUT and an anonymous GET of a bucket as given, after ``first`` replies."""
    running = []

    def start(put: Reply, anonymous: int, first: Sequence[Reply] = ()) -> None:
        left = list(first)

        def answer(request: Request) -> Reply:
            if request.method == "PUT":
                assert "Credential=a/" in request.headers["Authorization"]
            else:
                assert "Authorization" not in request.headers
            if left:
                return left.pop(0)
            return put if request.method == "PUT" else Reply(anonymous)

        context = web_server(answer)
        monkeypatch.setenv("S3_ENDPOINT", context.__enter__().url)
        running.append(context)

    for name in ("S3_ACCESS_KEY", "S3_SECRET_KEY"):
        monkeypatch.setenv(name, "a")
    yield start
    for context in running:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("put", [Reply(200), s3_error(409, "BucketAlreadyOwnedByYou")])
def test_a_private_bucket_is_created_or_kept(
    scripts: dict[str, Any], serve: Callable[..., None], capsys: pytest.CaptureFixture[str], put: Reply
) -> None:
    serve(put, 403)
    scripts["buckets"].main(["models", "test-results"])
    assert capsys.readouterr().out.splitlines() == [
        "bucket models exists and is private",
        "bucket test-results exists and is private",
    ]


UNINITIALIZED = s3_error(503, "XMinioServerNotInitialized")


def test_a_server_that_has_not_opened_its_storage_is_asked_again(
    scripts: dict[str, Any], serve: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(Reply(200), 403, first=[UNINITIALIZED, UNINITIALIZED, Reply(200), UNINITIALIZED])
    scripts["buckets"].main(["models"])
    assert capsys.readouterr().out.splitlines() == ["bucket models exists and is private"]


def test_a_server_that_never_opens_its_storage_is_named(
    scripts: dict[str, Any], serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts["buckets"], "PATIENCE_S", 0)
    serve(UNINITIALIZED, 403)
    with pytest.raises(SystemExit, match=r"not ready within 0 s: PUT models: HTTP 503 .*XMinioServerNotInitialized"):
        scripts["buckets"].main(["models"])


@pytest.mark.parametrize(
    ("put", "anonymous", "reason"),
    [
        (s3_error(403, "SignatureDoesNotMatch"), 403, "bucket models could not be created: HTTP 403 <?xml"),
        (s3_error(409, "BucketAlreadyExists"), 403, "bucket models could not be created: HTTP 409"),
        (Reply(200), 200, "bucket models answers an anonymous list with HTTP 200 instead of 403"),
    ],
)
def test_the_reason_is_the_last_line(
    scripts: dict[str, Any], serve: Callable[..., None], put: Reply, anonymous: int, reason: str
) -> None:
    serve(put, anonymous)
    with pytest.raises(SystemExit) as ended:
        scripts["buckets"].main(["models"])
    assert str(ended.value).startswith(f"error: {reason}")
    assert "\n" not in str(ended.value)
