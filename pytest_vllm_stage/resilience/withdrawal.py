"""Takes back what the disruption `publication` published: its version is archived, and its objects are deleted.

A registry deletes nothing: the state ARCHIVED is how an entity leaves its lists. The model is archived with its last
version, and made live again by the next run that publishes under it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.publication.bucket.names import MANIFEST, PUBLISHED, build_prefix
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.publication.registry.client import Entity, RegistryClient

_LIVE, _ARCHIVED = "LIVE", "ARCHIVED"


def revive_model(registry: RegistryClient, name: str) -> None:
    """Make a model that an earlier run archived live again; nothing is published under an archived one."""

    def revive() -> None:
        model = entities.find_model(registry, name)
        if model is not None and not _is_live(model):
            registry.patch(f"registered_models/{model['id']}", {"state": _LIVE})

    registry.patiently(f"model {name}", revive)


def withdraw(place: PublicationTarget, run_id: str, files: Iterable[str]) -> list[str]:
    """Archive the run's version and delete the objects that the run wrote; what others wrote stays.

    Args:
        place: Where it was published; its version is the run's alone.
        run_id: The run.
        files: Names of the uploaded files.

    Returns:
        What could not be taken back, one line each.
    """
    keys = [
        build_prefix(place.names.model, place.names.version, run_id) + name for name in (*files, MANIFEST, PUBLISHED)
    ]
    # The registry first: a live version must not refer to objects that are gone.
    return [
        *_attempt(f"{place.where} is not archived", lambda: _archive(place)),
        *_attempt(f"{place.bucket.name}/{keys[0]} and what belongs to it is not deleted", lambda: _delete(place, keys)),
    ]


def _attempt(what: str, act: Callable[[], None]) -> list[str]:
    try:
        act()
    except StageError as error:
        return [f"{what}: {error.headline}"]
    return []


def _archive(place: PublicationTarget) -> None:
    registry = place.registry

    def archive() -> None:
        model = entities.find_model(registry, place.names.model)
        if model is None:
            return
        live = [version for version in entities.list_versions(registry, model) if _is_live(version)]
        for version in live:
            if version["name"] == place.names.version:
                registry.patch(f"model_versions/{version['id']}", {"state": _ARCHIVED})
        if _is_live(model) and all(version["name"] == place.names.version for version in live):
            registry.patch(f"registered_models/{model['id']}", {"state": _ARCHIVED})

    registry.patiently(f"archive {place.where}", archive)


def _is_live(entity: Entity) -> bool:
    return bool(entity.get("state", _LIVE) == _LIVE)


def _delete(place: PublicationTarget, keys: Iterable[str]) -> None:
    for key in keys:
        place.journal.event("publish", "delete", key=key)
        place.bucket.delete(key)
