"""Published results are complete, unaltered and private."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage.publication.bucket.names import MANIFEST, parse_uri
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import Bucket
    from pytest_vllm_stage.publication.bucket.stored import StoredRun

pytestmark = pytest.mark.after_load


def test_artifact_uri_resolves_and_hashes_match(stored: StoredRun, results_run: str) -> None:
    """Every file of the manifest is under the published URI with the size and SHA-256 of the manifest."""
    lines = list(stored.findings)
    assert not lines, health.message(f"results of run {results_run} in {stored.uri}", lines, f"mc ls -r {stored.uri}")
    assert stored.contents, f"the manifest under {stored.uri} lists no file: nothing was checked"


def test_results_are_private(stored: StoredRun, results_bucket: Bucket) -> None:
    """No client without credentials can list or read results, by the bucket's policy and by trying it."""
    ways_in = results_bucket.find_public_access(parse_uri(stored.uri)[1] + MANIFEST)
    assert not ways_in, health.message(
        f"bucket {results_bucket.name} is public", ways_in, f"mc anonymous set none STAGE/{results_bucket.name}"
    )
