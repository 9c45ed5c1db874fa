"""Puts KServe's custom resource definitions into a new cluster's etcd, in the form that the API server stores.

Run as a program, ``python stored_types.py FILE``, in the cluster's namespaces before the API server starts. Created
through the API, a definition of 700 kB is validated, converted and written three times before its type is served, which
took half of a cluster's start. The API server reads these as it reads its own after a restart.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

ETCD = ("127.0.0.1", 2379)
_KEY = "/registry/apiextensions.k8s.io/customresourcedefinitions"

Object = dict[str, Any]


def to_stored(crd: Object, now: str) -> Object:
    """A definition as the API server stores it when the names are accepted and the type is served."""
    spec = {"conversion": {"strategy": "None"}, **crd["spec"]}
    names = {"listKind": f"{spec['names']['kind']}List", **spec["names"]}
    accepted = [("NamesAccepted", "NoConflicts", "no conflicts found")]
    accepted += [("Established", "InitialNamesAccepted", "the initial names have been accepted")]
    return {
        "apiVersion": crd["apiVersion"],
        "kind": crd["kind"],
        "metadata": {
            **crd["metadata"],
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": now,
        },
        "spec": {**spec, "names": names},
        "status": {
            "acceptedNames": names,
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}
                for kind, reason, message in accepted
            ],
            "storedVersions": [version["name"] for version in spec["versions"] if version["storage"]],
        },
    }


def main() -> None:
    """Store the definitions of the file."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for crd in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        _put(f"{_KEY}/{crd['metadata']['name']}", json.dumps(to_stored(crd, now)) + "\n")


def _put(key: str, value: str) -> None:
    """Write one key by etcd's gateway, which speaks JSON."""
    connection = http.client.HTTPConnection(*ETCD, timeout=30)
    try:
        connection.request("POST", "/v3/kv/put", json.dumps({"key": _encode(key), "value": _encode(value)}))
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status != 200:
        sys.exit(f"etcd answered {response.status} to the write of {key}: {text.decode(errors='replace')[:500]}")


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


if __name__ == "__main__":
    main()
