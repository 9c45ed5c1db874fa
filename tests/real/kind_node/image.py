"""A node image for kind that is made here, where none can be pulled, laid out as kind's own.

Its root file system has the distribution's packages (systemd, containerd, iptables and what else a node needs), the
static files of kind's base image from kind's module, and the Kubernetes programs that the local cluster runs too, with
kubeadm. The images of the control plane hold these programs and nothing else; containerd imports them when it starts.

``python -m tests.real.kind_node.image`` makes it and prints the command that gives it to Docker or Podman.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pytest_vllm_stage.cluster.local import components, gotool, images
from pytest_vllm_stage.cluster.local.component import ENVIRONMENT, FLAGS, Component
from pytest_vllm_stage.cluster.local.images import Image
from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import cache_dir
from tests.real.kind_node import debian

NAME = "vllm-stage.local/kind-node:1"
#: What `docker import` adds, since an archive of files has no settings.
CHANGES = ('ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]', "ENV container=docker")
PACKAGES = (
    "systemd", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux", "mount", "kmod", "bash",
    "ca-certificates", "curl", "jq", "procps", "containerd", "runc", "containernetworking-plugins",
)  # fmt: skip
#: For the machine's Python, which the stage's pods run: what its standard library links.
LIBRARIES = ("libssl3", "libffi8", "zlib1g", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libreadline8", "libncursesw6")
VOLUMES = 8
STORAGE_CLASS = "standard"
_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
_PAUSE = "registry.k8s.io/pause:3.10"
#: The first node's part of kind's default range for pods.
_PODS = "10.244.0.0/24"
_CNI_PLUGINS = ("host-local", "loopback", "ptp", "portmap")
_PROXY_PROGRAMS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")
_LIBRARY_FOLDER = "usr/lib/x86_64-linux-gnu"
#: Units of packages that kind's base image removes.
_UNWANTED = (
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
    "lib/systemd/system/multi-user.target.wants/*",
    "etc/systemd/system/*.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
    "lib/systemd/system/basic.target.wants/*",
)
_SERVICES = ("kubelet.service", "containerd.service", "undo-mount-hacks.service")
_IMPORT = """#!/bin/sh
set -e
[ -e /var/lib/containerd/.imported ] && exit 0
for archive in /kind/images/*.tar; do
  ctr --namespace=k8s.io images import --digests=false "$archive"
done
touch /var/lib/containerd/.imported
"""


def _find_component(name: str) -> Component:
    return next(one for one in (*components.COMPONENTS, *components.EXTRAS) if one.name == name)


KUBERNETES = _find_component("kubernetes")
COREDNS = _find_component("coredns")
KIND = _find_component("kind")
#: All plugins of CoreDNS need libraries that the local cluster's programs do not.
_COREDNS_SOURCE = Path(__file__).with_name("coredns")


def ensure(journal: Journal) -> Path:
    """Make the image's archive unless the cache has it; return its path.

    Raises:
        EnvironmentUnusable: a program cannot be built, or the distribution's packages cannot be fetched.
    """
    programs = components.ensure(journal) | {
        "kubeadm": _build(KUBERNETES, "k8s.io/kubernetes/cmd/kubeadm", journal),
        # With every plugin: kubeadm's Corefile names more than the local cluster's.
        "coredns": _build(COREDNS, "github.com/coredns/coredns", journal, source=_COREDNS_SOURCE),
    }
    packages = ensure_packages(journal)
    parts = [KIND.version, *(str(path) for path in (packages, *programs.values()))]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update(Path(__file__).read_bytes() + Path(images.__file__).read_bytes())
    folder = cache_dir() / "tests" / f"kind-node-{digest.hexdigest()[:12]}"

    def make(build: build_once.Build) -> build_once.Facts:
        root = build.folder / "root"
        root.mkdir()
        unpack = ["tar", "--extract", "--numeric-owner", f"--directory={root}", f"--file={packages}"]
        build.run("unpack the packages", unpack, timeout_s=300, advise=_advise, env=dict(os.environ))
        _install_base_files(root, _find_module(KIND, journal) / "images" / "base" / "files")
        _install_programs(root, programs)
        _install_network(root)
        _install_storage(root)
        _install_images(root, programs)
        tar = ["tar", "--create", "--numeric-owner", f"--directory={root}", f"--file={build.folder / 'node.tar'}", "."]
        build.run("archive of the node", tar, timeout_s=300, advise=_advise, env=dict(os.environ))
        shutil.rmtree(root)
        return {"kubernetes": KUBERNETES.version}

    build_once.ensure(folder, "node image for kind", make, journal)
    return folder / "node.tar"


def _build(component: Component, package: str, journal: Journal, source: Path | None = None) -> Path:
    """Build a program of a component's module that the local cluster does not run, unless the cache has it.

    Args:
        component: The component.
        package: The program's package.
        journal: Records the build.
        source: The folder with ``go.mod``, where it is not the component's.
    """
    source = source or component.source
    pins = "".join((source / name).read_text() for name in ("go.mod", "go.sum"))
    program = package.rpartition("/")[2]
    sums = Path(__file__).with_name(f"{program}.sum")
    more = sums.read_text() if sums.exists() else ""
    name = hashlib.sha256(f"{component.fingerprint}{pins}{more}".encode()).hexdigest()[:12]
    folder = cache_dir() / "tests" / f"{program}-{name}"

    def make(build: build_once.Build) -> build_once.Facts:
        for path in (source / "go.mod", source / "go.sum"):
            shutil.copyfile(path, build.folder / path.name)
        with (build.folder / "go.sum").open("a") as known:
            known.write(more)
        go = gotool.find(gotool.needed([(build.folder / "go.mod").read_text()]), journal)
        command = [str(go), "build", *FLAGS, f"-ldflags={component.linker_flags}", "-o", program, package]
        build.run(f"build {program}", command, timeout_s=560, advise=_advise_on_go, env=os.environ | ENVIRONMENT)
        return {"version": component.version}

    build_once.ensure(folder, program, make, journal)
    return folder / program


def _advise_on_go(_output: str) -> str:
    return "if a download failed, run it again"


def ensure_packages(journal: Journal) -> Path:
    """Make the root file system of the distribution's packages unless the cache has it; return its archive."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release["VERSION_CODENAME"].strip('"')
    included = ",".join(PACKAGES + LIBRARIES)
    name = hashlib.sha256(f"{codename} {included}".encode()).hexdigest()[:12]
    folder = cache_dir() / "tests" / f"kind-packages-{name}"
    mmdebstrap = debian.unpack(("mmdebstrap",), journal) / "usr" / "bin" / "mmdebstrap"

    def make(build: build_once.Build) -> build_once.Facts:
        command = ["perl", str(mmdebstrap), "--mode=root", "--variant=minbase", f"--include={included}"]
        command += [codename, str(build.folder / "root.tar"), str(_SOURCES)]
        build.run("packages of the node", command, timeout_s=560, advise=_advise, env=dict(os.environ))
        return {"codename": codename}

    build_once.ensure(folder, "packages of the node", make, journal)
    return folder / "root.tar"


def _find_module(component: Component, journal: Journal) -> Path:
    """The folder of a component's module, which is downloaded where Go's cache lacks it."""
    go = gotool.find(gotool.needed([(component.source / "go.mod").read_text()]), journal)
    command = [str(go), "mod", "download", "-json", f"{component.module}@{component.version}"]
    done = subprocess.run(command, cwd=component.source, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentUnusable(f"go mod download {component.module}: {(done.stdout + done.stderr)[-500:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _install_base_files(root: Path, source: Path) -> None:
    """What the Dockerfile of kind's base image does after the packages."""
    for own in ("etc/hostname", "etc/resolv.conf"):  # the container runtime's
        (root / own).unlink(missing_ok=True)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source)
        if name.parts[0] != "LICENSES":
            _write(root / name, path.read_text(), mode=0o755 if "bin" in name.parts else 0o644)
    for pattern in _UNWANTED:
        for path in root.glob(pattern):
            path.unlink()
    for service in _SERVICES:
        _link(root / "etc/systemd/system/multi-user.target.wants" / service, f"/etc/systemd/system/{service}")
    # It would register handlers for the whole machine.
    _link(root / "etc/systemd/system/systemd-binfmt.service", "/dev/null")
    _link(root / "sbin/init", "/usr/lib/systemd/systemd")
    with (root / "etc/systemd/journald.conf").open("a") as settings:
        settings.write("ReadKMsg=no\n")
    (root / "etc/kubernetes/manifests").mkdir(parents=True, exist_ok=True)
    config = root / "etc/containerd/config.toml"
    _write(config, config.read_text().replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true"))


def _install_programs(root: Path, programs: dict[str, Path]) -> None:
    for name in ("kubeadm", "kubelet", "kubectl"):
        shutil.copy(programs[name], root / "usr/bin" / name)
    _write(root / "kind/version", KUBERNETES.version)
    # kind's image has its own builds of these in /usr/local.
    for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
        _link(root / "usr/local/bin" / name, f"/usr/bin/{name}")
    _link(root / "usr/local/sbin/runc", "/usr/sbin/runc")
    done = subprocess.run(["ctr", "oci", "spec"], check=True, capture_output=True, text=True)
    specification = json.loads(done.stdout)
    specification["process"].pop("rlimits", None)
    hooks = {"createContainer": [{"path": "/kind/bin/mount-product-files.sh"}]}
    _write(root / "etc/containerd/cri-base.json", json.dumps(specification | {"hooks": hooks}))


def _install_network(root: Path) -> None:
    """The local cluster's kind of network, in place of kind's daemon, which no module of its has."""
    for name in _CNI_PLUGINS:
        _link(root / "opt/cni/bin" / name, f"/usr/lib/cni/{name}")
    address = {"type": "host-local", "ranges": [[{"subnet": _PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [
        {"type": "ptp", "ipMasq": True, "ipam": address},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    network = {"cniVersion": "0.4.0", "name": "node", "plugins": plugins}
    _write(root / "etc/cni/net.d/10-node.conflist", json.dumps(network))
    notice = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cni", "namespace": "kube-system"}}
    _write(root / "kind/manifests/default-cni.yaml", json.dumps(notice | {"data": {"network": "in the node image"}}))


def _install_storage(root: Path) -> None:
    """Volumes that are there beforehand, in place of kind's provisioner."""
    items: list[dict[str, object]] = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    ]
    for number in range(VOLUMES):
        folder = root / "var/volumes" / str(number)
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        specification = {
            "capacity": {"storage": "5Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "hostPath": {"path": f"/var/volumes/{number}", "type": "Directory"},
        }
        metadata = {"name": f"volume-{number}"}
        items.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": specification})
    _write(
        root / "kind/manifests/default-storage.yaml", json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    )


def _install_images(root: Path, programs: dict[str, Path]) -> None:
    """The archives, which containerd imports before the kubelet starts."""
    images.ensure(control_plane_images(root, programs), root / "kind/images")
    _write(root / "kind/bin/import-images.sh", _IMPORT, mode=0o755)
    units = root / "etc/systemd/system"
    after = "[Service]\nTimeoutStartSec=infinity\nExecStartPost=/kind/bin/import-images.sh\n"
    _write(units / "containerd.service.d/10-images.conf", after)
    _write(units / "kubelet.service.d/12-images.conf", "[Unit]\nAfter=containerd.service\n")


def control_plane_images(root: Path, programs: dict[str, Path]) -> list[Image]:
    """An image for each that kubeadm names, with the one program that it runs."""
    command = [str(programs["kubeadm"]), "config", "images", "list", f"--kubernetes-version={KUBERNETES.version}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = [Image(_PAUSE, ("/pause",), {"pause": programs["pause"]}, rooted=False)]
    for name in done.stdout.split():
        program = name.rpartition("/")[2].partition(":")[0]
        if program == "pause":
            continue
        content = {f"usr/local/bin/{program}": programs[program]}
        if program == "kube-proxy":
            content |= _find_iptables(root)
        found.append(Image(name, (f"/usr/local/bin/{program}",), content, rooted=False))
    return found


def _find_iptables(root: Path) -> dict[str, Path]:
    """The node's own iptables for kube-proxy, with its extensions and libraries."""
    program = root / "usr/sbin/xtables-nft-multi"
    extensions = sorted((root / _LIBRARY_FOLDER / "xtables").glob("*.so"))
    inside = [str(Path("/", path.relative_to(root))) for path in (program, *extensions)]
    done = subprocess.run(["chroot", str(root), "ldd", *inside], check=False, capture_output=True, text=True)
    libraries = {word for line in done.stdout.splitlines() for word in line.split() if word.startswith("/lib")}
    found = {f"usr/sbin/{name}": program for name in _PROXY_PROGRAMS}
    found |= {str(path.relative_to(root)): path for path in extensions}
    for name in libraries:
        path = root / name.strip("/")
        if path.is_file():
            found[name.strip("/")] = path
    if not any("ld-linux" in name for name in found):
        raise EnvironmentUnusable(f"ldd finds no libraries of the node's iptables: {done.stderr.strip()[-300:]}")
    return found


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _advise(_output: str) -> str:
    return "as root: apt-get update"


if __name__ == "__main__":
    archive = ensure(Journal(None, lambda line: print(line, file=sys.stderr)))  # noqa: T201 the command's progress
    changes = [part for change in CHANGES for part in ("--change", change)]
    print(shlex.join(["docker", "import", *changes, str(archive), NAME]))  # noqa: T201 the command's output
