"""This run's publication wrote its results and changed nothing else; collected only with --stage-publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage.publication import properties
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.publication.registry.values import text_of
from pytest_vllm_stage.publication.registry.write import SUPERSEDED

if TYPE_CHECKING:
    from pytest_vllm_stage import Publication, RegistryClient
    from suites.registry.conftest import Filed

pytestmark = pytest.mark.after_load


def test_results_of_this_run_are_published(publication: Publication, filed: Filed) -> None:
    """The version shows this run's results, unless a later run has replaced them."""
    if publication.own is None:
        pytest.skip(publication.skipped)
    run = text_of(filed.properties, properties.RUN)
    if publication.own.state == SUPERSEDED:
        pytest.skip(f"run {publication.own.note} measured later and replaced them")
    assert run == publication.own.run, (
        f"version {filed.version['name']}: expected results of run {publication.own.run}, got {run or 'none'}"
    )


def test_other_versions_are_untouched(publication: Publication, filed: Filed, registry_client: RegistryClient) -> None:
    """Publishing changed no property of another version of the model."""
    if publication.own is None or publication.own.others is None:
        pytest.skip(publication.skipped)
    now = {entity["name"]: entity for entity in entities.list_versions(registry_client, filed.model)}
    lines = []
    for name, before in publication.own.others.items():
        there = (now.get(name) or {}).get("customProperties") or {}
        if text_of(there, properties.RUN) in ("", text_of(before, properties.RUN), publication.own.run):
            changed = properties.unlike(before, there)
            lines += [f"version {name}: {', '.join(changed)} changed during this run's publication"] if changed else []
    assert not lines, "\n".join(lines)
