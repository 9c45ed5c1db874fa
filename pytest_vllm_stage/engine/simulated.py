"""The simulated engine instead of the real one: a STAND-IN, created in a second and without any download.

It is in ``cache_dir()/sim/<fingerprint>``, laid out as the real one: an environment that holds the simulator's own
modules alone, and for each model a folder of made-up weights with a manifest, so that volumes, downloads and their
checksums stay real. It is a copy, since the pods of a kept stage outlive what is edited meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest_vllm_stage
from pytest_vllm_stage.core import build_once, paths
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import weights
from pytest_vllm_stage.engine.environment import EngineEnvironment

#: What the simulator imports, relative to the package; it needs the standard library and nothing else.
MODULES = (
    "__init__.py",
    "core/__init__.py",
    "core/errors.py",
    "standins/__init__.py",
    "standins/http.py",
    "standins/engine",
)
#: Model to the bytes of its made-up tensor: small, and the quantized one smaller, as with the real ones.
WEIGHTS_BYTES = {weights.FULL: 256 * 1024, weights.QUANTIZED: 64 * 1024}

_SOURCE = "made up: noise, not a model"


def ensure(journal: Journal) -> tuple[EngineEnvironment, Path]:
    """Create both unless they exist; return the environment and the folder with the models' folders."""
    folder = paths.cache_dir() / "sim" / _fingerprint()
    build_once.ensure(folder, "simulated engine", _make, journal)
    versions = {"simulated-engine": pytest_vllm_stage.__version__, "python": platform.python_version()}
    prefix = folder / "engine"
    return EngineEnvironment(Path(sys.executable), prefix, Path(sys.base_prefix), versions), folder / "weights"


def _sources() -> list[Path]:
    """The files of `MODULES`, relative to the package."""
    found = [path for name in MODULES for path in [paths.PACKAGE / name, *(paths.PACKAGE / name).rglob("*.py")]]
    return sorted(path.relative_to(paths.PACKAGE) for path in found if path.is_file())


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{sys.base_prefix} {sys.version}".encode() + Path(__file__).read_bytes())
    for name in _sources():
        digest.update(f"{name}\n".encode() + (paths.PACKAGE / name).read_bytes())
    return digest.hexdigest()[:16]


def _make(build: build_once.Build) -> build_once.Facts:
    version = "python{}.{}".format(*sys.version_info[:2])
    package = build.folder / "engine" / "lib" / version / "site-packages" / paths.PACKAGE.name
    for name in _sources():
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths.PACKAGE / name, target)
    # Where it runs the folder is read-only. Isolated, since PYTHONPYCACHEPREFIX would put the bytecode elsewhere.
    subprocess.run([sys.executable, "-I", "-m", "compileall", "-qq", str(package)], check=False)
    for model, size_bytes in WEIGHTS_BYTES.items():
        _make_weights(build.folder / "weights" / model, size_bytes)
    return {"modules": len(_sources())}


def _make_weights(folder: Path, size_bytes: int) -> None:
    """Write a folder in a model's format; every file states that it is not a model."""
    folder.mkdir(parents=True)
    config = {"architectures": ["NoModel"], "model_type": "simulated", "simulated": True}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    header = {
        "__metadata__": {"simulated": _SOURCE},
        "noise": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]},
    }
    text = json.dumps(header).encode()
    noise = random.Random(folder.name).randbytes(size_bytes)  # noqa: S311 - filling, no secret
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + noise)
    weights.write_manifest(folder, "simulated", _SOURCE)
