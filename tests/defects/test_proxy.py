"""Defects of gateways before the simulated engine; tests/real plants the quick ones before a real one."""

from __future__ import annotations

import re

import pytest

from tests.defects.proxy.catalogue import KINDS, find_defects
from tests.defects.proxy.server import Defect, running_proxy
from tests.defects.runner import Outcome, run_suite, simulator
from tests.defects.test_defects import names
from tests.real.test_gateway_defects import QUICK

DEFECTS = find_defects()
SLOW = [name for name, defect in DEFECTS.items() if defect.slow]
HERE = [name for name, defect in DEFECTS.items() if not defect.slow and name not in QUICK]


def plant(defect: Defect, *arguments: str, slow: bool = False) -> Outcome:
    with simulator() as engine, running_proxy(engine, defect) as url:
        return run_suite(url, *arguments, slow=slow)


def expect_caught(outcome: Outcome, defect: type[Defect]) -> None:
    missed = defect.by - set(outcome.failed)
    assert not missed, f"missed by {missed}\n{outcome.output}"
    assert any(re.search(defect.says, line) for line in outcome.messages), outcome.output


def test_proxy_without_a_defect_changes_nothing() -> None:
    outcome = plant(Defect(), "-k", "streaming or service or transport or security or forwarding or errors")
    assert not outcome.failed, outcome.output
    assert (outcome.skipped, outcome.passed > 60) == (0, True), outcome.output


@pytest.mark.parametrize("name", HERE)
def test_gateway_defect_is_caught_and_named(name: str) -> None:
    defect = DEFECTS[name]
    expect_caught(plant(defect(), "-k", " or ".join(sorted(defect.by))), defect)


@pytest.mark.parametrize("name", SLOW)
def test_slow_lane_catches_a_limit_of_time(name: str) -> None:
    defect = DEFECTS[name]
    planted = defect()
    planted.limit_s = 1.0
    lanes = ("-p", "tests.defects.short_lanes", "-k", " or ".join(sorted(defect.by)))
    expect_caught(plant(planted, *lanes, slow=True), defect)


def test_slow_lanes_pass_without_a_limit_of_time() -> None:
    outcome = plant(Defect(), "-p", "tests.defects.short_lanes", "-k", "slow_lanes or test_models", slow=True)
    assert not outcome.failed, outcome.output
    assert outcome.passed >= len(SLOW), outcome.output


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_described_and_comes_from_a_public_report(name: str) -> None:
    defect = DEFECTS[name]
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", defect.source), defect.source
    assert (defect.__doc__ or "").endswith("."), name
    assert defect.by <= names()
    assert defect.says


def test_every_kind_has_defects() -> None:
    assert {defect.__module__ for defect in DEFECTS.values()} == {module.__name__ for module in KINDS}
    assert set(QUICK) <= set(DEFECTS)
