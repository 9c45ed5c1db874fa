"""Which buckets exist; reads only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_vllm_stage.stage.s3 import NOT_FOUND, ObjectStore, error_code

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Credentials for some buckets alone, as of an ObjectBucketClaim or of an IAM policy, often may not list all.
_LIST_REFUSED = ("AccessDenied", "AllAccessDisabled", "NotImplemented")


def list_buckets(store: ObjectStore, client: S3Client, named: Iterable[str]) -> list[str]:
    """All buckets; of the named ones those that exist, where the credentials may not list all.

    Raises:
        StageError: the store does not answer, or refuses the credentials.
    """
    from botocore.exceptions import ClientError

    with store.readable_errors("list the buckets"):
        try:
            return [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
        except ClientError as error:
            if error_code(error) not in _LIST_REFUSED:
                raise
    return [name for name in named if _exists(store, client, name)]


def _exists(store: ObjectStore, client: S3Client, bucket: str) -> bool:
    from botocore.exceptions import ClientError

    with store.readable_errors(f"look for bucket {bucket}"):
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in (*NOT_FOUND, "NoSuchBucket"):
                return False
            raise
    return True
