"""An S3 API (MinIO, Ceph, AWS): its clients, its anonymous access, and readable errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.core.certificate_errors import explain_refusal
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.gateways import (
    MAX_EXCERPT,
    Gateway,
    GatewayRefusal,
    HttpAnswer,
    explain_silence,
    identify_gateway,
    leads_to_https,
)
from pytest_vllm_stage.core.secret import Secret

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
#: A request, and two more where the server or the connection failed.
ATTEMPTS = 3
DEFAULT_REGION = "us-east-1"
#: Error codes of a missing object; the answer to a HEAD request has no body and only a status.
NOT_FOUND = ("NoSuchKey", "NoSuchObject", "NotFound", "404")
BAD_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "InvalidTokenId",
    "InvalidClientTokenId",
)
CLOCK_ERRORS = ("RequestTimeTooSkewed", "RequestExpired")
_FULL = "mc du STAGE and mc admin info STAGE: enlarge the store's volume or the bucket's quota, or remove old runs"
_REGION = "AWS_DEFAULT_REGION of the Secret (KServe: annotation serving.kserve.io/s3-region) names another region"
_STARTING = "kubectl logs deployment/minio: it is starting, or has lost drives"
#: What helps against an error, by its code.
_HINTS = {
    "NoSuchBucket": "kubectl logs job/minio-buckets",
    "AccessDenied": "mc admin policy attach: the credentials' account lacks the right, or a bucket policy denies it",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "QuotaExceeded": _FULL,
    "XMinioServerNotInitialized": _STARTING,
    "ServiceUnavailable": _STARTING,
    "SlowDown": _STARTING,
    "SlowDownRead": _STARTING,
    "SlowDownWrite": _STARTING,
    "InvalidObjectState": "the object is in an archive tier: restore it, or upload it again",
    "ObjectLocked": "the bucket's retention (object lock) forbids to replace or delete it until its date",
}


@dataclass(frozen=True)
class ObjectStore:
    """The address of an S3 API, and credentials for it.

    Attributes:
        url: Its root.
        access_key: The identity.
        secret_key: Signs its requests.
        credentials: Where the keys come from, for errors: ``secret minio-credentials``.
        region: Part of every signature.
        path_style: Buckets are the first part of the path, not a host name of their own.
        ca_file: PEM file of the authorities that sign the server's certificate; None for the system's.
        use_proxies: Use the proxies of the environment.
    """

    url: str
    access_key: Secret
    secret_key: Secret
    credentials: str = "its credentials"
    region: str = DEFAULT_REGION
    path_style: bool = True
    ca_file: str | None = None
    use_proxies: bool = False

    def client(self) -> S3Client:
        """A client with the store's credentials."""
        return self._client("s3v4", self.access_key.reveal(), self.secret_key.reveal())

    def anonymous_client(self) -> S3Client:
        """A client without credentials: it sees only what is public."""
        from botocore import UNSIGNED

        return self._client(UNSIGNED)

    def anonymous_status(self, bucket: str, key: str | None = None) -> int:
        """HTTP status of a list of the bucket, or of reading one object, without credentials.

        Raises:
            StageError: the store does not answer.
        """
        from botocore.exceptions import ClientError

        client = self.anonymous_client()
        try:
            with self.readable_errors(f"anonymous GET {bucket}/{key or ''}", raw=ClientError):
                answer: Any = (
                    client.list_objects_v2(Bucket=bucket, MaxKeys=1)
                    if key is None
                    else client.get_object(Bucket=bucket, Key=key)
                )
        except ClientError as error:
            answer = error.response
        finally:
            client.close()
        return int(answer["ResponseMetadata"]["HTTPStatusCode"])

    def minio_health_status(self) -> int:
        """HTTP status of MinIO's own readiness check, which has the path of a bucket called ``minio``."""
        return replace(self, path_style=True).anonymous_status("minio", "health/ready")

    def _client(self, signature: Any, access_key: str | None = None, secret_key: str | None = None) -> S3Client:
        from boto3.session import Session
        from botocore.config import Config

        config = Config(
            signature_version=signature,
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path" if self.path_style else "virtual"},
            # None means those of the environment.
            proxies=None if self.use_proxies else {},
            # Servers other than AWS know the older checksums alone, and uploads that need them are signed anyway.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        client = Session(botocore_session=_isolated_session()).client(
            "s3",
            region_name=self.region,
            endpoint_url=self.url,
            verify=self.ca_file or True,
            config=config,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
        )
        client.meta.events.register("before-parse.s3", self._refuse_foreign_answer)
        return client

    def _refuse_foreign_answer(self, operation_model: Any, response_dict: Any, **_: Any) -> None:
        """Raise for an answer of something in front of the store, before the client misinterprets it.

        It takes a login page for an empty list, follows a redirect without end, and drops the text of any error that
        is not S3's.
        """
        status = int(response_dict["status_code"])
        headers = {str(name).lower(): str(value) for name, value in response_dict["headers"].items()}
        if "x-amz-request-id" in headers or (operation_model.has_streaming_output and status < 300):
            return
        answer = HttpAnswer(status, headers, response_dict["body"][: 4 * MAX_EXCERPT].decode(errors="replace"))
        gateway = identify_gateway(answer)
        if gateway is None and (status >= 300 or answer.body.lstrip()[:1] in ("", "<", "{")):
            return
        sender = gateway.name if gateway else "a server that does not speak S3"
        raise EnvironmentUnusable(
            f"{sender} answers HTTP {status} instead of the S3 API at {self.url}: {answer.excerpt}",
            hint=_advise(gateway, answer, self.url) or f"curl -i {self.url}",
        )

    def readable_errors(self, action: str, *, raw: type[Exception] | tuple[()] = ()) -> AbstractContextManager[None]:
        return readable_s3_errors(action, self.url, credentials=self.credentials, ca_file=self.ca_file, raw=raw)


def _advise(gateway: Gateway | None, answer: HttpAnswer, url: str) -> str:
    """What helps against a gateway; S3's clients sign their requests and have no token."""
    if gateway is None:
        return ""
    if leads_to_https(answer, url):
        return f"the store is at https: https{url[4:]}"
    if gateway.refusal is GatewayRefusal.LOGIN:
        return "it asks for a login, which S3 clients do not have: use an address of the S3 API without it in front"
    return gateway.advice


@contextmanager
def readable_s3_errors(
    action: str,
    url: str,
    *,
    credentials: str = "its credentials",
    ca_file: str | None = None,
    raw: type[Exception] | tuple[()] = (),
) -> Iterator[None]:
    """Turn the S3 client's errors into this project's.

    Args:
        action: The request in a few words, bucket and key in it: ``put results/model/file``.
        url: Root of the S3 API.
        credentials: Their source, for messages.
        ca_file: The file of the trusted authorities; None for the system's.
        raw: An error that the caller judges, passed on as it is.

    Raises:
        StageFailure: the store refused, or did not answer.
        EnvironmentUnusable: something in front of the store answered.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except raw:
        raise
    except EnvironmentUnusable as error:  # see `ObjectStore._refuse_foreign_answer`
        raise EnvironmentUnusable(f"{action}: {error.message}", hint=error.hint) from None
    except ClientError as error:
        raise _refused(action, url, credentials, error) from None
    except BotoCoreError as error:
        raise _unanswered(action, url, error, ca_file) from None


def _refused(action: str, url: str, credentials: str, error: ClientError) -> StageFailure:
    code, message = error_code(error), str(error.response.get("Error", {}).get("Message", ""))[:200]
    where = f"{action}: the S3 API at {url}"
    if code in BAD_CREDENTIALS:
        return StageFailure(
            f"{where} rejects the credentials of {credentials}: {code}: {message}",
            hint="they expired or were changed: renew the Secret, then run again",
        )
    if code in CLOCK_ERRORS:
        return StageFailure(
            f"{where} answers {code}: {message}", hint="compare the clocks: date -u, here and on the node"
        )
    return StageFailure(f"{where} answers {code}: {message}", hint=_HINTS.get(code, ""))


def _unanswered(action: str, url: str, error: Exception, ca_file: str | None) -> StageFailure:
    from botocore.exceptions import SSLError

    text = " ".join(str(error).split())[:300]
    if isinstance(error, SSLError):
        refused = explain_refusal(error, url, ca_file)
        reason, hint = refused or (text, "--stage-ca-file names the authorities that sign its certificate")
        return StageFailure(f"{action}: the certificate of {url} is not trusted: {reason}", hint=hint)
    message = f"{action}: the S3 API at {url} does not answer: {type(error).__name__}: {text}"
    return StageFailure(message, hint=explain_silence(error, url) or f"curl -i {url}")


def error_code(error: ClientError) -> str:
    """S3's code of an error, for example ``NoSuchKey``; the HTTP status where the answer names none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _isolated_session() -> Any:
    """A botocore session that reads no AWS_* variable and no ~/.aws: the stage's Secret decides, and nothing else."""
    from botocore.session import Session

    known = Session.SESSION_VARIABLES
    alone = {name: (None, None, default, convert) for name, (_, _, default, convert) in known.items()}
    for file in ("config_file", "credentials_file"):
        alone[file] = (None, None, None, None)
    session = Session(session_vars=alone)
    session.register_component("data_loader", _share_loader())
    return session


@cache
def _share_loader() -> Any:
    """What reads S3's definition, and keeps it: it takes a tenth of a second, and no client changes it."""
    from botocore.loaders import Loader

    return Loader()
