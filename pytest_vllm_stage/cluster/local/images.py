"""The few images that a machine without a registry needs, written as OCI archives from the built programs."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.files import atomic_draft
from pytest_vllm_stage.core.paths import cache_dir

BASE = "vllm-stage.local/base:1"
MINIO = "vllm-stage.local/minio:1"
PAUSE = "vllm-stage.local/pause:1"

#: Mount points and the folders that programs expect; /usr, /lib and /lib64 come from the host by hostPath volumes.
_FOLDERS = ("dev", "etc", "lib", "lib64", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/tmp")
_OPEN_TO_ALL = ("tmp", "var/tmp")
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin"}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAYOUT_VERSION = "1.0.0"
_MEDIA = "application/vnd.oci.image"


@dataclass(frozen=True)
class Image:
    """The content of an image.

    Attributes:
        name: Its reference.
        entrypoint: The program and arguments that it runs.
        programs: Path in the image to the file that is put there.
        rooted: It has the empty root that host folders are mounted into.
    """

    name: str
    entrypoint: tuple[str, ...] = ()
    programs: dict[str, Path] = field(default_factory=dict)
    rooted: bool = True


def stage_images(programs: dict[str, Path]) -> list[Image]:
    """The images of the ``local`` overlay.

    Args:
        programs: Paths of ``pause`` and ``minio``.
    """
    return [
        Image(PAUSE, ("/pause",), {"pause": programs["pause"]}, rooted=False),
        Image(BASE, ("/usr/bin/sh",)),
        Image(MINIO, ("/usr/bin/minio",), {"usr/bin/minio": programs["minio"]}),
    ]


def ensure(images: list[Image], folder: Path | None = None) -> list[Path]:
    """Archives of the images, written where the cache lacks them.

    Args:
        images: What to write.
        folder: Their folder; by default the cache's.
    """
    return [_ensure(image, folder or cache_dir() / "images") for image in images]


def _ensure(image: Image, folder: Path) -> Path:
    path = folder / f"{image.name.rpartition('/')[2].replace(':', '-')}-{fingerprint(image)}.tar"
    if not path.exists():
        with atomic_draft(path) as draft:
            write(image, draft)
    return path


def fingerprint(image: Image) -> str:
    """Changes when the archive's content would: a program is known by its path, which holds its own fingerprint."""
    facts = [image.name, image.entrypoint, {key: str(path) for key, path in image.programs.items()}, image.rooted]
    facts += [_FOLDERS, _FILES, _LINKS, _PATH]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def write(image: Image, path: Path) -> None:
    """Write one image as an OCI archive; the same image gives the same bytes."""
    blobs: dict[str, bytes] = {}
    plain = _layer(image)
    # Not compressed: it never leaves this machine, and every start of a cluster unpacks it.
    layer = _blob(blobs, plain, f"{_MEDIA}.layer.v1.tar")
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": [_PATH], "Entrypoint": list(image.entrypoint), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [_digest(plain)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.manifest.v1+json",
        "config": _blob(blobs, _json(config), f"{_MEDIA}.config.v1+json"),
        "layers": [layer],
    }
    top = _blob(blobs, _json(manifest), f"{_MEDIA}.manifest.v1+json")
    top["annotations"] = {"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name}
    index = {"schemaVersion": 2, "manifests": [top]}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": _LAYOUT_VERSION}))
        _add(archive, "index.json", _json(index))
        for name, data in blobs.items():
            _add(archive, name, data)


def _layer(image: Image) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        if image.rooted:
            _add_root(layer)
        for name, source in image.programs.items():
            for parent in reversed(Path(name).parents[:-1]):
                if str(parent) not in layer.getnames():
                    layer.addfile(_folder(str(parent)))
            _add(layer, name, source.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _add_root(layer: tarfile.TarFile) -> None:
    for name in _FOLDERS:
        layer.addfile(_folder(name, 0o1777 if name in _OPEN_TO_ALL else 0o755))
    for name, target in _LINKS.items():
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        layer.addfile(entry)
    for name, text in _FILES.items():
        _add(layer, name, text.encode())


def _folder(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    return entry


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def _blob(blobs: dict[str, bytes], data: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(data)
    blobs[f"blobs/sha256/{digest.partition(':')[2]}"] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
