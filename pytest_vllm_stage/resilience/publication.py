"""MinIO and the Model Registry restart while results are published: nothing may be lost, or published twice.

What is published is a small document of its own under names of its own, since a model's results are published once. The
publication is the run's: the same code, bucket and registry. The servers are killed at its first write.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.skips import does_not_apply
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.publication import properties, publish_run, publishing
from pytest_vllm_stage.publication.bucket.names import build_prefix, build_uri
from pytest_vllm_stage.publication.check import compare_properties
from pytest_vllm_stage.publication.document import DOCUMENT, Results, ResultsSource, utc
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.publishing import PublicationTarget, Published
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.resilience import processes
from pytest_vllm_stage.resilience.disruptions import Disruption
from pytest_vllm_stage.resilience.site import Site, has_restarted, serves
from pytest_vllm_stage.resilience.withdrawal import revive_model, withdraw
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy.addresses import MINIO, REGISTRY
from pytest_vllm_stage.stage.objects import Object

#: The registered model of what is published here.
MODEL = "vllm-stage-disruption"
#: Enough files that the first write is not the last one.
_PARTS = 5
#: Attempts until the publication is complete; the first meets the restart.
_MOST_ATTEMPTS = 3


class JournalWithTrigger(Journal):
    """A journal that acts once, at the first write of a publication, before it happens."""

    def __init__(self, path: Path | None, act: Callable[[], None]) -> None:
        super().__init__(path)
        self._act: Callable[[], None] | None = act

    def event(self, kind: str, name: str, **data: Any) -> None:
        """Record an event; see the class."""
        super().event(kind, name, **data)
        if kind == "publish" and self._act is not None:
            act, self._act = self._act, None
            act()


class PublicationDisrupted(Disruption):
    """MinIO and the registry are killed at the first write of a publication, which is then repeated as a run would."""

    name = "publication"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._killed: dict[str, Object] = {}
        self._files: dict[str, Path] = {}

    def check_possible(self) -> None:
        """The stage must have servers of its own: a platform's are not restarted."""
        if not self._servers():
            namespace = self.site.reader.namespace
            does_not_apply(f"namespace {namespace} has neither a Service {MINIO} nor a Service {REGISTRY}")

    def carry_out(self) -> None:
        """Publish while the servers restart, repeat until it succeeds, and once more; then read everything back."""
        with self._connect(JournalWithTrigger(self.site.run.journal.path, self._restart_servers)) as place:
            results, files = self._write_files(place)
            attempts = self._publish(place, results, files)
            self._await_servers()
            again = publish(place, results, files)
            self.notes.append(f"published at attempt {attempts}; once more: {again.state}")
            self.problems += find_problems(place, results, files)

    def clean_up(self) -> None:
        """Archive what was registered, and delete the objects; what cannot be taken back is a problem of the stage."""
        files, self._files = self._files, {}
        if not files:
            return
        try:
            with self._connect(self.site.run.journal) as place:
                self.problems += withdraw(place, self.site.run.run_id, files)
        except StageError as error:
            self.problems.append(f"what was published under model {MODEL} is not removed: {error.headline}")

    @contextmanager
    def _connect(self, journal: Journal) -> Iterator[PublicationTarget]:
        """Where the document is published; the journal records the writes to the bucket."""
        run, reader = self.site.run, self.site.reader
        names = RegisteredNames(MODEL, run.run_id)
        registry = publish_run.connect_registry(run, reader.kube, reader.cluster)
        try:
            bucket = publish_run.connect_bucket(run, reader.kube, reader.cluster, self.site.stage)
            yield PublicationTarget(registry, bucket, names, _service(names), journal)
        finally:
            registry.close()

    def _publish(self, place: PublicationTarget, results: Results, files: Mapping[str, Path]) -> int:
        """Publish as often as needed; return the number of attempts."""
        for attempt in range(1, _MOST_ATTEMPTS):
            try:
                publish(place, results, files)
            except StageError as error:
                self.notes.append(f"attempt {attempt} failed: {error.headline}")
                self._await_servers()
            else:
                return attempt
        publish(place, results, files)
        return _MOST_ATTEMPTS

    def _write_files(self, place: PublicationTarget) -> tuple[Results, dict[str, Path]]:
        results = make_results(place, self.site.reader.namespace, self.site.service, self.site.run.run_id)
        folder = self.site.run.directory / "resilience" / "publication"
        folder.mkdir(parents=True, exist_ok=True)
        publishing.write_document(results, folder / DOCUMENT)
        files = {DOCUMENT: folder / DOCUMENT}
        for number in range(_PARTS):
            path = folder / f"part-{number}.txt"
            path.write_text(f"part {number} of run {self.site.run.run_id}\n", encoding="utf-8")
            files[path.name] = path
        self._files = files
        return results, files

    def _servers(self) -> dict[str, Object]:
        """Service to the pod behind it, for those of MinIO and the registry that the stage has."""
        found = {}
        for name in (MINIO, REGISTRY):
            service = self.site.reader.get("Service", name)
            selector = ((service or {}).get("spec") or {}).get("selector")
            pods = [pod for pod in self.site.reader.listed("Pod", selector) if serves(pod)] if selector else []
            if pods:
                found[name] = pods[0]
        return found

    def _restart_servers(self) -> None:
        """Kill the servers' processes where they are on this machine; elsewhere delete their pods."""
        for name, pod in self._servers().items():
            container = str(pod["spec"]["containers"][0]["name"])
            self._killed[name] = pod
            if self.site.reader.cluster.kind == "local":
                processes.signal_container(processes.container_id(pod, container), signal.SIGKILL)
            else:
                objects.delete(self.site.reader.kube, {"kind": "Pod", **pod}, self.site.reader.namespace, "Background")
            self.notes.append(f"{name} was killed at the publication's first write")

    def _await_servers(self) -> None:
        """Wait until each server that was killed has restarted and is Ready.

        Raises:
            WaitFailed: one does not within the profile's time for MinIO.
        """

        def look() -> Observation:
            now = self._servers()
            missing = [
                name for name, pod in self._killed.items() if name not in now or not has_restarted(now[name], pod)
            ]
            return Observation(not missing, f"not back: {', '.join(missing)}")

        wait_until(
            f"{' and '.join(self._killed)} restarted and Ready",
            look,
            timeout_s=self.site.run.config.profile.waits.minio_s,
            journal=self.site.run.journal,
            interval_s=0.25,
            hint=f"{self.site.reader.cluster.kubectl_for(self.site.reader.namespace)} get pods,events",
        )


def publish(place: PublicationTarget, results: Results, files: Mapping[str, Path]) -> Published:
    """Publish once; the model may be archived, by an earlier run or by one that ends meanwhile."""
    revive_model(place.registry, place.names.model)
    return publishing.publish(place, results, files)


def make_results(place: PublicationTarget, namespace: str, service: str, run_id: str) -> Results:
    """The document that is published: where it is from, and no number, since nothing was measured.

    Its revision is the run: two versions of a model with results of one revision are refused as duplicates.
    """
    uri = build_uri(place.bucket.name, build_prefix(place.names.model, place.names.version, run_id))
    source = ResultsSource(place.names.model, place.names.version, run_id, namespace, service, run_id, uri)
    timestamp = utc(time.time())
    values = {
        properties.RUN: run_id,
        properties.TIMESTAMP: timestamp,
        properties.NAMESPACE: namespace,
        properties.SERVICE: service,
        properties.REVISION: run_id,
        properties.URI: uri,
    }
    return Results(source, timestamp, values)


def _service(names: RegisteredNames) -> Object:
    """Stands for the InferenceService that a publication links its model to: this document belongs to none."""
    return {"kind": "InferenceService", "metadata": {"name": names.model}, "spec": {"predictor": {}}}


def find_problems(place: PublicationTarget, results: Results, files: Mapping[str, Path]) -> list[str]:
    """What is lost, or there twice, once a publication has succeeded; one line each."""
    prefix = build_prefix(results.source.model, results.source.version, results.source.run)
    keys = place.bucket.list_keys(prefix)
    lines = [f"{place.bucket.name}/{prefix}{name} is missing" for name in files if prefix + name not in keys]
    model = entities.find_model(place.registry, place.names.model)
    if model is None:
        return [*lines, f"model {place.names.model} is not registered, and the publication succeeded"]
    versions = [one for one in entities.list_versions(place.registry, model) if one["name"] == place.names.version]
    if len(versions) != 1:
        return [*lines, f"{place.where} is registered {len(versions)} times"]
    return lines + compare_properties(results, versions[0].get("customProperties") or {})
