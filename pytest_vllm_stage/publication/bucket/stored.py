"""Reads a run's results back: whole, and with the hashes that the manifest says, or each fault by its name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import StageError, StageFailure
from pytest_vllm_stage.publication.bucket import manifest as manifests
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.publication.bucket.manifest import File, Manifest
from pytest_vllm_stage.publication.bucket.names import MANIFEST, PUBLISHED, parse_uri, prefix_of, run_of


@dataclass(frozen=True)
class Stored:
    """What lies under an artifact URI.

    Attributes:
        uri: The URI.
        manifest: The list of the files; None where it is missing or torn.
        contents: File name to bytes, of the listed files that are there.
        findings: A line for every fault; empty where everything is there and unaltered.
    """

    uri: str
    manifest: Manifest | None
    contents: Mapping[str, bytes]
    findings: tuple[str, ...]

    def require(self) -> Stored:
        """This, if it is whole.

        Raises:
            StageFailure: naming every fault.
        """
        if self.findings:
            raise StageFailure(f"{self.uri}: " + "; ".join(self.findings))
        return self


def read(bucket: Bucket, uri: str) -> Stored:
    """Read everything under a URI and hold it against the manifest.

    Raises:
        StageError: the URI is none of ours, or the object store refuses.
    """
    name, prefix = parse_uri(uri)
    if name != bucket.name:
        raise StageFailure(f"{uri} lies in bucket {name}; results are expected in {bucket.name}")
    keys = {key.removeprefix(prefix) for key in bucket.list_keys(prefix)}
    if not keys:
        return Stored(uri, None, {}, ("nothing is there: the artifact was deleted or never uploaded",))
    content = bucket.get(prefix + MANIFEST)
    if content is None:
        return Stored(uri, None, {}, (f"partial upload: {len(keys)} files and no {MANIFEST}",))
    try:
        manifest = manifests.parse(content, MANIFEST)
    except StageError as error:
        return Stored(uri, None, {}, (error.message,))
    contents = {file.name: data for file in manifest.files if (data := bucket.get(prefix + file.name)) is not None}
    findings = [line for file in manifest.files if (line := _fault(file, contents.get(file.name)))]
    unknown = sorted(keys - {MANIFEST, PUBLISHED} - {file.name for file in manifest.files})
    findings += [f"{name} is there and not in the manifest" for name in unknown]
    if prefix != (expected := prefix_of(manifest.model, manifest.version, manifest.run)):
        findings.append(f"the manifest belongs to {expected}")
    return Stored(uri, manifest, contents, tuple(findings))


def _fault(file: File, content: bytes | None) -> str:
    if content is None:
        return f"{file.name} is missing: it was deleted"
    if len(content) < file.size_bytes:
        return f"{file.name} is truncated: {len(content)} of {file.size_bytes} bytes"
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        return f"{file.name} was altered: its sha256 is {digest[:12]}..., the manifest says {file.sha256[:12]}..."
    return ""


@dataclass(frozen=True)
class Unfinished:
    """A run whose publication was cut short.

    Attributes:
        run: Its id.
        prefix: Where its files lie.
        complete: Everything was uploaded, and only the registry does not have it; else the upload itself was cut off.
    """

    run: str
    prefix: str
    complete: bool


def unfinished(bucket: Bucket, model: str, version: str) -> list[Unfinished]:
    """The runs of a version that were uploaded, at least in part, and are not marked as published."""
    prefix = prefix_of(model, version)
    names: dict[str, set[str]] = {}
    for key in bucket.list_keys(prefix):
        run = run_of(key, prefix)
        if run:
            names.setdefault(run, set()).add(key.removeprefix(prefix_of(model, version, run)))
    return [
        Unfinished(run, prefix_of(model, version, run), MANIFEST in found)
        for run, found in sorted(names.items())
        if PUBLISHED not in found
    ]
