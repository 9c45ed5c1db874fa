"""The list of a run's files with sizes and hashes. It is uploaded last, so an upload without one is not complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.json_text import parse_json

#: Incremented when a field changes its meaning or is removed, not when one is added.
SCHEMA_VERSION = 1
SCHEMA = "vllm-stage/manifest"
_CHUNK_BYTES = 1 << 20
_CONTENT_TYPES = {".json": "application/json", ".csv": "text/csv; charset=utf-8", ".gz": "application/gzip"}


@dataclass(frozen=True, order=True)
class ManifestFile:
    """One file of a run.

    Attributes:
        name: Its name under the run's prefix.
        size_bytes: Its size.
        sha256: Of its bytes, in hex.
        content_type: As it is served.
    """

    name: str
    size_bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True)
class Manifest:
    """The files of a run, by name; without a time, so that the same run gives the same bytes.

    Attributes:
        model: The registered model's name.
        version: The version's name.
        run: The run that measured.
        files: Every file but the manifest.
    """

    model: str
    version: str
    run: str
    files: tuple[ManifestFile, ...]

    def to_bytes(self) -> bytes:
        """The stored form."""
        data = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(self)}
        return (json.dumps(data, indent=1) + "\n").encode()

    def differences(self, other: Manifest) -> list[str]:
        """The files in which two manifests differ, one line each."""
        mine, theirs = ({file.name: file for file in manifest.files} for manifest in (self, other))
        return [
            f"{name}: {_short(mine.get(name))} here, {_short(theirs.get(name))} there"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]


def _short(file: ManifestFile | None) -> str:
    return f"{file.size_bytes} bytes, sha256 {file.sha256[:12]}" if file else "absent"


def describe_file(path: Path, name: str | None = None) -> ManifestFile:
    """A local file as the manifest lists it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return ManifestFile(name or path.name, path.stat().st_size, digest.hexdigest(), content_type(path.name))


def content_type(name: str) -> str:
    """The media type of a file by its ending."""
    return _CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream")


def make_manifest(model: str, version: str, run: str, files: Sequence[ManifestFile]) -> Manifest:
    """A manifest with its files in order."""
    return Manifest(model, version, run, tuple(sorted(files)))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The inverse of `Manifest.to_bytes`.

    Raises:
        StageFailure: it is corrupt, or not a manifest; names the place and the field.
    """
    try:
        data: Any = parse_json(content)
    except ValueError as error:
        raise StageFailure(f"{where}: the manifest is corrupt: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise StageFailure(f"{where}: schema: expected {SCHEMA}")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise StageFailure(f"{where}: schema_version: expected {SCHEMA_VERSION}, got {data.get('schema_version')!r}")
    model, version, run = (data.get(name) for name in ("model", "version", "run"))
    if not isinstance(model, str) or not isinstance(version, str) or not isinstance(run, str):
        raise StageFailure(f"{where}: model, version and run must be strings")
    if not isinstance(data.get("files"), list):
        raise StageFailure(f"{where}: files: must be a list")
    files = [_file(entry, f"{where}: files[{i}]") for i, entry in enumerate(data["files"])]
    return make_manifest(model, version, run, files)


def _file(entry: Any, where: str) -> ManifestFile:
    kinds: Mapping[str, type] = {"name": str, "size_bytes": int, "sha256": str, "content_type": str}
    for name, kind in kinds.items():
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kind):
            raise StageFailure(f"{where}: {name}: expected {kind.__name__}, got {type(value).__name__}")
    return ManifestFile(**{name: entry[name] for name in kinds})
