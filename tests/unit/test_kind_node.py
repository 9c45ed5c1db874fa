"""The OCI runtime that test nodes of kind use on a machine without CAP_SYS_RESOURCE."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.kind_node import oci_runtime

PROCESS: dict[str, object] = {
    "args": ["/sbin/init"],
    "capabilities": {"bounding": ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"], "effective": ["CAP_SYS_RESOURCE"]},
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1048576}],
    "oomScoreAdj": -500,
}
REDUCED = {"args": ["/sbin/init"], "capabilities": {"bounding": ["CAP_SYS_ADMIN"], "effective": []}}


@pytest.mark.parametrize("command", ["create", "exec"])
def test_a_container_and_a_process_in_it_ask_only_for_what_this_machine_has(tmp_path: Path, command: str) -> None:
    runc = tmp_path / "runc"
    runc.write_text('#!/bin/sh\necho "$@"\n')
    runc.chmod(0o755)
    content: dict[str, object] = {"process": PROCESS, "root": {}} if command == "create" else PROCESS
    if command == "create":
        file, option = tmp_path / "config.json", ["--bundle", str(tmp_path)]
    else:
        file, option = tmp_path / "process", ["--process", str(tmp_path / "process")]
    file.write_text(json.dumps(content))
    arguments = ["--root", "/run", command, *option, "node"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", oci_runtime.__file__, str(runc), *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == arguments, "runc gets the same arguments"
    assert json.loads(file.read_text()) == ({"process": REDUCED, "root": {}} if command == "create" else REDUCED)
