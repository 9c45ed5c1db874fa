"""Compares published results with the measured ones: pure functions that return one line per fault."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_vllm_stage.benchmark.artifacts import StepArtifact, read_result
from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.publication import document as documents
from pytest_vllm_stage.publication import properties as names
from pytest_vllm_stage.publication.bucket.stored import StoredRun
from pytest_vllm_stage.publication.document import DOCUMENT, OBSERVED, Results, Step
from pytest_vllm_stage.publication.registry.values import INT, Raw, Value, difference, show, show_raw, text_of
from pytest_vllm_stage.slo.decision import Outcome

#: The samples file stores microseconds; a step's result file may have been written from finer times.
_TOLERANCE = 1e-4


def compare_properties(results: Results, properties: Mapping[str, Raw]) -> list[str]:
    """Compare published properties with the artifact's document: value, type, run, missing and additional names."""
    lines = []
    for name, raw in names.ours(properties).items():
        if name not in results.values:
            lines.append(f"{name} is published, and the artifact of run {results.source.run} has no such number")
        elif line := difference(raw, results.values[name]):
            lines.append(f"{name} {line} (artifact of run {results.source.run})")
    room = len(properties) < names.BUDGET
    missing = [name for name in results.values if name not in properties and (room or name in names.PROVENANCE)]
    return lines + [f"{name} is not published ({show(results.values[name])} in the artifact)" for name in missing]


def find_unreadable(properties: Mapping[str, Raw]) -> list[str]:
    """Properties of any client that make the official client fail on the whole version, one line each."""
    return [
        f"{name} is the whole number {show_raw(raw)}: notebooks cannot read the version, since the official client "
        f"accepts at most 9 digits"
        for name, raw in properties.items()
        if raw.get("metadataType") == INT and len(str(raw.get("int_value", "")).lstrip("-+")) > 9
    ]


def compare_official_client(results: Results, properties: Mapping[str, Raw], seen: Mapping[str, Any]) -> list[str]:
    """Compare the published properties, as the official client returns them, with the artifact's document.

    Args:
        results: The artifact's document.
        properties: The version's properties as the REST API returns them.
        seen: The version's properties as the official client returns them.
    """
    lines = []
    for name in names.ours(properties):
        expected, got = results.values.get(name), seen.get(name)
        if expected is None:
            continue
        kind = str if isinstance(expected, str) else (int, float)
        if name not in seen:
            lines.append(f"{name}: expected {show(expected)}, the official client returns nothing")
        elif isinstance(got, bool) or not isinstance(got, kind):
            lines.append(
                f"{name}: expected {show(expected)}, the official client returns {got!r} ({type(got).__name__})"
            )
        elif got != expected:
            lines.append(f"{name}: expected {show(expected)}, the official client returns {show(got)}")
    return lines


def compare_document(results: Results, stored: StoredRun) -> list[str]:
    """Compare the artifact's document with the numbers derived from its own samples and verdicts."""
    try:
        steps, lines = read_stored_steps(stored, results)
        made = documents.make(steps, results.source)
    except StageError as error:
        return [error.message]
    derived = made.values
    lines += [
        f"{name} is {show(results.values[name]) if name in results.values else 'absent'} in {DOCUMENT}, the samples "
        f"give {show(derived[name]) if name in derived else 'none'}"
        for name in sorted({*derived, *results.values})
        if derived.get(name) != results.values.get(name)
    ]
    return lines


def read_stored_steps(stored: StoredRun, results: Results) -> tuple[list[Step], list[str]]:
    """The steps of an artifact, and a line for each number in a step's result file that its samples do not give."""

    def outcome_of(step: StepArtifact) -> str:
        observed = step.step.id in results.observations and step.outcome is not Outcome.INVALID
        return OBSERVED if observed else step.outcome.value

    with tempfile.TemporaryDirectory() as folder:
        for name, content in stored.contents.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        steps = documents.derive_steps(Path(folder), results.source.service, outcome_of)
        lines = [line for step in steps for line in _of_step_file(Path(folder), step)]
    return steps, lines


def _of_step_file(folder: Path, step: Step) -> list[str]:
    name = f"{step.artifact.step.id}.json"
    written = read_result(folder / name)["metrics"]["metrics"]
    values = documents.values_of(step)
    pairs = [(metric, values.get(key), written.get(metric)) for key, metric in names.PER_STEP.items() if metric]
    if step.verdict == Outcome.INVALID:
        return []
    return [
        f"{name}: {metric} is {stored}, the samples give {derived}"
        for metric, derived, stored in pairs
        if not _close(derived, stored if isinstance(stored, int | float) else None)
    ]


def _close(one: Value | None, other: float | None) -> bool:
    if not isinstance(one, int | float) or other is None:
        return one is None and other is None
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def compare_source(results: Results, model: str, version: str, namespace: str, service: str) -> list[str]:
    """Results that are published for another model, version or service than the measured one."""
    source = results.source
    pairs = {
        "model": (source.model, model),
        "version": (source.version, version),
        "namespace": (source.namespace, namespace),
        "InferenceService": (source.service, service),
    }
    return [
        f"{what}: the results are of {theirs!r}, and are published for {here!r}"
        for what, (theirs, here) in pairs.items()
        if theirs != here
    ]


def find_stale(properties: Mapping[str, Raw], revision: str, created_at: str) -> list[str]:
    """Results of another revision than the running one, or measured before it was created.

    Args:
        properties: The version's properties.
        revision: The running revision's name.
        created_at: When it was created, in UTC as Kubernetes writes it; empty where that is unknown.
    """
    run, measured = text_of(properties, names.RUN), text_of(properties, names.TIMESTAMP)
    published = text_of(properties, names.REVISION)
    if published != revision:
        return [f"stale: the results of run {run} ({measured}) are of revision {published!r}, {revision!r} runs now"]
    if created_at and measured < created_at:
        return [f"stale: the results of run {run} are of {measured}, revision {revision} was created at {created_at}"]
    return []
