"""What a release of vLLM cannot do yet: it passes over a field that it does not know, and answers without it."""

from __future__ import annotations

import re

from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed

#: Capability to the field by which the checks ask for it, and the release that has it first.
_FIRST_RELEASES = {
    "structured_outputs": ("structured_outputs", (0, 11, 0)),
    "token_ids": ("return_token_ids", (0, 10, 2)),
    "tools": ("tool_choice required", (0, 8, 3)),
}
#: A build that is made from no release calls itself 0.0, or 0.1 with what it was made from.
_OLDEST = (0, 2, 0)
_RELEASE = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


def read_release(endpoint: EndpointClient) -> tuple[int, ...] | None:
    """The release that ``/version`` names; None where it names none."""
    try:
        found = _RELEASE.match(endpoint.version())
    except RequestFailed:
        return None
    release = tuple(int(part or 0) for part in found.groups()) if found else ()
    return release if release >= _OLDEST else None


def describe_lack(capability: str, release: tuple[int, ...] | None) -> str:
    """Why a release does not have a capability; empty where it has, or is not known."""
    field, first = _FIRST_RELEASES.get(capability, ("", ()))
    if release is None or release >= first:
        return ""
    return f"vLLM {_join(release)} has no {field}, which came with {_join(first)}"


def _join(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
