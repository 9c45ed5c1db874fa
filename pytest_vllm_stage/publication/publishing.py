"""Publishes a model's results: first to the bucket, then to the registry, then it writes the mark of completion.

If it is interrupted, the bucket shows how far it got: files without a manifest are a partial upload; a manifest without
the mark is a publication that the next run completes, from any machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_vllm_stage.benchmark.artifacts import CSV_NAME
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError, StageFailure
from pytest_vllm_stage.core.files import write_atomically
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.measurement.samples_file import SUFFIX
from pytest_vllm_stage.publication import check, links
from pytest_vllm_stage.publication import document as documents
from pytest_vllm_stage.publication.bucket import stored, upload
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.publication.bucket.names import PUBLISHED, build_uri
from pytest_vllm_stage.publication.document import DOCUMENT, Results
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.publication.registry.client import Entity, RegistryClient
from pytest_vllm_stage.publication.registry.write import SUPERSEDED, WriteOutcome, write
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

BROKEN = "broken"
#: A step's report in GuideLLM's own form, where there is one.
GUIDELLM_SUFFIX = ".guidellm.json"


@dataclass(frozen=True)
class PublicationTarget:
    """Where a model's results go.

    Attributes:
        registry: The Model Registry.
        bucket: The bucket of results.
        names: Model and version.
        service: The InferenceService that was measured.
        journal: Records every write before it happens.
    """

    registry: RegistryClient
    bucket: Bucket
    names: RegisteredNames
    service: Object
    journal: Journal

    @property
    def where(self) -> str:
        """Version and model, for messages."""
        return f"version {self.names.version} of model {self.names.model}"


@dataclass(frozen=True)
class Published:
    """The result of a publication.

    Attributes:
        run: The run whose results they are.
        uri: Where its samples are stored.
        state: `WRITTEN`, `UNCHANGED`, `SUPERSEDED`, or `BROKEN` for an earlier run's that cannot be completed.
        note: The run that supersedes it, or what is broken; empty otherwise.
        model_id: The registered model.
        version_id: Its version.
        others: Properties of the model's other versions before it, by version name.
    """

    run: str
    uri: str
    state: str
    note: str = ""
    model_id: str = ""
    version_id: str = ""
    others: Mapping[str, Any] | None = None


def publish(place: PublicationTarget, results: Results, files: Mapping[str, Path]) -> Published:
    """Publish a run's results; repeating it changes nothing.

    Args:
        place: Where to publish.
        results: The results; their document is one of the files.
        files: Name to local file.

    Raises:
        StageFailure: publishing failed; the next run completes what was uploaded.
    """
    source = results.source
    uri = upload.upload_run(place.bucket, source.model, source.version, source.run, files, place.journal)
    if uri != source.uri:
        raise StageFailure(f"results of run {source.run} name {source.uri} as their place, and were uploaded to {uri}")
    return publish_to_registry(place, results)


def publish_to_registry(place: PublicationTarget, results: Results) -> Published:
    """Register what is missing, write the properties, and mark the run as published.

    Raises:
        StageError: publishing failed; the message names what was done and where the results are.
    """
    uri = results.source.uri
    with place.journal.phase(f"publish: registry {place.where}", run=results.source.run, uri=uri) as facts:
        try:
            published = place.registry.patiently(f"publish {place.where}", lambda: _register_and_write(place, results))
        except StageError as error:
            head, *rest = error.message.splitlines()
            lines = [
                f"run {results.source.run} is not published: {head}",
                *rest,
                f"  its results are complete in {uri}",
            ]
            kind = EnvironmentUnusable if isinstance(error, EnvironmentUnusable) else StageFailure
            raise kind("\n".join(lines), hint=error.hint or "run again: it continues from there") from None
        facts["state"] = published.state
        _mark(place, published)
    return published


def _register_and_write(place: PublicationTarget, results: Results) -> Published:
    model, version = register(place, results)
    others = {
        entity["name"]: entity.get("customProperties") or {}
        for entity in entities.list_versions(place.registry, model)
        if entity["id"] != version["id"]
    }
    written: WriteOutcome = write(place.registry, version, results)
    return Published(
        results.source.run, results.source.uri, written.state, written.by, model["id"], version["id"], others
    )


def register(place: PublicationTarget, results: Results) -> tuple[Entity, Entity]:
    """The model and the version with its artifact, created where they are missing.

    Raises:
        StageFailure: labels, names or weights do not agree with what is registered.
    """
    registry, service = place.registry, place.service
    name = objects.name_of(service)
    model = entities.ensure_model(registry, place.names.model, f"Served by InferenceService {name}")
    lines = links.find_duplicate_results(
        entities.list_versions(registry, model), place.names.version, results.source.service, results.source.revision
    )
    _refuse(place, lines)
    version = entities.ensure_version(registry, model, place.names.version)
    _refuse(place, links.find_disagreements(service, model, version) + find_archived(model, version))
    uri = weights_uri(service)
    if uri:
        entities.ensure_artifact(registry, version, name, uri)
    return model, version


def find_archived(model: Entity, version: Entity) -> list[str]:
    """A model or version that is archived, one line each."""
    kinds = {"model": model, "version": version}
    return [
        f"{kind} {entity['name']} is {entity['state']} in the registry"
        for kind, entity in kinds.items()
        if entity.get("state", "LIVE") != "LIVE"
    ]


def weights_uri(service: Object) -> str:
    """The URI from which a service loads its model; empty where its weights are in the image."""
    return str(service["spec"]["predictor"].get("model", {}).get("storageUri") or "")


def _refuse(place: PublicationTarget, lines: list[str]) -> None:
    if lines:
        raise StageFailure(f"{place.where}: " + "\n  ".join(lines))


def _mark(place: PublicationTarget, published: Published) -> None:
    """Write the mark of completion to the bucket, unless it exists already."""
    key = published.uri.removeprefix(build_uri(place.bucket.name, "")) + PUBLISHED
    if place.bucket.get(key) is None:
        data = {"run": published.run, "state": published.state, "by": published.note, "version": published.version_id}
        place.journal.event("publish", "put", key=key)
        place.bucket.put(key, (json.dumps(data) + "\n").encode(), "application/json")


def complete_earlier(
    place: PublicationTarget, own_run: str, left_by: Callable[[str], Mapping[str, Path] | None] = lambda run: None
) -> list[Published]:
    """Complete the unfinished publications of earlier runs; the registry shows only the latest of them.

    Args:
        place: Where to publish.
        own_run: The present run, which is not completed here.
        left_by: The files that an earlier run had to upload, name to local file; None where they are unknown here.

    Returns:
        One entry for each unfinished run, including broken ones, which are left unchanged.
    """
    done: list[Published] = []
    pending = []
    for found in stored.find_unfinished(place.bucket, place.names.model, place.names.version):
        if found.run == own_run:
            continue
        uri = build_uri(place.bucket.name, found.prefix)
        try:
            files = None if found.complete else left_by(found.run)
            if files is not None:
                upload.upload_run(place.bucket, place.names.model, place.names.version, found.run, files, place.journal)
            pending.append(_whole(place, uri))
        except StageError as error:
            place.journal.event("publish", "broken", uri=uri, reason=error.message)
            done.append(Published(found.run, uri, BROKEN, error.message))
    latest = ""
    for results in sorted(pending, key=lambda results: results.age_key, reverse=True):
        if latest:
            published = Published(results.source.run, results.source.uri, SUPERSEDED, latest)
            _mark(place, published)
        else:
            published = _completed(place, results)
            latest = "" if published.state == BROKEN else published.run
        done.append(published)
    return done


def _completed(place: PublicationTarget, results: Results) -> Published:
    """Complete an earlier run's publication; a failure does not stop this run's own one."""
    try:
        return publish_to_registry(place, results)
    except StageFailure as error:
        place.journal.event("publish", "broken", uri=results.source.uri, reason=error.message)
        return Published(results.source.run, results.source.uri, BROKEN, error.message)


def _whole(place: PublicationTarget, uri: str) -> Results:
    """The results under a URI, if they are complete, agree with their samples and belong to this service.

    Raises:
        StageFailure: they do not; the message names the differences.
    """
    found = stored.read_run(place.bucket, uri).require()
    results = read_document(found)
    source = results.source
    lines = check.compare_document(results, found)
    lines += check.compare_source(
        results, place.names.model, place.names.version, source.namespace, objects.name_of(place.service)
    )
    if lines:
        raise StageFailure(f"{uri}: " + "; ".join(lines))
    return results


def read_document(found: stored.StoredRun) -> Results:
    """The results' document among a run's stored files.

    Raises:
        StageFailure: it is missing or invalid.
    """
    content = found.contents.get(DOCUMENT)
    if content is None:
        raise StageFailure(f"{found.uri} has no {DOCUMENT}")
    return documents.parse(content, f"{found.uri}{DOCUMENT}")


def write_document(results: Results, path: Path) -> None:
    """Write the document atomically before the upload, which it describes."""
    write_atomically(path, results.to_bytes())


def list_files(folder: Path, steps: Sequence[documents.Step], document: Path) -> dict[str, Path]:
    """The files to upload: the document, the files of each step, and the table of the run."""
    found = {DOCUMENT: document}
    for step in steps:
        for ending in (SUFFIX, ".json"):
            name = step.artifact.step.id + ending
            found[name] = folder / name
    also = [CSV_NAME, *(step.artifact.step.id + GUIDELLM_SUFFIX for step in steps)]
    return found | {name: folder / name for name in also if (folder / name).is_file()}
