"""A stand-in for kind and Docker: a program that hands out the kubeconfig of a running local cluster.

Started as ``kind`` it creates, loads into, and deletes "clusters", all of which are that one cluster; as ``docker`` it
answers and pulls nothing. What is real is the Kubernetes behind it. `create` takes KServe's webhooks from it, and
`delete` restores them and has what a run created removed, without waiting for the end of the pods.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

#: Names the folder with `facts.json` (of the cluster), the clusters that exist, and the calls.
VARIABLE = "KIND_STANDIN"
#: While this file is in the folder, the creation of a cluster does not end.
HANG = "hang"
NAMESPACE = "kind-standin"
_HOOKS = "mutatingwebhookconfigurations,validatingwebhookconfigurations"
_SAVED = "webhooks.json"
_GIVEN_BY_SERVER = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")


def install(folder: Path, kubeconfig: str, context: str, kubectl: str, state_dir: str) -> Path:
    """Write the programs for a cluster; return the folder for the PATH."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    facts = {"kubeconfig": kubeconfig, "context": context, "kubectl": kubectl, "state_dir": state_dir}
    (folder / "facts.json").write_text(json.dumps(facts))
    for name in ("kind", "docker"):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.real.kind_standin {name} "$@"\n')
        script.chmod(0o755)
    return programs


class KindStandin:
    """One call of ``kind`` or ``docker``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._facts = json.loads((folder / "facts.json").read_text())

    def run(self, program: str, arguments: list[str]) -> None:
        with (self._folder / "calls").open("a") as calls:
            calls.write(" ".join([program, *arguments]) + "\n")
        if program == "docker":
            print("27.0.3" if arguments[0] == "version" else "pulled")  # noqa: T201 the program's output
            return
        options = dict(itertools.pairwise(arguments))
        match arguments[:2]:
            case ["create", "cluster"]:
                self._create(options["--name"], Path(options["--kubeconfig"]))
            case ["load", "image-archive"]:
                self._load(Path(arguments[2]))
            case ["delete", "cluster"]:
                self._delete(options["--name"])

    def _create(self, name: str, kubeconfig: Path) -> None:
        (self._folder / name).touch()
        while (self._folder / HANG).exists():
            time.sleep(0.05)
        saved = self._folder / _SAVED
        if not saved.exists():
            saved.write_text(self._kubectl("get", _HOOKS, "--output=json"))
        self._kubectl("delete", _HOOKS, "--all", "--timeout=240s")
        content: dict[str, Any] = yaml.safe_load(Path(self._facts["kubeconfig"]).read_text())
        for context in content["contexts"]:
            context["name"] = f"kind-{name}"
        content["current-context"] = f"kind-{name}"
        kubeconfig.write_text(yaml.safe_dump(content))

    def _load(self, archive: Path) -> None:
        from pytest_vllm_stage.cluster.facts import ClusterFacts
        from tests.real.live_stage import load_image

        facts = self._facts
        place = (facts["kubeconfig"], facts["context"], "", facts["kubectl"])
        load_image(ClusterFacts("local", *place, True, True, facts["state_dir"]), archive)

    def _delete(self, name: str) -> None:
        saved = self._folder / _SAVED
        if saved.exists():
            self._kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
            self._kubectl("delete", "deployment", "--namespace=kserve", "--all", "--timeout=240s")
            self._kubectl("delete", _HOOKS, "--all", "--timeout=240s")
            items = json.loads(saved.read_text())["items"]
            for item in items:
                item["metadata"] = {
                    key: item["metadata"][key] for key in item["metadata"] if key not in _GIVEN_BY_SERVER
                }
            self._kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
            saved.unlink()
        (self._folder / name).unlink(missing_ok=True)

    def _kubectl(self, *arguments: str, text: str = "") -> str:
        place = ["--kubeconfig", self._facts["kubeconfig"], "--context", self._facts["context"]]
        command = [self._facts["kubectl"], *place, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, input=text, timeout=300).stdout


if __name__ == "__main__":
    KindStandin(Path(os.environ[VARIABLE])).run(sys.argv[1], sys.argv[2:])
