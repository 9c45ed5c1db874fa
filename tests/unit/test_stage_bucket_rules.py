"""Lifecycle rules of buckets, as MinIO and AWS write them."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.bucket_rules import find_expiring_rules
from pytest_vllm_stage.stage.s3 import ObjectStore

STORE = ObjectStore("http://127.0.0.1:9", Secret("access-key"), Secret("secret-key"))


class Client:
    """Answers with the given rules, or with an S3 error by its code."""

    def __init__(self, *rules: Any, code: str = "") -> None:
        self.rules, self.code = rules, code

    def get_bucket_lifecycle_configuration(self, **_: str) -> Any:
        if self.code:
            raise ClientError({"Error": {"Code": self.code, "Message": "m"}}, "GetBucketLifecycleConfiguration")
        return {"Rules": list(self.rules)}


def found(*rules: Any, code: str = "") -> list[str]:
    client: Any = Client(*rules, code=code)
    return find_expiring_rules(STORE, client, "models")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"ID": "r", "Expiration": {"Days": 1}}, "lifecycle rule r deletes objects 1 days after they were written"),
        ({"ID": "r", "Expiration": {"Date": "2027-01-01"}}, "lifecycle rule r deletes objects at 2027-01-01"),
        (
            {"Filter": {"Prefix": "m/"}, "Expiration": {"Days": 7}},
            "lifecycle rule (unnamed) deletes objects under m/ 7 days after they were written",
        ),
        (
            {"ID": "r", "Filter": {"And": {"Prefix": "m/", "Tags": []}}, "Expiration": {"Days": 7}},
            "lifecycle rule r deletes objects under m/ 7 days after they were written",
        ),
    ],
)
def test_a_rule_that_deletes_objects_is_reported(rule: Any, text: str) -> None:
    assert found({"Status": "Enabled", **rule}) == [f"bucket models: {text}"]


@pytest.mark.parametrize(
    "rule",
    [
        {"Status": "Disabled", "Expiration": {"Days": 1}},
        {"Status": "Enabled", "Expiration": {"ExpiredObjectDeleteMarker": True}},
        {"Status": "Enabled", "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
        {"Status": "Enabled", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
    ],
)
def test_a_rule_that_keeps_current_objects_is_not_reported(rule: Any) -> None:
    assert found(rule) == []


@pytest.mark.parametrize("code", ["NoSuchLifecycleConfiguration", "NotImplemented", "AccessDenied"])
def test_a_bucket_without_readable_rules_has_none(code: str) -> None:
    assert found(code=code) == []


def test_a_missing_bucket_is_a_failure() -> None:
    with pytest.raises(StageFailure, match=r"read the lifecycle rules of bucket models: .* answers NoSuchBucket"):
        found(code="NoSuchBucket")
