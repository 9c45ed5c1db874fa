"""Writes a run's properties onto a version: read, write, read back, repeated until they stay.

The server has no lock, and a PATCH replaces every property. Publishers that follow this protocol lose nothing to each
other: each writes within `WINDOW_S` of its read, and reads again until `SETTLE_S` after its write, which is longer. One
that was overwritten by an older read therefore sees it and writes again (as long as the server carries out a PATCH
within the difference). Blind writes of other publishers are repaired as well, except for what they write in the
milliseconds between a read and a write here: that is lost, and cannot be detected.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.publication import properties as names
from pytest_vllm_stage.publication.document import Results
from pytest_vllm_stage.publication.registry.client import Entity, RegistryClient
from pytest_vllm_stage.publication.registry.values import Raw, Value, difference, text_of

#: The longest time between reading properties and sending them back.
WINDOW_S = 0.4
#: How long written properties are watched.
SETTLE_S = 1.0
ATTEMPTS = 8
WRITTEN, UNCHANGED, SUPERSEDED = "written", "unchanged", "superseded"


@dataclass(frozen=True)
class WriteOutcome:
    """How the writing ended.

    Attributes:
        state: `WRITTEN`; `UNCHANGED`: everything was there already; `SUPERSEDED`: a later run's results are there.
        by: The later run; empty otherwise.
        attempts: Writes that were sent.
    """

    state: str
    by: str = ""
    attempts: int = 0


def age_key_of(properties: Mapping[str, Raw]) -> tuple[str, str]:
    """Timestamp and run of the results that are published there; empty texts where none are."""
    return text_of(properties, names.TIMESTAMP), text_of(properties, names.RUN)


def write(registry: RegistryClient, version: Entity, results: Results) -> WriteOutcome:
    """Put a run's properties onto a version; nothing is sent where they are there, or a later run's.

    Raises:
        StageFailure: the version's other properties leave no room, or others overwrite it every time.
        Unavailable: the registry went away; doing it again is safe.
    """
    path = f"model_versions/{version['id']}"
    seen: dict[str, Raw] = {}
    for attempt in range(ATTEMPTS):
        read_at, there = time.monotonic(), _properties(registry, path, results)
        # Properties of others that were seen a moment ago were lost to a blind write.
        there = seen | there
        seen = names.others(there)
        if age_key_of(there) > results.age_key:
            return WriteOutcome(SUPERSEDED, text_of(there, names.RUN), attempt)
        wanted = names.within_budget(results.values, seen, _where(results))
        if not attempt and not differences(there, wanted):
            return WriteOutcome(UNCHANGED)
        body = {"customProperties": names.merged(there, wanted)}
        if time.monotonic() - read_at > WINDOW_S:
            continue  # this process was held up: what was read may be old
        registry.patch(path, body)
        if _stays(registry, path, results, seen, wanted):
            return WriteOutcome(WRITTEN, attempts=attempt + 1)
    raise StageFailure(
        f"{_where(results)}: other publishers overwrote the properties of run {results.source.run} {ATTEMPTS} times",
        hint=f"curl {registry.url}/api/model_registry/{registry.api}/{path}",
    )


def differences(there: Mapping[str, Raw], wanted: Mapping[str, Value]) -> list[str]:
    """How a version's properties differ from a run's, a line each: values, types, and ours that are too many."""
    lines = [f"{name} {line}" for name, value in wanted.items() if (line := difference(there.get(name), value))]
    return lines + [f"{name} is of another run" for name in names.ours(there) if name not in wanted]


def _stays(
    registry: RegistryClient, path: str, results: Results, others: Mapping[str, Raw], wanted: Mapping[str, Value]
) -> bool:
    """Watch what was written until it has settled; False where another writer replaced it."""
    started = time.monotonic()
    overwritten: list[str] = []

    def look() -> Observation:
        there = _properties(registry, path, results)
        lost = [f"{name} of others is gone" for name in others if name not in there]
        overwritten[:] = [*differences(there, wanted), *lost]
        if overwritten:
            registry.journal.event("publish", "overwritten", path=path, lines=overwritten)
        stayed_s = time.monotonic() - started
        return Observation(bool(overwritten) or stayed_s >= SETTLE_S, f"as written for {stayed_s:.1f} s")

    wait_until(f"properties of {path} stay", look, timeout_s=SETTLE_S * 10, journal=registry.journal, interval_s=0.2)
    return not overwritten


def _properties(registry: RegistryClient, path: str, results: Results) -> dict[str, Any]:
    """The version's properties, once it is seen to be the right one."""
    found = registry.get(path)
    if found.get("name") != results.source.version:
        raise StageFailure(
            f"{path} is version {found.get('name')!r}, and the results are of {results.source.version!r}: not published"
        )
    return dict(found.get("customProperties") or {})


def _where(results: Results) -> str:
    return f"version {results.source.version} of model {results.source.model}"
