"""Whether the images of running pods would be there again for a replacement, as far as objects say it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

#: A kubelet lists so many of its images at most (nodeStatusMaxImages), the largest ones.
MOST_LISTED = 50
PULL_FAILURES = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable")
PULL_SECRET_TYPES = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")


def check_node_images(pods: Sequence[Object], nodes: Sequence[Object]) -> list[str]:
    """Report images that a container runs from and that are on its node no more.

    A kubelet never collects an image in use: it was removed by hand, and a replacement has to pull it, which a
    registry without this digest does not allow, and the policy ``Never`` does not either.
    """
    lists = {objects.name_of(node): list((node.get("status") or {}).get("images") or []) for node in nodes}
    lines = []
    for pod in pods:
        listed = lists.get(str(pod["spec"].get("nodeName")), [])
        if not 0 < len(listed) < MOST_LISTED:
            continue
        names = {_full_name(name) for image in listed for name in image.get("names") or []}
        for container, image, digest in _running(pod):
            if not {_full_name(container["image"]), _full_name(image), _full_name(digest)} & names:
                policy = container.get("imagePullPolicy", "IfNotPresent")
                after = "which its policy Never forbids" if policy == "Never" else "if its registry still has it"
                lines.append(
                    f"image {container['image']} of container {container['name']} is not on node "
                    f"{pod['spec']['nodeName']} any more: a replacement of pod {objects.name_of(pod)} has to pull it, "
                    f"{after}"
                )
    return lines


def check_pulls(pods: Sequence[Object], all_pods: Iterable[Object]) -> list[str]:
    """Report images of running pods that another pod of the namespace cannot pull now."""
    used = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
    lines = []
    for pod in all_pods:
        status = pod.get("status") or {}
        for found in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            waiting = (found.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in PULL_FAILURES and found.get("image") in used:
                reason = waiting.get("message") or waiting["reason"]
                lines.append(f"image {found['image']} cannot be pulled by pod {objects.name_of(pod)}: {reason}")
    return lines


def check_pull_secrets(pods: Sequence[Object], secrets: Mapping[str, Object]) -> list[str]:
    """Report pull secrets of running pods that do not exist, or are of a type that a kubelet does not read."""
    lines = []
    for pod in pods:
        for name in [str(one.get("name")) for one in pod["spec"].get("imagePullSecrets") or []]:
            kind = (secrets.get(name) or {}).get("type")
            if name not in secrets:
                lines.append(f"pull secret {name} of pod {objects.name_of(pod)} does not exist")
            elif kind not in PULL_SECRET_TYPES:
                of = f"pull secret {name} of pod {objects.name_of(pod)}"
                lines.append(f"{of}: expected type {PULL_SECRET_TYPES[0]}, got {kind}")
    return lines


def _running(pod: Object) -> Iterator[tuple[Any, str, str]]:
    """Each running container with the image and the digest that its status names."""
    containers = {container["name"]: container for container in pod["spec"]["containers"]}
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status.get("name") in containers and (status.get("state") or {}).get("running"):
            digest = str(status.get("imageID") or "").rpartition("://")[2]
            yield containers[status["name"]], str(status.get("image") or ""), digest


def _full_name(image: str) -> str:
    """An image's name with its registry and its tag, as a node lists it."""
    first, slash, rest = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif not (set(first) & {".", ":"} or first == "localhost"):
        image = f"docker.io/{first}/{rest}"
    return image if "@" in image or ":" in image.rpartition("/")[2] else f"{image}:latest"
