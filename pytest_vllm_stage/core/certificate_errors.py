"""Why a server's certificate is refused, or no TLS connection is possible, and what to do next."""

from __future__ import annotations

import datetime
import socket
import ssl
from enum import IntEnum
from typing import NamedTuple
from urllib.parse import urlsplit

from pytest_vllm_stage.core.certificates import Certificate, parse_der

READ_TIMEOUT_S = 5.0
#: Host names of a certificate that an error shows.
SHOWN_HOSTS = 6


class _VerifyCode(IntEnum):
    """``X509_V_ERR_*`` of OpenSSL's x509_vfy.h."""

    NOT_YET_VALID = 9
    EXPIRED = 10
    SELF_SIGNED_LEAF = 18
    SELF_SIGNED_IN_CHAIN = 19
    NO_LOCAL_ISSUER = 20
    NO_LEAF_SIGNATURE = 21
    HOSTNAME_MISMATCH = 62
    IP_ADDRESS_MISMATCH = 64


#: ``ssl.SSLError.reason`` where server and client have no version of TLS in common.
_NO_COMMON_VERSION = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE")
#: Where what the server sends is not TLS: OpenSSL 3.0, and 3.2 and later.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")

_UNKNOWN_AUTHORITY = (
    _VerifyCode.SELF_SIGNED_LEAF,
    _VerifyCode.SELF_SIGNED_IN_CHAIN,
    _VerifyCode.NO_LOCAL_ISSUER,
    _VerifyCode.NO_LEAF_SIGNATURE,
)


class CertificateRefusal(NamedTuple):
    """Why a server is not trusted, and the next command or option."""

    reason: str
    hint: str


def explain_refusal(error: BaseException, base_url: str, ca_file: str | None) -> CertificateRefusal | None:
    """Explain a connection that failed in TLS, mostly since the certificate was refused; None for another failure.

    Args:
        error: What the client raised; the cause is looked for in what it was raised from.
        base_url: Root of the server. It is connected to once more to read its certificate; no request is sent.
        ca_file: The file of the authorities that were trusted; None for the system's.
    """
    refused = _find_cause(error)
    if refused is None:
        return None
    url = urlsplit(base_url)
    host, port = url.hostname or "", url.port or 443
    if not isinstance(refused, ssl.SSLCertVerificationError):
        return _explain_protocol(refused, base_url, host, port)
    show = f"openssl s_client -connect {host}:{port} -servername {host} </dev/null | openssl x509 -noout -text"
    return _explain(refused, _read_certificate(host, port), host, show, _advise_trust(ca_file))


def explain_refused_chain(
    error: ssl.SSLError, found: Certificate | None, host: str, show: str, ca_file: str | None
) -> CertificateRefusal:
    """Explain a handshake that failed.

    Args:
        error: Of the handshake.
        found: The certificate that the server presents; None where it is not known.
        host: The server's name.
        show: A command that shows the certificate.
        ca_file: The file of the authorities that were trusted; None for the system's.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain(error, found, host, show, _advise_trust(ca_file))
    return CertificateRefusal(
        f"no TLS connection to {host} is possible ({error.reason or error})", f"look at it: {show}"
    )


def _advise_trust(ca_file: str | None) -> str:
    if ca_file:
        return f"add its authority to those of {ca_file} (--stage-ca-file)"
    return (
        "--stage-ca-file=FILE trusts the authorities in a PEM file, --stage-ca-file=cluster those of the stage's "
        "cluster"
    )


def _find_cause(error: BaseException | None) -> ssl.SSLError | None:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLError):
            return error
        # httpx and httpcore raise their own errors from the socket's.
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _explain_protocol(error: ssl.SSLError, base_url: str, host: str, port: int) -> CertificateRefusal | None:
    if error.reason in _NO_COMMON_VERSION:
        return CertificateRefusal(
            f"the server offers no version of TLS that is accepted here: expected TLS 1.2 or later ({error.reason})",
            f"look at it: openssl s_client -connect {host}:{port} -servername {host} </dev/null",
        )
    if error.reason in _NOT_TLS:
        plain = f"http://{base_url.partition('://')[2]}"
        return CertificateRefusal(
            f"the server does not speak TLS at port {port} ({error.reason})", f"does it speak HTTP? curl -i {plain}"
        )
    return None


def _explain(
    error: ssl.SSLCertVerificationError, found: Certificate | None, host: str, show: str, trust: str
) -> CertificateRefusal:
    now = datetime.datetime.now(datetime.UTC)
    if error.verify_code in (_VerifyCode.HOSTNAME_MISMATCH, _VerifyCode.IP_ADDRESS_MISMATCH):
        names = _list_hosts(found) if found else ""
        return CertificateRefusal(
            f"the server's certificate is for another host: expected {host}, got {names or 'no name of it'}",
            f"use a URL with a host that it is for, or renew it for {host}; look at it: {show}",
        )
    if error.verify_code == _VerifyCode.EXPIRED:
        # A certificate of the chain can be the expired one.
        own = found is not None and found.not_after < now
        which = "the server's certificate" if own or found is None else "a certificate of the server's chain"
        when = f" at {_timestamp(found.not_after)}, {_age(now - found.not_after)} ago" if found and own else ""
        return CertificateRefusal(f"{which} has expired{when}", f"renew it; look at it: {show}")
    if error.verify_code == _VerifyCode.NOT_YET_VALID:
        when = f" before {_timestamp(found.not_before)}; this machine's clock is {_timestamp(now)}" if found else ""
        return CertificateRefusal(
            f"the server's certificate is not valid yet{when}", f"compare the clocks; look at it: {show}"
        )
    if error.verify_code in _UNKNOWN_AUTHORITY:
        issuer = found.issuer if found else ""
        by = f"{issuer!r}, " if issuer else ""
        # A chain that lacks an authority between them ends the same way as one whose root is not trusted.
        sent = f"; where {issuer!r} is not a root, the server must send its certificate, too" if issuer else ""
        return CertificateRefusal(
            f"the server's certificate is signed by {by}an authority that is not trusted ({error.verify_message})",
            f"{trust}{sent}; look at it: {show}",
        )
    return CertificateRefusal(f"the server's certificate is refused ({error.verify_message})", f"look at it: {show}")


def _list_hosts(found: Certificate) -> str:
    hosts = found.hosts or ((found.subject,) if found.subject else ())
    more = len(hosts) - SHOWN_HOSTS
    return ", ".join(hosts[:SHOWN_HOSTS]) + (f" and {more} more" if more > 0 else "")


def _timestamp(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _age(since: datetime.timedelta) -> str:
    if since.days:
        return f"{since.days} days"
    return f"{since.total_seconds() / 3600:.1f} hours"


def _read_certificate(host: str, port: int) -> Certificate | None:
    """The certificate that a server presents, verified or not; nothing is sent over this connection."""
    try:
        with socket.create_connection((host, port), READ_TIMEOUT_S) as plain:
            return read_certificate(plain, host)
    except OSError:
        return None


def read_certificate(plain: socket.socket, host: str) -> Certificate | None:
    """The certificate that is presented over a connection, verified or not; nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            der = secure.getpeercert(binary_form=True)
        return parse_der(der) if der else None
    except (OSError, ValueError):
        return None
