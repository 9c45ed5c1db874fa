"""Public access by a bucket's settings: policies, ACLs and public access blocks as MinIO and AWS write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.public_access import find_public_grants
from pytest_vllm_stage.stage.s3 import ObjectStore

STORE = ObjectStore("http://127.0.0.1:9", Secret("access-key"), Secret("secret-key"))
BUCKET = "models"
EVERYONE = "http://acs.amazonaws.com/groups/global/AllUsers"


class Client:
    """Answers with the given settings, and with S3's errors where there are none."""

    def __init__(self, policy: Any = None, grants: Any = (), block: Any = None) -> None:
        self.policy, self.grants, self.block = policy, grants, block

    def get_bucket_policy(self, **_: str) -> Any:
        if self.policy is None:
            raise refused("NoSuchBucketPolicy", "GetBucketPolicy")
        return {"Policy": self.policy if isinstance(self.policy, str) else json.dumps(self.policy)}

    def get_bucket_acl(self, **_: str) -> Any:
        return {"Owner": {"ID": "o"}, "Grants": list(self.grants)}

    def get_public_access_block(self, **_: str) -> Any:
        if self.block is None:
            raise refused("NotImplemented", "GetPublicAccessBlock")
        return {"PublicAccessBlockConfiguration": self.block}


def refused(code: str, operation: str) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code, "Message": "m"}}, operation)


def statement(**changes: Any) -> dict[str, Any]:
    made = {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:GetObject"], **changes}
    return {"Version": "2012-10-17", "Statement": [{"Resource": [f"arn:aws:s3:::{BUCKET}/*"], **made}]}


def found(**settings: Any) -> list[str]:
    client: Any = Client(**settings)
    return find_public_grants(STORE, client, BUCKET)


PUBLIC = "its policy allows s3:GetObject to everyone"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (statement(), PUBLIC),
        (statement(Principal="*", Action="s3:GetObject"), PUBLIC),
        (statement(Resource=f"arn:aws:s3:::{BUCKET}/quantized/*"), f"{PUBLIC} under models/quantized/*"),
        (statement(Condition={"StringEquals": {"s3:prefix": ["a/"]}}), PUBLIC),
        (statement(Condition={"IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "0.0.0.0/0"]}}), PUBLIC),
    ],
)
def test_a_policy_for_everyone_is_public(policy: Any, expected: str) -> None:
    assert found(policy=policy) == [expected]


@pytest.mark.parametrize(
    "policy",
    [
        None,
        "not JSON",
        "[]",
        statement(Effect="Deny"),
        statement(Principal={"AWS": "arn:aws:iam::1:root"}),
        statement(Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}),
        statement(Condition={"StringEquals": {"aws:SourceVpce": "vpce-1"}}),
    ],
)
def test_a_policy_for_known_clients_is_private(policy: Any) -> None:
    assert found(policy=policy) == []


def test_an_acl_for_a_public_group_is_public() -> None:
    owner = {"Grantee": {"Type": "CanonicalUser", "ID": "o"}, "Permission": "FULL_CONTROL"}
    public = {"Grantee": {"Type": "Group", "URI": EVERYONE}, "Permission": "READ"}
    assert found(grants=[owner]) == []
    assert found(grants=[owner, public]) == ["its ACL gives READ to everyone"]


def test_a_public_access_block_closes_what_a_policy_and_an_acl_open() -> None:
    public = {"Grantee": {"Type": "Group", "URI": EVERYONE}, "Permission": "READ"}
    settings = {"policy": statement(), "grants": [public]}
    assert len(found(block={"BlockPublicPolicy": True}, **settings)) == 2
    assert found(block={"RestrictPublicBuckets": True, "IgnorePublicAcls": True}, **settings) == []
