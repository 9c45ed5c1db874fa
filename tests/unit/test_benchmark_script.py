"""The script of the benchmark Jobs: what it publishes, and that nothing short of that ends with success."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.load.guidellm.writing import write_report
from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from tests.unit.made_samples import failed, measurement, sample
from tests.unit.pod_scripts import pod_scripts
from tests.unit.sim_engine import Sim, running_sim

FOLDER = fixtures_dir() / "benchmarking"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The script and what it imports, as in the pod: from its own folder."""
    with pod_scripts("benchmark", "guidellm_process", "hold", "reports", "s3") as modules:
        yield modules


@pytest.fixture
def script(scripts: dict[str, Any]) -> Any:
    return scripts["benchmark"]


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "1", "--itl-ms", "1") as engine:
        yield engine


class Store:
    """A stand-in for MinIO: objects by path, their metadata, and what it answers with instead."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.refuse = 0
        self.spoil = False
        self.url = ""
        self.heads: list[int] = []
        self.head_seen: Callable[[str], None] = lambda _path: None

    def names(self) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self.objects)

    def document(self, name: str) -> Any:
        return json.loads(next(content for path, content in self.objects.items() if path.endswith(f"/{name}")))


@pytest.fixture
def store() -> Iterator[Store]:
    kept = Store()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's word
            pass

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if not kept.refuse:
                kept.objects[self.path] = content
                kept.headers[self.path] = {name.lower(): value for name, value in self.headers.items()}
            self.answer(kept.refuse or 200, b"<Code>AccessDenied</Code>" if kept.refuse else b"")

        def do_GET(self) -> None:
            content = kept.objects[self.path]
            self.answer(200, content[:-1] if kept.spoil else content)

        def do_HEAD(self) -> None:
            """Answer with the planned statuses, the last one for good; 0 is a connection that ends without one."""
            kept.head_seen(self.path)
            status = kept.heads.pop(0) if len(kept.heads) > 1 else kept.heads[0]
            if status:
                self.answer(status, b"")

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


class GuideLLM:
    """A stand-in for GuideLLM: its report has these samples, and it keeps the prompts that it was given."""

    def __init__(self) -> None:
        self.prompts: dict[float, list[str]] = {}
        self.bad: list[int] = []
        self.all_bad = False
        self.missing = 0
        self.misses_once = False
        self.asked: list[str] = []
        self.output_tokens = 4

    def __call__(self, _process: Any, settings: Any, rate: float, prompts: list[str], folder: Path) -> Path:
        is_first = rate not in self.prompts
        self.prompts[rate] = prompts
        self.asked += prompts
        missing = self.missing if is_first or not self.misses_once else 0
        step = LoadStep("any", settings.model, CONSTANT, len(prompts) / rate, 48, 4, request_rate=rate)
        sent = range(len(prompts) - missing)
        made = measurement(step, [self._sample(i, rate) for i in sent])
        write_report(made, folder / "report.json", summarise(made.samples, step))
        return folder / "report.json"

    def _sample(self, index: int, rate: float) -> Sample:
        if self.all_bad or index in self.bad:
            return replace(failed(index, index / rate), prompt_tokens=None, expected_prompt_tokens=48)
        made = sample(index, index / rate, tokens=self.output_tokens)
        return replace(made, prompt_tokens=48, expected_prompt_tokens=48, expected_output_tokens=4)


@pytest.fixture
def guidellm(script: Any, monkeypatch: pytest.MonkeyPatch) -> GuideLLM:
    stand_in = GuideLLM()
    monkeypatch.setattr(script, "run_guidellm", stand_in)
    return stand_in


@pytest.fixture(autouse=True)
def environment(sim: Sim, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim.faults()
    for name, value in {
        "MODEL": "sim",
        "TARGET_URL": sim.url,
        "RATES": "1 5",
        "DURATION_S": "4",
        "PROMPT_TOKENS": "48",
        "OUTPUT_TOKENS": "4",
        "WARMUP_REQUESTS": "20",
        "REQUEST_TIMEOUT_S": "10",
        "MAX_ERROR_RATE": "0.1",
        "S3_ENDPOINT": store.url,
        "S3_ACCESS_KEY": "someone",
        "S3_SECRET_KEY": "correct-horse",
        "BUCKET": "test-results",
        "RUN": "benchmark-sim-x7k2p",
        "LOCATION_FILE": str(tmp_path / "location"),
    }.items():
        monkeypatch.setenv(name, value)


def ended(script: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert isinstance(caught.value.code, str), "it ended without saying why"
    assert caught.value.code.startswith("error: ")
    return caught.value.code.removeprefix("error: ")


def test_each_rate_is_published_and_reported(
    script: Any, guidellm: GuideLLM, store: Store, sim: Sim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(sim.truth())
    script.main()
    assert store.names() == ["rate-1.json", "rate-5.json", "summary.json"]
    location = (tmp_path / "location").read_text()
    assert location.startswith("s3://test-results/benchmark-jobs/sim/20")
    assert location.endswith("-benchmark-sim-x7k2p")
    assert capsys.readouterr().out.splitlines()[-1] == f"published 2 reports: {location}"
    assert len(sim.truth()) - before == 20
    summary = store.document("summary.json")
    assert [(step["request_rate"], step["samples"], step["failed"]) for step in summary["steps"]] == [
        (1.0, 4, 0), (5.0, 20, 0),
    ]  # fmt: skip
    for step in summary["steps"]:
        path = f"/{location.removeprefix('s3://')}/{step['object']}"
        content, headers = store.objects[path], store.headers[path]
        assert step["sha256"] == headers["x-amz-meta-sha256"] == hashlib.sha256(content).hexdigest()
        assert (headers["content-type"], headers["x-amz-meta-outcome"]) == ("application/json", "complete")


def test_what_it_published_is_read_as_a_measurement(
    script: Any, guidellm: GuideLLM, store: Store, tmp_path: Path
) -> None:
    script.main()
    summary = store.document("summary.json")
    (tmp_path / "rate-5.json").write_text(json.dumps(store.document("rate-5.json")))
    step = LoadStep("full", "sim", CONSTANT, summary["duration_s"], 48, 4, request_rate=5)
    found = read_report(tmp_path / "rate-5.json", step, lead_in=summary["lead_in"])
    assert len(found.samples) == step.planned_requests == 20


def test_prompts_are_as_long_as_the_server_counts_and_no_two_alike(script: Any, guidellm: GuideLLM, sim: Sim) -> None:
    script.main()
    prompts = [prompt for texts in guidellm.prompts.values() for prompt in texts]
    assert [len(texts) for texts in guidellm.prompts.values()] == [5, 21]
    assert len({prompt[:40] for prompt in prompts}) == len(prompts)
    assert {sim.count(prompt) for prompt in prompts} == {48}


def test_rate_without_an_answer_fails(script: Any, guidellm: GuideLLM, store: Store, tmp_path: Path) -> None:
    guidellm.all_bad = True
    message = ended(script)
    assert "rate 1: vacuous: 0 of 4 requests were answered, with 0 tokens" in message
    # The reports are there all the same: they say what happened.
    assert store.names() == ["rate-1.json", "rate-5.json", "summary.json"]
    assert {headers.get("x-amz-meta-outcome") for headers in store.headers.values()} == {"problem", None}


def test_more_failures_than_allowed_fail(script: Any, guidellm: GuideLLM) -> None:
    guidellm.bad = [1, 7]
    assert ended(script) == ("rate 1: 1 of 4 requests failed, at most 0.1 may; the first with http_status: 503")


def test_failures_within_the_bound_are_reported_and_allowed(script: Any, guidellm: GuideLLM, store: Store) -> None:
    guidellm.bad = [7, 9]
    script.main()
    assert [step["failed"] for step in store.document("summary.json")["steps"]] == [0, 2]


def test_failed_lead_in_request_is_not_a_sample(script: Any, guidellm: GuideLLM) -> None:
    guidellm.bad = [0]
    script.main()


def test_answers_of_another_length_are_failures(script: Any, guidellm: GuideLLM) -> None:
    guidellm.output_tokens = 3
    assert "vacuous: 0 of 4 requests were answered" in ended(script)


def test_fewer_samples_than_planned_fail(script: Any, guidellm: GuideLLM) -> None:
    guidellm.missing = 1
    assert ended(script).startswith("rate 1: expected 4 samples (rate x duration), got 3")


def test_step_whose_report_lacks_a_row_is_measured_again(
    script: Any, guidellm: GuideLLM, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    guidellm.missing, guidellm.misses_once = 1, True
    script.main()
    assert [step["samples"] for step in store.document("summary.json")["steps"]] == [4, 20]
    lacked = "GuideLLM's report had 3 of 4 samples, none failed"
    assert f"1 requests/s: {lacked}; measured again" in capsys.readouterr().out
    assert [step.get("measured_again") for step in store.document("summary.json")["steps"]] == [
        lacked,
        "GuideLLM's report had 19 of 20 samples, none failed",
    ]
    assert len(guidellm.asked) == len(set(guidellm.asked)) == 2 * (5 + 21)


def test_step_with_a_failure_is_not_measured_again(script: Any, guidellm: GuideLLM) -> None:
    guidellm.missing, guidellm.misses_once, guidellm.bad = 1, True, [1]
    message = ended(script)
    assert message.startswith("rate 1: expected 4 samples (rate x duration), got 3; rate 1: 1 of 3 requests failed")
    assert len(guidellm.asked) == 5 + 21


def test_refused_upload_fails(script: Any, guidellm: GuideLLM, store: Store, tmp_path: Path) -> None:
    store.refuse = 403
    message = ended(script)
    assert "rate-1.json: PUT gave HTTP 403 <Code>AccessDenied</Code>" in message
    assert guidellm.prompts == {}
    assert not (tmp_path / "location").exists()


def test_altered_upload_fails(script: Any, guidellm: GuideLLM, store: Store) -> None:
    store.spoil = True
    assert "rate-1.json: sent sha256" in ended(script)
    assert guidellm.prompts == {}


def test_absent_store_fails(script: Any, guidellm: GuideLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ENDPOINT", "http://127.0.0.1:9")
    assert "the object store at http://127.0.0.1:9 does not answer" in ended(script)
    assert guidellm.prompts == {}


def test_a_warm_up_that_fails_ends_it(script: Any, guidellm: GuideLLM, sim: Sim) -> None:
    sim.faults({"fault": "server_error", "status": 503, "share": 1.0})
    assert "20 of 20 warm-up requests failed, the first with HTTPError: HTTP Error 503" in ended(script)
    assert guidellm.prompts == {}


def test_another_model_is_not_measured(script: Any, guidellm: GuideLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "another")
    assert "serves sim, not another" in ended(script)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RATES", "1 fast", "RATES is '1 fast': different numbers above 0 are needed"),
        ("RATES", "5 5", "RATES is '5 5'"),
        ("RATES", "0.1", "RATES: 0.1 requests/s for DURATION_S 4 give 0 requests"),
        ("DURATION_S", "nan", "DURATION_S is 'nan': a number above 0 is needed"),
        ("PROMPT_TOKENS", "2.5", "PROMPT_TOKENS is '2.5': a whole number from 1 is needed"),
        ("PROMPT_TOKENS", "9", "PROMPT_TOKENS is 9: the chat template takes"),
        ("MAX_ERROR_RATE", "2", "MAX_ERROR_RATE is '2': a number from 0 to 1 is needed"),
        ("S3_SECRET_KEY", "", "S3_SECRET_KEY is not set"),
        ("BUCKET", "", "BUCKET is not set"),
    ],
)
def test_a_wrong_setting_is_named(
    script: Any, guidellm: GuideLLM, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    assert ended(script).startswith(expected)


@pytest.fixture
def held(scripts: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Job is held until the bucket has an object."""
    monkeypatch.setenv("HOLD_OBJECT", "benchmark-holds/run/benchmark-sim")
    monkeypatch.setenv("HOLD_TIMEOUT_S", "600")
    monkeypatch.setattr(scripts["hold"], "INTERVAL_S", 0.01)
    store.heads = [0, 503, 404, 404, 200]


def test_held_job_sends_nothing_before_the_object_exists(
    script: Any, guidellm: GuideLLM, store: Store, held: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ready by then: GuideLLM is imported. A store that does not answer for a moment is asked again."""
    fake_package(tmp_path / "engine", "")
    package = next((tmp_path / "engine").rglob("guidellm"))
    imported = tmp_path / "imported"
    (package / "benchmark.py").write_text(f"open({str(imported)!r}, 'w').close()\nbenchmark_generative_text = None\n")
    monkeypatch.setenv("PACKAGES", str(tmp_path / "engine/lib/python3*/site-packages"))
    events: list[str] = []
    ask = script.Server.ask
    store.head_seen = lambda path: events.append(f"{path} {imported.exists()}")

    def note_and_ask(*arguments: Any) -> Any:
        events.append("sent")
        return ask(*arguments)

    monkeypatch.setattr(script.Server, "ask", note_and_ask)
    script.main()
    assert events[:6] == ["/test-results/benchmark-holds/run/benchmark-sim True"] * 5 + ["sent"]
    summary = store.document("summary.json")
    assert summary["prepared_s"] > 0
    assert summary["held_s"] > 0
    assert [step["samples"] for step in summary["steps"]] == [4, 20]


def test_job_without_a_hold_asks_for_no_object(script: Any, guidellm: GuideLLM, store: Store) -> None:
    script.main()
    summary = store.document("summary.json")
    assert (summary["prepared_s"], summary["held_s"]) == (0, 0)


def test_held_job_that_is_never_released_fails_with_the_object_and_its_writer(
    script: Any, guidellm: GuideLLM, store: Store, held: None, sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLD_TIMEOUT_S", "0.02")
    store.heads = [404]
    before = len(sim.truth())
    message = ended(script)
    assert message.startswith(
        "nothing was sent: s3://test-results/benchmark-holds/run/benchmark-sim did not appear within 0.02 s "
        "(last answer: HTTP 404). The pytest run that created this Job writes it"
    )
    assert (guidellm.prompts, len(sim.truth())) == ({}, before)
    assert "summary.json" not in store.names()


def test_held_job_whose_guidellm_ends_fails_at_once(
    script: Any, store: Store, held: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path / "engine", "")
    package = next((tmp_path / "engine").rglob("guidellm"))
    (package / "benchmark.py").write_text("import os\nos.write(2, b'no memory')\nos._exit(7)\n")
    monkeypatch.setenv("PACKAGES", str(tmp_path / "engine/lib/python3*/site-packages"))
    assert ended(script) == "GuideLLM ended with status 7: no memory"
    assert len(store.heads) == 5, "it asked for the object"


def test_hold_without_a_timeout_is_refused(
    script: Any, guidellm: GuideLLM, held: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLD_TIMEOUT_S")
    assert ended(script) == "HOLD_TIMEOUT_S is not set"


def fake_package(folder: Path, code: str) -> None:
    """A program that `python -m guidellm` finds where the pods have theirs."""
    package = folder / "lib" / "python3.99" / "site-packages" / "guidellm"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(code)


def test_guidellm_gets_its_scenario_and_none_of_the_credentials(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import json, os, pathlib, sys\nspec = json.load(open(sys.argv[3]))['spec']\n"
    code += "seen = {'spec': spec, 'environment': dict(os.environ), 'arguments': sys.argv}\n"
    code += "pathlib.Path(spec['outputs'][0]['path']).write_text(json.dumps(seen))\n"
    fake_package(tmp_path / "engine", code)
    monkeypatch.setenv("PACKAGES", str(tmp_path / "engine/lib/python3*/site-packages"))
    settings = script.Settings.from_environment()
    with script.GuideLLM(tmp_path, script.guidellm_environment(tmp_path)) as guidellm:
        seen = json.loads(script.run_guidellm(guidellm, settings, 5.0, ["a", "b"], tmp_path).read_text())
    assert seen["spec"]["profile"] == {"kind": "constant", "rate": [5.0]}
    assert seen["spec"]["constraints"] == [{"kind": "max_requests", "count": 2}]
    body = {"max_tokens": 4, "min_tokens": 4, "ignore_eos": True}
    assert body.items() <= seen["spec"]["backend"]["extras"]["body"].items()
    assert "correct-horse" not in json.dumps(seen)


def test_guidellm_without_a_report_is_reported_with_its_last_output(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path / "engine", "raise SystemExit('no such backend')\n")
    monkeypatch.setenv("PACKAGES", str(tmp_path / "engine/lib/python3*/site-packages"))
    message = ended(script)
    assert message == "GuideLLM ended with status 1 at 1 requests/s, without a report: no such backend"


def test_invalid_report_fails(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    code = "import json, pathlib, sys\nspec = json.load(open(sys.argv[3]))['spec']\n"
    code += "pathlib.Path(spec['outputs'][0]['path']).write_text('{\"benchmarks\": []}')\n"
    fake_package(tmp_path / "engine", code)
    monkeypatch.setenv("PACKAGES", str(tmp_path / "engine/lib/python3*/site-packages"))
    assert ended(script).startswith("rate 1: report not understood: IndexError")
    assert "rate-1.json" in store.names()


def test_guidellm_is_imported_once_and_each_rate_has_its_own_output(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import also comes before the first run: what it counts is there when the program starts."""
    code = "import os, pathlib, sys\nfrom guidellm.benchmark import starts\n"
    code += "starts.append(os.getpid())\nprint('run', *sys.argv[1:], len(starts), len(set(starts)), os.getcwd())\n"
    fake_package(tmp_path / "engine", code)
    package = next((tmp_path / "engine").rglob("guidellm"))
    (package / "benchmark.py").write_text("starts = []\nbenchmark_generative_text = None\n")
    monkeypatch.setenv("PACKAGES", str(tmp_path / "engine/lib/python3*/site-packages"))
    folders = [tmp_path / name for name in ("one", "two")]
    with script.GuideLLM(tmp_path, script.guidellm_environment(tmp_path)) as guidellm:
        for number, folder in enumerate(folders, start=1):
            folder.mkdir()
            assert guidellm.run([f"--rate={number}"], folder, 60.0) == ""
        wrote = [guidellm.output(folder) for folder in folders]
    assert wrote == [f"run --rate={number} {number} 1 {folder}" for number, folder in enumerate(folders, start=1)]


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("import os\nos._exit(7)\n", "ended with status 7"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "ended with status -9"),
        ("raise ValueError('wrong')\n", "ended with status 1"),
        ("import time\ntime.sleep(600)\n", "did not end within 2 s"),
    ],
)
def test_run_of_guidellm_that_ends_in_any_way_is_reported(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, ended: str
) -> None:
    fake_package(tmp_path / "engine", code)
    monkeypatch.setenv("PACKAGES", str(tmp_path / "engine/lib/python3*/site-packages"))
    with script.GuideLLM(tmp_path, script.guidellm_environment(tmp_path)) as guidellm:
        assert guidellm.wait_until_imported(60.0) == ""
        assert guidellm.run(["run"], tmp_path, 2.0 if "within" in ended else 60.0) == ended
        assert ("ValueError: wrong" in guidellm.output(tmp_path)) == ("wrong" in code)
