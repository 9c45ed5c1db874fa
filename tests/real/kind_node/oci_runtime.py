"""An OCI runtime for a machine without CAP_SYS_RESOURCE: runc, without what it cannot do there.

A privileged container asks for every capability, resource limits and a lower ``oom_score_adj``; where this one
capability is missing, runc refuses all of it: "unable to apply caps: operation not permitted". This program removes
them from the specification and then becomes runc. It is started as ``oci_runtime.py RUNC ARGUMENT...``.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

MISSING = "CAP_SYS_RESOURCE"


def main(runc: str, arguments: list[str]) -> None:
    for option, value in itertools.pairwise(arguments):
        if option == "--bundle":
            _edit(Path(value, "config.json"), key="process")
        elif option in ("--process", "-p"):
            _edit(Path(value), key="")
    os.execv(runc, [runc, *arguments])  # noqa: S606 - no shell is needed


def _edit(path: Path, key: str) -> None:
    """Change a bundle's specification, or the process that `exec` starts in a container."""
    try:
        specification = json.loads(path.read_text())
    except FileNotFoundError:
        return
    reduce_process(specification.get(key, {}) if key else specification)
    path.write_text(json.dumps(specification))


def reduce_process(process: dict[str, Any]) -> None:
    """Remove what a process without the capability may not ask for."""
    process.pop("rlimits", None)
    process.pop("oomScoreAdj", None)
    for names in process.get("capabilities", {}).values():
        if MISSING in names:
            names.remove(MISSING)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
