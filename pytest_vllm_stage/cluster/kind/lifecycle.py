"""Create, keep, remove and sweep clusters of kind."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.kind import kserve
from pytest_vllm_stage.cluster.kind.options import CONFIG_VARIABLE, KindOptions, read_options
from pytest_vllm_stage.cluster.kind.record import KindRecord, load_record, load_records, new_name
from pytest_vllm_stage.cluster.kind.runtime import LOADED, ContainerRuntime, find_runtime, last_line
from pytest_vllm_stage.cluster.local import bootstrap, components, images, kserve_files, pki, removal
from pytest_vllm_stage.cluster.local.process import ProcessRef
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

_CONFIG = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [{"role": "control-plane"}]}
_READY_S = 180
_KUBECTL_S = 240.0
_DELETE_S = 120.0
#: Words of kind's errors, and what to do.
_ADVICE = {
    "Delegate=yes": "systemctl edit user@.service: [Service] Delegate=yes, then log in again; or run as root",
    "rootless provider requires cgroup v2": "run as root, or start this machine with cgroup v2",
    "unable to apply caps": "this machine lacks a capability that --privileged asks for: see docs/kind.md",
}
#: On a busy machine Docker gives up on a container that it has killed: "did not receive an exit event".
_DELETE_TRIES = 2


def start(
    *, run_id: str, lifeline_pid: int, journal: Journal, find_images: Callable[[str], Iterable[str]] = lambda _: ()
) -> ClusterFacts:
    """Create a cluster with kind, install KServe in it, and pull the stage's images.

    Args:
        run_id: The run that it is for.
        lifeline_pid: The cluster is a leftover once this process has ended, unless it is kept.
        journal: Records the phases.
        find_images: The images to pull, for the path of kubectl.

    Returns:
        What the layers above need.

    Raises:
        ConfigError: a variable names a file or folder that does not exist.
        EnvironmentUnusable: no container runtime answers, an image cannot be pulled, or the cluster does not get
            ready; the cluster is removed.
    """
    options = read_options()
    runtime = find_runtime(journal)
    built = components.ensure(journal, ["kserve"])
    kubectl = shutil.which("kubectl") or str(components.ensure(journal, ["kubernetes"])["kubectl"])
    record = _intend(run_id, lifeline_pid, runtime)
    try:
        with journal.phase(f"cluster: kind create cluster --name {record.name}"):
            _create(record, runtime, options.config)
        with journal.phase("cluster: install KServe"):
            _install_kserve(record, runtime, built["kserve-manager"], kubectl, journal)
        _provide_images(record, runtime, options, find_images(kubectl), journal)
        version = json.loads(_kubectl(record, kubectl, "version", "--output=json"))["serverVersion"]["gitVersion"]
    except BaseException as error:
        if isinstance(error, EnvironmentUnusable) and not error.hint:
            error.hint = f"read {_keep_logs(record, runtime, error.message)}/"
        stop(record.path, journal)
        raise
    return ClusterFacts(
        kind="kind",
        kubeconfig=str(record.kubeconfig),
        context=f"kind-{record.name}",
        kubernetes_version=version,
        kubectl=kubectl,
        reaches_services=False,
        owned=True,
        state_dir=str(record.path),
        versions={"kserve": components.versions()["kserve"]},
    )


def _intend(run_id: str, lifeline_pid: int, runtime: ContainerRuntime) -> KindRecord:
    """Record what is going to be created, before it is."""
    lifeline = ProcessRef.of(lifeline_pid)
    if lifeline is None:
        raise EnvironmentUnusable(f"process {lifeline_pid}, with which the cluster is to end, has ended already")
    record = KindRecord(new_name(), run_id, runtime.provider, lifeline)
    record.save()
    return record


def _create(record: KindRecord, runtime: ContainerRuntime, config: Path | None) -> None:
    if config is None:
        config = record.path / "kind.json"
        config.write_text(json.dumps(_CONFIG), encoding="utf-8")
    place = ("--name", record.name, "--kubeconfig", str(record.kubeconfig))
    done = runtime.run_kind("create", "cluster", *place, "--config", str(config), "--wait", f"{_READY_S}s", "--retain")
    if done.returncode == 0:
        return
    raise EnvironmentUnusable(
        f"kind cannot create a cluster with {runtime.provider}: {last_line(done)}",
        hint=_advise(runtime, done.stderr) or f"read {_keep_logs(record, runtime, done.stderr)}/",
    )


def _advise(runtime: ContainerRuntime, output: str) -> str:
    """What helps against an error for which no log of a node is needed."""
    image = re.search(r"failed to pull image \"?([^\s\":]+:[^\s\"]+)", output)
    if image:
        return f"{runtime.provider} pull {image[1]}, or name one in {CONFIG_VARIABLE}"
    return next((advice for words, advice in _ADVICE.items() if words in output), "")


def _keep_logs(record: KindRecord, runtime: ContainerRuntime, output: str) -> Path:
    """Keep kind's output and the logs of nodes that are about to be removed; return their folder."""
    folder = removal.logs_dir() / record.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kind.log").write_text(output, encoding="utf-8")
    runtime.run_kind("export", "logs", str(folder), "--name", record.name, timeout_s=_DELETE_S)
    removal.remove_old_logs()
    return folder


def _provide_images(
    record: KindRecord, runtime: ContainerRuntime, options: KindOptions, images: Iterable[str], journal: Journal
) -> None:
    """Load the user's archives into the nodes, and pull what the nodes still lack."""
    for archive in options.archives:
        with journal.phase(f"cluster: load {archive.name}"):
            _load(record, runtime, archive)
    wanted = sorted({image for image in images if not image.startswith(LOADED)})
    for node in runtime.find_nodes(record.name) if wanted else ():
        for image in sorted(set(wanted) - runtime.find_images(node)):
            with journal.phase(f"cluster: pull {image}"):
                runtime.pull(node, image)


def _load(record: KindRecord, runtime: ContainerRuntime, archive: Path) -> None:
    done = runtime.run_kind("load", "image-archive", str(archive), "--name", record.name)
    if done.returncode:
        raise EnvironmentUnusable(
            f"kind cannot load {archive}: {last_line(done)}",
            hint=f"tar --list --file {archive}: an archive has index.json or manifest.json",
        )


def _install_kserve(
    record: KindRecord, runtime: ContainerRuntime, program: Path, kubectl: str, journal: Journal
) -> None:
    files = program.parent
    (archive,) = images.ensure([kserve.manager_image(program)])
    _load(record, runtime, archive)
    with tempfile.TemporaryDirectory(prefix="vllm-stage-") as folder:
        made = pki.create_server_certificate(Path(folder) / "pki", kserve.WEBHOOK_HOSTS)
        authority, certificate, key = (
            Path(path).read_bytes() for path in (made.certificate("ca"), made.certificate("server"), made.key("server"))
        )
    _apply(record, kubectl, kserve_files.crds(files))
    # A manager that starts before its types are served exits, and is restarted later and later.
    wait_until(
        "customresourcedefinitions of KServe condition=Established",
        lambda: _observe_types(record, kubectl),
        timeout_s=60,
        journal=journal,
        error=EnvironmentUnusable,
    )
    _apply(record, kubectl, kserve.build_manager_manifests(files, certificate, key))
    where = f"--namespace={kserve.NAMESPACE}"
    try:
        _kubectl(record, kubectl, where, "rollout", "status", f"deployment/{kserve.MANAGER}", "--timeout=180s")
    except EnvironmentUnusable as error:
        unready = ", ".join(_find_unready_pods(record, kubectl)) or "none"
        raise EnvironmentUnusable(f"{error.message}; pods that are not ready: {unready}") from None
    _apply(record, kubectl, kserve.build_webhooks(files, authority))


def _observe_types(record: KindRecord, kubectl: str) -> Observation:
    """Count the types that are served; `kubectl wait` fails at new ones: '.status.conditions accessor error: <nil>'."""
    crds = json.loads(_kubectl(record, kubectl, "get", "crd", "--output=json"))["items"]
    waiting = [crd["metadata"]["name"] for crd in crds if not bootstrap.is_established(crd)]
    return Observation(not waiting, f"{len(crds) - len(waiting)} of {len(crds)} established")


def _apply(record: KindRecord, kubectl: str, manifests: list[dict[str, Any]]) -> None:
    listing = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    _kubectl(record, kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-", text=listing)


def _kubectl(record: KindRecord, kubectl: str, *arguments: str, text: str = "") -> str:
    command = [kubectl, "--kubeconfig", str(record.kubeconfig), *arguments]
    words = [word for word in arguments if not word.startswith("-")]
    what = f"kind cluster {record.name}: kubectl {' '.join(words)}"
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=_KUBECTL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentUnusable(f"{what}: {error}") from None
    if done.returncode:
        raise EnvironmentUnusable(f"{what}: {last_line(done)}")
    return done.stdout


def _find_unready_pods(record: KindRecord, kubectl: str) -> list[str]:
    """Namespace, name, ready containers and status of each pod that is not ready."""
    listing = _kubectl(record, kubectl, "get", "pods", "--all-namespaces", "--no-headers")
    pods = [line.split() for line in listing.splitlines()]
    return [f"{pod[0]}/{pod[1]} {pod[2]} {pod[3]}" for pod in pods if len(set(pod[2].split("/"))) > 1]


def keep(facts: ClusterFacts) -> None:
    """Let a cluster outlive the process that it was created for.

    Raises:
        EnvironmentUnusable: it is gone.
    """
    record = load_record(Path(facts.state_dir or ""))
    if record is None:
        raise EnvironmentUnusable(f"cannot keep the kind cluster of {facts.state_dir}: it has been removed")
    dataclasses.replace(record, kept=True).save()


def stop(state_dir: Path | str, journal: Journal) -> list[str]:
    """Delete a cluster; return a line for it if that failed, and keep its record for the next run then."""
    record = load_record(Path(state_dir))
    if record is None:
        return []
    with journal.phase(f"cluster: kind delete cluster --name {record.name}"):
        return _delete(record, journal)


def _delete(record: KindRecord, journal: Journal) -> list[str]:
    try:
        runtime = find_runtime(journal, {"KIND_EXPERIMENTAL_PROVIDER": record.provider})
    except EnvironmentUnusable as error:
        return [f"kind cluster {record.name} of run {record.run_id}: {error.message}"]
    for _ in range(_DELETE_TRIES):
        done = runtime.run_kind("delete", "cluster", "--name", record.name, timeout_s=_DELETE_S)
        if not done.returncode:
            break
    else:
        return [f"kind cluster {record.name} of run {record.run_id}: {last_line(done)}"]
    record.forget()
    return []


def sweep(journal: Journal) -> list[str]:
    """Delete the clusters whose run has ended without removing them; return one line per deleted cluster.

    Raises:
        EnvironmentUnusable: one cannot be deleted.
    """
    removed = []
    for record in [found for found in load_records() if not found.in_use]:
        left = _delete(record, journal)
        if left:
            raise EnvironmentUnusable(
                f"a cluster of a killed run cannot be removed: {left[0]}",
                hint=f"kind delete cluster --name {record.name}",
            )
        removed.append(f"kind cluster {record.name} of run {record.run_id}")
    return removed


def running() -> list[KindRecord]:
    """The clusters of this cache whose run works with them, and those that were kept."""
    return [record for record in load_records() if record.in_use]
