"""The pod that this process runs in, as Kubernetes describes it to each container."""

from __future__ import annotations

import os
from pathlib import Path

#: Where a pod finds the token and the namespace of its ServiceAccount, and the API server's authority.
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def runs_in_pod() -> bool:
    """Whether this process runs in a pod that has a ServiceAccount's token."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (SERVICE_ACCOUNT / "token").is_file()


def read_pod_namespace() -> str | None:
    """The namespace of the pod; None outside a pod."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
