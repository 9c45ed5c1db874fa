"""What the registry holds: the kinds of entities, their fields, and where their names must be unique."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ARTIFACT_STATES = ("UNKNOWN", "PENDING", "LIVE", "MARKED_FOR_DELETION", "DELETED", "ABANDONED", "REFERENCE")
SERVE_STATES = ("UNKNOWN", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELED")
MODEL_STATES = ("LIVE", "ARCHIVED")
SERVICE_STATES = ("DEPLOYED", "UNDEPLOYED")
PARAMETER_TYPES = ("string", "number", "boolean", "object")

#: The longest name, external id and property key, in characters: the database's columns.
MAX_NAME = 255


class Space(StrEnum):
    """What shares one sequence of ids, and one set of external ids."""

    CONTEXT = "context"
    ARTIFACT = "artifact"
    EXECUTION = "execution"


class Type(StrEnum):
    """A field's JSON type."""

    TEXT = "text"
    TEXTS = "texts"
    ID = "id"
    INTEGER_TEXT = "integer text"
    NUMBER = "number"


class Repeat(StrEnum):
    """What a second entity of one name, kind and parent meets."""

    REFUSED = "refused"
    UPDATES = "updates"
    ADDED = "added"


@dataclass(frozen=True)
class Field:
    """One field of a kind.

    Attributes:
        name: Its JSON name.
        type: Its JSON type.
        values: The valid values, where they are few.
        required: It must be given and not be empty when an entity is made.
        fixed: It cannot be patched.
        filters_as: Its type in a filterQuery (``string``, ``int`` or ``double``); empty: not known there.
    """

    name: str
    type: Type = Type.TEXT
    values: tuple[str, ...] = ()
    required: bool = False
    fixed: bool = False
    filters_as: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of entities.

    Attributes:
        name: How errors call it.
        space: Whose ids it shares.
        fields: Its fields, without those that every kind has.
        defaults: Values of fields that are not given when an entity is made by itself.
        artifact_type: The ``artifactType`` of an artifact.
        parent: The field that holds the parent's id, where it is one.
        named: A name must be given; without one, the server makes one.
        repeat: What a second one of the same name meets.
    """

    name: str
    space: Space
    fields: tuple[Field, ...]
    defaults: tuple[tuple[str, str], ...] = ()
    artifact_type: str = ""
    parent: str = ""
    named: bool = True
    repeat: Repeat = Repeat.REFUSED

    @property
    def prefixed(self) -> bool:
        """Names are stored as ``<parent>:<name>``."""
        return bool(self.parent) or self.space is not Space.CONTEXT

    def field(self, name: str) -> Field | None:
        """The field of a name."""
        return next((field for field in self.fields if field.name == name), None)


def _texts(*names: str, filters: bool = True) -> tuple[Field, ...]:
    return tuple(Field(name, filters_as="string" if filters else "") for name in names)


_DESCRIPTION = Field("description")
_URI = Field("uri", filters_as="string")
_ARTIFACT_STATE = Field("state", values=ARTIFACT_STATES, filters_as="string")


def _parent(name: str) -> Field:
    return Field(name, Type.ID, required=True, fixed=True, filters_as="int")


REGISTERED_MODEL = Kind(
    "registered model",
    Space.CONTEXT,
    (
        _DESCRIPTION,
        Field("state", values=MODEL_STATES, filters_as="string"),
        *_texts("owner"),
        *_texts("readme", "maturity", filters=False),
        Field("language", Type.TEXTS),
        Field("tasks", Type.TEXTS),
        *_texts("provider", "logo", "license", "licenseLink", "libraryName", filters=False),
    ),
    defaults=(("state", "LIVE"),),
)
MODEL_VERSION = Kind(
    "model version",
    Space.CONTEXT,
    (
        _DESCRIPTION,
        Field("state", values=MODEL_STATES, filters_as="string"),
        *_texts("author"),
        _parent("registeredModelId"),
    ),
    defaults=(("state", "LIVE"),),
    parent="registeredModelId",
)
SERVING_ENVIRONMENT = Kind("serving environment", Space.CONTEXT, (_DESCRIPTION,))
INFERENCE_SERVICE = Kind(
    "inference service",
    Space.CONTEXT,
    (
        _DESCRIPTION,
        *_texts("runtime"),
        Field("desiredState", values=SERVICE_STATES, filters_as="string"),
        Field("modelVersionId", Type.ID, filters_as="int"),
        _parent("registeredModelId"),
        _parent("servingEnvironmentId"),
    ),
    defaults=(("desiredState", "DEPLOYED"),),
    parent="servingEnvironmentId",
    named=False,
)
SERVE_MODEL = Kind(
    "serve model",
    Space.EXECUTION,
    (_DESCRIPTION, Field("lastKnownState", values=SERVE_STATES), _parent("modelVersionId")),
    defaults=(("lastKnownState", "UNKNOWN"),),
    named=False,
)
MODEL_ARTIFACT = Kind(
    "model artifact",
    Space.ARTIFACT,
    (
        _DESCRIPTION,
        _URI,
        _ARTIFACT_STATE,
        *_texts("modelFormatName", "modelFormatVersion", "storageKey", "storagePath", "serviceAccountName"),
        *_texts("modelSourceKind", "modelSourceClass", "modelSourceGroup", "modelSourceId", "modelSourceName"),
    ),
    defaults=(("state", "UNKNOWN"),),
    artifact_type="model-artifact",
    named=False,
)
DOC_ARTIFACT = Kind(
    "doc artifact",
    Space.ARTIFACT,
    (_DESCRIPTION, _URI, _ARTIFACT_STATE),
    artifact_type="doc-artifact",
    named=False,
)
DATASET = Kind(
    "data set",
    Space.ARTIFACT,
    (_DESCRIPTION, _URI, _ARTIFACT_STATE, *_texts("digest", "sourceType", "source", "schema", "profile")),
    artifact_type="dataset-artifact",
    named=False,
    repeat=Repeat.ADDED,
)
METRIC = Kind(
    "metric",
    Space.ARTIFACT,
    (
        _DESCRIPTION,
        _ARTIFACT_STATE,
        Field("value", Type.NUMBER, filters_as="double"),
        Field("timestamp", Type.INTEGER_TEXT, filters_as="int"),
        Field("step", Type.INTEGER_TEXT, filters_as="int"),
    ),
    artifact_type="metric",
    named=False,
    repeat=Repeat.UPDATES,
)
PARAMETER = Kind(
    "parameter",
    Space.ARTIFACT,
    (
        _DESCRIPTION,
        _ARTIFACT_STATE,
        Field("value", filters_as="string"),
        Field("parameterType", values=PARAMETER_TYPES, filters_as="string"),
    ),
    artifact_type="parameter",
    named=False,
    repeat=Repeat.UPDATES,
)

ARTIFACTS = {kind.artifact_type: kind for kind in (MODEL_ARTIFACT, DOC_ARTIFACT, DATASET, METRIC, PARAMETER)}
KINDS = {
    kind.name: kind
    for kind in (
        REGISTERED_MODEL,
        MODEL_VERSION,
        SERVING_ENVIRONMENT,
        INFERENCE_SERVICE,
        SERVE_MODEL,
        *ARTIFACTS.values(),
    )
}
