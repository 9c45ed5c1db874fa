"""Models behind a proxy that reviews the token of each request."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

#: Annotation (a label in older releases) of Open Data Hub and OpenShift AI: a proxy reviews each request's token.
ENABLE_AUTH = "security.opendatahub.io/enable-auth"


def is_protected(service: Object) -> bool:
    """The InferenceService asks for a proxy that reviews tokens."""
    metadata = service["metadata"]
    return any((metadata.get(kind) or {}).get(ENABLE_AUTH) == "true" for kind in ("annotations", "labels"))


def find_plain_routes(service: Object, routes: Iterable[Object]) -> list[str]:
    """OpenShift's Routes to a protected model by which a token travels unencrypted; empty for any other model."""
    name = objects.name_of(service)
    lines = []
    for route in routes if is_protected(service) else ():
        spec = route.get("spec") or {}
        if (spec.get("to") or {}).get("name") not in (name, f"{name}-predictor"):
            continue
        where, tls = f"route {objects.name_of(route)} to protected model {name}", spec.get("tls")
        if not tls:
            lines.append(f"{where} has no TLS: tokens travel unencrypted, expected spec.tls")
        elif tls.get("insecureEdgeTerminationPolicy") == "Allow":
            lines.append(f"{where} serves HTTP too: insecureEdgeTerminationPolicy is Allow, expected Redirect or None")
    return lines


def name_default_account(inference_service: str) -> str:
    """The ServiceAccount that Open Data Hub's dashboard creates with a protected model, which may ``get`` it."""
    return f"{inference_service}-sa"
