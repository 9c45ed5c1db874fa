"""Do the Secrets and keys exist that the manifests name? No message repeats a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.checks.stage import secret_values
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import StageReader

    Object = dict[str, Any]


def test_secrets_have_the_referenced_keys(reader: StageReader, declared: list[Object], kubectl: str) -> None:
    """Each Secret and key that a manifest refers to exists, with a value that was filled in.

    A missing one is noticed only when a pod that needs it starts, for example at the next restart. With a line break,
    which ``echo VALUE | base64`` adds, a key is refused, though it looks right wherever it is shown.
    """
    references = health.secret_references(declared)
    assert references, "the manifests refer to no Secret: nothing was checked"
    secrets = {objects.name_of(secret): secret for secret in reader.listed("Secret")}
    lines = health.check_secrets(references, {name: list(one.get("data") or {}) for name, one in secrets.items()})
    lines += secret_values.find_unusable_values(references, secrets)
    assert not lines, health.message("a Secret is not as the manifests need it", lines, f"{kubectl} get secrets")
