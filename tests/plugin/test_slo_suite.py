"""suites/slo against the simulated engine: verdicts, what they leave, exclusive access, and results judged again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.plugin.forked_runs import run_pytest
from tests.unit.sim_engine import Sim, running_sim

SUITES = Path(__file__).parents[2] / "suites"

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "small"
[models.quantized]
inference_service = "sim"
{model}
[load]
{load}
duration_s = 1.5
prompt_tokens = 64
output_tokens = 4
warmup_requests = 2
[slo]
{slo}
"""
#: Generous, so that this machine's load decides nothing. Nor does how the requests of a step depend on each other: no
#: step has the 20 requests from which a correlation is estimated, nor the 30 of a trend.
KEPT = "error_rate = 0\nttft_p50_ms = 100000"


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "10", "--itl-ms", "3") as engine:
        yield engine


@pytest.fixture
def place(bare_place: pytest.Pytester) -> pytest.Pytester:
    """No fake cluster: each test writes its profile, and its server is a simulator."""
    return bare_place


def profile(place: pytest.Pytester, *, load: str = "rates = [10]", slo: str = KEPT, model: str = "") -> None:
    (place.path / "small.toml").write_text(PROFILE.format(load=load, slo=slo, model=model))


def run(place: pytest.Pytester, *options: str, suite: str = "slo", folder: str = "run") -> pytest.RunResult:
    return run_pytest(
        place, SUITES / suite, "-p", "no:cacheprovider", f"--rootdir={place.path}",
        f"--stage-profile={place.path}/small.toml",
        f"--stage-run-dir={place.path / folder}", *options, timeout=300,
    )  # fmt: skip


def endpoint(sim: Sim) -> tuple[str, ...]:
    sim.faults()
    return f"--stage-endpoint={sim.url}", "--stage-model=sim"


def record(place: pytest.Pytester, folder: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.path / folder / "run.json").read_text())
    return found


def outcomes(place: pytest.Pytester, folder: str = "run") -> dict[str, str]:
    return {one["name"]: one["outcome"] for one in record(place, folder)["benchmarks"]}


def attachments(folder: Path) -> dict[str, str]:
    """Of the calls of all tests, by their names."""
    results = [json.loads(path.read_text()) for path in folder.glob("*-result.json")]
    found = [one for result in results for one in result.get("attachments", [])]
    return {one["name"]: (folder / one["source"]).read_text(encoding="utf-8") for one in found}


def test_each_step_has_its_verdict_and_leaves_its_files(place: pytest.Pytester, sim: Sim) -> None:
    profile(
        place,
        load="rates = [5, 10]\nconcurrencies = [2]",
        slo=f"{KEPT}\n[slo.rate-10]\nttft_p50_ms = 0.001\n[slo.concurrency-2]\nttft_p99_ms = 100000",
        # Closed loops answer as often as the server can, and 299 answers would be a pass.
        model="[models.quantized.load]\noutput_tokens = 60",
    )
    result = run(place, *endpoint(sim))
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    assert outcomes(place) == {
        "endpoint-rate-5": "pass",
        "endpoint-rate-10": "fail",
        "endpoint-concurrency-2": "inconclusive",
    }
    result.stdout.fnmatch_lines(
        [
            "*endpoint-rate-10: fail: ttft_p50_ms <= 0.001: *, * misses of *",
            "step  * n * ttft P50 ms [[]95 % CI[]] * P99 ms * tok/s  verdict",
            # Its interval may be missing: requests that depended on each other leave too few independent ones.
            "endpoint-rate-5 *[?]* pass",
            "endpoint-rate-10 *FAIL",
            "endpoint-concurrency-2: ttft_p99_ms <= 100000: *",
            "GPU memory and utilisation: no source (--stage-gpu-metrics names one)",
        ]
    )
    folder = place.path / "run" / "benchmarks"
    with (folder / "benchmarks.csv").open() as file:
        rows = {row["step"]: row for row in csv.DictReader(file)}
    assert {name: row["outcome"] for name, row in rows.items()} == outcomes(place)
    for kind in ("samples.jsonl.gz", "json", "guidellm.json"):
        assert sorted(path.name for path in folder.iterdir() if path.name.split(".", 1)[1] == kind) == [
            f"{name}.{kind}" for name in sorted(outcomes(place))
        ]
    cases = ET.parse(place.path / "run" / "junit.xml").iter("testcase")  # noqa: S314 - our own file
    properties = {case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")} for case in cases}
    assert properties["test_objectives[endpoint-rate-10]"]["slo.outcome"] == "fail"
    assert float(properties["test_objectives[endpoint-rate-5]"]["slo.ttft_p50_ms"] or "nan") > 0
    attached = attachments(place.path / "run" / "allure-results")
    assert attached["endpoint-rate-5: verdict"].startswith("✓ pass: endpoint, 5 requests/s: ")
    assert "ttft_p50_ms: ✗ FAIL, " in attached["endpoint-rate-10: verdict"]
    for name in outcomes(place):
        picture = ET.fromstring(attached[f"{name}: requests over time"])  # noqa: S314 - our own file
        assert picture.tag == "{http://www.w3.org/2000/svg}svg"
        assert json.loads(attached[f"{name}: metrics and verdict"])["step"]["model"] == "sim"


@pytest.mark.parametrize("options", [("--collect-only",), ("-n2",)])
def test_a_step_that_can_never_pass_is_named_before_it_runs(
    place: pytest.Pytester, sim: Sim, options: tuple[str, ...]
) -> None:
    profile(place, slo="ttft_p99_ms = 100000")
    result = run(place, *endpoint(sim), *options)
    (line,) = [line for line in result.outlines if "can never pass" in line]
    assert line == (
        "endpoint-rate-10 can never pass: 15 requests in 1.5 s, and ttft_p99_ms <= 100000 needs 299 without a miss: "
        "duration_s = 30 at least"
    )


def test_what_stays_undecided_fails_a_strict_run(place: pytest.Pytester, sim: Sim) -> None:
    profile(place, slo="ttft_p99_ms = 100000")
    result = run(place, *endpoint(sim), "--stage-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*endpoint-rate-10: inconclusive: *"])


@pytest.mark.parametrize(
    ("fault", "outcome", "says"),
    [
        ({"fault": "server_error", "share": 0.5}, "failed", "http_status"),
        ({"fault": "error_in_stream", "share": 0.5}, "failed", "error_in_stream"),
        ({"fault": "truncated_stream", "share": 0.5}, "failed", "truncated"),
        ({"fault": "empty_answers"}, "failed", "failed requests: * no_tokens"),
        (
            {"fault": "off_by_one_usage", "count": "prompt_tokens", "by": -32},
            "skipped",
            "did not have the planned length",
        ),
    ],
    ids=lambda value: value["fault"] if isinstance(value, dict) else "",
)
def test_a_fault_is_named_by_the_suite(
    place: pytest.Pytester, sim: Sim, fault: dict[str, Any], outcome: str, says: str
) -> None:
    profile(place)
    options = endpoint(sim)
    sim.faults(fault)
    result = run(place, *options, "-rs")
    sim.faults()
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines([f"*{says}*"])


def test_promised_rates_must_hold_and_the_next_one_is_an_observation(place: pytest.Pytester, sim: Sim) -> None:
    profile(place, slo="ttft_p50_ms = 0.001", model="rate_limit_requests_per_s = 10", load="rates = [8]")
    result = run(place, *endpoint(sim))
    assert outcomes(place) == {
        "endpoint-rate-8": "fail",
        "endpoint-rate-10": "fail",
        "endpoint-rate-20": "observed",
    }
    result.assert_outcomes(failed=2, passed=1)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_load_runs_exclusively_and_last(place: pytest.Pytester, sim: Sim, workers: str) -> None:
    """Tests that reach the endpoint, and one that reads results, stand in an order that must change."""
    profile(place, load="rates = [5, 10]", slo=f"{KEPT}\n[slo.rate-10]\nttft_p50_ms = 0.001")
    place.makepyfile(
        test_a="""
        import pytest
        @pytest.mark.after_load
        def test_reads(stage_run):
            folder = stage_run.directory / "benchmarks"
            assert len(list(folder.glob("*.guidellm.json"))) == 2
        """,
        test_z="""
        import pytest
        @pytest.mark.parametrize("i", range(40))
        def test_asks(endpoint, i):
            endpoint.chat("hello", max_tokens=3)
        """,
    )
    result = run(place, *endpoint(sim), f"-n{workers}", str(place.path / "test_a.py"), str(place.path / "test_z.py"))
    result.assert_outcomes(passed=42, failed=1)
    assert outcomes(place) == {"endpoint-rate-5": "pass", "endpoint-rate-10": "fail"}
    accesses = record(place)["load_access"]
    assert len(accesses) == 2
    assert [access["concurrent"] for access in accesses] == [[], []]
    events = [json.loads(line) for line in (place.path / "run" / "journal.jsonl").read_text().splitlines()]
    held = [event for event in events if event["kind"] == "access"]
    last_ordinary = max(event["ended_at"] for event in held if "test_asks" in event["name"])
    (reader,) = [event for event in held if "test_reads" in event["name"]]
    if workers == "0":
        assert last_ordinary <= min(access["began_at"] for access in accesses)
    assert reader["began_at"] >= max(access["ended_at"] for access in accesses)


def test_allure_has_the_labels_and_the_verdict_of_each_step(place: pytest.Pytester, sim: Sim) -> None:
    profile(place)
    run(place, *endpoint(sim)).assert_outcomes(passed=1)
    folder = place.path / "run" / "allure-results"
    (result,) = [json.loads(path.read_text()) for path in folder.glob("*-result.json")]
    labels = {label["name"]: label["value"] for label in result["labels"]}
    assert (labels["epic"], labels["feature"], labels["story"]) == ("vLLM serving stage", "slo", "slo")
    files = {one["name"]: one["source"] for one in result["attachments"]}
    assert "verdict" in json.loads((folder / files["endpoint-rate-10: metrics and verdict"]).read_text())
    assert result["steps"], "the load is not a step of the result"


def test_a_second_run_at_the_same_endpoint_waits_for_the_first(place: pytest.Pytester, sim: Sim) -> None:
    profile(place)
    options = endpoint(sim)
    with ThreadPoolExecutor() as pool:
        results = [pool.submit(run, place, *options, folder=folder) for folder in ("one", "two")]
    for result in results:
        # Whatever the verdict is: two runs at once make the machine busy.
        assert result.result().ret == pytest.ExitCode.OK
    (one,), (two,) = record(place, "one")["load_access"], record(place, "two")["load_access"]
    assert one["ended_at"] <= two["began_at"] or two["ended_at"] <= one["began_at"]


def test_saved_results_are_judged_again_without_any_endpoint(place: pytest.Pytester, sim: Sim) -> None:
    profile(place, load="rates = [5, 10]")
    run(place, *endpoint(sim)).assert_outcomes(passed=2)
    again = run(place, f"--stage-results={place.path / 'run'}", folder="again")
    again.assert_outcomes(passed=2)
    first, second = (
        {one["name"]: one["result"] for one in record(place, folder)["benchmarks"]} for folder in ("run", "again")
    )
    assert first == second
    profile(place, slo="ttft_p50_ms = 0.001")
    run(place, f"--stage-results={place.path / 'run'}", folder="stricter").assert_outcomes(failed=2)
    other = run(place, f"--stage-results={place.path / 'run'}", "-rs", suite="inference", folder="other")
    assert other.parseoutcomes().keys() == {"skipped"}
    other.stdout.fnmatch_lines(["*needs a stage, and --stage-results judges only saved samples*"])


def test_folder_without_results_is_refused(place: pytest.Pytester) -> None:
    profile(place)
    result = run(place, f"--stage-results={place.path / 'overlay'}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--stage-results: *overlay' has no samples (*.samples.jsonl.gz)*"])


def test_capacity_is_searched_on_request(place: pytest.Pytester) -> None:
    """One sequence of 20 ms and three gaps of 15 ms serves about 15 requests per second."""
    # The objective leaves a busy client a lag of 100 ms.
    profile(place, model="rate_limit_requests_per_s = 100", slo="ttft_p50_ms = 2000")
    place.makepyfile(
        short="""
        from functools import partial
        from pytest_vllm_stage.benchmark import find_capacity
        from pytest_vllm_stage.slo import capacity
        capacity.SHORTEST_STEP_S = 1.5
        find_capacity.CapacitySearch = partial(capacity.CapacitySearch, resolution=4.0)
        """
    )
    place.syspathinsert()
    # Gaps that a busy machine's client sees: answers in one piece are taken for those of a cache.
    with running_sim("--ttft-ms", "20", "--itl-ms", "15", "--max-num-seqs", "1") as small:
        result = run(place, *endpoint(small), "-k", "capacity", "--stage-find-capacity", "-p", "short")
    result.assert_outcomes(failed=1, deselected=3)
    (found,) = record(place)["capacities"]
    assert found["breaks"] <= 100
    result.stdout.fnmatch_lines(["*endpoint: capacity: *the profile promises 100"])


def test_profile_without_load_is_skipped_with_the_reason(place: pytest.Pytester, sim: Sim) -> None:
    text = PROFILE.format(load="", slo="", model="").split("[load]")[0]
    (place.path / "small.toml").write_text(text)
    result = run(place, *endpoint(sim), "-rs", "--stage-strict")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*does not apply: profile small plans no load: it has no*load*table*"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slo": "ttft_p98_ms = 1"}, "small.toml: slo.ttft_p98_ms: unknown objective (did you mean ttft_p9"),
        (
            {"slo": "[slo.rate-7]\nttft_p50_ms = 1"},
            "slo.rate-7: unknown load step (did you mean rate-10?); valid: rate-10",
        ),
        ({"load": "ratse = [1]"}, "load.ratse: unknown key (did you mean rates?)"),
        (
            {"model": "[models.quantized.slo]\nerror_rate = 2"},
            "models.quantized.slo.error_rate: expected a share from 0 to below 1",
        ),
        ({"model": "[models.quantized.load]\nduration_s = 0"}, "duration_s: expected a number above 0, got 0"),
    ],
    ids=["objective", "step", "load", "share", "duration"],
)
def test_a_wrong_table_is_refused_whatever_runs(place: pytest.Pytester, changes: dict[str, str], says: str) -> None:
    profile(place, **changes)
    result = run(place, "--stage-endpoint=http://127.0.0.1:9", suite="inference")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in result.stderr.str()
    assert not (place.path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_reader_of_results_fails_where_a_load_test_never_runs(place: pytest.Pytester, sim: Sim, workers: str) -> None:
    """As in a worker next to one that was stopped: the plan has a load test, and no worker runs it."""
    profile(place)
    place.makepyfile(
        impatient="""
        from pytest_vllm_stage.session import exclusive
        exclusive.IDLE_S = 0.5
        exclusive.ExclusiveAccess.pytest_collection_finish = lambda self, session: setattr(self, "_loads", ["never"])
        """,
        test_reads="import pytest\n@pytest.mark.after_load\ndef test_reads(stage_run): pass",
    )
    place.syspathinsert()
    options = ["-n", workers, "-p", "impatient", f"--stage-profile={place.path}/small.toml", *endpoint(sim)]
    result = run_pytest(place, "test_reads.py", *options, timeout=300)
    assert result.ret == 69
    assert "environment unusable: 1 load tests never ran, the first of them never" in result.stdout.str()
