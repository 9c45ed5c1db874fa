"""Lifecycle rules by which a bucket deletes its objects; reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.stage.public_access import read_setting
from pytest_vllm_stage.stage.s3 import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def find_expiring_rules(store: ObjectStore, client: S3Client, bucket: str) -> list[str]:
    """Each enabled rule that deletes current objects, one line per rule.

    Rules for old versions, delete markers and unfinished uploads remove nothing that a reader sees.

    Raises:
        StageError: the store does not answer, or the bucket does not exist.
    """
    found = read_setting(
        store,
        f"read the lifecycle rules of bucket {bucket}",
        lambda: dict(client.get_bucket_lifecycle_configuration(Bucket=bucket)),
    )
    rules = (found or {}).get("Rules") or []
    return [f"bucket {bucket}: {line}" for rule in rules if rule.get("Status") == "Enabled" for line in _describe(rule)]


def _describe(rule: dict[str, Any]) -> list[str]:
    expiration = rule.get("Expiration") or {}
    if expiration.get("Days"):
        when = f"{expiration['Days']} days after they were written"
    elif expiration.get("Date"):
        when = f"at {expiration['Date']}"
    else:
        return []
    chosen = rule.get("Filter") or {}
    prefix = chosen.get("Prefix") or (chosen.get("And") or {}).get("Prefix") or rule.get("Prefix")
    part = f" under {prefix}" if prefix else ""
    return [f"lifecycle rule {rule.get('ID') or '(unnamed)'} deletes objects{part} {when}"]
