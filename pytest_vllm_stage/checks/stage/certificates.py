"""When certificates expire, read with the standard library alone."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Iterable, Iterator, Mapping

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

#: A certificate that expires sooner is reported: renewal is overdue, and a restart may load it.
SHORTEST_REMAINING = datetime.timedelta(days=7)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _CONTEXT_0, _UTC_TIME = 0x30, 0xA0, 0x17


def check_secrets(secrets: Iterable[Object], now: datetime.datetime) -> list[str]:
    """Report the TLS Secrets whose certificate has expired or expires soon."""
    lines = []
    for item in secrets:
        if item.get("type") != "kubernetes.io/tls":
            continue
        found = expiry_of(_decoded(item.get("data") or {}))
        lines += describe_expiry(f"secret {objects.name_of(item)}", found, now) if found else []
    return lines


def _decoded(data: Mapping[str, str]) -> bytes:
    try:
        return base64.b64decode(data.get("tls.crt", ""))
    except ValueError:
        return b""


def describe_expiry(name: str, expires: datetime.datetime, now: datetime.datetime) -> list[str]:
    """One line where the certificate has expired or expires soon."""
    left = expires - now
    if left > SHORTEST_REMAINING:
        return []
    when = expires.strftime("%Y-%m-%dT%H:%M:%SZ")
    if left <= datetime.timedelta():
        return [f"{name}: its certificate expired at {when}"]
    return [f"{name}: its certificate expires at {when}, in {left.total_seconds() / 3600:.0f} hours"]


def expiry_of(pem: bytes) -> datetime.datetime | None:
    """The end of the first certificate's validity; None where the text holds none that can be read."""
    match = _PEM.search(pem)
    if match is None:
        return None
    try:
        return _not_after(base64.b64decode(match[1]))
    except (ValueError, IndexError, StopIteration):
        return None


def _not_after(der: bytes) -> datetime.datetime:
    """``Certificate.tbsCertificate.validity.notAfter`` (RFC 5280, section 4.1)."""
    _, certificate = next(_elements(der))
    _, body = next(_elements(certificate))
    fields = [(tag, value) for tag, value in _elements(body) if tag != _CONTEXT_0]
    # serialNumber, signature, issuer, validity
    tag, validity = fields[3]
    if tag != _SEQUENCE:
        raise ValueError("not a certificate")
    kind, text = list(_elements(validity))[1]
    form = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.datetime.strptime(text.decode("ascii"), form).replace(tzinfo=datetime.UTC)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of a DER sequence."""
    position = 0
    while position < len(der):
        tag, length = der[position], der[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[position : position + size], "big")
            position += size
        yield tag, der[position : position + length]
        position += length
