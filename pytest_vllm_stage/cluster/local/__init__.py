"""A real one-node Kubernetes with KServe on this Linux machine, without Docker, contained in namespaces of its own.

`start` creates it, `keep` lets it outlive its run, `stop` ends it, `sweep` removes leftovers of killed runs.
"""

from __future__ import annotations

from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.cluster.local.lifecycle import keep, running, start, stop, sweep
from pytest_vllm_stage.cluster.local.packages import ensure as ensure_packages

__all__ = ["components", "ensure_packages", "keep", "running", "start", "stop", "sweep"]
