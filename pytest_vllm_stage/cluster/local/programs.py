"""The cluster's programs: each with its arguments, its dependencies and its readiness probe."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.local import stored_types
from pytest_vllm_stage.cluster.local.layout import CONTAINERD_SOCKET, WEBHOOK_PORT, Layout
from pytest_vllm_stage.cluster.local.pki import NODE_NAME

_API_SERVER = "kube-apiserver"
_STORED_TYPES = "stored-types"
_PREFIX_OF_GATES = "file:"


@dataclass(frozen=True)
class Program:
    """One program of the cluster.

    Attributes:
        name: Its name, and that of its log.
        argv: Program and arguments.
        after: Names of programs that must be ready before, or ``file:PATH`` for a file that must exist.
        probe: A URL that answers 200, or a path that exists, once it is ready; empty: ready when started.
        once: It is ready when it has exited with 0, and is not run again.
        env: Variables in addition to the common ones.
    """

    name: str
    argv: tuple[str, ...]
    after: tuple[str, ...] = ()
    probe: str = ""
    once: bool = False
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Mount:
    """A folder of the host that the cluster's mount namespace shows at another place.

    Attributes:
        source: The folder.
        target: Where it appears.
        read_only: Nothing in the cluster can write to it.
    """

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Plan:
    """What the cluster's first process needs to know.

    Attributes:
        mounts: In the order made.
        programs: Started in this order as soon as what they wait for is ready.
        node: The node's address with its prefix length.
        services: The Services' range.
        ca_file: Certificate file that the API server's certificate chains to.
        logs: Folder of the logs.
        state: File that receives the programs' states.
    """

    mounts: tuple[Mount, ...]
    programs: tuple[Program, ...]
    node: str
    services: str
    ca_file: str
    logs: str
    state: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        data: dict[str, Any] = json.loads(text)
        data["mounts"] = tuple(Mount(**mount) for mount in data["mounts"])
        data["programs"] = tuple(_program(program) for program in data["programs"])
        return cls(**data)


def _program(data: dict[str, Any]) -> Program:
    env = tuple((key, value) for key, value in data["env"])
    return Program(**{**data, "argv": tuple(data["argv"]), "after": tuple(data["after"]), "env": env})


def all_programs(layout: Layout, paths: dict[str, Path], archives: list[Path]) -> tuple[Program, ...]:
    """Every program of a cluster, in the order started."""
    return (
        _containerd(layout),
        _etcd(layout, paths),
        _stored_types(paths),
        _api_server(layout, paths),
        _images(archives),
        _kubelet(layout, paths),
        _controller_manager(layout, paths),
        _scheduler(layout, paths),
        _proxy(layout, paths),
        _coredns(layout, paths),
        _kserve(layout, paths),
    )


def _containerd(layout: Layout) -> Program:
    return Program(
        "containerd", ("containerd", "--config", str(layout.etc / "containerd.toml")), probe=CONTAINERD_SOCKET
    )


def _images(archives: list[Path]) -> Program:
    """One script, because each import alone would load the client again."""
    ctr = f"ctr --address {CONTAINERD_SOCKET} --namespace k8s.io images import --digests=false"
    script = " && ".join(["set -e", *(f"{ctr} '{archive}'" for archive in archives)])
    return Program("images", ("sh", "-c", script), after=("containerd",), once=True)


def _etcd(layout: Layout, paths: dict[str, Path]) -> Program:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    arguments = (
        f"--data-dir={layout.state_dir / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        # The data lives as long as the processes; it need not survive a power cut.
        "--unsafe-no-fsync",
        "--log-level=warn",
    )
    return Program("etcd", (str(paths["etcd"]), *arguments), probe=f"{client}/health")


def _stored_types(paths: dict[str, Path]) -> Program:
    # The cluster's first process imports this module too, and has no use for the import of yaml.
    from pytest_vllm_stage.cluster.local import kserve_files

    file = kserve_files.crds_file(paths["kserve-manager"].parent)
    # Not as a module: its package imports all that creates a cluster.
    argv = (sys.executable, "-I", stored_types.__file__, str(file))
    return Program(_STORED_TYPES, argv, after=("etcd",), once=True)


def _api_server(layout: Layout, paths: dict[str, Path]) -> Program:
    pki = layout.pki
    arguments = (
        f"--advertise-address={layout.addresses.node}",
        "--secure-port=6443",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--cert-dir={layout.state_dir / 'pki'}",
        f"--client-ca-file={pki.certificate('ca')}",
        f"--tls-cert-file={pki.certificate('apiserver')}",
        f"--tls-private-key-file={pki.key('apiserver')}",
        f"--kubelet-client-certificate={pki.certificate('admin')}",
        f"--kubelet-client-key={pki.key('admin')}",
        f"--kubelet-certificate-authority={pki.certificate('ca')}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={pki.service_account_public}",
        f"--service-account-signing-key-file={pki.key('service-account')}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-cluster-ip-range={layout.addresses.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
    )
    ready = f"https://{layout.addresses.node}:6443/readyz"
    return Program(_API_SERVER, (str(paths[_API_SERVER]), *arguments), after=("etcd", _STORED_TYPES), probe=ready)


def _controller_manager(layout: Layout, paths: dict[str, Path]) -> Program:
    pki = layout.pki
    arguments = (
        f"--kubeconfig={layout.kubeconfig}",
        f"--root-ca-file={pki.certificate('ca')}",
        f"--service-account-private-key-file={pki.key('service-account')}",
        f"--cluster-cidr={layout.addresses.pods}",
        f"--service-cluster-ip-range={layout.addresses.services}",
        *_served_on_loopback(layout),
        "--leader-elect=false",
        "--pvclaimbinder-sync-period=2s",
        "--flex-volume-plugin-dir=/run/kubelet-volume-plugins",
        "--profiling=false",
    )
    name = "kube-controller-manager"
    probe = "https://127.0.0.1:10257/healthz"
    return Program(name, (str(paths[name]), *arguments), after=(_API_SERVER,), probe=probe)


def _served_on_loopback(layout: Layout) -> tuple[str, ...]:
    """The API server's certificate is good for loopback too, so that the probe can verify the server."""
    certificate, key = layout.pki.certificate("apiserver"), layout.pki.key("apiserver")
    return ("--bind-address=127.0.0.1", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}")


def _scheduler(layout: Layout, paths: dict[str, Path]) -> Program:
    arguments = (f"--kubeconfig={layout.kubeconfig}", *_served_on_loopback(layout), "--leader-elect=false")
    name = "kube-scheduler"
    probe = "https://127.0.0.1:10259/healthz"
    return Program(name, (str(paths[name]), *arguments), after=(_API_SERVER,), probe=probe)


def _kubelet(layout: Layout, paths: dict[str, Path]) -> Program:
    arguments = (
        f"--config={layout.etc / 'kubelet.json'}",
        f"--kubeconfig={layout.etc / 'node.kubeconfig'}",
        "--root-dir=/var/lib/kubelet",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={layout.addresses.node}",
    )
    after = (_API_SERVER, "containerd")
    return Program("kubelet", (str(paths["kubelet"]), *arguments), after=after, probe="http://127.0.0.1:10248/healthz")


def _proxy(layout: Layout, paths: dict[str, Path]) -> Program:
    arguments = (
        f"--kubeconfig={layout.kubeconfig}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={layout.addresses.pods}",
        f"--hostname-override={NODE_NAME}",
        # The table's size belongs to the whole machine.
        "--conntrack-max-per-core=0",
        "--iptables-min-sync-period=200ms",
        "--iptables-localhost-nodeports=false",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=127.0.0.1:10249",
    )
    after = (_API_SERVER, "kubelet")
    return Program(
        "kube-proxy", (str(paths["kube-proxy"]), *arguments), after=after, probe="http://127.0.0.1:10256/livez"
    )


def _coredns(layout: Layout, paths: dict[str, Path]) -> Program:
    argv = (str(paths["coredns"]), "-conf", str(layout.etc / "Corefile"))
    return Program("coredns", argv, after=(_API_SERVER,), probe="http://127.0.0.1:8181/ready")


def _kserve(layout: Layout, paths: dict[str, Path]) -> Program:
    arguments = (
        f"--kubeconfig={layout.kubeconfig}",
        "--metrics-addr=0",
        "--health-probe-addr=127.0.0.1:9440",
        f"--webhook-port={WEBHOOK_PORT}",
    )
    # The manager looks for its webhooks' certificate below the folder for temporary files only.
    env = (("TMPDIR", str(layout.state_dir / "kserve")), ("POD_NAMESPACE", "kserve"))
    after = (_API_SERVER, f"{_PREFIX_OF_GATES}{layout.kserve_gate}")
    argv = (str(paths["kserve-manager"]), *arguments)
    return Program("kserve-manager", argv, after=after, probe="http://127.0.0.1:9440/readyz", env=env)
