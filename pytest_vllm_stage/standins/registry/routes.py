"""The registry's paths below its prefix, their methods, and what each does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.standins.registry.bodies import Mode, artifact_kind, read
from pytest_vllm_stage.standins.registry.exchange import Request, Response, as_json
from pytest_vllm_stage.standins.registry.kinds import (
    ARTIFACTS,
    INFERENCE_SERVICE,
    MODEL_ARTIFACT,
    MODEL_VERSION,
    REGISTERED_MODEL,
    SERVE_MODEL,
    SERVING_ENVIRONMENT,
    Kind,
    Repeat,
)
from pytest_vllm_stage.standins.registry.refusal import bad_request
from pytest_vllm_stage.standins.registry.resources import Kinds, Registry, by_stored_name, through_the_filter
from pytest_vllm_stage.standins.registry.store import Entity
from pytest_vllm_stage.standins.registry.values import id_of, parse_object

_ALL_ARTIFACTS: Kinds = tuple(ARTIFACTS.values())


@dataclass(frozen=True)
class Call:
    """What a handler gets: the registry as this request meets it, the ids in its path, and the request."""

    registry: Registry
    ids: tuple[str, ...]
    request: Request

    @property
    def body(self) -> dict[str, Any]:
        """The request's JSON object."""
        return parse_object(self.request.body)

    def shown(self, entity: Entity, status: int = 200) -> Response:
        """An answer with an entity."""
        return as_json(self.registry.show(entity), status)

    def written(self, entity: Entity, status: int = 200) -> Response:
        """An answer with an entity that this request has written."""
        return as_json(self.registry.show_written(entity), status)


Handler = Callable[[Call], Response]


def _get(*kinds: Kind) -> Handler:
    return lambda call: call.shown(call.registry.get(kinds, call.ids[0]))


def _find(*kinds: Kind) -> Handler:
    def find(call: Call) -> Response:
        found = call.registry.find(kinds, call.request.query)
        return call.shown(found)

    return find


def _list(*kinds: Kind, filtered: bool = False) -> Handler:
    return lambda call: as_json(call.registry.page(kinds, call.request.query, filtered=filtered))


def _create(kind: Kind) -> Handler:
    return lambda call: call.written(call.registry.create(kind, read(call.body, kind, Mode.CREATE)), 201)


def _patch(kind: Kind) -> Handler:
    def patch(call: Call) -> Response:
        given = read(call.body, kind, Mode.UPDATE)
        return call.written(call.registry.patch(call.registry.get((kind,), call.ids[0]), given))

    return patch


def _patch_artifact(call: Call) -> Response:
    body = call.body
    kind = artifact_kind(body)
    given = read(body, kind, Mode.UPDATE, strict=False)
    entity = call.registry.get(_ALL_ARTIFACTS, call.ids[0])
    if entity.kind is not kind:
        raise bad_request(f"artifactType is immutable: artifact {entity.id} is a {entity.kind.artifact_type}")
    return call.written(call.registry.patch(entity, given))


def _find_model_artifact(call: Call) -> Response:
    """Looks among all artifacts first, so that a doc artifact of the same name makes it ambiguous."""
    found = call.registry.find(_ALL_ARTIFACTS, call.request.query)
    return call.shown(call.registry.get((MODEL_ARTIFACT,), str(found.id)))


def _create_artifact(call: Call) -> Response:
    body = call.body
    kind = artifact_kind(body)
    return call.written(call.registry.create(kind, read(body, kind, Mode.CREATE, strict=False)), 201)


def _artifact_kinds(call: Call) -> Kinds:
    name = call.request.query.get("artifactType")
    return (artifact_kind({"artifactType": name}),) if name else _ALL_ARTIFACTS


def _list_artifacts(call: Call) -> Response:
    return as_json(call.registry.page(_artifact_kinds(call), call.request.query, filtered=True))


def _list_version_artifacts(call: Call) -> Response:
    kinds, query = _artifact_kinds(call), call.request.query
    parent_id = id_of(call.ids[0], "model version")
    return as_json(call.registry.page(kinds, query, parent_id=parent_id, filtered=True, named=by_stored_name))


def _upsert_version_artifact(call: Call) -> Response:
    """Add or change an artifact of a version; only models and documents tell the two apart by their status."""
    body = call.body
    kind = artifact_kind(body)
    given = read(body, kind, Mode.WHOLE, strict=False)
    version = call.registry.get((MODEL_VERSION,), call.ids[0])
    if given.id is not None:
        entity = call.registry.get(_ALL_ARTIFACTS, given.id)
        if entity.kind is not kind:
            raise bad_request(f"artifact with id {given.id} is not a {kind.name}")
        return call.written(call.registry.patch(entity, given))
    entity = call.registry.create(kind, given, version.id, defaults=False)
    return call.written(entity, 201 if kind.repeat is Repeat.REFUSED else 200)


def _create_version_of(call: Call) -> Response:
    """Takes a whole version: the path's model wins over the body's, and an id makes it an update."""
    given = read(call.body, MODEL_VERSION, Mode.WHOLE)
    given.fields["registeredModelId"] = id_of(call.ids[0], "registered model")
    if given.id is not None:
        entity = call.registry.get((MODEL_VERSION,), given.id)
        return call.written(call.registry.patch(entity, given), 201)
    return call.written(call.registry.create(MODEL_VERSION, given), 201)


def _list_versions_of(call: Call) -> Response:
    parent_id = id_of(call.ids[0], "registered model")
    query = call.request.query
    return as_json(
        call.registry.page((MODEL_VERSION,), query, parent_id=parent_id, filtered=True, named=through_the_filter)
    )


def _create_service_in(call: Call) -> Response:
    given = read(call.body, INFERENCE_SERVICE, Mode.CREATE)
    given.fields["servingEnvironmentId"] = id_of(call.ids[0], "serving environment")
    return call.written(call.registry.create(INFERENCE_SERVICE, given), 201)


def _list_children(kind: Kind, parent: Kind) -> Handler:
    def children(call: Call) -> Response:
        parent_id = id_of(call.ids[0], parent.name)
        return as_json(call.registry.page((kind,), call.request.query, parent_id=parent_id))

    return children


def _model_of_service(call: Call) -> Response:
    service = call.registry.get((INFERENCE_SERVICE,), call.ids[0])
    return call.shown(call.registry.get((REGISTERED_MODEL,), str(service.fields["registeredModelId"])))


def _version_of_service(call: Call) -> Response:
    service = call.registry.get((INFERENCE_SERVICE,), call.ids[0])
    return call.shown(call.registry.newest_version(service))


def _create_serve(call: Call) -> Response:
    given = read(call.body, SERVE_MODEL, Mode.CREATE)
    call.registry.get((MODEL_VERSION,), str(given.fields["modelVersionId"]))
    service = call.registry.get((INFERENCE_SERVICE,), call.ids[0])
    return call.written(call.registry.create(SERVE_MODEL, given, service.id), 201)


#: Path below the prefix to its methods.
ROUTES: dict[str, dict[str, Handler]] = {
    "registered_model": {"GET": _find(REGISTERED_MODEL)},
    "registered_models": {"GET": _list(REGISTERED_MODEL, filtered=True), "POST": _create(REGISTERED_MODEL)},
    "registered_models/{id}": {"GET": _get(REGISTERED_MODEL), "PATCH": _patch(REGISTERED_MODEL)},
    "registered_models/{id}/versions": {"GET": _list_versions_of, "POST": _create_version_of},
    "model_version": {"GET": _find(MODEL_VERSION)},
    "model_versions": {"GET": _list(MODEL_VERSION, filtered=True), "POST": _create(MODEL_VERSION)},
    "model_versions/{id}": {"GET": _get(MODEL_VERSION), "PATCH": _patch(MODEL_VERSION)},
    "model_versions/{id}/artifacts": {"GET": _list_version_artifacts, "POST": _upsert_version_artifact},
    "artifact": {"GET": _find(*_ALL_ARTIFACTS)},
    "artifacts": {"GET": _list_artifacts, "POST": _create_artifact},
    "artifacts/{id}": {"GET": _get(*_ALL_ARTIFACTS), "PATCH": _patch_artifact},
    "model_artifact": {"GET": _find_model_artifact},
    "model_artifacts": {"GET": _list(MODEL_ARTIFACT), "POST": _create(MODEL_ARTIFACT)},
    "model_artifacts/{id}": {"GET": _get(MODEL_ARTIFACT), "PATCH": _patch(MODEL_ARTIFACT)},
    "serving_environment": {"GET": _find(SERVING_ENVIRONMENT)},
    "serving_environments": {"GET": _list(SERVING_ENVIRONMENT), "POST": _create(SERVING_ENVIRONMENT)},
    "serving_environments/{id}": {"GET": _get(SERVING_ENVIRONMENT), "PATCH": _patch(SERVING_ENVIRONMENT)},
    "serving_environments/{id}/inference_services": {
        "GET": _list_children(INFERENCE_SERVICE, SERVING_ENVIRONMENT),
        "POST": _create_service_in,
    },
    "inference_service": {"GET": _find(INFERENCE_SERVICE)},
    "inference_services": {"GET": _list(INFERENCE_SERVICE), "POST": _create(INFERENCE_SERVICE)},
    "inference_services/{id}": {"GET": _get(INFERENCE_SERVICE), "PATCH": _patch(INFERENCE_SERVICE)},
    "inference_services/{id}/model": {"GET": _model_of_service},
    "inference_services/{id}/version": {"GET": _version_of_service},
    "inference_services/{id}/serves": {
        "GET": _list_children(SERVE_MODEL, INFERENCE_SERVICE),
        "POST": _create_serve,
    },
}


def route_of(path: str) -> tuple[dict[str, Handler], tuple[str, ...]] | None:
    """The methods of a path below the prefix, and the ids in it."""
    parts = path.split("/")
    ids = tuple(parts[1:2])
    pattern = "/".join([*parts[:1], *("{id}" for _ in ids), *parts[2:]])
    methods = ROUTES.get(pattern)
    return None if methods is None or "" in parts else (methods, ids)
