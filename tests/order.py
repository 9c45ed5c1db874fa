"""The order of the tests that are not real in xdist's workers: slow ones first, so that all workers end together.

A slow test is distributed by itself, the others file by file, since most files share what they set up.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

#: Files whose tests take seconds each, those with the longest tests first.
SLOW_FILES = (
    "tests/plugin/test_inference_suite.py",
    "tests/plugin/test_baselines.py",
    "tests/plugin/test_slo_suite.py",
    "tests/defects/test_defects.py",
    "tests/defects/test_proxy.py",
    "tests/unit/test_slo_faults.py",
    "tests/plugin/test_wheel.py",
    "tests/plugin/test_plugin.py",
)


class SlowFirstScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no type hints
    """xdist's distribution by classes and modules, with slow tests by themselves, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return find_unit(nodeid)


def find_unit(nodeid: str) -> str:
    """What is distributed at once: a test of a slow file, or a file."""
    file = find_file(nodeid)
    return nodeid if file in SLOW_FILES else file


def find_file(nodeid: str) -> str:
    """The file of a test."""
    return nodeid.partition("::")[0]


def make_scheduler(config: pytest.Config, log: Producer) -> SlowFirstScheduling:
    """The distribution for a run without real tests."""
    config.option.loadscopereorder = False
    return SlowFirstScheduling(config, log)


def find_place(item: pytest.Item) -> int:
    """Where a test runs: slow files in their order, then the others."""
    file = find_file(item.nodeid)
    return SLOW_FILES.index(file) if file in SLOW_FILES else len(SLOW_FILES)
