"""Makes PersistentVolumes available again: a volume whose claim was deleted is emptied and becomes available again.

A cluster that is kept sees many deployments; without this each would use up volumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pytest_vllm_stage.cluster.local.api import BootstrapApi, Object


def released(volumes: list[Object]) -> list[str]:
    """Names of the volumes whose claim is gone."""
    return [volume["metadata"]["name"] for volume in volumes if volume.get("status", {}).get("phase") == "Released"]


def reclaim(api: BootstrapApi, folder: Path) -> list[str]:
    """Empty every released volume and make it available.

    Args:
        api: The API server.
        folder: The folder with one folder for each volume, named as the volume.

    Returns:
        The names of the reclaimed volumes.

    Raises:
        BootstrapCallRejected: the API server answered with an error.
        OSError: there was no answer, or a file could not be removed.
    """
    path = "/api/v1/persistentvolumes"
    names = released(api.get(path)["items"])
    for name in names:
        empty(folder / name)
        api.merge(f"{path}/{name}", {"spec": {"claimRef": None}})
    return names


def empty(folder: Path) -> None:
    """Remove what is in a folder, and leave the folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
