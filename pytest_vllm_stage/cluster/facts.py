"""What the layers above know of a cluster: plain data that crosses processes as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ClusterFacts:
    """A cluster that can run a stage.

    Attributes:
        kind: ``local`` was created on this machine, ``kind`` in a container of it; ``kubeconfig`` existed before; this
            process runs in a pod of ``in-cluster``.
        kubeconfig: The kubeconfig files, absolute, in the form of ``$KUBECONFIG``; empty for ``in-cluster``.
        context: The context in them; empty for ``in-cluster``.
        kubernetes_version: The API server's ``gitVersion``.
        kubectl: Path of a kubectl of a suitable version, for ``kubectl kustomize``.
        reaches_services: Cluster IPs answer from this machine without port-forward.
        owned: This run created it and deletes it.
        state_dir: Folder of a cluster that a run created (its kubeconfig; logs of a ``local`` one); None for others.
        versions: Component versions for the record, for example ``{"kserve": "v0.20.0"}``.
    """

    kind: Literal["local", "kind", "kubeconfig", "in-cluster"]
    kubeconfig: str
    context: str
    kubernetes_version: str
    kubectl: str
    reaches_services: bool
    owned: bool
    state_dir: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def on_this_machine(self) -> bool:
        """It was created here, so that no proxy of the environment leads to it."""
        return self.kind in ("local", "kind")

    @property
    def in_cluster(self) -> bool:
        """This process runs in a pod of the cluster."""
        return self.kind == "in-cluster"

    def kubectl_for(self, namespace: str) -> str:
        """The start of a kubectl command for a namespace of this cluster."""
        if self.in_cluster:  # kubectl finds the ServiceAccount itself
            return f"kubectl -n {namespace}"
        several = os.pathsep in self.kubeconfig  # --kubeconfig accepts one file
        program = f"KUBECONFIG={self.kubeconfig} kubectl" if several else f"kubectl --kubeconfig {self.kubeconfig}"
        return f"{program} --context {self.context} -n {namespace}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClusterFacts:
        return cls(**json.loads(text))
