"""The stage's object store, as its Secret describes it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.s3 import DEFAULT_REGION, ObjectStore

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

CREDENTIALS = "minio-credentials"
#: The Secret's keys: MinIO's customary ones, or those of an OpenShift AI data connection.
_ACCESS_KEYS = ("accesskey", "AWS_ACCESS_KEY_ID")
_SECRET_KEYS = ("secretkey", "AWS_SECRET_ACCESS_KEY")
_ENDPOINT, _REGION = "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION"
#: The annotations that KServe reads: https://kserve.github.io/website/docs/model-serving/storage/providers/s3
_ANNOTATION = "serving.kserve.io/s3-"


def find_object_store(
    stage: StageFacts, kube: DynamicClient, *, ca_file: str | None = None, use_proxies: bool = False
) -> ObjectStore:
    """The S3 API that Secret ``minio-credentials`` is for.

    Endpoint, region and addressing come from the Secret (a data connection's keys, or KServe's annotations). An
    endpoint that only the cluster's own names resolve, as ``minio:9000``, is replaced by the stage's own address.

    Args:
        stage: The stage.
        kube: Reads the Secret.
        ca_file: PEM file of the authorities that sign the store's certificate.
        use_proxies: Use the proxies of the environment.

    Raises:
        EnvironmentUnusable: the stage has no object store that is reachable from here.
        StageFailure: the Secret or one of its keys is missing.
    """
    found = objects.get(kube, "Secret", CREDENTIALS, stage.namespace)
    if found is None:
        raise StageFailure(f"secret {CREDENTIALS} does not exist in namespace {stage.namespace}")
    data = {key: base64.b64decode(value).decode() for key, value in (found.get("data") or {}).items()}
    annotations = found["metadata"].get("annotations") or {} if "metadata" in found else {}
    return ObjectStore(
        url=_public_endpoint(data, annotations) or _own_address(stage),
        access_key=_secret(data, _ACCESS_KEYS),
        secret_key=_secret(data, _SECRET_KEYS),
        credentials=f"secret {CREDENTIALS}",
        region=data.get(_REGION) or annotations.get(_ANNOTATION + "region") or DEFAULT_REGION,
        path_style=annotations.get(_ANNOTATION + "usevirtualbucket", "0").lower() not in ("1", "true"),
        ca_file=ca_file,
        use_proxies=use_proxies,
    )


def _secret(data: Mapping[str, str], keys: tuple[str, ...]) -> Secret:
    value = next((data[key] for key in keys if data.get(key)), "")
    if not value:
        raise StageFailure(f'secret {CREDENTIALS} has no key "{keys[0]}" (nor {keys[1]})')
    return Secret(value)


def _public_endpoint(data: Mapping[str, str], annotations: Mapping[str, Any]) -> str:
    """The Secret's endpoint as a URL; empty where it names none, or one that only resolves in the cluster."""
    text = (data.get(_ENDPOINT) or annotations.get(_ANNOTATION + "endpoint") or "").strip().rstrip("/")
    if not text:
        return ""
    if "://" not in text:
        plain = str(annotations.get(_ANNOTATION + "usehttps", "1")).lower() in ("0", "false")
        text = f"{'http' if plain else 'https'}://{text}"
    host = urlsplit(text).hostname or ""
    in_cluster = "." not in host.strip("[]") and ":" not in host
    return "" if in_cluster or host.endswith((".svc", ".cluster.local")) else text


def _own_address(stage: StageFacts) -> str:
    if stage.minio_url is None:
        raise EnvironmentUnusable(
            f"namespace {stage.namespace} has no MinIO that is reachable from here, and secret {CREDENTIALS} names no "
            f"endpoint outside the cluster",
            hint=f"kubectl -n {stage.namespace} get service,route minio",
        )
    return stage.minio_url
