"""What a certificate states, read with the standard library alone, which parses only certificates that it trusts."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _CONTEXT_0, _CONTEXT_3, _OCTET_STRING, _UTC_TIME = 0x30, 0xA0, 0xA3, 0x04, 0x17
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
_COMMON_NAME, _ALTERNATIVE_NAMES = b"\x55\x04\x03", b"\x55\x1d\x11"


@dataclass(frozen=True)
class Certificate:
    """A certificate.

    Attributes:
        subject: The common name of its owner; empty where it has none.
        issuer: The common name of the authority that signed it; empty where it has none.
        not_before: When its validity begins.
        not_after: When its validity ends.
        hosts: The DNS names and IP addresses that it is valid for.
    """

    subject: str
    issuer: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    hosts: tuple[str, ...]


def split_pem(text: bytes) -> list[bytes]:
    """The PEM blocks of certificates in a text, without what is between them."""
    return _PEM.findall(text)


def parse_pem(text: bytes) -> Certificate | None:
    """The first certificate of a PEM text; None where it holds none that can be read."""
    blocks = split_pem(text)
    if not blocks:
        return None
    try:
        return parse_der(base64.b64decode(b"".join(blocks[0].splitlines()[1:-1])))
    except ValueError:
        return None


def parse_der(der: bytes) -> Certificate:
    """A certificate as it is sent (RFC 5280, section 4.1).

    Raises:
        ValueError: it is not one.
    """
    try:
        return _parse(der)
    except (IndexError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError(f"not a certificate: {error}") from None


def _parse(der: bytes) -> Certificate:
    _, certificate = next(_elements(der))
    _, body = next(_elements(certificate))
    # serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, extensions; the version is optional
    fields = [(tag, value) for tag, value in _elements(body) if tag != _CONTEXT_0]
    if fields[3][0] != _SEQUENCE:
        raise ValueError("not a certificate")
    not_before, not_after = (_parse_time(tag, value) for tag, value in _elements(fields[3][1]))
    extensions = next((value for tag, value in fields[6:] if tag == _CONTEXT_3), b"")
    return Certificate(
        _find_common_name(fields[4][1]),
        _find_common_name(fields[2][1]),
        not_before,
        not_after,
        tuple(_find_hosts(extensions)),
    )


def _parse_time(tag: int, value: bytes) -> datetime.datetime:
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.datetime.strptime(value.decode("ascii"), form).replace(tzinfo=datetime.UTC)


def _find_common_name(name: bytes) -> str:
    for _, relative in _elements(name):
        for _, attribute in _elements(relative):
            (_, kind), (_, value) = _elements(attribute)
            if kind == _COMMON_NAME:
                return value.decode("utf-8", "replace")
    return ""


def _find_hosts(extensions: bytes) -> Iterator[str]:
    for _, listed in _elements(extensions):
        for _, extension in _elements(listed):
            (_, kind), *_, (tag, value) = _elements(extension)
            if kind != _ALTERNATIVE_NAMES or tag != _OCTET_STRING:
                continue
            _, names = next(_elements(value))
            for name_kind, name in _elements(names):
                if name_kind == _DNS_NAME:
                    yield name.decode("ascii", "replace")
                elif name_kind == _IP_ADDRESS:
                    yield str(ipaddress.ip_address(name))


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
