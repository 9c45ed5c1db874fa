"""The workbench's notebook, run from top to bottom on a measured run's artifacts in a real MinIO and the stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.benchmark.artifacts import StepArtifact, read_artifacts, write_csv, write_step
from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.load import process as driver_process
from pytest_vllm_stage.measurement.metrics import Metrics
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadStep
from pytest_vllm_stage.publication import document, publishing
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.publication.document import OBSERVED, Results, ResultsSource
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry import write
from pytest_vllm_stage.publication.registry.client import RegistryClient
from pytest_vllm_stage.publication.registry.values import encode
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from pytest_vllm_stage.stage.deploy import render
from tests.real import servers
from tests.real.workbench import environment
from tests.real.workbench.page import Page
from tests.unit.made_objects import service as made_service
from tests.unit.made_results import RUN
from tests.unit.sim_engine import Sim, running_sim

pytestmark = pytest.mark.real

NOTEBOOK = fixtures_dir() / "workbench" / "01-benchmark.ipynb"
#: Role to model, version, and how fast the simulated engine is.
MODELS = {
    "quantized": ("smollm2-135m-quantized", "w4a16", ("--ttft-ms=12", "--itl-ms=4")),
    "full": ("smollm2-135m", "bf16", ("--ttft-ms=20", "--itl-ms=8")),
}
#: One percentile of the objectives is kept by every step, the other by none.
OBJECTIVES = {"rate-10": [Objective("ttft_p50_ms", 5000)], "rate-150": [Objective("ttft_p50_ms", 1)]}
#: Requests past capacity fail at times, so that the highest percentiles are infinite.
FAULTS = {"rate-150": {"fault": "server_error", "share": 0.2}}
COSTS = {"QUANTIZED_COST_PER_HOUR_USD": "1", "FULL_COST_PER_HOUR_USD": "5"}


def steps_of(role: str) -> list[LoadStep]:
    """Two rates, of which one is far beyond capacity, and two users."""
    calm = LoadStep(role, "sim", CONSTANT, 2.0, 64, 8, request_rate=10, warmup_requests=2, request_timeout_s=20)
    return [
        calm,
        replace(calm, request_rate=150, duration_s=1.0),
        replace(calm, request_rate=None, concurrency=2, arrivals=CLOSED, duration_s=1.0),
    ]


def measure(role: str, folder: Path) -> None:
    """Drive a simulated engine, and leave a run's files; what is measured says that it was simulated."""
    model, _, pace = MODELS[role]
    with running_sim("--max-num-seqs=4", *pace) as sim:
        rows = [measure_step(sim, step, model, step.name) for step in steps_of(role)]
    for row in rows:
        write_step(folder, *row)
    write_csv(folder, read_artifacts(folder))


def measure_step(sim: Sim, step: LoadStep, model: str, name: str) -> tuple[Measurement, Metrics, StepVerdict]:
    """One step, measured again where this machine was too busy to send it in time."""
    sim.faults(*([FAULTS[name]] if name in FAULTS else []))
    facts = {"run_id": RUN, "profile": "local", "engine_version": "sim", "simulated": True}
    for _ in range(5):
        job = sim.job(step, requests=step.planned_requests or 200, facts=facts)
        measured = driver_process.measure(job, Journal())
        measured = replace(measured, step=replace(step, model=model))
        metrics, verdict = judge(measured, OBJECTIVES.get(name, []))
        if verdict.outcome is not Outcome.INVALID:
            return measured, metrics, verdict
    raise EnvironmentUnusable(f"step {step.id} was invalid five times: {verdict.why}")


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmarks folder of a run."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for role in MODELS:
        measure(role, folder)
    return folder


def result_of(folder: Path, step: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{step}.json").read_text()))


@dataclass
class Workbench:
    """A stage's MinIO and registry with a run in them, and the notebook.

    Attributes:
        python: The workbench's interpreter.
        minio: The store.
        bucket: The bucket of results.
        standin: The registry.
        folder: Where the notebook runs.
    """

    python: Path
    minio: servers.MinioServer
    bucket: Bucket
    standin: servers.Standin
    folder: Path

    def publish(self, role: str, benchmarks: Path) -> None:
        """Publish a model's results as a run does, but for the refusal of simulated ones."""
        model, version, _ = MODELS[role]
        uri = f"s3://{self.bucket.name}/{model}/{version}/{RUN}/"
        source = ResultsSource(model, version, RUN, "vllm-stage", model, f"{model}-predictor-1", uri)

        def outcome_of(step: StepArtifact) -> str:
            return OBSERVED if step.step.request_rate == 150 and step.outcome != "invalid" else step.outcome.value

        steps = document.read_steps(benchmarks, model, outcome_of)
        values = document.provenance(source, "2026-11-24T10:00:00Z") | document.numbers(steps)
        observed = tuple(step.artifact.step.id for step in steps if step.verdict == OBSERVED)
        made = Results(source, "2026-11-24T10:00:00Z", values, observed)
        path = self.folder / role / "publication.json"
        path.parent.mkdir()
        path.write_bytes(made.to_bytes())
        registry = RegistryClient(self.standin.url, Journal())
        labels = {"vllm-stage/model": model, "vllm-stage/version": version}
        place = PublicationTarget(
            registry, self.bucket, RegisteredNames(model, version), made_service(model, labels=labels), Journal()
        )
        publishing.publish(place, made, publishing.list_files(benchmarks, steps, path))
        registry.close()

    def key(self, role: str, name: str) -> str:
        """An object of a role's artifact."""
        model, version, _ = MODELS[role]
        return f"{model}/{version}/{RUN}/{name}"

    def set_property(self, role: str, name: str, value: float | None) -> None:
        """Change a property of a role's version behind the publisher's back; None takes it away."""
        model = self.standin.call("GET", f"registered_model?name={MODELS[role][0]}")
        version = self.standin.call("GET", f"registered_models/{model['id']}/versions")["items"][0]
        self.standin.set_properties(version["id"], {name: None if value is None else encode(value)})

    def run(self, **settings: str) -> Page:
        """Run the notebook."""
        given = {
            "AWS_S3_ENDPOINT": self.minio.url,
            "AWS_S3_BUCKET": self.bucket.name,
            "AWS_ACCESS_KEY_ID": self.minio.access,
            "AWS_SECRET_ACCESS_KEY": self.minio.secret,
            "MODEL_REGISTRY_URL": self.standin.url,
            "QUANTIZED_MODEL": MODELS["quantized"][0],
            "FULL_MODEL": MODELS["full"][0],
        }
        made = environment.execute(self.python, NOTEBOOK, given | settings, self.folder)
        text = made.read_text()
        assert self.minio.secret not in text
        assert self.minio.access not in text
        return Page.read(made)


@pytest.fixture(scope="module")
def python() -> Path:
    return environment.ensure(Journal())


@pytest.fixture(scope="module")
def make_workbench(
    python: Path, minio: servers.MinioServer, standin: servers.Standin, benchmarks: Path
) -> Iterator[Callable[[Path], Workbench]]:
    """Makes a workbench in a stage where both models' results, and no others, are published."""

    def make(folder: Path) -> Workbench:
        standin.reset()
        made = Workbench(python, minio, minio.new_bucket(), standin, folder)
        for role in MODELS:
            made.publish(role, benchmarks)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SETTLE_S", 0.3)
        patch.setattr(write, "WINDOW_S", 0.2)
        yield make


@pytest.fixture
def workbench(make_workbench: Callable[[Path], Workbench], tmp_path: Path) -> Workbench:
    return make_workbench(tmp_path)


@pytest.fixture(scope="module")
def plain_page(make_workbench: Callable[[Path], Workbench], tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The notebook without a cost; a property of another client, which is not compared, is next to the results."""
    workbench = make_workbench(tmp_path_factory.mktemp("plain"))
    workbench.set_property("full", "benchmark_owner", 7.0)
    page = workbench.run()
    assert page.errors == {}
    return page


def test_notebook_runs_from_top_to_bottom_and_compares_both_models(workbench: Workbench, benchmarks: Path) -> None:
    page = workbench.run(**COSTS, QUANTIZED_PRECISION="W4A16", QUANTIZED_SIZE_GB="13", QUANTIZED_MEMORY_GB="24")
    assert page.errors == {}
    assert page.warnings == []
    assert page.counts == list(range(1, len(page.counts) + 1))
    assert page.pictures == ["ttft", "latency", "throughput", "cost"]
    assert "48 properties compared, 0 differ" in page.text("checks")
    assert "**Findings**: none" in page.text("checks")
    assert page.rows("checks") == []
    assert "NOT ALIKE" not in page.text("comparison")
    assert page.row("comparison", "prompt/output tokens")[1:] == ["64/8", "64/8"]
    assert page.row("comparison", "precision") == ["precision", "W4A16", "not said"]
    assert page.row("comparison", "model size") == ["model size", "13 GB", "not said"]
    assert page.row("comparison", "cost per hour") == ["cost per hour", "1 USD", "5 USD"]
    assert page.row("comparison", "GPU memory in use, most")[1:] == ["not measured"] * 2
    for role in MODELS:
        metrics = result_of(benchmarks, f"{role}-rate-10")["metrics"]["metrics"]
        row = page.row("table", "10/s", role)
        assert row[2:6] == ["pass", "20", "0", f"{metrics['ttft_p50_ms']:.3g}"], row
        assert row[-2] == f"{metrics['output_tokens_per_s']:.3g}"
        cost = float(COSTS[f"{role.upper()}_COST_PER_HOUR_USD"])
        assert row[-1] == f"{metrics['output_tokens_per_s'] / cost:.3g}"
        assert float(page.row("comparison", "... per USD/h")[1 + list(MODELS).index(role)].split(" ")[0]) > 0


def test_load_beyond_the_promise_is_observed_and_unanswered_latencies_are_inf(
    plain_page: Page, benchmarks: Path
) -> None:
    for role in MODELS:
        metrics = result_of(benchmarks, f"{role}-rate-150")["metrics"]["metrics"]
        assert metrics["ttft_p99_ms"] == "inf", "the planted failures are missing"
        row = plain_page.row("table", "150/s", role)
        assert row[2] == "observed"
        assert int(row[4]) == metrics["failed"] > 0
        assert row[7] == "inf"


def test_simulated_results_are_marked_next_to_the_numbers(plain_page: Page) -> None:
    assert "48 properties compared, 0 differ" in plain_page.text("checks")
    for cell in ("checks", "comparison"):
        assert "SIMULATED" in plain_page.text(cell), cell
        assert "quantized and full" in plain_page.text(cell)
    assert plain_page.row("comparison", "simulated") == ["simulated", "YES", "YES"]


def test_without_a_cost_no_price_is_shown(plain_page: Page) -> None:
    assert plain_page.text("cost").count("no cost in the profile") == 3
    assert plain_page.pictures == ["ttft", "latency", "throughput"]


def test_without_the_cost_of_one_model_its_price_is_left_out(workbench: Workbench) -> None:
    page = workbench.run(FULL_COST_PER_HOUR_USD="5")
    assert page.row("comparison", "cost per hour") == ["cost per hour", "no cost in the profile", "5 USD"]
    assert page.row("table", "10/s", "quantized")[-1] == "-"
    assert page.pictures == ["ttft", "latency", "throughput", "cost"]


def alter(workbench: Workbench) -> None:
    """Exchange one digit of a result."""
    key = workbench.key("quantized", "quantized-rate-10.json")
    content = workbench.bucket.get(key)
    assert content is not None
    altered = content.replace(b'"requests": 20', b'"requests": 21')
    assert altered != content
    workbench.bucket.put(key, altered, "application/json")


def truncate(workbench: Workbench) -> None:
    key = workbench.key("quantized", "quantized-rate-10.json")
    content = workbench.bucket.get(key)
    assert content is not None
    workbench.bucket.put(key, content[:100], "application/json")


def remove(name: str) -> Callable[[Workbench], None]:
    """Delete an object of the quantized model's artifact."""
    return lambda w: w.bucket.delete(w.key("quantized", name))


PLANTED: dict[str, tuple[Callable[[Workbench], None], list[str]]] = {
    "altered file": (alter, ["quantized: quantized-rate-10.json: was altered: its SHA-256 is not the one"]),
    "truncated file": (truncate, ["quantized: quantized-rate-10.json: has 100 bytes, the manifest says"]),
    "deleted file": (
        remove("quantized-rate-10.json"),
        ["quantized: quantized-rate-10.json: is missing: the manifest lists it"],
    ),
    "partial upload": (remove("manifest.json"), ["manifest.json is missing: nothing is there, or the upload was cut"]),
    "missing property": (
        lambda w: w.set_property("quantized", "benchmark_rate_10_ttft_p99", None),
        ["quantized: benchmark_rate_10_ttft_p99: is missing in the registry"],
    ),
    "other number": (
        lambda w: w.set_property("full", "benchmark_rate_10_throughput", 0.0),
        ["full: benchmark_rate_10_throughput: in the registry differs from the artifact"],
    ),
    "number of nothing": (
        lambda w: w.set_property("full", "benchmark_rate_99_throughput", 1.0),
        ["full: benchmark_rate_99_throughput: is in the registry, and no readable file of the artifact has it"],
    ),
    "empty registry": (
        lambda w: w.standin.reset(),
        [
            "quantized: registry: model smollm2-135m-quantized is not registered",
            "full: registry: model smollm2-135m is not registered",
        ],
    ),
}


#: Faults of different models that one run of the notebook must list, each run taking seconds.
TOGETHER = (("altered file", "number of nothing"), ("missing property", "other number"))
RUNS = (*TOGETHER, *((name,) for name in PLANTED if not any(name in names for names in TOGETHER)))


@pytest.mark.parametrize("names", RUNS, ids=" and ".join)
def test_planted_faults_are_listed_and_fail_only_the_last_cell(workbench: Workbench, names: tuple[str, ...]) -> None:
    for name in names:
        PLANTED[name][0](workbench)
    page = workbench.run(**COSTS)
    assert list(page.errors) == ["end"], page.errors
    for text in [text for name in names for text in PLANTED[name][1]]:
        assert text in page.errors["end"]
    assert page.rows("checks"), "the findings are listed next to the numbers too"
    if names == ("missing property", "other number"):
        assert "2 findings" in page.errors["end"], "nothing else is found"
    if names[0] in ("altered file", "truncated file", "deleted file"):
        assert [row[1] for row in page.rows("table") if row[0] == "10/s"] == ["full"], "a broken file is not drawn"


def test_credentials_that_minio_refuses_are_named(workbench: Workbench) -> None:
    page = workbench.run(AWS_SECRET_ACCESS_KEY="not-the-secret")
    assert list(page.errors) == ["end"], page.errors
    assert page.errors["end"].count("cannot be read: An error occurred (SignatureDoesNotMatch)") == len(MODELS)


def test_unknown_number_is_shown_as_missing_instead_of_0_and_other_lengths_are_reported(
    python: Path, minio: servers.MinioServer, standin: servers.Standin, benchmarks: Path, tmp_path: Path
) -> None:
    standin.reset()
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for path in benchmarks.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    result = result_of(folder, "full-rate-10")
    result["metrics"]["metrics"] |= {"output_tokens_per_s": None, "ttft_p90_ms": None}
    result["step"]["output_tokens"] = 9
    (folder / "full-rate-10.json").write_text(json.dumps(result))
    workbench = Workbench(python, minio, minio.new_bucket(), standin, tmp_path)
    for role in MODELS:
        workbench.publish(role, folder)
    page = workbench.run()
    row = page.row("table", "10/s", "full")
    assert (row[6], row[-1]) == ("-", "-"), row
    assert "NOT ALIKE</b>: at 10/s, prompt/output tokens are 64/8 and 64/9" in page.text("comparison")
    # What is published is read from the step's artifact: a number that is unknown there is in neither place.
    assert page.errors == {}


# --- how it gets into the stage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", ["local", "local-sim", "openshift"])
def test_a_stage_carries_the_notebook_byte_for_byte(overlay: str) -> None:
    kubectl = shutil.which("kubectl") or str(components.ensure(Journal(), ["kubernetes"])["kubectl"])
    manifests = render.render(fixtures_dir() / "overlays" / overlay, kubectl)
    carried = render.named(manifests, "ConfigMap", "workbench-notebooks")
    assert carried is not None
    assert carried["data"] == {NOTEBOOK.name: NOTEBOOK.read_text()}
    found = render.select_kind(manifests, "Notebook")
    if overlay != "openshift":
        assert found == []
        return
    (notebook,) = found
    spec = notebook["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/opt/app-root/src/benchmark"]["configMap"] == {"name": "workbench-notebooks"}
    claim = render.named(
        manifests, "PersistentVolumeClaim", mounts["/opt/app-root/src"]["persistentVolumeClaim"]["claimName"]
    )
    assert claim is not None
    settings = render.named(manifests, "ConfigMap", container["envFrom"][0]["configMapRef"]["name"])
    assert settings is not None
    assert settings["data"]["FULL_COST_PER_HOUR_USD"] == "5"
    # Jupyter asks for no password: without the platform's login before it, anybody in the cluster could use it.
    assert "--ServerApp.token=''" in next(e["value"] for e in container["env"] if e["name"] == "NOTEBOOK_ARGS")
    annotations = notebook["metadata"]["annotations"]
    assert (
        annotations["notebooks.opendatahub.io/inject-oauth"]
        == annotations["notebooks.opendatahub.io/inject-auth"]
        == "true"
    )
