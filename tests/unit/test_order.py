"""Slow tests start first, by themselves; the others run file by file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from xdist.remote import Producer

from tests import order

ROOT = Path(__file__).parents[2]
QUICK = "tests/unit/test_files.py"


class Worker:
    """An xdist worker that notes the tests that it receives."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway, self.received = SimpleNamespace(id=name), list[int]()

    def send_runtest_some(self, indices: list[int]) -> None:
        self.received += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def distribute(pytestconfig: pytest.Config, tests: list[str]) -> list[list[str]]:
    """What two workers receive before they have run anything."""
    option = SimpleNamespace(**vars(pytestconfig.option) | {"tx": ["popen", "popen"]})
    config = SimpleNamespace(option=option, getvalue=vars(option).get, getoption=vars(option).get)
    scheduler = order.make_scheduler(config, Producer("test"))  # type: ignore[arg-type]
    workers = [Worker("gw0"), Worker("gw1")]
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, tests)
    scheduler.schedule()
    return [[tests[index] for index in worker.received] for worker in workers]


def test_named_files_exist() -> None:
    assert [file for file in order.SLOW_FILES if not (ROOT / file).is_file()] == []


def test_slow_tests_are_sorted_to_the_front_in_the_order_of_their_files() -> None:
    files = [QUICK, order.SLOW_FILES[1], "tests/unit/test_config.py", order.SLOW_FILES[0]]
    items = [SimpleNamespace(nodeid=f"{file}::test_a[b::c]") for file in files]
    found = sorted(items, key=order.find_place)  # type: ignore[arg-type]
    assert [order.find_file(item.nodeid) for item in found] == [*order.SLOW_FILES[:2], QUICK, files[2]]


def test_slow_tests_are_distributed_one_by_one_and_quick_files_whole(pytestconfig: pytest.Config) -> None:
    slow = [f"{order.SLOW_FILES[0]}::test_{name}" for name in "abcd"]
    quick = [f"{QUICK}::test_{name}" for name in "abcdefgh"]
    first, second = distribute(pytestconfig, [*slow, *quick])
    assert (first[0], second[0]) == (slow[0], slow[1])
    assert {*first, *second} >= {*slow}
    for received in (first, second):
        assert [test for test in received if test in quick] in ([], quick)
