"""The registry's paths below its prefix, their methods, and what each does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.standins.registry.bodies import Mode, artifact_kind, read
from pytest_vllm_stage.standins.registry.kinds import ARTIFACTS, MODEL_ARTIFACT, MODEL_VERSION, REGISTERED_MODEL, Kind
from pytest_vllm_stage.standins.registry.refusal import bad_request
from pytest_vllm_stage.standins.registry.resources import Kinds, Registry
from pytest_vllm_stage.standins.registry.values import parse_id

_ALL_ARTIFACTS: Kinds = tuple(ARTIFACTS.values())


@dataclass(frozen=True)
class RoutedCall:
    """What a handler gets: the registry as this request sees it, the id in its path, its parameters and its body."""

    registry: Registry
    id: str
    query: dict[str, str]
    body: Callable[[], dict[str, Any]]


#: Returns the status and the JSON.
Handler = Callable[[RoutedCall], tuple[int, dict[str, Any]]]


def _get(kind: Kind) -> Handler:
    return lambda call: (200, call.registry.show(call.registry.get((kind,), call.id)))


def _find(kind: Kind) -> Handler:
    return lambda call: (200, call.registry.show(call.registry.find((kind,), call.query)))


def _list(kind: Kind) -> Handler:
    return lambda call: (200, call.registry.page((kind,), call.query))


def _create(kind: Kind) -> Handler:
    def create(call: RoutedCall) -> tuple[int, dict[str, Any]]:
        entity = call.registry.create(kind, read(call.body(), kind, Mode.CREATE))
        return 201, call.registry.show_written(entity)

    return create


def _patch(kind: Kind) -> Handler:
    def patch(call: RoutedCall) -> tuple[int, dict[str, Any]]:
        given = read(call.body(), kind, Mode.UPDATE)
        entity = call.registry.patch(call.registry.get((kind,), call.id), given)
        return 200, call.registry.show_written(entity)

    return patch


def _find_model_artifact(call: RoutedCall) -> tuple[int, dict[str, Any]]:
    """Looks among all artifacts first, so that a doc artifact of the same name makes it ambiguous."""
    found = call.registry.find(_ALL_ARTIFACTS, call.query)
    return 200, call.registry.show(call.registry.get((MODEL_ARTIFACT,), str(found.id)))


def _list_version_artifacts(call: RoutedCall) -> tuple[int, dict[str, Any]]:
    name = call.query.get("artifactType")
    kinds = (artifact_kind({"artifactType": name}),) if name else _ALL_ARTIFACTS
    return 200, call.registry.page(kinds, call.query, parent_id=parse_id(call.id, "model version"))


def _upsert_version_artifact(call: RoutedCall) -> tuple[int, dict[str, Any]]:
    """Add an artifact to a version, or change the one whose id is given."""
    body = call.body()
    kind = artifact_kind(body)
    given = read(body, kind, Mode.WHOLE)
    version = call.registry.get((MODEL_VERSION,), call.id)
    if given.id is None:
        return 201, call.registry.show_written(call.registry.create(kind, given, version.id))
    entity = call.registry.get(_ALL_ARTIFACTS, given.id)
    if entity.kind is not kind:
        raise bad_request(f"artifact with id {given.id} is not a {kind.name}")
    return 200, call.registry.show_written(call.registry.patch(entity, given))


def _list_versions_of_model(call: RoutedCall) -> tuple[int, dict[str, Any]]:
    parent_id = parse_id(call.id, "registered model")
    for key in ("name", "externalId"):
        if "'" in call.query.get(key, ""):
            # The real server puts them into a filterQuery, and forgets that they can hold quotes.
            raise bad_request(f"error parsing filter query: unexpected {call.query[key][:40]!r}")
    return 200, call.registry.page((MODEL_VERSION,), call.query, parent_id=parent_id)


#: Path below the prefix to its methods.
ROUTES: dict[str, dict[str, Handler]] = {
    "registered_model": {"GET": _find(REGISTERED_MODEL)},
    "registered_models": {"GET": _list(REGISTERED_MODEL), "POST": _create(REGISTERED_MODEL)},
    "registered_models/{id}": {"GET": _get(REGISTERED_MODEL), "PATCH": _patch(REGISTERED_MODEL)},
    "registered_models/{id}/versions": {"GET": _list_versions_of_model},
    "model_version": {"GET": _find(MODEL_VERSION)},
    "model_versions": {"GET": _list(MODEL_VERSION), "POST": _create(MODEL_VERSION)},
    "model_versions/{id}": {"GET": _get(MODEL_VERSION), "PATCH": _patch(MODEL_VERSION)},
    "model_versions/{id}/artifacts": {"GET": _list_version_artifacts, "POST": _upsert_version_artifact},
    "model_artifact": {"GET": _find_model_artifact},
    "model_artifacts/{id}": {"GET": _get(MODEL_ARTIFACT), "PATCH": _patch(MODEL_ARTIFACT)},
}


def find_route(path: str) -> tuple[dict[str, Handler], str] | None:
    """The methods of a path below the prefix, and the id in it."""
    parts = path.split("/")
    pattern = "/".join([*parts[:1], *("{id}" for _ in parts[1:2]), *parts[2:]])
    methods = ROUTES.get(pattern)
    return None if methods is None or "" in parts else (methods, parts[1] if len(parts) > 1 else "")
