"""Faults of a deployment, as objects, events and logs show them: what is planted, and how its first line begins.

docs/checks.md has the table.
"""

from __future__ import annotations

from tests.unit.deployment_faults import (
    containers,
    controllers,
    downloads,
    engines,
    images,
    probes,
    scheduling,
    volumes,
)
from tests.unit.deployment_faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *images.FAULTS,
    *engines.FAULTS,
    *downloads.FAULTS,
    *containers.FAULTS,
    *probes.FAULTS,
    *scheduling.FAULTS,
    *volumes.FAULTS,
    *controllers.FAULTS,
)
