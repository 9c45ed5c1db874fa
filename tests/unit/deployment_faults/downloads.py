# ruff: noqa: E501 the texts of other programs stay whole
"""Models that KServe's storage initializer cannot fetch, as its log says it."""

from __future__ import annotations

from tests.unit.deployment_faults.fault import READY, Fault, model
from tests.unit.made_objects import container_status, pod, waiting


def unfetched(planted: str, cause: str, *log: str) -> Fault:
    loader = container_status(
        "storage-initializer",
        ready=False,
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        lastState={"terminated": {"exitCode": 1}},
        restartCount=2,
    )
    made = pod(
        ready=False,
        statuses=[waiting("PodInitializing")],
        initContainerStatuses=[loader],
        spec={"initContainers": [{"name": "storage-initializer", "image": "i"}]},
    )
    return Fault(planted, f"{READY}: {cause}", model(made), log)


HUB = "HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url: /api/models/x (Caused by "
CALLED = "botocore.exceptions.ClientError: An error occurred "
WRONG_REGION = (
    f"{CALLED}(AuthorizationHeaderMalformed) when calling the ListObjects operation: The authorization header is malformed; "
    "the region is wrong; expecting 'eu-west-1'."
)
CUT = "urllib3.exceptions.ProtocolError: ('Connection broken: IncompleteRead(1024 bytes read, 3072 more expected)')"

FAULTS: tuple[Fault, ...] = (
    unfetched(
        "init container that fails",
        "the object store does not answer at http://minio:9000/models",
        "Traceback (most recent call last):",
        'botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL: "http://minio:9000/models"',
    ),
    unfetched(
        "object store behind a NetworkPolicy",
        "the object store does not answer at http://minio.store.svc:9000/models",
        'botocore.exceptions.ConnectTimeoutError: Connect timeout on endpoint URL: "http://minio.store.svc:9000/models?prefix=m"',
    ),
    unfetched(
        "bucket of another region than the Secret's",
        f"the bucket is in another region, or at another endpoint ({WRONG_REGION})",
        WRONG_REGION,
    ),
    unfetched(
        "storageUri with a typing error in its scheme",
        "KServe does not know the scheme of storageUri s4://models/m",
        "Exception: Cannot recognize storage type for s4://models/m",
        "'hdfs://', 's3://' are the current available storage type.",
    ),
    unfetched(
        "egress to the Hub that a policy forbids",
        "port 443 of host huggingface.co cannot be reached",
        f'requests.exceptions.ConnectTimeout: (MaxRetryError("{HUB}ConnectTimeoutError(<urllib3.connection.HTTPSConnection '
        "object at 0x7f>, 'Connection to huggingface.co timed out. (connect timeout=10)'))\"), '(Request ID: 1)')",
    ),
    unfetched(
        "token that was stored with a line break",
        "a token that is sent as a header has a line break or a space in it",
        "httpx.LocalProtocolError: Illegal header value b'Bearer hf_aaaaaaaaaaaa\\n'",
    ),
    unfetched("download that a proxy breaks off", f"the download broke off ({CUT})", CUT),
)
