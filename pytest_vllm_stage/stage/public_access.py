"""Who may read or write a bucket without credentials, by its policy, ACL and public access block; reads only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.stage.s3 import BAD_CREDENTIALS, CLOCK_ERRORS, ObjectStore, error_code

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Errors that mean more than that a setting is absent, not supported, or not shown to these credentials.
_FAILURES = ("NoSuchBucket", *BAD_CREDENTIALS, *CLOCK_ERRORS)
#: S3's predefined groups: https://docs.aws.amazon.com/AmazonS3/latest/userguide/acl-overview.html
_GROUPS = {
    "http://acs.amazonaws.com/groups/global/AllUsers": "everyone",
    "http://acs.amazonaws.com/groups/global/AuthenticatedUsers": "every account",
}
#: Keys of a condition that keep a statement for everyone within a network or an organisation.
_RESTRICTING = (
    "aws:sourceip",
    "aws:sourcevpc",
    "aws:sourcevpce",
    "aws:sourcearn",
    "aws:sourceaccount",
    "aws:principalorgid",
    "aws:principalarn",
    "aws:userid",
    "aws:vpcsourceip",
)
_ANYWHERE = ("0.0.0.0/0", "::/0", "*")


def find_public_grants(store: ObjectStore, client: S3Client, bucket: str) -> list[str]:
    """Each way in that the bucket's settings give to clients without credentials, one line per action and prefix.

    Raises:
        StageError: the store does not answer, or the bucket does not exist.
    """
    blocked = (
        read_setting(store, f"read the public access block of bucket {bucket}", lambda: _get_block(client, bucket))
        or {}
    )
    lines: list[str] = []
    if not blocked.get("RestrictPublicBuckets"):
        policy = read_setting(store, f"read the policy of bucket {bucket}", lambda: _get_policy(client, bucket))
        lines += _describe_policy(policy or {}, bucket)
    if not blocked.get("IgnorePublicAcls"):
        acl = read_setting(
            store, f"read the ACL of bucket {bucket}", lambda: dict(client.get_bucket_acl(Bucket=bucket))
        )
        lines += _describe_acl(acl or {})
    return lines


def _get_policy(client: S3Client, bucket: str) -> Any:
    return json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])


def _get_block(client: S3Client, bucket: str) -> Any:
    return client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]


def read_setting(store: ObjectStore, action: str, get: Callable[[], Any]) -> dict[str, Any] | None:
    """A setting; None where the bucket has none, or these credentials may not see it."""
    from botocore.exceptions import ClientError

    with store.readable_errors(action):
        try:
            found = get()
        except ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            if error_code(error) in _FAILURES or (status >= 500 and status != 501):
                raise
            return None
        except ValueError:  # a policy that is not JSON grants nothing
            return None
    return found if isinstance(found, dict) else None


def _describe_policy(policy: dict[str, Any], bucket: str) -> list[str]:
    found = {
        f"its policy allows {action} to everyone{_describe_prefix(resource, bucket)}"
        for statement in _as_list(policy.get("Statement"))
        if isinstance(statement, dict) and statement.get("Effect") == "Allow" and _is_for_everyone(statement)
        for action in _as_list(statement.get("Action")) or ["all but some actions"]
        for resource in _as_list(statement.get("Resource"))[:20] or [bucket]
    }
    return sorted(found)


def _describe_prefix(resource: Any, bucket: str) -> str:
    path = str(resource).rpartition(":::")[2]
    return "" if path in (bucket, f"{bucket}/*", "*", f"{bucket}*") else f" under {path}"


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_for_everyone(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal")
    accounts = principal.get("AWS") if isinstance(principal, dict) else principal
    everyone = "*" in _as_list(accounts) or "NotPrincipal" in statement
    return everyone and not any(_restricts(key, value) for key, value in _conditions(statement))


def _conditions(statement: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    found = statement.get("Condition")
    for operator in (found if isinstance(found, dict) else {}).values():
        if isinstance(operator, dict):
            yield from operator.items()


def _restricts(key: str, value: Any) -> bool:
    return key.lower() in _RESTRICTING and not any(str(one) in _ANYWHERE for one in _as_list(value))


def _describe_acl(acl: dict[str, Any]) -> list[str]:
    grants = [grant for grant in _as_list(acl.get("Grants")) if isinstance(grant, dict)]
    return sorted(
        f"its ACL gives {grant.get('Permission')} to {_GROUPS[uri]}"
        for grant in grants
        if (uri := str((grant.get("Grantee") or {}).get("URI"))) in _GROUPS
    )
