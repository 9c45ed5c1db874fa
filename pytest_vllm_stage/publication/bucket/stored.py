"""Reads a run's results back: complete and with the manifest's hashes, or with a finding for each fault."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import StageError, StageFailure
from pytest_vllm_stage.publication.bucket import manifest as manifests
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.publication.bucket.manifest import Manifest, ManifestFile
from pytest_vllm_stage.publication.bucket.names import MANIFEST, PUBLISHED, build_prefix, parse_run, parse_uri


@dataclass(frozen=True)
class StoredRun:
    """What is stored under an artifact URI.

    Attributes:
        uri: The URI.
        manifest: The list of the files; None where it is missing or corrupt.
        contents: ManifestFile name to bytes, of the listed files that exist.
        findings: One line per fault; empty where everything is complete and unaltered.
    """

    uri: str
    manifest: Manifest | None
    contents: Mapping[str, bytes]
    findings: tuple[str, ...]

    def require(self) -> StoredRun:
        """This, if it is complete and unaltered.

        Raises:
            StageFailure: naming every fault.
        """
        if self.findings:
            raise StageFailure(f"{self.uri}: " + "; ".join(self.findings))
        return self


def read_run(bucket: Bucket, uri: str) -> StoredRun:
    """Read everything under a URI and compare it with the manifest.

    Raises:
        StageError: the URI is none of ours, or the object store refuses.
    """
    name, prefix = parse_uri(uri)
    if name != bucket.name:
        raise StageFailure(f"{uri} is in bucket {name}; expected bucket {bucket.name}")
    keys = {key.removeprefix(prefix) for key in bucket.list_keys(prefix)}
    if not keys:
        return StoredRun(uri, None, {}, ("it is empty: the artifact was deleted or never uploaded",))
    content = bucket.get(prefix + MANIFEST)
    if content is None:
        return StoredRun(uri, None, {}, (f"partial upload: {len(keys)} files and no {MANIFEST}",))
    try:
        manifest = manifests.parse_manifest(content, MANIFEST)
    except StageError as error:
        return StoredRun(uri, None, {}, (error.message,))
    contents = {file.name: data for file in manifest.files if (data := bucket.get(prefix + file.name)) is not None}
    findings = [line for file in manifest.files if (line := _fault(file, contents.get(file.name)))]
    unknown = sorted(keys - {MANIFEST, PUBLISHED} - {file.name for file in manifest.files})
    findings += [f"{name} exists and is not in the manifest" for name in unknown]
    if prefix != (expected := build_prefix(manifest.model, manifest.version, manifest.run)):
        findings.append(f"the manifest belongs to {expected}")
    return StoredRun(uri, manifest, contents, tuple(findings))


def _fault(file: ManifestFile, content: bytes | None) -> str:
    if content is None:
        return f"{file.name} is missing: it was deleted"
    if len(content) < file.size_bytes:
        return f"{file.name} is truncated: {len(content)} of {file.size_bytes} bytes"
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        return f"{file.name} was altered: expected sha256 {file.sha256[:12]}..., got {digest[:12]}..."
    return ""


@dataclass(frozen=True)
class UnfinishedRun:
    """A run whose publication was cut short.

    Attributes:
        run: Its id.
        prefix: Where its files lie.
        complete: Everything was uploaded, and only the registry does not have it; else the upload itself was cut off.
    """

    run: str
    prefix: str
    complete: bool


def find_unfinished(bucket: Bucket, model: str, version: str) -> list[UnfinishedRun]:
    """The runs of a version that were uploaded, at least in part, and are not marked as published."""
    prefix = build_prefix(model, version)
    names: dict[str, set[str]] = {}
    for key in bucket.list_keys(prefix):
        run = parse_run(key, prefix)
        if run:
            names.setdefault(run, set()).add(key.removeprefix(build_prefix(model, version, run)))
    return [
        UnfinishedRun(run, build_prefix(model, version, run), MANIFEST in found)
        for run, found in sorted(names.items())
        if PUBLISHED not in found
    ]
