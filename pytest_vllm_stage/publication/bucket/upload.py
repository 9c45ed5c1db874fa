"""Puts a run's files into the bucket: the files, then the manifest that makes them complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.publication.bucket import manifest as manifests
from pytest_vllm_stage.publication.bucket import stored
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.publication.bucket.manifest import Manifest
from pytest_vllm_stage.publication.bucket.names import MANIFEST, build_prefix, build_uri


def refuse_public(bucket: Bucket, key: str | None = None) -> None:
    """Refuse a bucket that clients without credentials can read.

    Raises:
        StageFailure: it names every way in.
    """
    ways_in = bucket.find_public_access(key)
    if ways_in:
        raise StageFailure(
            f"bucket {bucket.name} is public: {'; '.join(ways_in)}", hint=f"mc anonymous set none STAGE/{bucket.name}"
        )


def upload_run(bucket: Bucket, model: str, version: str, run: str, files: Mapping[str, Path], journal: Journal) -> str:
    """Upload a run's files. A run that is complete there is only compared, so that doing it twice changes nothing.

    Args:
        bucket: Where to.
        model: The registered model's name.
        version: The version's name.
        run: The run's id.
        files: Name under the run's prefix to local file.
        journal: Records every write before it happens.

    Returns:
        The URI of the run's results.

    Raises:
        StageFailure: the bucket is public, MinIO refuses, or the run is complete there with other or altered contents.
    """
    prefix = build_prefix(model, version, run)
    uri = build_uri(bucket.name, prefix)
    refuse_public(bucket)
    wanted = manifests.make_manifest(
        model, version, run, [manifests.describe_file(path, name) for name, path in files.items()]
    )
    there = bucket.get(prefix + MANIFEST)
    if there is not None:
        _refuse_other_contents(manifests.parse_manifest(there, f"{uri}{MANIFEST}"), wanted, uri)
        stored.read_run(bucket, uri).require()
        return uri
    with journal.phase(f"publish: upload {uri}", files=len(files)):
        for file in wanted.files:
            _put(bucket, prefix, files[file.name], file, journal)
        journal.event("publish", "put", key=prefix + MANIFEST)
        bucket.put(prefix + MANIFEST, wanted.to_bytes(), "application/json")
    refuse_public(bucket, prefix + MANIFEST)
    return uri


def _refuse_other_contents(there: Manifest, wanted: Manifest, uri: str) -> None:
    differences = wanted.differences(there)
    if differences:
        listing = "\n  ".join(differences)
        raise StageFailure(f"{uri} is already complete, with other contents than this run has:\n  {listing}")


def _put(bucket: Bucket, prefix: str, path: Path, file: manifests.ManifestFile, journal: Journal) -> None:
    """Upload a file, unless an attempt that was cut off had come so far."""
    there = bucket.stat(prefix + file.name)
    if there is not None and (there.size_bytes, there.sha256) == (file.size_bytes, file.sha256):
        return
    journal.event("publish", "put", key=prefix + file.name, size_bytes=file.size_bytes)
    bucket.upload(prefix + file.name, path, file)
