"""Configuration files of the cluster's programs, as text; JSON where a program reads YAML, since that is YAML too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.local.images import PAUSE
from pytest_vllm_stage.cluster.local.layout import CONTAINERD_SOCKET, Layout
from pytest_vllm_stage.core.files import PRIVATE, write_atomically

CONTEXT = "vllm-stage"
#: Bits of ``CapEff``; without this one no process may lower its oom_score_adj.
_CAP_SYS_RESOURCE = 1 << 24


def write_all(layout: Layout, cni_dir: Path) -> None:
    """Write every file that the programs read."""
    layout.etc.mkdir(parents=True)
    cni = layout.etc / "cni"
    cni.mkdir()
    write_atomically(
        layout.etc / "containerd.toml", containerd(layout, cni_dir, restrict_oom=not may_lower_oom()), mode=PRIVATE
    )
    write_atomically(cni / "10-vllm-stage.conflist", json.dumps(network(layout)), mode=PRIVATE)
    write_atomically(layout.etc / "kubelet.json", json.dumps(kubelet(layout)), mode=PRIVATE)
    write_atomically(layout.etc / "Corefile", corefile(layout), mode=0o644)
    write_atomically(layout.etc / "resolv.conf", "# Nothing outside the cluster is resolved.\n", mode=0o644)
    write_atomically(layout.kubeconfig, json.dumps(kubeconfig(layout, "admin")), mode=PRIVATE)
    write_atomically(layout.etc / "node.kubeconfig", json.dumps(kubeconfig(layout, "kubelet")), mode=PRIVATE)


def may_lower_oom(status: str | None = None) -> bool:
    """This process, and so containerd, may give containers a negative oom_score_adj.

    Args:
        status: The text of ``/proc/self/status``; read where not given.
    """
    text = Path("/proc/self/status").read_text(encoding="utf-8") if status is None else status
    effective = next(line.split()[1] for line in text.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) & _CAP_SYS_RESOURCE)


def containerd(layout: Layout, cni_dir: Path, *, restrict_oom: bool) -> str:
    """The ``config.toml`` of containerd."""
    quoted = json.dumps
    return f"""version = 2
root = {quoted(str(layout.state_dir / "containerd"))}
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = {quoted(CONTAINERD_SOCKET)}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {quoted(PAUSE)}
restrict_oom_score_adj = {str(restrict_oom).lower()}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {quoted(str(cni_dir))}
conf_dir = {quoted(str(layout.etc / "cni"))}
"""


def network(layout: Layout) -> dict[str, Any]:
    """The pods' CNI network.

    Each pod has a link of its own, so that every packet between pods is routed and Services work on one node
    whether or not the kernel filters bridges.
    """
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": str(layout.addresses.pods)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/run/cni-addresses",
    }
    return {"cniVersion": "0.4.0", "name": "vllm-stage", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}


def kubelet(layout: Layout) -> dict[str, Any]:
    """The kubelet's configuration; disk thresholds are absolute, since a share of a large disk is meaningless."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(layout.addresses.node),
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": layout.pki.certificate("ca")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": layout.pki.certificate("kubelet"),
        "tlsPrivateKeyFile": layout.pki.key("kubelet"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": layout.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [str(layout.addresses.node)],
        "resolvConf": str(layout.etc / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "volumePluginDir": "/run/kubelet-volume-plugins",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "500Mi",
            "imagefs.available": "500Mi",
            "nodefs.inodesFree": "10000",
            "imagefs.inodesFree": "10000",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "oomScoreAdj": 0,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
    }


def kubeconfig(layout: Layout, identity: str) -> dict[str, Any]:
    """A kubeconfig that names certificate files of `Pki`."""
    pki = layout.pki
    user = {"client-certificate": pki.certificate(identity), "client-key": pki.key(identity)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": CONTEXT, "cluster": {"server": layout.api, "certificate-authority": pki.certificate("ca")}}
        ],
        "users": [{"name": identity, "user": user}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": identity}}],
        "current-context": CONTEXT,
    }


def corefile(layout: Layout) -> str:
    """CoreDNS's ``Corefile``: the cluster's names and nothing else."""
    return f""".:53 {{
    bind {layout.addresses.node}
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {layout.kubeconfig} {CONTEXT}
        pods insecure
        ttl 5
    }}
}}
"""
