# ruff: noqa: E501 the texts of other programs stay whole
"""Images that cannot be pulled."""

from __future__ import annotations

from tests.unit.deployment_faults.fault import READY, Fault, model
from tests.unit.made_objects import IMAGE, event, pod, waiting

PRIVATE = pod(
    ready=False,
    statuses=[waiting("ImagePullBackOff", "unexpected status from HEAD request: 401 Unauthorized")],
    spec={"containers": [{"name": "kserve-container", "image": "quay.io/private/vllm:1"}]},
)


def unpulled(planted: str, cause: str, message: str) -> Fault:
    status = waiting("ImagePullBackOff", f'Back-off pulling image "{VLLM}": ErrImagePull: rpc error: code = {message}')
    made = pod(ready=False, statuses=[status], spec={"containers": [{"name": "kserve-container", "image": VLLM}]})
    return Fault(planted, f"{READY}: image {VLLM} cannot be pulled: {cause}", model(made))


VLLM = "quay.io/x/vllm:1"
PULL = f'failed to pull and unpack image "{VLLM}": '
RESOLVE = f'{PULL}failed to resolve reference "{VLLM}": '

FAULTS: tuple[Fault, ...] = (
    unpulled(
        "registry that refuses the credentials",
        "unexpected status from HEAD request to https://quay.io/v2/x/vllm/manifests/1: 401 Unauthorized",
        f"Unknown desc = {RESOLVE}unexpected status from HEAD request to https://quay.io/v2/x/vllm/manifests/1: 401 "
        "Unauthorized",
    ),
    unpulled(
        "image that does not exist for the node's processor",
        "it has no variant for the node's processor: no match for platform in manifest",
        f"NotFound desc = {PULL}no match for platform in manifest: not found",
    ),
    unpulled(
        "registry that refuses the credentials, as CRI-O reports it",
        "unauthorized: access to the requested resource is not authorized",
        f"Unknown desc = unable to pull image or OCI artifact: initializing source docker://{VLLM}: reading manifest 1 in "
        "quay.io/x/vllm: unauthorized: access to the requested resource is not authorized",
    ),
    unpulled(
        "image without the node's architecture, as CRI-O reports it",
        "it has no variant for the node's processor: no image found in manifest list for architecture arm64",
        'Unknown desc = choosing image instance: no image found in manifest list for architecture arm64, variant "v8", OS '
        "linux",
    ),
    unpulled(
        "registry that limits pulls",
        "unexpected status from HEAD request to https://registry-1.docker.io/v2/x/vllm/manifests/1: 429 Too Many Requests: "
        "toomanyrequests: You have reached your unauthenticated pull rate limit.",
        f"Unknown desc = {RESOLVE}unexpected status from HEAD request to https://registry-1.docker.io/v2/x/vllm/manifests/1: "
        "429 Too Many Requests: toomanyrequests: You have reached your unauthenticated pull rate limit.",
    ),
    unpulled(
        "node whose disk is too small for the image",
        "the node's disk is full: libtorch_cuda.so: no space left on device",
        f"Unknown desc = {PULL}failed to extract layer sha256:{'0' * 64}: write /var/lib/containerd/"
        "io.containerd.snapshotter.v1.overlayfs/snapshots/12/fs/usr/local/lib/libtorch_cuda.so: no space left on device: "
        "unknown",
    ),
    Fault(
        "image name with a typing error",
        f'{READY}: image Registry/vllm:1 cannot be pulled: couldn\'t parse image name "Registry/vllm:1": invalid reference '
        "format: repository name must be lowercase",
        model(
            pod(
                ready=False,
                statuses=[
                    waiting(
                        "InvalidImageName",
                        'couldn\'t parse image name "Registry/vllm:1": invalid reference format: repository name must be '
                        "lowercase",
                    )
                ],
                spec={"containers": [{"name": "kserve-container", "image": "Registry/vllm:1"}]},
            )
        ),
    ),
    Fault(
        "pull secret that does not exist",
        f"{READY}: image quay.io/private/vllm:1 cannot be pulled: unexpected status from HEAD request: 401 Unauthorized "
        "(pull secret registry does not exist)",
        model(PRIVATE),
        (),
        (
            event(
                PRIVATE,
                "FailedToRetrieveImagePullSecret",
                "Unable to retrieve some image pull secrets (registry); attempting to pull the image may not succeed.",
            ),
        ),
    ),
    Fault(
        "image whose signature the node refuses",
        f"{READY}: image {IMAGE} cannot be pulled: Source image rejected: A signature was required, but no signature exists",
        model(
            pod(
                ready=False,
                statuses=[
                    waiting(
                        "SignatureValidationFailed",
                        "Source image rejected: A signature was required, but no signature exists",
                    )
                ],
            )
        ),
    ),
)
