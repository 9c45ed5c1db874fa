"""Every published number is the measured one and of the running revision."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import StageError
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.publication import check, properties
from pytest_vllm_stage.publication.bucket.stored import UnfinishedRun, find_unfinished
from pytest_vllm_stage.publication.publishing import BROKEN
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from model_registry import ModelRegistry

    from pytest_vllm_stage import Bucket, Publication, RegistryClient, Run, StageFacts
    from pytest_vllm_stage.publication.bucket.stored import StoredRun
    from pytest_vllm_stage.publication.document import Results
    from pytest_vllm_stage.publication.links import RegisteredNames
    from pytest_vllm_stage.stage.revision import Revision
    from suites.registry.conftest import Filed

    Object = dict[str, Any]

pytestmark = pytest.mark.after_load

#: How long a running publication may take after its first file exists.
FINISH_S = 5.0


class StillUnfinished(StageError):
    """A publication stayed unfinished."""


def test_published_numbers_equal_the_artifact(document: Results, filed: Filed, results_run: str) -> None:
    """Every published number and string equals the artifact's, with its type and run id; none is missing."""
    assert document.values, f"the artifact of run {results_run} holds no number: nothing was compared"
    lines = check.compare_properties(document, filed.properties)
    assert not lines, health.message(
        f"version {filed.version['name']} of model {filed.model['name']} does not show the measured results",
        lines,
        f"run the publication again, or look at {document.source.uri}",
    )


def test_official_client_reads_the_published_numbers(
    document: Results, filed: Filed, model_registry: ModelRegistry, registry_client: RegistryClient
) -> None:
    """The official client, which users' notebooks use, returns every published number and string of the artifact.

    It is independent: it has its own HTTP client and schema, and shares no code with the publication.
    """
    from pytest_vllm_stage.publication.registry.official import read_properties

    model, version = filed.model["name"], filed.version["name"]
    where = f"version {version} of model {model}"
    unreadable = check.find_unreadable(filed.properties)
    remedy = "publish such a number as a double or a string"
    assert not unreadable, health.message(f"the official client fails on {where}", unreadable, remedy)
    seen = read_properties(model_registry, model, version, registry_client.url)
    assert seen, f"the official client returns no property of {where}: nothing was compared"
    lines = check.compare_official_client(document, filed.properties, seen)
    assert not lines, health.message(
        f"notebooks do not see the measured numbers of {where}", lines, f"compare with {document.source.uri}"
    )


def test_published_numbers_equal_the_samples(document: Results, stored: StoredRun) -> None:
    """The artifact's numbers equal those derived again from its samples, one row per request."""
    lines = check.compare_document(document, stored)
    assert not lines, health.message("numbers do not follow from their samples", lines, f"look at {stored.uri}")


def test_results_belong_here(document: Results, names: RegisteredNames, stage: StageFacts, service: Object) -> None:
    """The results under this version were measured on this version's service."""
    lines = check.compare_source(document, names.model, names.version, stage.namespace, service["metadata"]["name"])
    assert not lines, "\n".join(lines)


def test_results_are_of_what_runs_now(filed: Filed, results_run: str, running: Revision) -> None:
    """The results are of the running revision, not of an earlier image or earlier arguments."""
    lines = check.find_stale(filed.properties, running.name, running.created_at)
    assert results_run
    assert not lines, "\n".join(lines)


def test_properties_fit_the_page(filed: Filed, results_run: str) -> None:
    """The version has at most as many custom properties as its page shows; all others are in the artifact."""
    found = sorted(filed.properties)
    assert results_run
    assert len(found) <= properties.BUDGET, (
        f"version {filed.version['name']} has {len(found)} custom properties, its page shows {properties.BUDGET}: "
        f"{', '.join(found)}"
    )


def test_no_publication_was_left_unfinished(
    publication: Publication, names: RegisteredNames, results_bucket: Bucket, results_run: str, stage_run: Run
) -> None:
    """Every run that uploaded results also published them.

    A killed run leaves a partial upload, or results that the registry does not have. The next run that publishes
    completes the latter; this check names what is left.
    """
    assert results_run
    found: list[UnfinishedRun] = []

    def look() -> Observation:
        found[:] = find_unfinished(results_bucket, names.model, names.version)
        return Observation(not found, f"{len(found)} unfinished")

    # Another run may be publishing at this moment; what stays unfinished is reported below, by run.
    with suppress(StillUnfinished):
        wait_until(
            "all publications finished", look, timeout_s=FINISH_S, journal=stage_run.journal, error=StillUnfinished
        )
    broken = {one.run: one.note for one in publication.completed if one.state == BROKEN}
    words = {True: "uploaded and not published", False: "a partial upload: it was cut off"}
    lines = [f"run {one.run}: {words[one.complete]} {broken.get(one.run, '')}".strip() for one in found]
    assert not lines, health.message(
        "publications were left unfinished",
        lines,
        f"mc ls -r STAGE/{results_bucket.name}/{found[0].prefix if found else ''}, and remove what no run completes",
    )
