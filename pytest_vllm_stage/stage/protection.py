"""Models behind a proxy that reviews the token of each request."""

from __future__ import annotations

from pytest_vllm_stage.stage.objects import Object

#: Annotation (a label in older releases) of Open Data Hub and OpenShift AI: a proxy reviews each request's token.
ENABLE_AUTH = "security.opendatahub.io/enable-auth"


def is_protected(service: Object) -> bool:
    """The InferenceService asks for a proxy that reviews tokens."""
    metadata = service["metadata"]
    return any((metadata.get(kind) or {}).get(ENABLE_AUTH) == "true" for kind in ("annotations", "labels"))


def name_default_account(inference_service: str) -> str:
    """The ServiceAccount that Open Data Hub's dashboard creates with a protected model, which may ``get`` it."""
    return f"{inference_service}-sa"
