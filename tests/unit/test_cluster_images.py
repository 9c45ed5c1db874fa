"""The OCI archives: what an image reader finds in them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster.local import images
from pytest_vllm_stage.cluster.local.images import Image


class Archive:
    """Reads an OCI archive independently of what wrote it."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            self.files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]

    def json(self, name: str) -> Any:
        """A file of the archive, parsed."""
        return json.loads(self.files[name])

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        """The blob, after checking that it is what its descriptor says."""
        data = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert descriptor["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert descriptor["size"] == len(data)
        return data


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF program")
    return path


@pytest.fixture
def archive(tmp_path: Path, program: Path) -> Archive:
    image = Image("vllm-stage.local/tool:1", ("/usr/bin/tool",), {"usr/bin/tool": program})
    (path,) = images.ensure([image], tmp_path / "cache")
    return Archive(path)


def test_descriptors_lead_to_config_and_layer(archive: Archive) -> None:
    assert archive.json("oci-layout") == {"imageLayoutVersion": "1.0.0"}
    (top,) = archive.json("index.json")["manifests"]
    assert top["annotations"]["io.containerd.image.name"] == "vllm-stage.local/tool:1"
    manifest = json.loads(archive.blob(top))
    config = json.loads(archive.blob(manifest["config"]))
    (layer,) = [archive.blob(descriptor) for descriptor in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert config["config"]["Entrypoint"] == ["/usr/bin/tool"]
    assert config["os"] == "linux"
    assert len(archive.files) == 5


def test_the_layer_is_an_empty_root_with_the_program(archive: Archive) -> None:
    (top,) = archive.json("index.json")["manifests"]
    (descriptor,) = json.loads(archive.blob(top))["layers"]
    with tarfile.open(fileobj=io.BytesIO(archive.blob(descriptor))) as layer:
        members = {member.name: member for member in layer}
        assert len(members) == len(layer.getnames()), "no entry twice"
        tool = layer.extractfile("usr/bin/tool")
        assert tool
        assert tool.read() == b"\x7fELF program"
    assert members["usr/bin/tool"].mode == 0o755
    assert (members["bin"].type, members["bin"].linkname) == (tarfile.SYMTYPE, "usr/bin")
    assert members["tmp"].mode == 0o1777
    for folder in ("usr", "lib", "lib64", "etc", "proc", "sys", "dev", "mnt", "run", "root", "var/tmp", "usr/bin"):
        assert members[folder].isdir(), folder
    assert {"etc/passwd", "etc/group"} <= members.keys()
    names = list(members)
    assert names.index("usr") < names.index("usr/bin") < names.index("usr/bin/tool")


def test_an_image_without_a_root_holds_its_program_only(tmp_path: Path, program: Path) -> None:
    image = Image("vllm-stage.local/pause:1", ("/pause",), {"pause": program}, rooted=False)
    archive = Archive(*images.ensure([image], tmp_path / "cache"))
    (top,) = archive.json("index.json")["manifests"]
    (descriptor,) = json.loads(archive.blob(top))["layers"]
    with tarfile.open(fileobj=io.BytesIO(archive.blob(descriptor))) as layer:
        assert layer.getnames() == ["pause"]


def test_the_same_image_gives_the_same_bytes_once(tmp_path: Path, program: Path) -> None:
    image = Image("vllm-stage.local/tool:1", (), {"usr/bin/tool": program})
    (first,) = images.ensure([image], tmp_path / "a")
    (second,) = images.ensure([image], tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    first.write_bytes(b"kept")
    assert images.ensure([image], tmp_path / "a") == [first]
    assert first.read_bytes() == b"kept"
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


@pytest.mark.parametrize(
    "other",
    [
        Image("vllm-stage.local/tool:2", ("/t",), {"t": Path("/x/1")}),
        Image("vllm-stage.local/tool:1", ("/u",), {"t": Path("/x/1")}),
        Image("vllm-stage.local/tool:1", ("/t",), {"t": Path("/x/2")}),
        Image("vllm-stage.local/tool:1", ("/t",), {"t": Path("/x/1")}, rooted=False),
    ],
)
def test_another_image_has_another_fingerprint(other: Image) -> None:
    image = Image("vllm-stage.local/tool:1", ("/t",), {"t": Path("/x/1")})
    assert images.fingerprint(image) == images.fingerprint(Image(**vars(image)))
    assert images.fingerprint(image) != images.fingerprint(other)


def test_the_contracts_images_are_there(program: Path) -> None:
    names = [image.name for image in images.stage_images({"pause": program, "minio": program})]
    assert names == ["vllm-stage.local/pause:1", "vllm-stage.local/base:1", "vllm-stage.local/minio:1"]
