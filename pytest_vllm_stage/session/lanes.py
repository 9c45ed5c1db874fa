"""Distributes the suites' checks to xdist's workers by lanes: one worker runs all that shares answers or a long wait.

The checks of each model are several lanes, so that no engine waits for another one, and each has a full batch to
decode: eight requests take it hardly longer than one. All load tests are one lane, the last: they have exclusive
access (`session.exclusive`). Simulated models have a lane each for their load steps, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

#: In a worker's input: the checks come to it by lanes.
INPUT = "vllm_stage_lanes"
LOAD = "load"
#: The suite whose checks are distributed by model, and its files that run apart from the others: each group a lane of
#: its own, about equally long. The slow lanes run with the rest, which joins them (suites/inference/conftest.py).
BY_MODEL = "inference"
#: The suite whose tests are load steps of one model each.
BY_STEP = "slo"
APART = {
    f"test_{name}.py": lane
    for lane, names in {
        "relations": ("relations",),
        "structure": ("structure", "isolation", "limits"),
        "tools": ("tools", "streaming", "transport"),
        "parameters": ("parameters", "properties", "sampling"),
    }.items()
    for name in names
}
#: Suites of one lane each; those with load steps, and what reads their results, share the last one.
_LANES = {"deployment": "deployment", "slo": LOAD, "benchmark": LOAD, "registry": LOAD, "resilience": LOAD}


def find_lane(nodeid: str, roles: Sequence[str], *, simulated: bool = False) -> str:
    """The lane of a check; a test of no suite is a lane by itself."""
    path = PurePosixPath(nodeid.partition("::")[0])
    suite = path.parent.name
    if suite == BY_STEP and simulated:
        return f"{LOAD} {find_role(nodeid, roles)}".strip()
    if suite != BY_MODEL:
        return _LANES.get(suite, nodeid)
    return f"{find_role(nodeid, roles)} {APART.get(path.name, '')}".strip() or suite


def find_role(nodeid: str, roles: Sequence[str]) -> str:
    """The role that a check's parameters begin with; empty where it has none."""
    parameters = re.search(r"\[(.*)\]$", nodeid)
    given = parameters[1] if parameters else ""
    return max((one for one in roles if f"{given}-".startswith(f"{one}-")), key=len, default="")


def has_whole_lanes(config: pytest.Config) -> bool:
    """Whether this process runs whole lanes: all checks of a model, or all that xdist distributes by lanes."""
    worker_input: dict[str, str] | None = getattr(config, "workerinput", None)
    return worker_input is None or INPUT in worker_input
