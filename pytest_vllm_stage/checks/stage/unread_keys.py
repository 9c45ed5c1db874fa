"""Annotations and labels by which a manifest asks for something, and that no controller reads: pure functions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.protection import ENABLE_AUTH

_DOMAIN = "serving.kserve.io/"
#: Domains that are taken for KServe's; the second one was its own until 0.7.
_OTHER_DOMAINS = ("serving.kserve.org/", "serving.kubeflow.org/", "serving.kserve.com/", "serving.kserve.ai/")
_MODE = f"{_DOMAIN}deploymentMode"
#: RawDeployment and Serverless are called Standard and Knative from 0.16 on.
_MODES = ("Standard", "Knative", "RawDeployment", "Serverless", "ModelMesh")
#: KServe's keys, so far as manifests of a stage use them.
_KNOWN = (
    "autoscalerClass",
    "deploymentMode",
    "enable-metric-aggregation",
    "enable-prometheus-scraping",
    "enable-tag-routing",
    "metric",
    "metrics",
    "s3-cabundle",
    "s3-cabundle-configmap",
    "s3-endpoint",
    "s3-region",
    "s3-useaccelerate",
    "s3-useanoncredential",
    "s3-usehttps",
    "s3-usevirtualbucket",
    "s3-verifyssl",
    "stop",
    "storage-initializer-uid",
    "storageSecretName",
    "targetUtilizationPercentage",
)
#: How alike a key is to a known one that it is taken for a misspelling of.
_ALIKE = 0.9
_BOOLEANS = ("true", "false", "1", "0", "t", "f")


def find_unread_keys(manifests: Iterable[Object]) -> Iterator[str]:
    """One line per key, or value of one, that KServe and Open Data Hub do not read."""
    for manifest in manifests:
        metadata = manifest["metadata"]
        where = f"{manifest['kind']}/{objects.name_of(manifest)}"
        for kind in ("annotations", "labels"):
            found = {str(key): str(value) for key, value in (metadata.get(kind) or {}).items()}
            for key, value in found.items():
                problem = _find_problem(key, value, found)
                if problem:
                    yield f"{where}: {kind[:-1]} {problem}"


def _find_problem(key: str, value: str, all_keys: Iterable[str]) -> str:
    domain, name = key.partition("/")[0] + "/", key.partition("/")[2]
    if domain in _OTHER_DOMAINS and _DOMAIN + name not in all_keys:
        return f"{key} is not read: KServe's domain is {_DOMAIN.rstrip('/')}"
    if domain == _DOMAIN and name not in _KNOWN and (meant := _find_meant(name)):
        return f"{key} is not read: KServe's is called {_DOMAIN}{meant}"
    if key == _MODE and value not in _MODES:
        return f"{key} is {value!r}, and KServe takes its default mode: valid are {', '.join(_MODES)}"
    if name == ENABLE_AUTH.partition("/")[2] and key != ENABLE_AUTH:
        return f"{key} is not read, and protects nothing: {ENABLE_AUTH} does"
    if key == ENABLE_AUTH and value.lower() not in _BOOLEANS:
        return f"{key} is {value!r}, and protects nothing: expected true or false"
    return ""


def _find_meant(name: str) -> str:
    """The known key that a name misspells; empty where it is like none."""
    plain = {_simplified(known): known for known in _KNOWN}
    close = difflib.get_close_matches(_simplified(name), plain, n=1, cutoff=_ALIKE)
    return plain[close[0]] if close else ""


def _simplified(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
