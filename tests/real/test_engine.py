"""The real engine: its environment, its weights, and an answer from each variant."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pytest_vllm_stage.core import processor
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.engine import environment, weights
from pytest_vllm_stage.engine.environment import EngineEnvironment
from tests.real import servers

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
#: Without it vLLM has no 4-bit kernel, and the quantized variant holds its values unpacked.
AVX512 = processor.has(processor.AVX512)


@pytest.fixture(scope="module")
def engine() -> EngineEnvironment:
    return environment.ensure(Journal())


@pytest.fixture(scope="module")
def variants(engine: EngineEnvironment) -> dict[str, Path]:
    return weights.ensure(Journal(), engine)


def test_what_is_there_is_not_made_again(engine: EngineEnvironment, variants: dict[str, Path], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    assert environment.ensure(journal) == engine
    assert weights.ensure(journal, engine) == variants
    assert read_events(tmp_path / "events.jsonl") == []


def test_the_manifests_verify(variants: dict[str, Path]) -> None:
    assert {variant: weights.verify(folder) for variant, folder in variants.items()} == {
        variant: [] for variant in variants
    }


def test_the_quantized_variant_stores_four_bit_integers(engine: EngineEnvironment, variants: dict[str, Path]) -> None:
    """On a processor without AVX-512 it stores the values that such integers stand for."""
    full, quantized = (tensors(variants[variant]) for variant in (weights.FULL, weights.QUANTIZED))
    assert set(full.values()) == {"BF16"}
    if not AVX512:
        assert quantized == full
        assert "quantization_config" not in json.loads((variants[weights.QUANTIZED] / "config.json").read_text())
        most, error = levels(engine, variants)
        assert 8 < most <= 16
        assert 0 < error < 0.02
        return
    packed = [name for name in quantized if name.endswith(".weight_packed")]
    assert {f"{name.removesuffix('_packed')}" for name in packed} == {name for name in full if "_proj." in name}
    assert {quantized[name] for name in packed} == {"I32"}
    assert not [name for name in quantized if name.endswith("_proj.weight")]


#: The values of a quantized layer in groups, and of the same layer of the full model.
LEVELS = """
import sys
from safetensors import safe_open
groups = {}
for name in ("full", "quantized"):
    with safe_open(sys.argv[1 + len(groups)] + "/model.safetensors", "pt") as file:
        groups[name] = file.get_tensor("model.layers.7.mlp.up_proj.weight").float().unflatten(-1, (-1, 32))
most = max(group.unique().numel() for group in groups["quantized"].flatten(0, 1))
error = (groups["quantized"] - groups["full"]).pow(2).mean() / groups["full"].pow(2).mean()
print(most, float(error))
"""


def levels(engine: EngineEnvironment, variants: dict[str, Path]) -> tuple[int, float]:
    """The most values that a group of a quantized layer has, and their mean squared error against the full one's."""
    folders = [str(variants[variant]) for variant in (weights.FULL, weights.QUANTIZED)]
    command = [str(engine.python), "-P", "-c", LEVELS, *folders]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment.clean_environ()).stdout
    most, error = said.split()
    return int(most), float(error)


def tensors(folder: Path) -> dict[str, str]:
    """Tensor name to type, from the header of the safetensors file."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: about["dtype"] for name, about in header.items() if name != "__metadata__"}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("variant", "log_says"),
    [
        (weights.FULL, "dtype=torch.bfloat16" if AVX512 else "dtype=torch.float32"),
        (weights.QUANTIZED, "Using CPUWNA16LinearKernel" if AVX512 else "dtype=torch.float32"),
    ],
)
def test_each_variant_answers(
    variant: str, log_says: str, engine: EngineEnvironment, variants: dict[str, Path], tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    question = {"role": "user", "content": "What is the capital of France?"}
    with servers.vllm(engine, variants[variant], variant, log, "--max-model-len=512", "--max-num-seqs=2") as base_url:
        body = {"model": variant, "messages": [question], "temperature": 0, "max_tokens": 16}
        answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=120).raise_for_status().json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert log_says in log.read_text()


#: Multiplies the scales of one layer out of 30, as a broken quantisation might, or the values that they unpack to.
DAMAGE = """
import sys
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
for name in tensors:
    if ".layers.15." in name and name.endswith(("weight_scale", "_proj.weight")):
        tensors[name] = tensors[name] * 1.05
save_file(tensors, sys.argv[1], metadata={"format": "pt"})
"""


#: Both models, computed by the kernels that this processor has.
DECLARED = f"""
name = "declared"
overlay = "local"
namespace = "declared"
[models.quantized]
inference_service = "{weights.QUANTIZED}"
reference = "{weights.QUANTIZED}"
kernels = "{processor.local_kernels()}"
[models.full]
inference_service = "{weights.FULL}"
reference = "{weights.FULL}"
kernels = "{processor.local_kernels()}"
"""


@pytest.mark.nightly
def test_scales_of_one_layer_off_by_5_percent_are_caught(
    engine: EngineEnvironment, variants: dict[str, Path], tmp_path: Path
) -> None:
    damaged, limits = tmp_path / "damaged", ("--max-model-len=512", "--max-num-seqs=4")
    profile = tmp_path / "declared.toml"
    profile.write_text(DECLARED)
    shutil.copytree(variants[weights.QUANTIZED], damaged)
    subprocess.run([engine.python, "-c", DAMAGE, damaged / "model.safetensors"], check=True)
    with (
        servers.vllm(engine, variants[weights.FULL], weights.FULL, tmp_path / "full.log", *limits) as full,
        servers.vllm(engine, damaged, weights.QUANTIZED, tmp_path / "quantized.log", *limits) as quantized,
    ):
        command = [sys.executable, "-m", "pytest", "suites/inference/test_quality.py", "-q"]
        command += [f"--stage-endpoint=full={full},quantized={quantized}", f"--stage-run-dir={tmp_path / 'run'}"]
        command += [f"--stage-profile={profile}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    failed = {test["name"].rpartition("::")[2] for test in record["tests"] if test["outcome"] == "failed"}
    assert "test_scores_of_fixed_texts_equal_the_recorded_ones_token_by_token[quantized]" in failed, result.stdout
    assert not [name for name in failed if "[full]" in name], result.stdout
    assert "reproduces those of smollm2-135m by 0.0" in " ".join(result.stdout.split()), result.stdout


def test_guidellms_command_line_runs(engine: EngineEnvironment, tmp_path: Path) -> None:
    command = [str(engine.python), "-P", "-m", "guidellm", "--version"]
    shown = subprocess.run(
        command, env=environment.clean_environ(), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert shown.stdout.split()[-1] == engine.versions["guidellm"] == "0.8.1"
