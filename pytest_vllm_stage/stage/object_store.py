"""MinIO of the stage: an authenticated client, and what somebody without credentials gets to see."""

from __future__ import annotations

import base64
from urllib.parse import urlsplit

import httpx
import urllib3
from lightkube import Client
from minio import Minio

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.facts import StageFacts

CREDENTIALS = "minio-credentials"
TIMEOUT_S = 10.0
_TIMEOUT = urllib3.Timeout(connect=TIMEOUT_S, read=60.0)
_RETRIES = urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504))


def connect(stage: StageFacts, kube: Client, ca_file: str | None = None) -> Minio:
    """A client with the credentials of Secret ``minio-credentials``.

    Args:
        stage: The stage.
        kube: Reads the Secret.
        ca_file: PEM file of the authorities that sign MinIO's certificate.

    Raises:
        EnvironmentUnusable: the stage has no MinIO that is reached from here.
        StageFailure: the Secret or one of its keys is missing.
    """
    url = urlsplit(address(stage))
    access, secret = (credential(kube, stage.namespace, key) for key in ("accesskey", "secretkey"))
    # The client's own pool waits five minutes for an answer, and asks five times.
    pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=_RETRIES, ca_certs=ca_file)
    secure = url.scheme == "https"
    return Minio(url.netloc, access.reveal(), secret.reveal(), secure=secure, region="us-east-1", http_client=pool)


def address(stage: StageFacts) -> str:
    """Root URL of the S3 API.

    Raises:
        EnvironmentUnusable: there is none that is reached from here.
    """
    if stage.minio_url is None:
        raise EnvironmentUnusable(
            f"namespace {stage.namespace} has no MinIO that is reached from here",
            hint=f"kubectl -n {stage.namespace} get service,route minio",
        )
    return stage.minio_url


def credential(kube: Client, namespace: str, key: str) -> Secret:
    """One value of the credentials' Secret.

    Raises:
        StageFailure: the Secret or the key is missing.
    """
    found = objects.get(kube, "Secret", CREDENTIALS, namespace)
    if found is None:
        raise StageFailure(f"secret {CREDENTIALS} does not exist in namespace {namespace}")
    data = found.get("data") or {}
    if key not in data:
        raise StageFailure(f'secret {CREDENTIALS} has no key "{key}"')
    return Secret(base64.b64decode(data[key]).decode())


def anonymous_status(stage: StageFacts, path: str) -> int:
    """HTTP status of a GET without credentials, for example of ``/models`` (a list) or of ``/models/key``."""
    url = f"{address(stage)}{path}"
    try:
        return httpx.get(url, timeout=TIMEOUT_S, trust_env=False).status_code
    except httpx.HTTPError as error:
        raise StageFailure(f"MinIO does not answer GET {url}: {type(error).__name__}: {error}") from None
