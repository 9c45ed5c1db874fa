"""One run as any of its processes sees it: identity, configuration, directory, journal, shared facts.

The plugin loads this module in every pytest run, so it imports the rest of the package only where a test uses it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from pytest_vllm_stage.core.activity import Live
    from pytest_vllm_stage.core.journal import Journal, Say, StepContext
    from pytest_vllm_stage.run.shared import Shared
    from pytest_vllm_stage.settings.config import StageConfig
    from pytest_vllm_stage.settings.profile import Profile


class RunIdentity(NamedTuple):
    """What the controller hands to its workers.

    Attributes:
        run_id: Names the run everywhere: directory, labels, record.
        run_dir: The run's record; it is created when the first test uses the stage.
        controller_pid: The process whose end is the run's end.
    """

    run_id: str
    run_dir: str
    controller_pid: int


def new_run_id() -> str:
    """The time in UTC and four random hex digits, valid as a label value and as part of a file name."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + os.urandom(2).hex()


class Run:
    """The run; see the module. Configuration is resolved on first use, so unrelated test runs resolve none.

    Attributes:
        step: Shows each phase of the journal elsewhere too; set by the report that wants it.
    """

    def __init__(
        self, identity: RunIdentity, resolve: Callable[[], StageConfig], say: Say, live: Live | None = None
    ) -> None:
        self.identity = identity
        self._resolve = resolve
        self._say = say
        self._live = live
        self.step: StepContext = nullcontext

    @cached_property
    def config(self) -> StageConfig:
        """The resolved configuration.

        Raises:
            ConfigError: an option or the profile is wrong.
        """
        return self._resolve()

    def use_profile(self, profile: Profile) -> StageConfig:
        """Use another profile in this process from here on: that of an overridden fixture ``stage_profile``."""
        if profile is not self.config.profile:
            self.config = dataclasses.replace(self.config, profile=profile)
        return self.config

    @property
    def run_id(self) -> str:
        return self.identity.run_id

    @property
    def directory(self) -> Path:
        """The run directory, which exists only once the stage was used."""
        return Path(self.identity.run_dir)

    @property
    def active(self) -> bool:
        """Some test of this run has used the stage or an endpoint."""
        return self.journal_path.exists()

    @property
    def journal_path(self) -> Path:
        """Every event of every process of the run."""
        return self.directory / "journal.jsonl"

    @cached_property
    def journal(self) -> Journal:
        """The run's journal; first use creates the run directory."""
        from pytest_vllm_stage.core.journal import Journal

        self.directory.mkdir(parents=True, exist_ok=True)
        journal = Journal(self.journal_path, self._say, lambda name: self.step(name), self._live)
        if not self.active:
            # Here too, since a run that is killed leaves no other record of what it was asked for.
            asked_for = self.config.to_json() if "config" in vars(self) else {}
            journal.event("run", self.run_id, controller_pid=self.identity.controller_pid, **asked_for)
        return journal

    @cached_property
    def shared(self) -> Shared:
        """Facts shared by the run's processes."""
        from pytest_vllm_stage.run.shared import Shared

        return Shared(self.directory / "facts")


RUN = pytest.StashKey[Run]()
