"""The OpenAPI 3 description of what the stand-in serves, made from its kinds and routes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pytest_vllm_stage.standins.registry import SERVER, kinds
from pytest_vllm_stage.standins.registry.exchange import JSON_TYPE
from pytest_vllm_stage.standins.registry.kinds import ARTIFACTS, MAX_NAME, Field, Kind, Type
from pytest_vllm_stage.standins.registry.routes import ROUTES
from pytest_vllm_stage.standins.registry.values import VALUE_KEYS, encoded

Schema = dict[str, Any]

_NAMES = {
    "RegisteredModel": kinds.REGISTERED_MODEL,
    "ModelVersion": kinds.MODEL_VERSION,
    "ServingEnvironment": kinds.SERVING_ENVIRONMENT,
    "InferenceService": kinds.INFERENCE_SERVICE,
    "ServeModel": kinds.SERVE_MODEL,
    "ModelArtifact": kinds.MODEL_ARTIFACT,
    "DocArtifact": kinds.DOC_ARTIFACT,
    "DataSet": kinds.DATASET,
    "Metric": kinds.METRIC,
    "Parameter": kinds.PARAMETER,
}
_ARTIFACT_NAMES = [name for name, kind in _NAMES.items() if kind.artifact_type]

_ABOUT = (
    f"What {SERVER} serves below /api/model_registry/v1 and /v1alpha3, over one store. It stands in for the real server"
    " in tests and in the local stage, and copies its oddities. Not there: experiments, experiment runs, metric history"
    " and the catalog."
)
_TEXT: Schema = {"type": "string"}
_ID: Schema = {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}
_INTEGER_TEXT: Schema = {"type": "string", "pattern": "^-?(0|[1-9][0-9]{0,17})$"}
_TYPES: dict[Type, Schema] = {
    Type.TEXT: _TEXT,
    Type.TEXTS: {"type": "array", "items": _TEXT},
    Type.ID: _ID,
    Type.INTEGER_TEXT: _INTEGER_TEXT,
    Type.NUMBER: {"type": "number"},
}
_TIME: Schema = {"type": "string", "pattern": "^[0-9]{13}$", "description": "Milliseconds since 1970."}
_NAME: Schema = {
    "type": "string",
    "minLength": 1,
    # With a parent's id and a colon before it, as it is stored.
    "maxLength": MAX_NAME - 11,
    "description": f"Stored behind the parent's id; more than {MAX_NAME} characters in all are a database error.",
}
_EXTERNAL_ID: Schema = {"type": "string", "maxLength": MAX_NAME, "description": "Unique among what shares ids with it."}
_PROPERTY_VALUES: dict[str, Schema] = {
    "string_value": _TEXT,
    "int_value": {"type": "string", "pattern": "^-?(0|[1-9][0-9]{0,8}|1[0-9]{9})$", "description": "32 bits."},
    "double_value": {"type": "number", "description": "A whole one comes back without a fraction."},
    "bool_value": {"type": "boolean"},
    "struct_value": {"type": "string", "description": "A JSON object: given as base64, shown as it is."},
}
_PARAMETERS: dict[str, tuple[str, Schema]] = {
    "pageSize": ("Entities of a page; 0 or less is all.", {"type": "integer", "format": "int32"}),
    "orderBy": ("ID, CREATE_TIME or LAST_UPDATE_TIME; anything else means ID.", _TEXT),
    "sortOrder": ("ASC or DESC; anything else means ASC.", _TEXT),
    "nextPageToken": ("The token of the page before; empty means the first page.", _TEXT),
    "filterQuery": ("Comparisons joined by AND and OR, such as: acc > 0.5 AND name = 'x'.", _TEXT),
    "name": ("A name, as a LIKE pattern.", _TEXT),
    "externalId": ("An external id.", _TEXT),
    "parentResourceId": ("The id of the parent, without which a child's name says nothing.", _ID),
    "artifactType": ("Only artifacts of this type.", {"type": "string", "enum": list(ARTIFACTS)}),
}
_ERRORS = {
    400: "Malformed, of a wrong type, or unreadable since a property is poisoned.",
    404: "There is none; or, where one is looked for, several.",
    409: "The name or the external id is taken.",
    422: "A required field is missing, null or empty.",
    500: "The database refuses a name, external id or key of more than 255 characters, or a property that was stored"
    " cannot be read back.",
}
#: Schema of what a path is about, by its last word.
_SUBJECTS = {
    "registered_model": "RegisteredModel",
    "model": "RegisteredModel",
    "model_version": "ModelVersion",
    "version": "ModelVersion",
    "artifact": "Artifact",
    "model_artifact": "ModelArtifact",
    "serving_environment": "ServingEnvironment",
    "inference_service": "InferenceService",
    "serve": "ServeModel",
}
_PAGING = ("pageSize", "orderBy", "sortOrder", "nextPageToken")
#: Parameters that only some lists honour.
_LIST_PARAMETERS = {
    "registered_models": ("filterQuery",),
    "model_versions": ("filterQuery",),
    "registered_models/{id}/versions": ("filterQuery", "name", "externalId"),
    "artifacts": ("filterQuery", "artifactType"),
    "model_versions/{id}/artifacts": ("filterQuery", "name", "externalId", "artifactType"),
}
_BODIES = {
    "registered_models/{id}/versions": "ModelVersionWhole",
    "model_versions/{id}/artifacts": "ArtifactWhole",
}


@lru_cache(maxsize=1)
def description() -> bytes:
    """The description as JSON."""
    return encoded(
        {
            "openapi": "3.0.3",
            "info": {"title": "A stand-in for the Kubeflow Model Registry", "version": "1", "description": _ABOUT},
            "servers": [{"url": "/api/model_registry/v1"}, {"url": "/api/model_registry/v1alpha3"}],
            "paths": {f"/{path}": {m.lower(): _operation(path, m) for m in ROUTES[path]} for path in ROUTES},
            "components": {"schemas": _schemas()},
        }
    )


def _operation(path: str, method: str) -> Schema:
    """One operation: what it is about follows from the path's words."""
    *above, last = path.split("/")
    by_id = last == "{id}"
    word = above[-1] if by_id else last
    subject = _SUBJECTS[word.removesuffix("s")]
    parameters = [_path_id()] if "{id}" in path else []
    operation: Schema = {"operationId": f"{method.lower()} {path}".replace("/", " ").replace("{id}", "id")}
    errors = [400]
    if method == "GET":
        shown = subject if by_id or not word.endswith("s") else f"{subject}List"
        names = _query(path, subject, listed=shown.endswith("List"))
        operation["responses"] = {"200": _answer(shown)}
        errors += [] if shown.endswith("List") else [404]
    else:
        names = ()
        body = f"{subject}Update" if method == "PATCH" else _BODIES.get(path, f"{subject}Create")
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
        operation["responses"] = {"200" if method == "PATCH" else "201": _answer(subject)}
        if path == "model_versions/{id}/artifacts":
            operation["responses"]["200"] = _answer(subject)
        errors += [404, 409, 500, *([422] if method == "POST" else [])]
    operation["parameters"] = parameters + [_parameter(name) for name in names]
    operation["responses"] |= {str(status): _error(_ERRORS[status]) for status in errors}
    return operation


def _query(path: str, subject: str, *, listed: bool) -> tuple[str, ...]:
    if listed:
        return (*_PAGING, *_LIST_PARAMETERS.get(path, ()))
    if "/" in path:
        return ()
    alone = subject in ("RegisteredModel", "ServingEnvironment")
    return ("name", "externalId") if alone else ("name", "externalId", "parentResourceId")


def _path_id() -> Schema:
    return {"name": "id", "in": "path", "required": True, "schema": _ID}


def _parameter(name: str) -> Schema:
    text, schema = _PARAMETERS[name]
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(name: str) -> Schema:
    return {"description": name, "content": {JSON_TYPE: {"schema": _ref(name)}}}


def _error(text: str) -> Schema:
    return {"description": text, "content": {JSON_TYPE: {"schema": _ref("Error")}}}


def _schemas() -> dict[str, Schema]:
    schemas: dict[str, Schema] = {
        "Error": _object({"code": _TEXT, "message": _TEXT}, ["code", "message"]),
        "Property": {"oneOf": [_property(kind, _PROPERTY_VALUES[key]) for kind, key in VALUE_KEYS.items()]},
        "PropertyGiven": {"oneOf": [_property_given(kind, key) for kind, key in VALUE_KEYS.items()]},
    }
    for name, kind in _NAMES.items():
        schemas[name] = _shown(kind)
        schemas[f"{name}Create"] = _given(kind, create=True)
        schemas[f"{name}Update"] = _given(kind, create=False)
    whole = schemas["ModelVersionCreate"]
    times = {"createTimeSinceEpoch": _TIME, "lastUpdateTimeSinceEpoch": _TIME}
    schemas["ModelVersionWhole"] = whole | {"properties": whole["properties"] | {"id": _ID} | times}
    schemas["Artifact"] = {"oneOf": [_ref(name) for name in _ARTIFACT_NAMES]}
    for purpose in ("Create", "Update"):
        schemas[f"Artifact{purpose}"] = {"oneOf": [_typed(schemas[f"{name}{purpose}"]) for name in _ARTIFACT_NAMES]}
    schemas["ArtifactWhole"] = {
        "oneOf": [_typed(schemas[f"{name}Create"], {"id": _ID}) for name in _ARTIFACT_NAMES],
        "description": "With an id, changes to that one; without, a new one, or the metric or parameter of that name.",
    }
    return schemas | {f"{name}List": _list(name) for name in ("Artifact", *_NAMES)}


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": sorted(required)} if required else {})


def _field(field: Field) -> Schema:
    return {"type": "string", "enum": list(field.values)} if field.values else _TYPES[field.type]


def _artifact_type(kind: Kind) -> dict[str, Schema]:
    return {"artifactType": {"type": "string", "enum": [kind.artifact_type]}} if kind.artifact_type else {}


def _shown(kind: Kind) -> Schema:
    """An entity in an answer: what is always there is required, the rest is absent or of its type."""
    always = {"id": _ID, "name": _TEXT, "createTimeSinceEpoch": _TIME, "lastUpdateTimeSinceEpoch": _TIME}
    always["customProperties"] = {"type": "object", "additionalProperties": _ref("Property")}
    always |= _artifact_type(kind)
    required = [*always, *(field.name for field in kind.fields if field.required)]
    fields = {field.name: _field(field) for field in kind.fields}
    return _object({**always, "externalId": _TEXT, **fields}, required)


def _given(kind: Kind, *, create: bool) -> Schema:
    """An entity, or changes to one, in a request."""
    properties: dict[str, Schema] = {"name": _NAME} if create else {}
    properties |= {"externalId": _EXTERNAL_ID, **_artifact_type(kind)}
    properties["customProperties"] = {"type": "object", "additionalProperties": _ref("PropertyGiven")}
    properties |= {field.name: _field(field) for field in kind.fields if create or not field.fixed}
    required = ["name"] * kind.named + [field.name for field in kind.fields if field.required]
    return _object(properties, required if create else [])


def _typed(schema: Schema, more: dict[str, Schema] | None = None) -> Schema:
    """An artifact whose type must be named; what is unknown is dropped there."""
    rest = {key: value for key, value in schema.items() if key != "additionalProperties"}
    required = sorted({*schema.get("required", []), "artifactType"})
    return rest | {"properties": schema["properties"] | (more or {}), "required": required}


def _list(name: str) -> Schema:
    number = {"type": "integer"}
    parts = {
        "items": {"type": "array", "items": _ref(name)},
        "nextPageToken": _TEXT,
        "pageSize": number,
        "size": number,
    }
    return _object(parts, list(parts))


def _property(kind: str, value: Schema, *, needed: bool = True) -> Schema:
    key = VALUE_KEYS[kind]
    schema = _object({"metadataType": {"type": "string", "enum": [kind]}, key: value}, ["metadataType"])
    return schema | {"required": ["metadataType", key]} if needed else schema


def _property_given(kind: str, key: str) -> Schema:
    """A property in a request: of a struct two examples, as no pattern describes base64 of JSON."""
    value: Schema = (
        {"type": "string", "enum": ["e30=", "eyJhIjoxfQ=="]} if key == "struct_value" else _PROPERTY_VALUES[key]
    )
    return _property(kind, value, needed=key in ("int_value", "struct_value"))
