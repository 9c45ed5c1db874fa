"""Results of an earlier run in the look-alike's bucket and registry, so that a run that only reads has some to judge.

The numbers are made up, since those of a simulated engine are never published.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.publication import links, publishing
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.publication.bucket.names import build_prefix, build_uri
from pytest_vllm_stage.publication.document import make
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry.client import RegistryClient
from pytest_vllm_stage.stage import client, objects, revision
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.object_store import find_object_store
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.real.live_stage import SILENT
from tests.unit.made_results import RUN, STARTED_AT, measured, rate_step, source, step, write_folder

BUCKET = "test-results"


def publish_results(cluster: ClusterFacts, stage: StageFacts, registry_url: str, folder: Path) -> None:
    """Publish results of each model, which name the running revision."""
    with client.connection(cluster, stage.namespace) as kube, closing(RegistryClient(registry_url, SILENT)) as registry:
        bucket = Bucket(find_object_store(stage, kube), BUCKET)
        for target in stage.targets:
            service = objects.get(kube, "InferenceService", target.inference_service, stage.namespace)
            assert service is not None
            running = revision.running(StageReader(kube, cluster, stage.namespace), service)
            names = links.resolve_names(service)
            place = PublicationTarget(registry, bucket, names, service, SILENT)
            _publish(place, target.role, stage.namespace, running.name, folder / target.role)


def _publish(place: PublicationTarget, role: str, namespace: str, running: str, folder: Path) -> None:
    name = objects.name_of(place.service)
    measurement = measured(rate_step(1.0, role, name), later_s=time.time() - STARTED_AT)
    steps = [step(measurement, "pass")]
    uri = build_uri(place.bucket.name, build_prefix(place.names.model, place.names.version, RUN))
    results = make(
        steps,
        source(
            model=place.names.model,
            version=place.names.version,
            namespace=namespace,
            service=name,
            revision=running,
            uri=uri,
        ),
    )
    benchmarks = write_folder(folder, [measurement])
    document = folder / "results.json"
    publishing.write_document(results, document)
    publishing.publish(place, results, publishing.list_files(benchmarks, steps, document))
