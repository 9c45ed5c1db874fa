"""A one-node Kubernetes with KServe in a container of Docker or Podman, made by kind (https://kind.sigs.k8s.io).

`start` creates it, `keep` lets it outlive its run, `stop` ends it, `sweep` removes clusters of killed runs.
"""

from __future__ import annotations

from pytest_vllm_stage.cluster.kind.lifecycle import keep, running, start, stop, sweep

__all__ = ["keep", "running", "start", "stop", "sweep"]
