"""Stand-ins for kind, Docker, Podman and kubectl: scripts that note their calls and answer as a test sets them."""

from __future__ import annotations

import json
from pathlib import Path

#: A call fails where a file of its name (`docker`, `kind-create`, ...) is in the folder; its text is the error.
_SCRIPT = """#!/bin/sh
folder={folder}
echo "$KIND_EXPERIMENTAL_PROVIDER $*" >> $folder/calls-{name}
for word in "" "$@"; do
  call=$folder/{name}${{word:+-$word}}
  if [ -e "$call" ]; then
    while read -r line; do echo "$line" >&2; done < "$call"
    exit 1
  fi
done
{answer}
"""
_ANSWERS = {
    # The images that a node has are the lines of a file of this name.
    "docker": """if [ "$5" = images ]; then
  if [ -e $folder/images ]; then while read -r line; do echo "$line"; done < $folder/images; fi
else
  echo 27.0.3
fi""",
    # The nodes of the cluster that `--name` gives, with the container of kind that runs no pods.
    "kind": """if [ "$1" = get ]; then printf '%s\\n' $4-control-plane $4-worker $4-external-load-balancer; fi""",
    "podman": "echo 5.2.2",
    # The cluster's pods are the lines of a file of this name.
    "kubectl": """if [ "$4" = pods ]; then
  while read -r line; do echo "$line"; done < $folder/pods
elif [ "$4" = crd ]; then
  echo '{"items": []}'
else
  echo '{"serverVersion": {"gitVersion": "v1.34.0"}}'
fi""",
}


class FakePrograms:
    """The only programs on the PATH.

    Args:
        folder: Where they and their notes are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()

    def add(self, *names: str) -> None:
        for name in names:
            script = self.bin / name
            script.write_text(_SCRIPT.format(folder=self.folder, name=name, answer=_ANSWERS.get(name, "")))
            script.chmod(0o755)

    def fail(self, call: str, error: str) -> None:
        """Let ``docker``, or calls of it with one argument, ``docker-exec``, fail with an error text."""
        (self.folder / call).write_text(f"{error}\n")

    def calls(self, name: str) -> list[str]:
        """The arguments of each call of a program so far, after the runtime that it has to use."""
        path = self.folder / f"calls-{name}"
        return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []


def write_kserve_files(folder: Path) -> Path:
    """What a built KServe has, as small as it can be; returns the manager's path."""
    template = {
        "securityContext": {"runAsNonRoot": True},
        "containers": [{"name": "manager", "image": "ko://m", "readinessProbe": {"initialDelaySeconds": 30}}],
    }
    deployment = {"kind": "Deployment", "metadata": {"name": "m"}, "spec": {"template": {"spec": template}}}
    binding = {"kind": "ClusterRoleBinding", "metadata": {"name": "b"}, "subjects": [{"kind": "ServiceAccount"}]}
    hook = {"name": "h", "clientConfig": {"service": {"name": "$(webhookServiceName)", "path": "/validate"}}}
    hooks = {"kind": "ValidatingWebhookConfiguration", "metadata": {"name": "v"}, "webhooks": [hook]}
    files = {
        "crds": [{"kind": "CustomResourceDefinition", "metadata": {"name": "c"}}],
        "manager": [{"kind": "Secret", "metadata": {"name": "s"}}, binding, deployment],
        "configmap": [{"kind": "ConfigMap", "metadata": {"name": "inferenceservice-config"}, "data": {}}],
        "webhooks": [hooks, hooks],
    }
    for name, documents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(documents))
    (folder / "kserve-manager").write_text("program")
    return folder / "kserve-manager"
