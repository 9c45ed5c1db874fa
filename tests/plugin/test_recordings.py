"""Which recording of a reference binds an engine: that of the kernels which the run knows, and only that one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.forked_runs import run_pytest

ROOT = Path(__file__).parents[2]
CHECK = "test_scores_of_fixed_texts_equal_the_recorded_ones_token_by_token"
SIM = json.loads((ROOT / "tests" / "defects" / "sim.json").read_text())
ROLES = ("quantized", "full")


@pytest.fixture(scope="module")
def simulators() -> Iterator[dict[str, str]]:
    """Two engines that score alike, by the role of their model, which is its name too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        processes = {
            role: subprocess.Popen(
                [sys.executable, "-m", "pytest_vllm_stage.standins.engine", "--model", role, "--max-model-len", "2048"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for role in ROLES
        }
        try:
            yield {role: one.stdout.readline().split()[-1] for role, one in processes.items() if one.stdout}
        finally:
            for one in processes.values():
                one.terminate()
                one.communicate()


def recording(kernels: str, off_by: float, **labels: Any) -> str:
    """What the simulated engine scores, or scores that far from it, as recorded with some kernels.

    Scores of ``exact`` kernels repeat within 0.0005 nats.
    """
    texts = {
        name: one | {"logprobs": [value - off_by for value in one["logprobs"]]}
        for name, one in SIM["scores"]["texts"].items()
    }
    limit = {"same_kernels_nats": 0.0005} if kernels == "exact" else {}
    return json.dumps(SIM | {"kernels": kernels, "scores": SIM["scores"] | limit | {"texts": texts}} | labels)


def judge(
    pytester: pytest.Pytester,
    simulators: dict[str, str],
    *,
    kernels: dict[str, str],
    off_by: dict[str, dict[str, float]],
) -> dict[str, tuple[str, str]]:
    """Role to outcome and reason of the check.

    Args:
        pytester: A folder.
        simulators: The engines.
        kernels: Role to the kernels that the profile declares.
        off_by: Role to kernels to how far that recording is from what the engine scores; the first one is named.
    """
    lines = ['name = "two"', 'overlay = "local"', 'namespace = "two"']
    for role, recordings in off_by.items():
        first, *others = recordings
        for name in others:
            (pytester.path / f"{role}-{name}.json").write_text(recording(name, recordings[name]))
        named = {"other_kernels": [f"{role}-{name}.json" for name in others]} if others else {}
        (pytester.path / f"{role}.json").write_text(recording(first, recordings[first], **named))
        lines += [f"[models.{role}]", f'inference_service = "{role}"', f'reference = "{role}.json"']
        lines += [f'kernels = "{kernels[role]}"'] if role in kernels else []
    (pytester.path / "two.toml").write_text("\n".join(lines))
    endpoints = ",".join(f"{role}={url}" for role, url in simulators.items() if role in off_by)
    run_pytest(
        pytester, ROOT / "suites" / "inference" / "test_quality.py", "-k", CHECK,
        f"--stage-profile={pytester.path / 'two.toml'}", f"--stage-endpoint={endpoints}",
        f"--stage-run-dir={pytester.path / 'run'}", "-p", "no:cacheprovider",
    )  # fmt: skip
    tests = json.loads((pytester.path / "run" / "run.json").read_text())["tests"]
    assert len(tests) == len(off_by)
    return {
        test["name"].rpartition("[")[2].rstrip("]"): (test["outcome"], " ".join(test["reason"].split()))
        for test in tests
    }


def test_the_recording_of_the_declared_kernels_binds(pytester: pytest.Pytester, simulators: dict[str, str]) -> None:
    """As a stage on a processor without AVX-512 is judged, of which the run knows the kernels itself."""
    known = dict.fromkeys(ROLES, "float32")
    off_by = {"quantized": {"bf16": 0.08, "float32": 0.12}, "full": {"bf16": 0.08, "float32": 0.001}}
    found = judge(pytester, simulators, kernels=known, off_by=off_by)
    assert found["full"][0] == "passed", found
    assert found["quantized"][0] == "failed", found
    assert "deviate by 0.120 nats per token" in found["quantized"][1]
    assert "the same engine reproduces those of full by 0.001" in found["quantized"][1]


def test_without_known_kernels_the_named_recording_is_compared(
    pytester: pytest.Pytester, simulators: dict[str, str]
) -> None:
    off_by = {role: {"bf16": 0.08, "float32": 0.0} for role in ROLES}
    found = judge(pytester, simulators, kernels={}, off_by=off_by)
    assert {outcome for outcome, _reason in found.values()} == {"skipped"}, found
    assert all("deviate by 0.080" in reason and "the recording (bf16)" in reason for _, reason in found.values())


def test_a_model_that_other_kernels_compute_proves_nothing(
    pytester: pytest.Pytester, simulators: dict[str, str]
) -> None:
    off_by = {"quantized": {"bf16": 0.08}, "full": {"bf16": 0.08, "float32": 0.0}}
    found = judge(pytester, simulators, kernels={"full": "float32"}, off_by=off_by)
    assert found["full"][0] == "passed", found
    assert found["quantized"][0] == "skipped", found


@pytest.mark.parametrize(("off_by", "outcome"), [(0.0002, "failed"), (0.001, "skipped")])
def test_the_model_that_proves_the_kernels_is_as_exact_as_its_recording_states(
    pytester: pytest.Pytester, simulators: dict[str, str], off_by: float, outcome: str
) -> None:
    recordings = {"quantized": {"exact": 0.002}, "full": {"exact": off_by}}
    found = judge(pytester, simulators, kernels={}, off_by=recordings)
    assert found["quantized"][0] == outcome, found
