"""xdist's scheduler for `session.lanes`; a module of its own, since only xdist's controller needs its import."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from pytest_vllm_stage.session.lanes import find_lane

if TYPE_CHECKING:
    from pytest_vllm_stage.settings.config import StageConfig


class LanesScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no type hints
    """xdist's distribution by scopes with lanes in place of classes; lanes start in the order of their first tests."""

    def __init__(self, config: pytest.Config, log: Producer, settings: StageConfig) -> None:
        super().__init__(config, log)
        self._settings = settings

    def _split_scope(self, nodeid: str) -> str:
        return find_lane(nodeid, self._settings.roles, simulated=self._settings.simulated)


def make_scheduler(config: pytest.Config, log: Producer, settings: StageConfig) -> LanesScheduling | None:
    """The distribution, unless the command line names another one than xdist's default."""
    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return LanesScheduling(config, log, settings)
