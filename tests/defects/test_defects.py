"""Every defect of the catalogue is caught by the checks meant for it; the whole board is ``python -m tests.defects``.

Here each defect is run against the checks that must catch it; whether any other check fails too is covered by the
scoreboard, and here for a few defects.
"""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_vllm_stage.standins.engine.faults import registry
from tests.defects import checks
from tests.defects.catalogue import DEFECTS, Defect
from tests.defects.forks import ROOT
from tests.defects.oracle import says_something
from tests.defects.proxy.catalogue import find_defects
from tests.defects.runner import SUITE, Outcome, run_suite, simulator

#: Faults of timing are not faults of correctness; the last one is caught before any check runs.
NO_DEFECTS = {"stall", "slow_start", "slow_requests", "wrong_model_listed"}
#: The one whose effect is widest: a whole run of the suite.
LOOKED_AT_WHOLE = ("cross_talk",)
#: One of each kind.
LOOKED_AT_WHOLE_NIGHTLY = ("truncated_stream", "ignored_temperature", "twice_begun", "wrong_tool", "recycled_ids")


def names() -> set[str]:
    """The check of each short name."""
    return {value for name, value in vars(checks).items() if name.isupper()}


def meet(defect: Defect) -> Outcome:
    """Run the checks that must catch a defect against an engine that has it."""
    with simulator(defect.fault) as url:
        return run_suite(url, "-p", "tests.defects.short_waits", "-k", " or ".join(sorted(defect.by)))


@pytest.fixture(scope="module")
def met(request: pytest.FixtureRequest) -> Iterator[Callable[[Defect], Outcome]]:
    """The outcome of each defect of this run; as many at a time as there are cores, unless xdist sees to that."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        yield meet
        return
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [call.params["defect"] for call in calls if call and "defect" in call.params]
    pool = ThreadPoolExecutor(os.cpu_count())
    outcomes = {defect.name: pool.submit(meet, defect) for defect in chosen}
    yield lambda defect: outcomes[defect.name].result()
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_is_caught_and_its_symptom_named(defect: Defect, met: Callable[[Defect], Outcome]) -> None:
    outcome = met(defect)
    assert set(outcome.failed) == defect.by, f"missed: {defect.by - set(outcome.failed)}\n{outcome.output}"
    assert any(defect.says in line for line in outcome.messages), f"no message says {defect.says!r}:\n{outcome.output}"


@pytest.mark.parametrize(
    "name", [*LOOKED_AT_WHOLE, *(pytest.param(name, marks=pytest.mark.nightly) for name in LOOKED_AT_WHOLE_NIGHTLY)]
)
def test_what_a_defect_does_not_touch_stays_green(name: str) -> None:
    (defect,) = (defect for defect in DEFECTS if defect.name == name)
    with simulator(defect.fault) as url:
        outcome = run_suite(url)
    failed = set(outcome.failed)
    assert defect.by <= failed <= defect.by | defect.also | checks.relations, f"{failed ^ defect.by}\n{outcome.output}"


def test_one_cause_of_missing_answers_fails_one_relation_per_api_and_skips_the_others() -> None:
    with simulator("server_error") as url:
        outcome = run_suite(url, "-k", f"{checks.STREAM_IS_PLAIN} or {checks.AMONG_OTHERS}")
    assert set(outcome.failed) == {checks.STREAM_IS_PLAIN}, outcome.output
    for api in ("chat", "completions"):
        cause = f"no plain answer for plain text on {api}: POST"
        assert len([line for line in outcome.messages if cause in line]) == 1, outcome.output
    assert outcome.passed == 0 < outcome.skipped, outcome.output


def test_a_healthy_engine_raises_no_alarm_and_answers_the_oracle() -> None:
    with simulator() as url:
        assert says_something(url)
        outcome = run_suite(url)
    assert not outcome.failed, outcome.output
    assert outcome.skipped == 0, outcome.output
    assert outcome.passed > 100


def test_the_catalogue_knows_every_fault_and_every_check() -> None:
    planted = {defect.fault if isinstance(defect.fault, str) else defect.fault["fault"] for defect in DEFECTS}
    assert planted | NO_DEFECTS == set(registry())
    assert [name for name, times in Counter(defect.name for defect in DEFECTS).items() if times > 1] == []
    written = {
        node.name
        for path in SUITE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert names() == written


def test_documented_scoreboard_equals_the_catalogue() -> None:
    text = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    table = text.partition("<!-- scoreboard -->")[2].partition("<!-- end of scoreboard -->")[0]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| \d+ \|$", table, re.MULTILINE)
    planted = Counter(defect.kind for defect in DEFECTS)
    assert {kind: int(count) for kind, count, _ in rows if kind != "all"} == planted
    assert [(count, caught) for kind, count, caught in rows if kind == "all"] == [(str(len(DEFECTS)),) * 2]


def test_every_check_is_proven_by_a_defect() -> None:
    proven = set().union(*(defect.by for defect in DEFECTS), *(defect.by for defect in find_defects().values()))
    assert names() == proven
