"""Sends a run's load steps from pods of the stage's cluster (``--stage-load-from=cluster``)."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vllm_stage.benchmark import plans, steps
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load import prepare
from pytest_vllm_stage.load.prompts import PromptMaker
from pytest_vllm_stage.load.workers.__main__ import API_KEY, GPU_METRICS_TOKEN
from pytest_vllm_stage.load.workers.measure import SharedJob, measure_in_cluster
from pytest_vllm_stage.load.workers.pods import WorkerPlace
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.stage.deploy.addresses import find_address_inside
from pytest_vllm_stage.stage.observe.reader import StageReader


@dataclass(frozen=True)
class ClusterLoad:
    """The stage's cluster as the source of load; see `steps.LoadSource`.

    Attributes:
        reader: The stage.
    """

    reader: StageReader

    def measure(self, run: Run, step: LoadStep, client: EndpointClient, maker: PromptMaker) -> Measurement:
        """Send one step by the pods of an Indexed Job.

        Raises:
            StageError: the pods could not be created or removed; a pod that is lost makes the measurement invalid.
        """
        config, target = run.config, client.target
        place = WorkerPlace(self.reader, config.profile.overlay, run.run_id, run.journal)
        with run.journal.phase(f"prompts {step.id}"):
            assignment = prepare.prepare_shared(
                step,
                client,
                maker,
                workers=plans.workers_of(config, step.role),
                base_url=self._address(target),
                gpu_metrics=config.gpu_metrics,
            )
        tokens = {API_KEY: target.api_key, GPU_METRICS_TOKEN: config.gpu_metrics_token}
        known: dict[str, Secret] = {name: token for name, token in tokens.items() if token is not None}
        facts = steps.facts_of(run, client)
        return measure_in_cluster(place, SharedJob(assignment, target.ca_file, known, facts))

    def _address(self, target: Target) -> str:
        reader = self.reader
        service = reader.get("InferenceService", target.model) or {"metadata": {"name": target.model}}
        return find_address_inside(reader.kube, reader.cluster, reader.namespace, service, target.base_url)
