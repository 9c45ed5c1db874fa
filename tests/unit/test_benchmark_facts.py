"""What labels a measurement: the batch limit where the stage's manifests declare it, and nothing where they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.benchmark.steps import facts_of
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.session import targets
from pytest_vllm_stage.slo.engine_load import MAX_NUM_SEQS
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts

CLUSTER = ClusterFacts("kubeconfig", "", "", "v1.34.4", "kubectl", reaches_services=False, owned=False)


@pytest.mark.parametrize("limit", [16, None])
def test_the_declared_batch_limit_reaches_the_measurement(limit: int | None) -> None:
    config = SimpleNamespace(
        api_key=None,
        ca_file=None,
        trusts_cluster=False,
        profile=SimpleNamespace(
            name="p", models={"full": SimpleNamespace(token_account=None)}, find_model=lambda *_: None
        ),
    )
    run: Any = SimpleNamespace(run_id="r", config=config)
    stage = StageFacts("n", "", False, (TargetFacts("full", "f", "http://127.0.0.1:9", 512, max_num_seqs=limit),))
    target = targets.find_stage_targets(run, StageFacts.from_json(stage.to_json()), lambda: CLUSTER)["full"]
    client: Any = SimpleNamespace(target=target, version=lambda: "0.32.0", models=list)
    expected = {"run_id": "r", "profile": "p", "engine_version": "0.32.0", "simulated": False}
    assert facts_of(run, client) == expected | ({MAX_NUM_SEQS: limit} if limit else {})
