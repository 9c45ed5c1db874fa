"""The bucket Job's own request signing, against another implementation of it."""

from __future__ import annotations

import datetime
import importlib.util
import time
import types
from typing import Any
from urllib.parse import urlsplit

import pytest
from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3

from pytest_vllm_stage.core.paths import fixtures_dir


@pytest.fixture(scope="module")
def buckets() -> Any:
    spec = importlib.util.spec_from_file_location("buckets", fixtures_dir() / "minio" / "buckets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_requests_are_signed_as_minios_own_client_signs_them(buckets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    clock = types.SimpleNamespace(gmtime=now.timetuple, strftime=time.strftime)
    monkeypatch.setattr(buckets, "time", clock)
    ours = buckets.signed_headers("PUT", "http://minio:9000/models", "someone", "correct-horse")
    empty = buckets.EMPTY_SHA256
    sent = {"Host": "minio:9000", "x-amz-content-sha256": empty, "x-amz-date": "20260102T030405Z"}
    url = urlsplit("http://minio:9000/models")
    theirs = sign_v4_s3(
        method="PUT",
        url=url,
        region="us-east-1",
        headers=sent,
        credentials=Credentials("someone", "correct-horse"),
        content_sha256=empty,
        date=now,
    )
    assert ours["Authorization"] == theirs["Authorization"]


def answers(buckets: Any, monkeypatch: pytest.MonkeyPatch, put: tuple[int, str], get: int) -> None:
    monkeypatch.setenv("S3_ENDPOINT", "http://minio:9000")
    monkeypatch.setenv("S3_ACCESS_KEY", "a")
    monkeypatch.setenv("S3_SECRET_KEY", "s")
    monkeypatch.setattr(
        buckets,
        "status_of",
        lambda method, url, _headers: put if method == "PUT" else (200 if "health" in url else get, ""),
    )


@pytest.mark.parametrize("put", [(200, ""), (409, "<Code>BucketAlreadyOwnedByYou</Code>")])
def test_a_private_bucket_is_made_or_kept(
    buckets: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], put: tuple[int, str]
) -> None:
    answers(buckets, monkeypatch, put, 403)
    buckets.main(["models", "test-results"])
    assert capsys.readouterr().out.splitlines() == [
        "bucket models is there and private",
        "bucket test-results is there and private",
    ]


@pytest.mark.parametrize(
    ("put", "get", "told"),
    [
        ((403, "SignatureDoesNotMatch"), 403, "bucket models could not be created: HTTP 403 SignatureDoesNotMatch"),
        ((409, "BucketAlreadyExists"), 403, "bucket models could not be created: HTTP 409"),
        ((200, ""), 200, "bucket models answers an anonymous list with HTTP 200 instead of 403"),
    ],
)
def test_what_went_wrong_is_the_last_line(
    buckets: Any, monkeypatch: pytest.MonkeyPatch, put: tuple[int, str], get: int, told: str
) -> None:
    answers(buckets, monkeypatch, put, get)
    with pytest.raises(SystemExit) as ended:
        buckets.main(["models"])
    assert str(ended.value).startswith(f"error: {told}")
