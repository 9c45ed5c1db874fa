"""Publishes a run's results, once per run and model: which results it has, whether it may publish them, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllm_stage.benchmark import plans, steps
from pytest_vllm_stage.benchmark.artifacts import FOLDER, StepArtifact
from pytest_vllm_stage.cluster.authorities import find_ca_file
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.publication import links, publishing
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.publication.bucket.names import build_prefix, build_uri
from pytest_vllm_stage.publication.document import DOCUMENT, ResultsSource, Step, make, read_steps, utc
from pytest_vllm_stage.publication.publishing import PublicationTarget, Published
from pytest_vllm_stage.publication.registry.client import RegistryClient
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.stage import client, objects, revision
from pytest_vllm_stage.stage.deploy import addresses
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.object_store import find_object_store
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.reach import forwards

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient


@dataclass(frozen=True)
class Publication:
    """The results that this run published of a model.

    Attributes:
        role: The model's role.
        own: This run's results; None where it published none.
        skipped: Why it published none; empty otherwise.
        completed: Earlier runs' unfinished publications, as this run completed them.
    """

    role: str
    own: Published | None = None
    skipped: str = ""
    completed: tuple[Published, ...] = field(default=())

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Publication:
        data = json.loads(text)
        own = Published(**data["own"]) if data["own"] else None
        completed = tuple(Published(**entry) for entry in data["completed"])
        return cls(data["role"], own, data["skipped"], completed)


def publication_of(run: Run, cluster: ClusterFacts, stage: StageFacts, role: str) -> Publication:
    """The run's publication of a model; the first process that needs it publishes.

    Raises:
        StageError: the results could not be published.
    """
    name = f"publication-{role}"
    return Publication.from_json(run.shared.ensure(name, lambda: _publish(run, cluster, stage, role).to_json()))


@dataclass(frozen=True)
class RegistryPlace:
    """Where the Model Registry answers.

    Attributes:
        url: Its root; None where none is reachable from here.
        reasons: Why each way that was tried leads nowhere, or to which registry a better one does not.
    """

    url: str | None
    reasons: tuple[str, ...] = ()


def find_registry(run: Run, kube: DynamicClient, cluster: ClusterFacts) -> RegistryPlace:
    """The Model Registry of --stage-registry-url, of the stage or of the cluster."""
    if run.config.registry_url:
        return RegistryPlace(run.config.registry_url)
    address = addresses.find_registry_address(kube, cluster, run.config.namespace)
    run.journal.event("address", addresses.REGISTRY, **address.to_record())
    url = forwards.open_url(cluster, address.url, lambda: find_ca_file(run, cluster))
    return RegistryPlace(url or None, address.passed_over)


def connect_registry(run: Run, kube: DynamicClient, cluster: ClusterFacts) -> RegistryClient:
    """A connection to the Model Registry; the caller closes it.

    Raises:
        EnvironmentUnusable: there is none that is reachable from here.
    """
    place = find_registry(run, kube, cluster)
    if place.url is None:
        raise EnvironmentUnusable(
            f"no Model Registry is reachable from here: {'; '.join(place.reasons)}",
            hint="name it: --stage-registry-url",
        )
    return RegistryClient(
        place.url,
        run.journal,
        token=run.config.registry_token,
        ca_file=find_ca_file(run, cluster),
        # A proxy of the environment is for the internet: a cluster on this machine is not behind it.
        use_proxies=not cluster.on_this_machine,
    )


def connect_bucket(run: Run, kube: DynamicClient, cluster: ClusterFacts, stage: StageFacts) -> Bucket:
    """The bucket of results, with the stage's credentials.

    Raises:
        StageError: the stage has no object store that is reachable from here, or its Secret does not exist.
    """
    store = find_object_store(stage, kube, ca_file=find_ca_file(run, cluster), use_proxies=not cluster.on_this_machine)
    return Bucket(store, run.config.profile.registry.bucket)


def resolve_names(run: Run, role: str, service: Object) -> links.RegisteredNames:
    """Model and version under which a role's results are filed; see `links.resolve_names`."""
    said = run.config.profile.registry.models.get(role)
    return links.resolve_names(service, said.model if said else "", said.version if said else "")


def _publish(run: Run, cluster: ClusterFacts, stage: StageFacts, role: str) -> Publication:
    if not run.config.publishes:
        setting = run.config.settings["publish"]
        reason = f"this run publishes nothing: --stage-publish={setting.value} ({setting.source})"
        return Publication(role, skipped=reason)
    if stage.simulated:
        return Publication(
            role, skipped="the stage is simulated: its numbers are not a model's and are never published"
        )
    if run.config.profile.models[role].dummy_weights:
        return Publication(role, skipped=f"profile {run.config.profile.name} declares models.{role}.dummy_weights")
    with _place(run, cluster, stage, role) as (view, place):
        completed = tuple(publishing.complete_earlier(place, run.run_id, lambda one: _left_by(run, one, role, place)))
        measured = _steps(run, place.service)
        if not measured:
            return Publication(role, skipped="this run has no load results of this model", completed=completed)
        results = make(measured, _source(run, view, place, measured))
        document = _document(run.directory, role)
        publishing.write_document(results, document)
        own = publishing.publish(place, results, publishing.list_files(steps.folder_of(run), measured, document))
    run.journal.event("published", role, **{**asdict(own), "others": None})
    return Publication(role, own, completed=completed)


@contextmanager
def _place(
    run: Run, cluster: ClusterFacts, stage: StageFacts, role: str
) -> Iterator[tuple[StageReader, PublicationTarget]]:
    namespace, name = run.config.namespace, run.config.profile.models[role].inference_service
    with client.connection(cluster, namespace) as kube:
        service = objects.get(kube, "InferenceService", name, namespace)
        if service is None:
            raise StageFailure(f"inferenceservice/{name} does not exist in namespace {namespace}")
        names = resolve_names(run, role, service)
        registry = connect_registry(run, kube, cluster)
        try:
            bucket = connect_bucket(run, kube, cluster, stage)
            yield (
                StageReader(kube, cluster, namespace),
                PublicationTarget(registry, bucket, names, service, run.journal),
            )
        finally:
            registry.close()


def _steps(run: Run, service: Object) -> list[Step]:
    """The load steps that this run measured of a service, with the verdicts of the whole run."""
    run.shared.ensure("judged", lambda: json.dumps(steps.finish(run)))

    def outcome_of(step: StepArtifact) -> str:
        return steps.outcome_of(plans.saved(run.config, step.step), step.outcome)

    return read_steps(steps.folder_of(run), objects.name_of(service), outcome_of)


def _document(directory: Path, role: str) -> Path:
    return directory / "publication" / role / DOCUMENT


def _left_by(run: Run, earlier: str, role: str, place: PublicationTarget) -> Mapping[str, Path] | None:
    """The files that an earlier run had to upload, if its directory still exists next to this run's; otherwise None."""
    directory = run.directory.parent / earlier
    document = _document(directory, role)
    if not document.is_file():
        return None
    folder = directory / FOLDER
    measured = read_steps(folder, objects.name_of(place.service), lambda step: step.outcome.value)
    return publishing.list_files(folder, measured, document)


def _source(run: Run, view: StageReader, place: PublicationTarget, measured: list[Step]) -> ResultsSource:
    """The source of the numbers, after checking that the running revision is older than they are.

    Raises:
        StageFailure: the running revision was created after the measurement began.
    """
    running = revision.running(view, place.service)
    began = utc(min(step.artifact.started_at for step in measured))
    if running.created_at and running.created_at > began:
        raise StageFailure(
            f"inferenceservice/{objects.name_of(place.service)}: revision {running.name} was created at "
            f"{running.created_at}, after the measurement began ({began}): the results are of another revision"
        )
    names = place.names
    return ResultsSource(
        names.model,
        names.version,
        run.run_id,
        run.config.namespace,
        objects.name_of(place.service),
        running.name,
        build_uri(place.bucket.name, build_prefix(names.model, names.version, run.run_id)),
    )
