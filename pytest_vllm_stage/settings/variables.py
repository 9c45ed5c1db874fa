"""Environment variables of this package, and those whose name is nearly the name of one of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from pytest_vllm_stage.settings.options import OPTIONS, TOKENS

_PREFIX = "VLLM_STAGE_"
#: Variables that are not settings of a run.
_OTHERS = (
    "VLLM_STAGE_CACHE_DIR",
    "VLLM_STAGE_KIND_CONFIG",
    "VLLM_STAGE_KIND_IMAGES",
    "VLLM_STAGE_LOCAL_CLUSTERS",
)
#: What Kubernetes sets in a pod for a Service, here for one called ``vllm-stage``:
#: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_\w+)$")
#: From this similarity on, one name is taken for a typing error of the other.
_SIMILARITY = 0.75


def find_misspelt(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that nothing reads, each with the variable that was probably meant; others may belong to anything."""
    known = {name.removeprefix(_PREFIX): name for name in known_variables()}
    found = {}
    for name in env:
        rest = name.removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and rest not in known and not _SERVICE_LINK.search(name):
            for meant in difflib.get_close_matches(rest, known, n=1, cutoff=_SIMILARITY):
                found[name] = known[meant]
    return found


def known_variables() -> list[str]:
    """Every environment variable that this package reads."""
    return [*(option.env for option in OPTIONS), *(token.env for token in TOKENS), *_OTHERS]
