"""One bucket of the object store, with this project's errors; and what it shows to clients without credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllm_stage.publication.bucket.manifest import ManifestFile
from pytest_vllm_stage.stage.public_access import find_public_grants
from pytest_vllm_stage.stage.s3 import NOT_FOUND, ObjectStore, error_code

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Files above this size are uploaded in parts of it.
PART_BYTES = 8 * 1024 * 1024
#: What a client without credentials must be answered.
_DENIED = (401, 403)
_SHA256 = "sha256"


@dataclass(frozen=True)
class StoredObject:
    """What the server says about an object without its content.

    Attributes:
        size_bytes: Its size.
        sha256: As noted by the upload; empty where nothing was.
    """

    size_bytes: int
    sha256: str


class Bucket:
    """A bucket.

    Args:
        store: The S3 API, with the credentials of the stage's Secret.
        name: The bucket's name.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.store = store
        self.name = name
        self.client: S3Client = store.client()

    def upload(self, key: str, path: Path, file: ManifestFile) -> None:
        """Store a local file, in parts where it is large; an upload that is cut off leaves no object."""
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False)
        extra = {"ContentType": file.content_type, "Metadata": {_SHA256: file.sha256}}
        with self.store.readable_errors(f"put {self.name}/{key}"), path.open("rb") as content:
            self.client.upload_fileobj(content, self.name, key, ExtraArgs=extra, Config=parts)

    def put(self, key: str, content: bytes, content_type: str) -> None:
        """Store a small object."""
        with self.store.readable_errors(f"put {self.name}/{key}"):
            self.client.put_object(Bucket=self.name, Key=key, Body=content, ContentType=content_type)

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        from botocore.exceptions import ClientError

        with self.store.readable_errors(f"get {self.name}/{key}"):
            try:
                answer = self.client.get_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if error_code(error) in NOT_FOUND:
                    return None
                raise
            with answer["Body"] as body:
                return body.read()

    def stat(self, key: str) -> StoredObject | None:
        """Size and noted hash; None where there is no object."""
        from botocore.exceptions import ClientError

        with self.store.readable_errors(f"stat {self.name}/{key}"):
            try:
                found = self.client.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if error_code(error) in NOT_FOUND:
                    return None
                raise
            return StoredObject(found["ContentLength"], found["Metadata"].get(_SHA256, ""))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is none."""
        with self.store.readable_errors(f"delete {self.name}/{key}"):
            self.client.delete_object(Bucket=self.name, Key=key)

    def list_keys(self, prefix: str = "") -> list[str]:
        """Every key under a prefix, in order."""
        with self.store.readable_errors(f"list {self.name}/{prefix}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def find_public_access(self, key: str | None = None) -> list[str]:
        """How a client without credentials gets in, by its settings, by a list, or by reading ``key``."""
        found = find_public_grants(self.store, self.client, self.name)
        for one in (None, *([key] if key else [])):
            status = self.store.anonymous_status(self.name, one)
            if status not in _DENIED:
                path = f"/{self.name}/{one}" if one else f"/{self.name}"
                found.append(f"GET {path} without credentials answers HTTP {status} instead of 403")
        return found
