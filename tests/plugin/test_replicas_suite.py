"""Checks that compare the engine's counters, where one address leads to two replicas: never a false alarm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.plugin.forked_runs import run_pytest
from tests.unit.round_robin import round_robin
from tests.unit.sim_engine import running_sim

SUITE = Path(__file__).parents[2] / "suites" / "inference"
#: The checks that read /metrics before and after.
COUNTING = (
    "test_metrics_count_what_is_served",
    "test_enabled_prefix_cache_is_hit",
    "test_abandoned_requests_leave_no_trace",
    "test_client_that_leaves_before_its_answer_frees_its_slot",
    "test_request_is_served_once",
    "test_client_that_disconnects_frees_its_slot",
)
#: Those of them that do not depend on how soon a router notices that its client has left.
JUDGED = ("test_metrics_count_what_is_served", "test_enabled_prefix_cache_is_hit", "test_request_is_served_once")
FILES = ("service", "isolation", "forwarding", "streaming")


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[str]]:
    options = ("--ttft-ms", "4", "--itl-ms", "4", "--max-model-len", "512")
    with running_sim(*options) as first, running_sim(*options) as second:
        # One has served more than the other: their counters differ.
        for number in range(3):
            first.call("/v1/completions", {"model": "sim", "prompt": f"number {number}", "max_tokens": 5})
        yield [first.url, second.url]


#: Takes the place of the cluster: the replicas are read at their own addresses.
KNOWN = """
import urllib.request
from pytest_vllm_stage.checks.inference import replicas
from pytest_vllm_stage.serving.replicas import Replicas

URLS = {urls!r}

def scrape(url):
    with urllib.request.urlopen(url + "/metrics") as answer:
        return answer.read().decode()

def read():
    return [scrape(url) for url in URLS]

def prepare_counters(endpoint, reader):
    endpoint.scrapes.replicas = Replicas(len(URLS), read)
    return ""

replicas.prepare_counters = prepare_counters
"""


def run_checks(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, url: str, checks: Sequence[str], *options: str
) -> pytest.RunResult:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    files = [SUITE / f"test_{name}.py" for name in FILES]
    return run_pytest(
        pytester, *files, "-k", " or ".join(checks), f"--stage-endpoint={url}", "-p", "no:cacheprovider",
        f"--stage-run-dir={pytester.path / 'run'}", "-p", "no:hypothesispytest", "-rs", *options,
    )  # fmt: skip


def test_counters_behind_an_address_of_two_replicas_are_inconclusive(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, replicas: list[str]
) -> None:
    with round_robin(replicas) as url:
        result = run_checks(pytester, monkeypatch, url, COUNTING)
    outcomes = result.parseoutcomes()
    outcomes.pop("deselected")
    assert outcomes == {"skipped": len(COUNTING)}
    output = " ".join(result.stdout.str().split())
    assert f"inconclusive: several replicas answer at {url}: each scrape of /metrics shows one of them" in output


def test_counters_of_two_known_replicas_are_judged_together(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, replicas: list[str]
) -> None:
    pytester.makepyfile(known_replicas=KNOWN.format(urls=replicas))
    with round_robin(replicas) as url:
        result = run_checks(pytester, monkeypatch, url, JUDGED, "-p", "known_replicas")
    assert result.parseoutcomes()["passed"] == len(JUDGED)
