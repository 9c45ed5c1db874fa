"""suites/benchmark over a fake stage: what fails it, what skips it, and when it runs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pytest_vllm_stage.load.guidellm.writing import write_report
from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from tests.plugin.forked_runs import run_pytest
from tests.unit.made_samples import failed, measurement, sample

SUITE = Path(__file__).parents[2] / "suites" / "benchmark"

#: Follows the fake cluster and stage of this folder's conftest.
FAKE_JOBS = """

import dataclasses
import types
from pytest_vllm_stage.benchmark import job_runs, job_sequence
from pytest_vllm_stage.stage import client, object_store
from pytest_vllm_stage.stage.observe import reader

HERE = Path(__file__).parent
client.connect = lambda *_: types.SimpleNamespace(client=types.SimpleNamespace(close=lambda: None))
NO_STORE = types.SimpleNamespace(client=lambda: types.SimpleNamespace(close=lambda: None))
object_store.find_object_store = lambda stage, kube, **options: NO_STORE

def existing(self, kind, name):
    state = os.environ.get("FAKE_EXISTING")
    conditions = [{"type": state, "status": "True", "reason": "BackoffLimitExceeded", "message": "it failed"}]
    status = {"conditions": conditions, "startTime": "2026-11-24T10:00:00Z"}
    made = {**job(name.removeprefix("benchmark-")), "status": status}
    made["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = os.environ.get("FAKE_RATES", "1 5")
    return made if state else None

def replica_sets():
    images = json.loads(os.environ.get("FAKE_IMAGES", "{}"))
    return [
        {
            "metadata": {
                "name": f"full-{number}",
                "creationTimestamp": created,
                "labels": {"serving.kserve.io/inferenceservice": "full-model"},
            },
            "spec": {"template": {"spec": {"containers": [{"name": "kserve-container", "image": image}]}}},
        }
        for number, (created, image) in enumerate(images.items())
    ]

def listed(self, kind, labels=None):
    if kind == "ReplicaSet":
        return replica_sets()
    name = labels["batch.kubernetes.io/job-name"]
    model = name.removeprefix("benchmark-")
    ended = {"exitCode": 0, "message": f"s3://test-results/benchmark-jobs/{model}/run"}
    return [{"status": {"containerStatuses": [{"state": {"terminated": ended}}]}}]

reader.StageReader.get, reader.StageReader.listed = existing, listed

def job(model):
    environment = [{"name": "RATES", "value": "1 5"}, {"name": "BUCKET", "value": "test-results"}]
    pod = {"spec": {"containers": [{"name": "guidellm", "env": environment}]}}
    labels = {"vllm-stage/model": model}
    return {"kind": "Job", "metadata": {"name": f"benchmark-{model}", "labels": labels}, "spec": {"template": pod}}

def manifests_of(overlay, kubectl, namespace):
    return [] if os.environ.get("FAKE_NO_JOBS") else [job("quantized-model"), job("full-model")]

def carry_out(place, jobs):
    note("carry-out " + " ".join(job["metadata"]["name"] for job in jobs))
    return {job["metadata"]["name"]: outcome(job["metadata"]["name"]) for job in jobs}

def outcome(name):
    if os.environ.get("FAKE_FAILED_JOB") == name:
        return errors.WaitFailed(f"job/{name} cannot complete: vacuous: 0 of 8 requests were answered")
    return job_runs.Location("test-results", f"benchmark-jobs/{name.removeprefix('benchmark-')}/run")

def fetch(minio, location):
    folder = HERE / "store" / location.prefix.split("/")[1]
    summary = json.loads((folder / "summary.json").read_text())
    contents = {step["object"]: (folder / step["object"]).read_bytes() for step in summary["steps"]}
    return job_runs.Reports(location, summary, contents)

job_runs.manifests_of, job_sequence.carry_out, job_runs.fetch = manifests_of, carry_out, fetch
own_stage = lifecycle.make_stage

def read_only_stage(run, cluster):
    return dataclasses.replace(own_stage(run, cluster), owned=not os.environ.get("FAKE_READ_ONLY"))

lifecycle.make_stage = read_only_stage
"""

SLO = """
[models.quantized.slo]
{quantized}
[slo]
error_rate = 0
ttft_p50_ms = 500
[load]
rates = [1, 5]
duration_s = 8
prompt_tokens = 64
output_tokens = 16
"""


@pytest.fixture
def jobs(place: pytest.Pytester) -> pytest.Pytester:
    """The suite in a folder with the fakes; both models' Jobs left good reports."""
    shutil.copytree(SUITE, place.path / "benchmark", ignore=shutil.ignore_patterns("__pycache__"))
    conftest = place.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("import os\n", "import json\nimport os\n") + FAKE_JOBS)
    promise(place)
    for role in ("quantized", "full"):
        reports(place, role)
    return place


def promise(place: pytest.Pytester, quantized: str = "") -> None:
    profile = place.path / "small.toml"
    profile.write_text(profile.read_text().partition("[models.quantized.slo]")[0] + SLO.format(quantized=quantized))


def reports(
    place: pytest.Pytester, role: str, rates: Sequence[float] = (1, 5), *, ttft_s: float = 0.1, bad: int = 0
) -> None:
    """What a Job writes: one report per rate, each with a lead-in request that is not a sample, and the summary."""
    folder = place.path / "store" / f"{role}-model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    steps = []
    for rate in rates:
        count = int(rate * 8)
        step = LoadStep("any", f"{role}-model", CONSTANT, (count + 1) / rate, 64, 16, request_rate=rate)
        rows = [row(i, i / rate, ttft_s, failing=0 < i <= bad) for i in range(count + 1)]
        write_report(measurement(step, rows), folder / f"rate-{rate:g}.json", summarise(rows, step))
        digest = hashlib.sha256((folder / f"rate-{rate:g}.json").read_bytes()).hexdigest()
        steps.append({"request_rate": rate, "object": f"rate-{rate:g}.json", "sha256": digest})
    facts = {"duration_s": 8, "prompt_tokens": 64, "output_tokens": 16, "warmup_requests": 20, "request_timeout_s": 60}
    summary = {"model": f"{role}-model", "lead_in": 1, "steps": steps, **facts}
    (folder / "summary.json").write_text(json.dumps(summary))


def row(index: int, at_s: float, ttft_s: float, *, failing: bool) -> Sample:
    made = failed(index, at_s) if failing else sample(index, at_s, ttft_s=ttft_s)
    return replace(made, response_id=f"{at_s}-{index}", output_digest=f"{at_s}-{index}")


def run(place: pytest.Pytester, *options: str) -> pytest.RunResult:
    return run_pytest(place, "benchmark", "-p", "no:cacheprovider", "--stage-run-dir=run", *options, timeout=300)


def properties(place: pytest.Pytester) -> dict[str, dict[str, str]]:
    """Test to the properties that it recorded."""
    cases = ET.parse(place.path / "run" / "junit.xml").getroot().iter("testcase")  # noqa: S314 - written by the run
    return {
        str(case.get("name")): {str(one.get("name")): str(one.get("value")) for one in case.iter("property")}
        for case in cases
    }


def carried_out(calls: Path) -> list[list[str]]:
    """The Jobs that were carried out together, call by call."""
    found = re.findall(r"^carry-out (.*) \d+$", calls.read_text(), re.MULTILINE)
    return [names.split() for names in found]


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_good_reports_pass_and_leave_their_numbers(jobs: pytest.Pytester, calls: Path, workers: str) -> None:
    result = run(jobs, workers)
    result.assert_outcomes(passed=6)
    assert carried_out(calls) == [["benchmark-quantized-model", "benchmark-full-model"]]
    recorded = properties(jobs)["test_reports_keep_the_objectives[full]"]
    assert recorded["full-rate-1.slo.outcome"] == recorded["full-rate-5.slo.outcome"] == "pass"
    assert float(recorded["full-rate-5.slo.ttft_p50_ms"]) == pytest.approx(100, abs=1)
    location = properties(jobs)["test_job_completes_with_a_report_for_each_rate[full]"]["benchmark_job.location"]
    assert location == "s3://test-results/benchmark-jobs/full-model/run"
    assert (jobs.path / "run" / "benchmark-jobs" / "full-model" / "rate-5.json").is_file()


def test_broken_objective_in_a_report_fails(jobs: pytest.Pytester) -> None:
    promise(jobs, quantized="ttft_p50_ms = 50")
    result = run(jobs)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*quantized-rate-1: fail: ttft_p50_ms <= 50: *", "*quantized-rate-5: fail: *"])


def test_rate_above_the_limit_is_only_observed(jobs: pytest.Pytester) -> None:
    promise(jobs, quantized="[models.quantized.slo.rate-5]\nttft_p50_ms = 50")
    profile = jobs.path / "small.toml"
    text = profile.read_text().replace(
        'inference_service = "q"', 'inference_service = "q"\nrate_limit_requests_per_s = 1'
    )
    profile.write_text(text)
    run(jobs).assert_outcomes(passed=6)
    recorded = properties(jobs)["test_reports_keep_the_objectives[quantized]"]
    assert recorded["quantized-rate-5.slo.outcome"] == "observed"


def test_report_without_an_answer_is_vacuous(jobs: pytest.Pytester) -> None:
    reports(jobs, "full", bad=1000)
    result = run(jobs)
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["*full-rate-5: vacuous: not one token came from 40 requests*"])


def test_missing_rate_is_reported(jobs: pytest.Pytester) -> None:
    reports(jobs, "full", rates=(1,))
    result = run(jobs)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        ["*job benchmark-full-model declares rates [[]1.0, 5.0[]] and left reports for [[]1[]]*"]
    )


def test_report_with_too_few_samples_fails(jobs: pytest.Pytester) -> None:
    summary = jobs.path / "store" / "full-model" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"duration_s": 9}))
    result = run(jobs)
    result.stdout.fnmatch_lines(["*full-rate-1: expected 9 samples (rate x duration), got 8*"])
    assert result.ret == 1


def test_report_of_another_rate_is_refused(jobs: pytest.Pytester) -> None:
    folder = jobs.path / "store" / "full-model"
    shutil.copy(folder / "rate-1.json", folder / "rate-5.json")
    result = run(jobs)
    result.assert_outcomes(passed=4, errors=1, skipped=1)
    result.stdout.fnmatch_lines(["*is constant arrivals of 1 requests/s; step full-rate-5 plans *"])


@pytest.mark.parametrize("role", ["quantized", "full"])
def test_failed_job_is_reported_once(jobs: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    """The first or the held one: it fails its own tests, and the other Job has its result."""
    monkeypatch.setenv("FAKE_FAILED_JOB", f"benchmark-{role}-model")
    result = run(jobs)
    result.assert_outcomes(passed=3, errors=1, skipped=2)
    result.stdout.fnmatch_lines([f"*job/benchmark-{role}-model cannot complete: vacuous: *"])


@pytest.mark.parametrize("role", ["quantized", "full"])
def test_jobs_of_other_models_are_not_carried_out(jobs: pytest.Pytester, calls: Path, role: str) -> None:
    run(jobs, "-k", role).assert_outcomes(passed=3, deselected=3)
    assert carried_out(calls) == [[f"benchmark-{role}-model"]]


def test_with_maxfail_a_job_is_carried_out_when_its_test_runs(jobs: pytest.Pytester, calls: Path) -> None:
    run(jobs, "--maxfail=2").assert_outcomes(passed=6)
    assert carried_out(calls) == [["benchmark-quantized-model"], ["benchmark-full-model"]]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("FAKE_NO_JOBS", "overlay overlay declares no benchmark Jobs: it has no folder benchmark"),
        ("FAKE_READ_ONLY", "namespace small has no job/benchmark-*, and in read-only mode none is created"),
    ],
)
def test_skip_reason_names_the_missing_job(
    jobs: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, calls: Path, variable: str, expected: str
) -> None:
    monkeypatch.setenv(variable, "1")
    result = run(jobs, "-rs")
    result.assert_outcomes(skipped=6)
    result.stdout.fnmatch_lines([f"*{expected}*"])
    assert "benchmark" not in calls.read_text()


@pytest.mark.parametrize("state", ["Complete", "Failed"])
def test_existing_jobs_are_judged_in_read_only_mode(
    jobs: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, calls: Path, state: str
) -> None:
    monkeypatch.setenv("FAKE_READ_ONLY", "1")
    monkeypatch.setenv("FAKE_EXISTING", state)
    result = run(jobs)
    if state == "Complete":
        result.assert_outcomes(passed=6)
    else:
        result.assert_outcomes(errors=2, skipped=4)
        result.stdout.fnmatch_lines(["*job benchmark-full-model failed: BackoffLimitExceeded: it failed*"])
    assert "benchmark" not in calls.read_text(), "a Job was created in read-only mode"


BEFORE, AFTER = "2026-11-24T09:00:00Z", "2026-11-24T11:00:00Z"


@pytest.mark.parametrize(
    ("images", "rates", "says"),
    [
        ({BEFORE: "vllm:1"}, "1 5", ""),
        ({BEFORE: "vllm:1", AFTER: "vllm:1"}, "1 5", ""),  # kubectl rollout restart
        (
            {BEFORE: "vllm:1", AFTER: "vllm:2"},
            "1 5",
            f"measured at *, and full-1 runs since {AFTER}: its image changed",
        ),
        (
            {AFTER: "vllm:2"},
            "1 5",
            f"and full-0 runs since {AFTER}: its reports are of an engine that no longer exists",
        ),
        ({BEFORE: "vllm:1"}, "1", "job/benchmark-full-model measured with RATES=1, declared is 1 5"),
    ],
)
def test_existing_reports_of_another_engine_or_load_fail(
    jobs: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, images: dict[str, str], rates: str, says: str
) -> None:
    environment = {"READ_ONLY": "1", "EXISTING": "Complete", "IMAGES": json.dumps(images), "RATES": rates}
    for name, value in environment.items():
        monkeypatch.setenv(f"FAKE_{name}", value)
    result = run(jobs, "-k", "full")
    result.assert_outcomes(passed=2 if says else 3, failed=int(bool(says)), deselected=3)
    if says:
        result.stdout.fnmatch_lines([f"*reports in s3://* are outdated: *{says}*", "*next: kubectl delete job/*"])


def test_jobs_run_exclusively_after_the_load_steps(jobs: pytest.Pytester) -> None:
    """In whatever folder the load steps are, and before what reads the results."""
    later: dict[str, Any] = {
        "zz/test_later.py": """
            import pytest

            @pytest.mark.load
            def test_load(stage_run): ...

            @pytest.mark.after_load
            def test_reads(stage_run): ...

            def test_plain(stage_run): ...
        """
    }
    (jobs.path / "zz").mkdir()
    for name, text in later.items():
        (jobs.path / name).write_text("\n".join(line[12:] for line in text.splitlines()))
    result = run_pytest(jobs, "--collect-only", "-q", "-p", "no:cacheprovider")
    names = [line.partition("::")[2].partition("[")[0] for line in result.outlines if "::" in line]
    assert list(dict.fromkeys(names)) == [
        "test_plain",
        "test_load",
        "test_job_completes_with_a_report_for_each_rate",
        "test_reports_are_not_vacuous",
        "test_reports_keep_the_objectives",
        "test_reads",
    ]
    run(jobs).assert_outcomes(passed=6)
    events = [json.loads(line) for line in (jobs.path / "run" / "journal.jsonl").read_text().splitlines()]
    assert [event["exclusive"] for event in events if event["kind"] == "access"] == [True] * 6


def test_simulated_engine_has_no_jobs(jobs: pytest.Pytester) -> None:
    (jobs.path / "overlay-sim").mkdir()
    (jobs.path / "overlay-sim" / "kustomization.yaml").write_text("resources: []\n")
    result = run(jobs, "--stage-engine=sim")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
