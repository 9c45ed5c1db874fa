"""One bucket through the minio client, with this project's errors; and what somebody without credentials may see."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.publication.bucket.manifest import File

#: Files above this size are uploaded in parts of it.
PART_BYTES = 8 * 1024 * 1024
TIMEOUT_S = 10.0
_ABSENT = ("NoSuchKey", "NoSuchObject")
_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "InvalidTokenId",
    "InvalidClientTokenId",
)
#: What somebody without credentials must be answered.
_CLOSED = (401, 403)
_SHA256 = "x-amz-meta-sha256"


@dataclass(frozen=True)
class Stat:
    """What the server says of an object without reading it.

    Attributes:
        size_bytes: Its size.
        sha256: What was noted when it was uploaded; empty where nothing was.
    """

    size_bytes: int
    sha256: str


class Bucket:
    """A bucket.

    Args:
        client: With the credentials of the stage's Secret.
        name: The bucket's name.
        url: Root of the S3 API, for requests without credentials.
        ca_file: PEM file of the authorities that sign its certificate.
    """

    def __init__(self, client: Minio, name: str, url: str, ca_file: str | None = None) -> None:
        self.client = client
        self.name = name
        self.url = url.rstrip("/")
        self._verify: Any = True
        if ca_file:
            import ssl

            self._verify = ssl.create_default_context(cafile=ca_file)

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Turn the client's errors into ours; ``what`` is the request in a few words.

        Raises:
            StageFailure: what was asked, what the server answered, and, for credentials, which Secret holds them.
        """
        try:
            yield
        except S3Error as error:
            raise self._failure(what, error) from None
        except (urllib3.exceptions.HTTPError, ServerError, InvalidResponseError) as error:
            text = str(error)[:200]
            raise StageFailure(f"{what}: MinIO at {self.url} does not answer: {type(error).__name__}: {text}") from None

    def _failure(self, what: str, error: S3Error) -> StageFailure:
        if error.code in _CREDENTIALS:
            return StageFailure(
                f"{what}: MinIO refuses the credentials of secret minio-credentials: {error.code}: {error.message}",
                hint="they expired or were changed: renew the Secret, then run again",
            )
        if error.code == "NoSuchBucket":
            return StageFailure(f"{what}: bucket {self.name} does not exist", hint="kubectl logs job/minio-buckets")
        return StageFailure(f"{what}: MinIO answers {error.code}: {error.message}")

    def upload(self, key: str, path: Path, file: File) -> None:
        """Store a local file, in parts where it is large; an upload that is cut off leaves no object."""
        with self.told(f"put {self.name}/{key}"):
            self.client.fput_object(
                self.name,
                key,
                str(path),
                content_type=file.content_type,
                metadata={_SHA256: file.sha256},
                part_size=PART_BYTES,
            )

    def put(self, key: str, content: bytes, content_type: str) -> None:
        """Store a small object."""
        with self.told(f"put {self.name}/{key}"):
            self.client.put_object(self.name, key, io.BytesIO(content), len(content), content_type=content_type)

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        with self.told(f"get {self.name}/{key}"):
            try:
                response = self.client.get_object(self.name, key)
            except S3Error as error:
                if error.code in _ABSENT:
                    return None
                raise
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def stat(self, key: str) -> Stat | None:
        """Size and noted hash; None where there is no object."""
        with self.told(f"stat {self.name}/{key}"):
            try:
                found = self.client.stat_object(self.name, key)
            except S3Error as error:
                if error.code in _ABSENT:
                    return None
                raise
            headers = found.metadata or {}
            return Stat(found.size or 0, str(headers.get(_SHA256, "")))

    def keys(self, prefix: str) -> list[str]:
        """Every key under a prefix."""
        with self.told(f"list {self.name}/{prefix}"):
            return [str(item.object_name) for item in self.client.list_objects(self.name, prefix, recursive=True)]

    def openings(self, key: str | None = None) -> list[str]:
        """How somebody without credentials gets in, a line each: by the bucket's policy, a list, or reading ``key``."""
        found = [f"its policy allows {action} to everyone" for action in self._open_actions()]
        paths = [f"/{self.name}", *([f"/{self.name}/{quote(key)}"] if key else [])]
        return found + [
            f"GET {path} without credentials answers HTTP {status} instead of 403"
            for path in paths
            if (status := self._anonymous_status(path)) not in _CLOSED
        ]

    def _open_actions(self) -> list[str]:
        with self.told(f"read the policy of bucket {self.name}"):
            try:
                policy = json.loads(self.client.get_bucket_policy(self.name))
            except S3Error as error:
                if error.code in ("NoSuchBucketPolicy", "AccessDenied", "MethodNotAllowed", "NotImplemented"):
                    return []  # none, or not for these credentials to see: the requests of `openings` decide
                raise
        actions = [
            action
            for statement in policy.get("Statement", [])
            if statement.get("Effect") == "Allow" and _everyone(statement.get("Principal"))
            for action in _listed(statement.get("Action"))
        ]
        return sorted(set(actions))

    def _anonymous_status(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=TIMEOUT_S, trust_env=False, verify=self._verify).status_code
        except httpx.HTTPError as error:
            message = f"MinIO does not answer GET {self.url}{path}: {type(error).__name__}: {error}"
            raise StageFailure(message) from None


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _everyone(principal: Any) -> bool:
    return principal == "*" or (isinstance(principal, dict) and "*" in _listed(principal.get("AWS")))
