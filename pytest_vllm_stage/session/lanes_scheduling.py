"""xdist's scheduler for `session.lanes`; a module of its own, since only xdist's controller needs its import."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from pytest_vllm_stage.session.lanes import find_lane


class LanesScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no type hints
    """xdist's distribution by scopes with lanes in place of classes; lanes start in the order of their first tests."""

    def __init__(self, config: pytest.Config, log: Producer, roles: Sequence[str]) -> None:
        super().__init__(config, log)
        self._roles = roles

    def _split_scope(self, nodeid: str) -> str:
        return find_lane(nodeid, self._roles)


def make_scheduler(config: pytest.Config, log: Producer, roles: Sequence[str]) -> LanesScheduling | None:
    """The distribution, unless the command line names another one than xdist's default."""
    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return LanesScheduling(config, log, roles)
