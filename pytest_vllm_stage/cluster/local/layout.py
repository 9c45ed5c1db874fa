"""The paths and addresses of one cluster."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from pytest_vllm_stage.cluster.local.network import Addresses
from pytest_vllm_stage.cluster.local.pki import Pki
from pytest_vllm_stage.cluster.local.record import Record

#: What hostPath volumes of pods name; exists only in the cluster's own mount namespace.
MOUNTS = Path("/mnt/vllm-stage")
#: Folders of the host over which the cluster's mount namespace has folders of its own.
SHADOWED = {
    "mnt": MOUNTS,
    "kubelet": Path("/var/lib/kubelet"),
    "cni": Path("/var/lib/cni"),
    "var-log": Path("/var/log"),
}
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
API_PORT = 6443
WEBHOOK_PORT = 9443


@dataclass(frozen=True)
class Layout:
    """Paths and addresses of one cluster.

    Attributes:
        state_dir: The cluster's folder.
        addresses: Its addresses.
        cgroup: The kubelet's ``cgroupRoot``.
    """

    state_dir: Path
    addresses: Addresses
    cgroup: str

    @classmethod
    def of(cls, record: Record) -> Layout:
        """The layout of a recorded cluster."""
        return cls(record.path, Addresses(IPv4Network(record.block)), record.cgroup)

    @property
    def logs(self) -> Path:
        """One file for each program."""
        return self.state_dir / "logs"

    @property
    def pki(self) -> Pki:
        return Pki(self.state_dir / "pki")

    @property
    def etc(self) -> Path:
        """Configuration files of the programs."""
        return self.state_dir / "etc"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state_dir / "kubeconfig"

    @property
    def volumes(self) -> Path:
        """What backs PersistentVolumes; seen as ``/mnt/vllm-stage/volumes`` by pods' volumes."""
        return self.state_dir / "volumes"

    @property
    def plan(self) -> Path:
        """The programs to run and the folders to mount, as JSON for the cluster's first process."""
        return self.state_dir / "plan.json"

    @property
    def programs(self) -> Path:
        """The state of each program, as JSON by the cluster's first process."""
        return self.state_dir / "programs.json"

    @property
    def kserve_gate(self) -> Path:
        """Exists once the API server knows what KServe's manager looks for when it starts."""
        return self.state_dir / "kserve-may-start"

    @property
    def api(self) -> str:
        """URL of the API server."""
        return f"https://{self.addresses.node}:{API_PORT}"
