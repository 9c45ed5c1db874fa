"""Start, keep, stop and sweep local clusters."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.local import bootstrap, components, files, images, locking, packages, pki, removal
from pytest_vllm_stage.cluster.local import network as networks
from pytest_vllm_stage.cluster.local import record as records
from pytest_vllm_stage.cluster.local.api import BootstrapApi
from pytest_vllm_stage.cluster.local.layout import SHADOWED, Layout
from pytest_vllm_stage.cluster.local.locking import Slot
from pytest_vllm_stage.cluster.local.process import ProcessRef
from pytest_vllm_stage.cluster.local.programs import Mount, Plan, all_programs
from pytest_vllm_stage.cluster.local.readiness import Watch
from pytest_vllm_stage.cluster.local.record import Record
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.files import PRIVATE, write_atomically
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import PACKAGE
from pytest_vllm_stage.core.waiting import Observation, wait_until

_STOP_S = 60.0


def start(
    *, run_id: str, lifeline_pid: int, mounts: dict[str, Path], journal: Journal, wait_s: float = 0.0
) -> ClusterFacts:
    """Create a one-node Kubernetes with KServe on this machine and wait until it is ready.

    Args:
        run_id: The run that it is for.
        lifeline_pid: The cluster ends when this process does, unless it is kept.
        mounts: Name to folder of this machine; pods' hostPath volumes see it read-only at ``/mnt/vllm-stage/NAME``.
            This package is mounted as ``package``, for its stand-ins.
        journal: Records the phases and waits.
        wait_s: Seconds to wait while another cluster is in use on this machine.

    Returns:
        What the layers above need.

    Raises:
        EnvironmentUnusable: the machine cannot run a cluster, another one is in use, or a program does not get ready;
            only the logs of the attempt are left.
    """
    if os.geteuid() != 0:
        raise EnvironmentUnusable(
            "a local cluster needs root (namespaces, cgroups, containerd)",
            hint="run as root, or name a cluster: --stage-cluster=kubeconfig --stage-context=NAME",
        )
    packages.ensure(journal)
    paths = components.ensure(journal)
    archives = images.ensure(images.stage_images(paths))
    with ExitStack() as stack:
        slot = stack.enter_context(closing(locking.acquire(journal, wait_s=wait_s)))
        _sweep(journal, slot)
        record = _intend(run_id, lifeline_pid, slot)
        until_spawned = stack.pop_all()
    with _removed_on_error(record, journal), journal.phase("cluster: start"):
        with until_spawned:
            _prepare(record, paths, archives, mounts)
            _spawn(record, slot)
        version = _wait_ready(Layout.of(record), paths["kserve-manager"].parent, journal)
    return _facts(record, paths, version)


@contextmanager
def _removed_on_error(record: Record, journal: Journal) -> Iterator[None]:
    """Remove the cluster when the block fails or is interrupted; an error names the logs where they are then."""
    layout = Layout.of(record)
    try:
        yield
    except EnvironmentUnusable as error:
        stop(layout.state_dir, journal)
        moved = str(removal.logs_dir() / layout.state_dir.name)
        raise EnvironmentUnusable(error.message.replace(str(layout.logs), moved), hint=error.hint) from error
    except BaseException:
        stop(layout.state_dir, journal)
        raise


def _intend(run_id: str, lifeline_pid: int, slot: Slot) -> Record:
    """Record what is going to be created, before anything is."""
    with locking.mutex():
        record = _plan_record(run_id, lifeline_pid)
        slot.note(record.path)
        record.path.mkdir(parents=True, mode=0o700)
        record.save()
    return record


def _plan_record(run_id: str, lifeline_pid: int) -> Record:
    lifeline = ProcessRef.of(lifeline_pid)
    if lifeline is None:
        raise EnvironmentUnusable(f"process {lifeline_pid}, with which the cluster is to end, has ended already")
    cluster_id = records.new_id()
    state_dir = records.clusters_dir() / cluster_id
    others = locking.living()
    blocks = [IPv4Network(other.block) for other in others]
    shared = {folder for other in others for folder in other.made_dirs}
    return Record(
        id=cluster_id,
        run_id=run_id,
        command=records.command_line(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        state_dir=str(state_dir),
        block=str(networks.choose(networks.taken() + blocks)),
        starter=locking.this_process(),
        lifeline=lifeline,
        made_dirs=tuple(str(folder) for folder in SHADOWED.values() if _is_ours(folder, shared)),
    )


def _is_ours(folder: Path, shared: set[str]) -> bool:
    """Whether the mount point belongs to clusters: it does not exist, or another cluster created it."""
    return not folder.exists() or str(folder) in shared


def _prepare(record: Record, paths: dict[str, Path], archives: list[Path], mounts: dict[str, Path]) -> None:
    """Write everything that the cluster's processes read."""
    layout = Layout.of(record)
    cni_dir = packages.cni_dir()
    assert cni_dir is not None  # noqa: S101 packages.ensure saw it
    pki.create(layout.state_dir / "pki", layout.addresses)
    files.write_all(layout, cni_dir)
    layout.logs.mkdir()
    certificates = layout.state_dir / "kserve" / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    shutil.copy(layout.pki.certificate("kserve"), certificates / "tls.crt")
    shutil.copy(layout.pki.key("kserve"), certificates / "tls.key")
    for number in range(1, bootstrap.VOLUMES + 1):
        volume = layout.volumes / bootstrap.volume_name(number)
        volume.mkdir(parents=True)
        # Any user of any pod may write, as with a provisioned volume.
        volume.chmod(0o777)
    plan = Plan(
        mounts=_mounts(layout, mounts),
        programs=all_programs(layout, paths, archives),
        node=f"{layout.addresses.node}/30",
        services=str(layout.addresses.services),
        ca_file=layout.pki.certificate("ca"),
        logs=str(layout.logs),
        state=str(layout.programs),
    )
    write_atomically(layout.plan, plan.to_json(), mode=PRIVATE)


def _mounts(layout: Layout, mounts: dict[str, Path]) -> tuple[Mount, ...]:
    """Shadows first, since the named folders appear in one of them."""
    shadows = layout.state_dir / "shadows"
    planned = []
    for name, target in SHADOWED.items():
        (shadows / name).mkdir(parents=True)
        planned.append(Mount(str(shadows / name), str(target), read_only=False))
    seen = {"volumes": layout.volumes, "package": PACKAGE, **mounts}
    for name, source in seen.items():
        (shadows / "mnt" / name).mkdir()
        planned.append(Mount(str(source), str(SHADOWED["mnt"] / name), read_only=name != "volumes"))
    return tuple(planned)


def _spawn(record: Record, slot: Slot) -> None:
    """Start the supervisor, which inherits the slot; it is no longer a child of this process when this returns."""
    log = os.open(record.path / "logs" / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    environment = {
        **{key: os.environ[key] for key in ("VLLM_STAGE_CACHE_DIR", "XDG_CACHE_HOME", "HOME") if key in os.environ},
        "PATH": packages.SYSTEM_PATH,
        "PYTHONPATH": str(PACKAGE.parent),
    }
    command = [sys.executable, "-m", "pytest_vllm_stage.cluster.local.supervisor", record.state_dir]
    try:
        subprocess.run(
            [*command, str(slot.descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[slot.descriptor],
            env=environment,
            cwd="/",
            check=True,
        )
    finally:
        os.close(log)


def _facts(record: Record, paths: dict[str, Path], version: str) -> ClusterFacts:
    return ClusterFacts(
        kind="local",
        kubeconfig=str(Layout.of(record).kubeconfig),
        context=files.CONTEXT,
        kubernetes_version=version,
        kubectl=str(paths["kubectl"]),
        reaches_services=True,
        owned=True,
        state_dir=record.state_dir,
        versions=components.versions(),
    )


def _wait_ready(layout: Layout, kserve: Path, journal: Journal) -> str:
    """Wait for the programs in the order in which one needs another; set up the new cluster meanwhile."""
    watch = Watch(layout, journal)
    # It reads the definitions of KServe's types, which takes long on a busy machine.
    watch.programs("kube-apiserver", timeout_s=120)
    api = BootstrapApi(layout)
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        storage = partial(bootstrap.apply_storage, api)
        types = partial(bootstrap.apply_kserve, api, layout, kserve, journal)
        tasks = [pool.submit(watch.bootstrap, task) for task in (storage, types)]
        watch.node(api, timeout_s=60)
        for task in tasks:
            task.result()
    finally:
        # Not waited for: when the start fails, the end of the cluster makes their calls fail.
        pool.shutdown(wait=False, cancel_futures=True)
    watch.programs(timeout_s=60)
    watch.record_times()
    return str(api.get("/version")["gitVersion"])


def keep(facts: ClusterFacts) -> None:
    """Let a cluster outlive the process that it was created for.

    Raises:
        EnvironmentUnusable: it has ended or is ending.
    """
    record = _of(facts.state_dir)
    if record is None or record.supervisor is None:
        raise EnvironmentUnusable(f"cannot keep the local cluster {facts.state_dir}: it has ended")
    (record.path / records.KEEP_FILE).touch()
    record.supervisor.signal(signal.SIGUSR1)
    _wait_record(record, "kept", lambda now: now.kept)


def _of(state_dir: str | None) -> Record | None:
    return records.load(Path(state_dir)) if state_dir else None


def _wait_record(record: Record, what: str, done: Callable[[Record], bool]) -> None:
    def look() -> Observation:
        now = records.load(record.path)
        if now is None or now.phase == "ending":
            return Observation(False, "ending", "the cluster ends")
        return Observation(done(now), now.phase)

    wait_until(
        f"local cluster {record.id} {what}",
        look,
        timeout_s=10,
        journal=Journal(),
        interval_s=0.05,
        error=EnvironmentUnusable,
    )


def stop(state_dir: Path | str, journal: Journal) -> list[str]:
    """End a cluster and remove everything of it.

    Args:
        state_dir: The cluster's folder.
        journal: Records the phase.

    Returns:
        One line per object that could not be removed; normally none.
    """
    record = records.load(Path(state_dir))
    with journal.phase("cluster: stop"):
        if record and record.supervisor:
            record.supervisor.signal(signal.SIGTERM)
            if not record.supervisor.wait(_STOP_S):
                record.supervisor.signal(signal.SIGKILL)
        left = removal.remove_dead().left
        return [*left, *(removal.remaining_of(record) if record else [])]


def sweep(journal: Journal) -> list[str]:
    """Remove leftovers of dead runs on this machine; a cluster in use is not touched.

    Returns:
        One line per removed object.
    """
    wait_until(
        "ending local clusters gone",
        _observe_ending,
        timeout_s=locking.ENDING_S,
        journal=journal,
        interval_s=0.1,
        error=EnvironmentUnusable,
        hint="kill the named process, then sweep again",
    )
    return _sweep(journal, None)


def _observe_ending() -> Observation:
    """Observe ending clusters whose processes still hold a slot; their leftovers are known only afterwards."""
    dying = [record.describe() for record in locking.living() if locking.is_ending(record)]
    return Observation(not dying, "; ".join(dying) or "none")


def _sweep(journal: Journal, own: Slot | None) -> list[str]:
    done = removal.remove_dead(own)
    for line in done.removed:
        journal.event("swept", line)
    if done.left:
        raise EnvironmentUnusable("a dead local cluster cannot be removed:\n  " + "\n  ".join(done.left))
    return done.removed


def running() -> list[Record]:
    """The running clusters of this machine."""
    return locking.living()
