"""Builds the cluster's programs once, from Go modules pinned by ``go.sum``, into the cache."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from pytest_vllm_stage.cluster.local import builds, gotool, kserve_files, tekton_files
from pytest_vllm_stage.cluster.local.component import Component
from pytest_vllm_stage.core.journal import Journal

_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_KUBERNETES_VERSION = tuple(
    f"k8s.io/{package}/version.{setting}"
    for package in ("component-base", "client-go/pkg")
    for setting in ("gitVersion={version}", "gitMajor=1", "gitMinor=34", "gitTreeState=clean")
)

#: The folder of the `go.mod` of all of them: a library that several use has one version, and is compiled once.
_SHARED = "cluster"

#: The one with the largest package last: Go compiles it first.
COMPONENTS = (
    Component("glue", "", {"pause": "./pause"}, shares=_SHARED),
    Component("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"}, shares=_SHARED),
    Component(
        "kubernetes",
        "k8s.io/kubernetes",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
        _KUBERNETES_VERSION,
        shares=_SHARED,
    ),
    Component("coredns", "github.com/coredns/coredns", {"coredns": "./coredns"}, shares=_SHARED),
    Component(
        "kserve",
        "github.com/kserve/kserve",
        {"kserve-manager": "github.com/kserve/kserve/cmd/manager"},
        more_files=kserve_files.copy,
        files_format=kserve_files.FORMAT,
        shares=_SHARED,
    ),
    Component("minio", "github.com/minio/minio", {"minio": "github.com/minio/minio"}, shares=_SHARED),
)

#: Not part of a cluster: built only when requested by name. Tests run Tekton's controllers, KWOK's fake nodes and
#: kube-rbac-proxy; --stage-cluster=kind runs kind where none is on the PATH.
EXTRAS = (
    Component("kind", "sigs.k8s.io/kind", {"kind": "sigs.k8s.io/kind"}),
    Component(
        "kube-rbac-proxy",
        "github.com/brancz/kube-rbac-proxy",
        {"kube-rbac-proxy": "github.com/brancz/kube-rbac-proxy/cmd/kube-rbac-proxy"},
        shares=_SHARED,
    ),
    Component("kwok", "sigs.k8s.io/kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    Component(
        "tekton",
        "github.com/tektoncd/pipeline",
        {name: f"github.com/tektoncd/pipeline/cmd/{name}" for name in ("webhook", "controller", "entrypoint")},
        more_files=tekton_files.copy,
        files_format=tekton_files.FORMAT,
    ),
)


def ensure(journal: Journal, names: Iterable[str] | None = None) -> dict[str, Path]:
    """Build the components that the cache lacks.

    Args:
        journal: Records a phase for each component that is built.
        names: Components to build, `EXTRAS` among them; by default all components of a cluster.

    Returns:
        Program name to path.

    Raises:
        EnvironmentUnusable: no Go, or a build failed; it shows the last lines and names the log.
    """
    wanted = COMPONENTS if names is None else [one for one in (*COMPONENTS, *EXTRAS) if one.name in names]
    missing = [component for component in wanted if not component.folder.exists()]
    if missing:
        go_mods = [(component.source / "go.mod").read_text(encoding="utf-8") for component in missing]
        go = gotool.find(gotool.needed(go_mods), journal)
        groups = groupby(sorted(missing, key=lambda one: one.group), key=lambda one: one.group)
        builds.build_all([builds.GroupBuild(list(group), _linker_flags(name), go) for name, group in groups], journal)
    return {program: component.folder / program for component in wanted for program in component.programs}


def _linker_flags(group: str) -> str:
    """The linker's options for a group's programs, whichever of them are built together."""
    flags = [one.linker_flags for one in (*COMPONENTS, *EXTRAS) if one.group == group]
    return " ".join(dict.fromkeys(flags))


def are_built() -> bool:
    """Whether the cache has every component of a cluster."""
    return all(component.folder.exists() for component in COMPONENTS)


def versions() -> dict[str, str]:
    """Component name to pinned version."""
    return {component.name: component.version for component in COMPONENTS if component.module}
