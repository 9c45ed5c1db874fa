"""Who sent an HTTP answer: the server that was asked, or something in front of it. Pure functions over plain data."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

MAX_EXCERPT = 200
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_SHOWN = re.compile(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>|[\x00-\x1f\x7f-\x9f]+")
_LOGIN_PATH = re.compile(r"(?i)/(oauth2?|auth|authorize|login|sign_?in|sso|saml2?)\b")
_LOGIN_PAGE = re.compile(r"(?i)log ?in with|sign ?in with|oauth[-_ ]?proxy|/oauth2?/(start|sign_in)|type=.password")
_ENVOY = re.compile(r"(?i)^(RBAC: access denied|no healthy upstream|upstream connect error|upstream request timeout)")
_KUBE_RBAC = re.compile(r"(?i)^(Unauthorized|Forbidden \(user=)")

#: Pages that HAProxy, and so OpenShift's router, sends itself: with status 502, 503 and 504.
_HAPROXY = re.compile(
    r"(The server returned an invalid or incomplete response|No server is available to handle this request|"
    r"The server didn't respond in time)\.\s*</body>"
)


class GatewayRefusal(StrEnum):
    """Why a gateway did not forward a request to the server."""

    LOGIN = "login"
    FORBIDDEN = "forbidden"
    UNAVAILABLE = "unavailable"
    NO_ROUTE = "no route"
    OTHER = "other"


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP answer.

    Attributes:
        status: The HTTP status.
        headers: By lower-case name.
        body: The text, or its beginning.
    """

    status: int
    headers: Mapping[str, str]
    body: str = ""

    @property
    def excerpt(self) -> str:
        """The body's text in one line, without markup or control characters."""
        text = " ".join(html.unescape(_NOT_SHOWN.sub(" ", self.body)).split())
        return text if len(text) <= MAX_EXCERPT else text[:MAX_EXCERPT] + "..."


@dataclass(frozen=True)
class Gateway:
    """The sender of an answer, when it is not the server that was asked.

    Attributes:
        name: For the reader of an error.
        refusal: Why it did not forward the request.
    """

    name: str
    refusal: GatewayRefusal


def identify_gateway(answer: HttpAnswer) -> Gateway | None:
    """The gateway that sent an answer instead of the server; None where the server itself may have sent it."""
    name = _redirect(answer) or _name(answer)
    return Gateway(name, _refusal(answer)) if name else None


def _redirect(answer: HttpAnswer) -> str:
    if answer.status not in _REDIRECTS:
        return ""
    target = urlsplit(answer.headers.get("location", ""))
    place = f"{target.netloc}{target.path}" or "an unnamed place"
    return f"a redirect to {place[:MAX_EXCERPT]}"


def _name(answer: HttpAnswer) -> str:
    """The gateway's name, by text that only it sends; empty for any other answer."""
    server = answer.headers.get("server", "").strip()
    plain = answer.body.lstrip()
    if "x-ext-auth-reason" in answer.headers:
        return "the gateway's authorization service (Authorino)"
    if _is_html(answer) and _LOGIN_PAGE.search(answer.body):
        return "a login page (oauth-proxy or similar)"
    if answer.status >= 400 and _ENVOY.match(plain):
        return f"the service mesh's proxy ({server or 'envoy'})"
    if answer.status in (401, 403) and _KUBE_RBAC.match(plain):
        return "kube-rbac-proxy"
    if answer.status == 503 and "Application is not available" in answer.body:
        return "the OpenShift router"
    if answer.status >= 500 and _HAPROXY.search(answer.body):
        return "HAProxy, which OpenShift's router is"
    # Envoy names itself in every answer that it passes on, and adds this header to those of the server behind it.
    if "envoy" in server.lower() and answer.status >= 400 and "x-envoy-upstream-service-time" not in answer.headers:
        return f"the service mesh's proxy ({server})"
    if _is_html(answer):
        return f"a web server ({server.split('/')[0]})" if server else "a web page"
    return ""


def _is_html(answer: HttpAnswer) -> bool:
    return "html" in answer.headers.get("content-type", "") or bool(re.match(r"(?i)\s*<(!doctype|html)\b", answer.body))


def _refusal(answer: HttpAnswer) -> GatewayRefusal:
    location = answer.headers.get("location", "")
    if answer.status in _REDIRECTS:
        return GatewayRefusal.LOGIN if _LOGIN_PATH.search(location) else GatewayRefusal.OTHER
    if answer.status == 401 or (_is_html(answer) and _LOGIN_PAGE.search(answer.body)):
        return GatewayRefusal.LOGIN
    if answer.status == 403:
        # kube-rbac-proxy names the user that it saw: without credentials, this one.
        return GatewayRefusal.LOGIN if "system:anonymous" in answer.body else GatewayRefusal.FORBIDDEN
    if answer.status == 404:
        return GatewayRefusal.NO_ROUTE
    return GatewayRefusal.UNAVAILABLE if answer.status >= 500 else GatewayRefusal.OTHER
