"""Publishes made-up results to a real MinIO and the registry's stand-in, for tests that look at what came of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.publication import check, properties, publishing
from pytest_vllm_stage.publication.bucket import stored
from pytest_vllm_stage.publication.document import Results, make
from pytest_vllm_stage.publication.publishing import PublicationTarget, Published
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.publication.registry.client import Entity
from pytest_vllm_stage.publication.registry.values import text_of
from tests.unit.made_results import RUN, SERVICE, measured, rate_step, source, steps, write_folder

LATER = "20261124-110000-bbbb"
LABELS = {"vllm-stage/model": SERVICE, "vllm-stage/version": "w4a16"}


def results_of(place: PublicationTarget, run: str = RUN, later_s: float = 0.0, **changes: Any) -> Results:
    uri = f"s3://{place.bucket.name}/{SERVICE}/w4a16/{run}/"
    return make(steps(run=run, later_s=later_s), replace(source(run=run, uri=uri), **changes))


def files(folder: Path, results: Results, later_s: float = 0.0) -> dict[str, Path]:
    run = results.source.run
    measurements = [measured(rate_step(rate), run=run, later_s=later_s) for rate in (1.0, 5.0)]
    benchmarks = write_folder(folder / run, measurements)
    document = folder / f"{run}.json"
    publishing.write_document(results, document)
    return publishing.list_files(benchmarks, steps(run=run), document)


def publish_run(
    place: PublicationTarget, folder: Path, run: str = RUN, later_s: float = 0.0, **changes: Any
) -> Published:
    results = results_of(place, run, later_s, **changes)
    return publishing.publish(place, results, files(folder, results, later_s))


def version_of(place: PublicationTarget) -> Entity:
    model = entities.find_model(place.registry, place.names.model)
    assert model is not None
    version = entities.find_version(place.registry, model, place.names.version)
    assert version is not None
    return version


def properties_of(place: PublicationTarget) -> dict[str, Any]:
    return dict(version_of(place)["customProperties"])


def findings(place: PublicationTarget) -> list[str]:
    """Everything that the checks say of what is published."""
    there = properties_of(place)
    found = stored.read_run(place.bucket, text_of(there, properties.URI))
    if found.findings:
        return list(found.findings)
    results = publishing.read_document(found)
    return check.compare_properties(results, there) + check.compare_document(results, found)
