"""The CustomResourceDefinition of Routes, from OpenShift's published Go module, pinned by go.sum in this folder."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pytest_vllm_stage.cluster.local import gotool
from pytest_vllm_stage.core.journal import Journal

MODULE = "github.com/openshift/api"
_FOLDER = Path(__file__).parent
_FILE = Path("route") / "v1" / "route.crd.yaml"


def load_route_definition() -> dict[str, Any]:
    """The CustomResourceDefinition; the module is downloaded once, and its hash compared."""
    go = gotool.find((1, 24), Journal())
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    command = [str(go), "mod", "download", "-json", MODULE]
    done = subprocess.run(
        command, cwd=_FOLDER, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    definition: dict[str, Any] = yaml.safe_load((Path(json.loads(done.stdout)["Dir"]) / _FILE).read_text())
    assert definition["kind"] == "CustomResourceDefinition"
    return definition
