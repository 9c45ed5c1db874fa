"""Publishes a model's results: bucket first, then the registry, then the mark that says so.

Whatever ends it in between, the bucket shows how far it came: files without a manifest are a partial upload; a manifest
without the mark is a publication that the next run completes, from any machine.
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
from pytest_vllm_stage.publication.links import RegistryNames
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
        journal: Learns of every write before it happens.
    """

    registry: RegistryClient
    bucket: Bucket
    names: RegistryNames
    service: Object
    journal: Journal

    @property
    def where(self) -> str:
        """For people."""
        return f"version {self.names.version} of model {self.names.model}"


@dataclass(frozen=True)
class Published:
    """What a publication did.

    Attributes:
        run: The run whose results they are.
        uri: Where its samples lie.
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
    """Publish a run's results; doing it again changes nothing.

    Args:
        place: Where.
        results: What; its document is among the files.
        files: Name to local file.

    Raises:
        StageFailure: it could not be done; what was uploaded waits for the next run.
    """
    source = results.source
    uri = upload.upload_run(place.bucket, source.model, source.version, source.run, files, place.journal)
    if uri != source.uri:
        raise StageFailure(f"results of run {source.run} name {source.uri} as their place, and were uploaded to {uri}")
    return publish_to_registry(place, results)


def publish_to_registry(place: PublicationTarget, results: Results) -> Published:
    """Register what is missing, write the properties, and mark the run as published.

    Raises:
        StageError: it could not be done; it names what was and says where the results wait.
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
            raise kind("\n".join(lines), hint=error.hint or "run again: it goes on from there") from None
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
    """The model and the version with its artifact, made where they are missing.

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
    """A model or version that is out of use, a line each."""
    kinds = {"model": model, "version": version}
    return [
        f"{kind} {entity['name']} is {entity['state']} in the registry"
        for kind, entity in kinds.items()
        if entity.get("state", "LIVE") != "LIVE"
    ]


def weights_uri(service: Object) -> str:
    """Where a service loads its model from."""
    return str(service["spec"]["predictor"].get("model", {}).get("storageUri") or "")


def _refuse(place: PublicationTarget, lines: list[str]) -> None:
    if lines:
        raise StageFailure(f"{place.where}: " + "\n  ".join(lines))


def _mark(place: PublicationTarget, published: Published) -> None:
    """Say in the bucket that the registry has it; kept as it is where it is there already."""
    key = published.uri.removeprefix(build_uri(place.bucket.name, "")) + PUBLISHED
    if place.bucket.get(key) is None:
        data = {"run": published.run, "state": published.state, "by": published.note, "version": published.version_id}
        place.journal.event("publish", "put", key=key)
        place.bucket.put(key, (json.dumps(data) + "\n").encode(), "application/json")


def complete_earlier(
    place: PublicationTarget, own_run: str, left_by: Callable[[str], Mapping[str, Path] | None] = lambda run: None
) -> list[Published]:
    """Finish what earlier runs did not come to publish; only the latest of them is seen in the registry.

    Args:
        place: Where.
        own_run: The present run, which is not completed here.
        left_by: What an earlier run meant to upload, name to local file; None where that is not known here.

    Returns:
        One entry for each run that was not finished, broken ones included: those are left as they are.
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
    """An earlier run's publication, now; what keeps it from being one does not keep this run from its own."""
    try:
        return publish_to_registry(place, results)
    except StageFailure as error:
        place.journal.event("publish", "broken", uri=results.source.uri, reason=error.message)
        return Published(results.source.run, results.source.uri, BROKEN, error.message)


def _whole(place: PublicationTarget, uri: str) -> Results:
    """The results under a URI, if they are whole, what their samples say, and this service's.

    Raises:
        StageFailure: naming what is wrong.
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
    """The results' document of what was read.

    Raises:
        StageFailure: it is not there, or is wrong.
    """
    content = found.contents.get(DOCUMENT)
    if content is None:
        raise StageFailure(f"{found.uri} has no {DOCUMENT}")
    return documents.parse(content, f"{found.uri}{DOCUMENT}")


def write_document(results: Results, path: Path) -> None:
    """Write the document, whole or not at all, before anything is uploaded: it says what is to be."""
    write_atomically(path, results.to_bytes())


def list_files(folder: Path, steps: Sequence[documents.Step], document: Path) -> dict[str, Path]:
    """What is uploaded: the document, the files of each step, and the table of the run."""
    found = {DOCUMENT: document}
    for step in steps:
        for ending in (SUFFIX, ".json"):
            name = step.artifact.step.id + ending
            found[name] = folder / name
    also = [CSV_NAME, *(step.artifact.step.id + GUIDELLM_SUFFIX for step in steps)]
    return found | {name: folder / name for name in also if (folder / name).is_file()}
