"""An environment with the packages of a workbench's image, created once by uv from hash-checked pins.

It is not part of the extra `test`: 300 MB of Jupyter, pandas and matplotlib are needed by one module of tests, and the
plugin's own dependencies must not decide the notebook's versions. This command in this folder creates the pins::

    uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_31 --only-binary :all: \
        --generate-hashes --no-annotate --no-header requirements.in -o requirements.txt
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from pathlib import Path

import uv

from pytest_vllm_stage.core import build_once, paths
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine.environment import clean_environ

REQUIREMENTS = Path(__file__).with_name("requirements.txt")

#: Runs a notebook from top to bottom and writes it with its outputs; a cell that fails does not stop it.
_EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, allow_errors=True).execute()
nbformat.write(notebook, sys.argv[2])
"""


def ensure(journal: Journal) -> Path:
    """The environment's interpreter; some 80 MB of download the first time, nothing later.

    Raises:
        EnvironmentUnusable: the packages cannot be had.
    """
    digest = hashlib.sha256(REQUIREMENTS.read_bytes())
    digest.update(f"{sys.base_prefix} {platform.python_version()}".encode())
    folder = paths.cache_dir() / "workbench" / digest.hexdigest()[:16]
    build_once.ensure(folder, "workbench environment", _make, journal)
    return folder / "bin" / "python"


def _make(build: build_once.Build) -> build_once.Facts:
    program, python = uv.find_uv_bin(), str(build.folder / "bin" / "python")
    base = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    venv = [program, "venv", "--allow-existing", "--python", base, str(build.folder)]
    install = [program, "pip", "install", "--python", python, "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    steps = {
        "virtual environment": venv,
        "workbench's packages": [*install, "--requirements", str(REQUIREMENTS)],
        "import of them": [
            python,
            "-I",
            "-c",
            "import boto3, ipykernel, matplotlib.pyplot, nbclient, pandas, requests",
        ],
    }
    for what, command in steps.items():
        build.run(what, command, timeout_s=600, advise=lambda _: "the output says what uv missed", env=clean_environ())
    return {"requirements": REQUIREMENTS.name}


def execute(python: Path, notebook: Path, environment: dict[str, str], folder: Path) -> Path:
    """Run a notebook in a folder, with these variables and no others; returns the file with its outputs."""
    made = folder / "executed.ipynb"
    homes = dict.fromkeys(
        ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"), str(folder)
    )
    command = [str(python), "-c", _EXECUTE, str(notebook), str(made)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"} | homes | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return made
