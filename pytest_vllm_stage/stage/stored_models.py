"""Models that pods load from a bucket at each start: whether their files are still there; reads only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.s3 import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Names the files among which a model's weights are divided.
_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".gguf", ".bin")
_ENDPOINT = "serving.kserve.io/s3-endpoint"
_OWN_MINIO = re.compile(r"(?:https?://)?minio(?:\.[\w-]+\.svc(?:\.[\w.-]+)?)?(?:[:/]|$)")


def find_models_in(manifests: Iterable[Object], buckets: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Each InferenceService that loads its model from a bucket of the stage's own MinIO, with bucket and prefix.

    Args:
        manifests: The declared objects; a Secret of KServe's names the store.
        buckets: The buckets of the stage's MinIO.
    """
    known, manifests = set(buckets), list(manifests)
    endpoints = [str((one["metadata"].get("annotations") or {}).get(_ENDPOINT) or "") for one in manifests]
    if not any(map(_OWN_MINIO.match, endpoints)):
        return {}
    found = {}
    for item in manifests:
        predictor = (item.get("spec") or {}).get("predictor") or {} if item["kind"] == "InferenceService" else {}
        uri = str((predictor.get("model") or {}).get("storageUri") or "")
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if uri.startswith("s3://") and bucket in known:
            found[objects.name_of(item)] = (bucket, prefix.rstrip("/"))
    return found


def find_missing_files(store: ObjectStore, client: S3Client, model: str, bucket: str, prefix: str) -> Iterator[str]:
    """What a model lacks in its bucket: all of it, or files among which its index divides the weights.

    Raises:
        StageError: the store does not answer, or refuses.
    """
    where = f"s3://{bucket}/{prefix}"
    with store.readable_errors(f"list {bucket}/{prefix}"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = {str(found["Key"]) for page in pages for found in page.get("Contents", [])}
    if not keys:
        yield f"{where} is empty: inferenceservice/{model} loads its model from there when a pod starts"
    for key in sorted(key for key in keys if key.endswith(_INDEX)):
        folder = key.removesuffix(_INDEX)
        with store.readable_errors(f"get {bucket}/{key}"), client.get_object(Bucket=bucket, Key=key)["Body"] as body:
            named = _read_files(body.read())
        missing = [name for name in named if folder + name not in keys]
        if missing and not (len(missing) == len(named) and _has_weights(folder, keys)):
            yield (
                f"{where} lacks {len(missing)} of the {len(named)} files that {_INDEX} names, {missing[0]} among them: "
                f"the next pod of inferenceservice/{model} does not start"
            )


def _has_weights(folder: str, keys: Iterable[str]) -> bool:
    """Whether a folder has weights that its index does not name: Mistral's are there in two formats, to choose from."""
    names = [key.removeprefix(folder) for key in keys if key.startswith(folder)]
    return any("/" not in name and name.endswith(_WEIGHTS) for name in names)


def _read_files(content: bytes) -> list[str]:
    """The files of an index, each once; none where it is not one."""
    try:
        weights = json.loads(content)["weight_map"]
        return sorted({str(name) for name in weights.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
