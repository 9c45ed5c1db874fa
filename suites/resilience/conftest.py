"""The disruptions that --stage-disrupt names, each for the models that the profile lets it disrupt."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.core.skips import DOES_NOT_APPLY
from pytest_vllm_stage.run.context import RUN

WITHOUT_OPTION = f"{DOES_NOT_APPLY}a stage is disrupted only on request: --stage-disrupt=all"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``disruption`` with name and role; without the option, with a single skipped test."""
    if "disruption" not in metafunc.fixturenames:
        return
    config = metafunc.config.stash[RUN].config
    roles = config.profile.resilience.roles or config.roles[:1]
    found = [(name, role) for name in config.disruptions for role in roles]
    if found:
        metafunc.parametrize("disruption", found, ids=[f"{role}-{name}" for name, role in found])
    else:
        skipped = pytest.param(None, marks=pytest.mark.skip(reason=WITHOUT_OPTION))
        metafunc.parametrize("disruption", [skipped], ids=["none"])
