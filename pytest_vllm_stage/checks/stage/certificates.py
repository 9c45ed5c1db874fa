"""When the certificates of a stage expire."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterable, Mapping

from pytest_vllm_stage.core.certificates import Certificate, parse_pem
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

#: A certificate that expires sooner is reported: renewal is overdue, and a restart may load it. One for a day or a week
#: is always near its end: cert-manager renews it after two thirds of its validity.
SHORTEST_REMAINING, SHORTEST_SHARE = datetime.timedelta(days=7), 0.2


def check_secrets(secrets: Iterable[Object], now: datetime.datetime) -> list[str]:
    """Report the TLS Secrets whose certificate has expired or expires soon."""
    lines = []
    for item in secrets:
        if item.get("type") != "kubernetes.io/tls":
            continue
        found = parse_pem(_decoded(item.get("data") or {}))
        lines += _describe_expiry(f"secret {objects.name_of(item)}", found, now) if found else []
    return lines


def _decoded(data: Mapping[str, str]) -> bytes:
    try:
        return base64.b64decode(data.get("tls.crt", ""))
    except ValueError:
        return b""


def _describe_expiry(name: str, found: Certificate, now: datetime.datetime) -> list[str]:
    """One line where the certificate has expired or expires soon."""
    expires = found.not_after
    left = expires - now
    if left > min(SHORTEST_REMAINING, SHORTEST_SHARE * (expires - found.not_before)):
        return []
    when = expires.strftime("%Y-%m-%dT%H:%M:%SZ")
    if left <= datetime.timedelta():
        return [f"{name}: its certificate expired at {when}"]
    return [f"{name}: its certificate expires at {when}, in {left.total_seconds() / 3600:.0f} hours"]
