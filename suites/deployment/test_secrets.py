"""Do the Secrets and keys exist that the manifests name? Values are not read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import StageReader

    Object = dict[str, Any]


def test_secrets_have_the_referenced_keys(reader: StageReader, declared: list[Object], kubectl: str) -> None:
    """Each Secret and key that a manifest refers to exists.

    A missing one is noticed only when a pod that needs it starts, for example at the next restart.
    """
    references = health.secret_references(declared)
    assert references, "the manifests refer to no Secret: nothing was checked"
    live = {objects.name_of(secret): list(secret.get("data") or {}) for secret in reader.listed("Secret")}
    lines = health.check_secrets(references, live)
    assert not lines, health.message("a Secret is not as the manifests need it", lines, f"{kubectl} get secrets")
