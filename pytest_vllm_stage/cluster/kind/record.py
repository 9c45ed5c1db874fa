"""The record of a kind cluster on this machine, written before the cluster is created."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.cluster.local.process import ProcessRef
from pytest_vllm_stage.core.files import PRIVATE, write_atomically
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.core.paths import cache_dir

_FILE = "record.json"


@dataclass(frozen=True)
class KindRecord:
    """A kind cluster and the run that created it.

    Attributes:
        name: The cluster's name in kind: ``vllm-stage-`` and six hexadecimal digits.
        run_id: The run that created it.
        provider: ``docker`` or ``podman``.
        lifeline: The process with which it ends.
        kept: It outlives its lifeline.
    """

    name: str
    run_id: str
    provider: str
    lifeline: ProcessRef
    kept: bool = False

    @property
    def path(self) -> Path:
        """The folder with the record and the cluster's own kubeconfig."""
        return clusters_dir() / self.name

    @property
    def kubeconfig(self) -> Path:
        return self.path / "kubeconfig"

    @property
    def in_use(self) -> bool:
        """Its run still works with it, or it was kept."""
        return self.kept or self.lifeline.alive()

    def save(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.path / _FILE, json.dumps(dataclasses.asdict(self)) + "\n", mode=PRIVATE)

    def forget(self) -> None:
        """Remove the folder: the cluster is gone."""
        shutil.rmtree(self.path, ignore_errors=True)


def clusters_dir() -> Path:
    """The folder that holds one folder for each kind cluster made from this cache."""
    return cache_dir() / "kind"


def new_name() -> str:
    """A name that no cluster of this cache has."""
    while True:
        name = f"vllm-stage-{secrets.token_hex(3)}"
        if not (clusters_dir() / name).exists():
            return name


def load_record(folder: Path) -> KindRecord | None:
    """The record in a cluster's folder; None where it is missing or corrupt."""
    try:
        data = parse_json((folder / _FILE).read_text(encoding="utf-8"))
        return KindRecord(**{**data, "lifeline": ProcessRef(**data["lifeline"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_records() -> Iterator[KindRecord]:
    """The records of all clusters of this cache."""
    for folder in sorted(clusters_dir().glob("vllm-stage-*")):
        record = load_record(folder)
        if record:
            yield record
