"""Who sent an HTTP answer: the server that was asked, or something in front of it. Pure functions over plain data."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

MAX_EXCERPT = 200
_REASON_HEADER = "x-ext-auth-reason"
_LINKERD_HEADER = "l5d-proxy-error"
_IAP_HEADER = "x-goog-iap-generated-response"
_BY_HEADER = {
    _REASON_HEADER: "the gateway's authorization service (Authorino)",
    _LINKERD_HEADER: "the service mesh's proxy (Linkerd)",
    _IAP_HEADER: "Google's Identity-Aware Proxy",
}
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_SHOWN = re.compile(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>|[\x00-\x1f\x7f-\x9f]+")
_TITLE = re.compile(r"(?is)<title>([^<]*)</title>")
_LOGIN_PATH = re.compile(r"(?i)/(oauth2?|auth|authorize|login|sign_?in|sso|saml2?)\b")
_LOGIN_PAGE = re.compile(r"(?i)log ?in with|sign ?in with|oauth[-_ ]?proxy|/oauth2?/(start|sign_in)|type=.password")
#: Pages of oauth-proxy and oauth2-proxy for a user that they know.
_DENIED_PAGE = re.compile(r"(?i)403 permission denied|do not have permission to access|invalid account")
_OAUTH2_PROXY = re.compile(r"(?i)oauth2 proxy|oauth2-proxy")
_ENVOY = re.compile(
    r"(?i)^(RBAC: access denied|no healthy upstream|no_?healthy_?upstream|upstream connect error|"
    r"upstream request timeout|upstream max stream duration|stream timeout|local_rate_limited|fault filter abort|"
    r"Jwt |Jwks |Audiences in Jwt)"
)
#: A mesh may be configured to wrap Envoy's text, in JSON or in a page.
_WRAPPED_ENVOY = re.compile(r"(?i)\bRBAC: access denied\b|\bno healthy upstream\b")
_CILIUM = re.compile(r"Access denied\r?\n?$")
_KNATIVE = re.compile(r"^(pending request queue full|activator request timeout|activator overload)")
#: Gateways that name themselves in their own answers alone, and pass on the server's name in those of a server.
_SELF_NAMING = re.compile(r"(?i)^(kong|apisix)\b")
#: Senders of refusals, by a header that only their own answers have.
_BY_HEADER_OF_REFUSALS = {
    "x-amzn-errortype": "the API manager (AWS)",
    "cf-mitigated": "a firewall (Cloudflare)",
    "x-squid-error": "a forward proxy (Squid)",
}
#: API managers, which ask for keys of their own, by their own words.
_API_MANAGER_TEXTS = (
    (re.compile(r"^(Authentication failed|Authentication parameters missing|No Mapping Rule matched)\s*$"), "3scale"),
    (re.compile(r"^Limits exceeded\s*$"), "3scale"),
    (re.compile(r'^\{"fault":\s*\{"faultstring"'), "Apigee"),
    (re.compile(r"Access denied due to (missing|invalid) subscription key"), "Azure API Management"),
    (re.compile(r"Access to this API has been disallowed|Attempted access with non-?existent (API )?key"), "Tyk"),
)
_CLOUDFLARE = re.compile(r"^error code: 1\d{3}\s*$")
_TLS_PORT = re.compile(r"(?i)^Client sent an HTTP request to an HTTPS server|plain HTTP request was sent to HTTPS port")
_KUBE_RBAC = re.compile(r"(?i)^(Forbidden \(user=|Authorization error \(user=)")
#: Go's plain text, of kube-rbac-proxy and of other proxies that authenticate.
_UNAUTHORIZED = re.compile(r"(?i)^(401 )?Unauthorized\s*$")
_API_STATUS = re.compile(r'"kind"\s*:\s*"Status"')

#: Pages that HAProxy, and so OpenShift's router, sends itself.
_HAPROXY = re.compile(
    r"(The server returned an invalid or incomplete response|No server is available to handle this request|"
    r"The server didn't respond in time|Request forbidden by administrative rules|"
    r"You have sent too many requests in a given amount of time|Your browser sent an invalid request|"
    r"The request entity exceeds the maximum allowed)\.\s*</body>"
)
#: A 400 for headers that are longer than a limit: of nginx, of Apache, and of HAProxy, which says no more.
_LONG_HEADERS = re.compile(
    r"(?i)request header or cookie too large|request header field exceeds|your browser sent an invalid request"
)
#: Go's plain text, of kube-rbac-proxy and of other proxies.
_GO_LONG_HEADERS = re.compile(r"^431 Request Header Fields Too Large\s*$")
_BY_TEXT = (
    (_KNATIVE, "Knative, which queues requests,"),
    *((pattern, f"the API manager ({product})") for pattern, product in _API_MANAGER_TEXTS),
    (_KUBE_RBAC, "kube-rbac-proxy"),
    (_CLOUDFLARE, "a firewall (Cloudflare)"),
    (_GO_LONG_HEADERS, "a proxy written in Go (kube-rbac-proxy or similar)"),
)


class GatewayRefusal(StrEnum):
    """Why a gateway did not forward a request to the server."""

    LOGIN = "login"
    FORBIDDEN = "forbidden"
    UNAVAILABLE = "unavailable"
    NO_ROUTE = "no route"
    LARGE_HEADERS = "large headers"
    LARGE_BODY = "large body"
    OTHER = "other"


#: What Envoy's filter for JSON Web Tokens sends, to the refusal and to what helps; a text that is not listed is about
#: the token itself: it is missing, has expired, or is not one.
#: https://github.com/google/jwt_verify_lib/blob/master/src/status.cc
_TOKEN_TEXTS: tuple[tuple[re.Pattern[str], GatewayRefusal, str], ...] = (
    (
        re.compile(r"Jwks (remote fetch|is an invalid|doesn't have any|have no)"),
        GatewayRefusal.UNAVAILABLE,
        "the mesh has no keys of its token issuer: can istiod reach the jwksUri of the RequestAuthentication?",
    ),
    (
        re.compile(r"Audiences in Jwt|Jwt issuer is not configured|Jwks doesn't have key"),
        GatewayRefusal.FORBIDDEN,
        "the token is for another audience or from another issuer than the mesh's RequestAuthentication accepts",
    ),
    (
        re.compile(r"Jwt is not yet valid"),
        GatewayRefusal.FORBIDDEN,
        "the token is not valid yet: compare the clocks of its issuer and of the mesh's nodes",
    ),
    (re.compile(r"Jw(t|ks) "), GatewayRefusal.LOGIN, ""),
)


_SIZE_ADVICE = {
    GatewayRefusal.LARGE_HEADERS: (
        "the request's headers may be longer than it accepts, by a long token for example: raise its limit (nginx: "
        "large_client_header_buffers; OpenShift's IngressController: tuningOptions.headerBufferBytes)"
    ),
    GatewayRefusal.LARGE_BODY: (
        "the request's body is larger than it accepts, as long prompts are: raise its limit (nginx: "
        "client_max_body_size, annotation nginx.ingress.kubernetes.io/proxy-body-size)"
    ),
}


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
        """The body's text in one line, without markup or control characters; Authorino and Linkerd use a header."""
        shown = (
            self.body if self.body.strip() else self.headers.get(_REASON_HEADER, self.headers.get(_LINKERD_HEADER, ""))
        )
        text = " ".join(html.unescape(_NOT_SHOWN.sub(" ", shown)).split())
        if not text and (title := _TITLE.search(shown)):
            text = " ".join(html.unescape(title[1]).split())
        return text if len(text) <= MAX_EXCERPT else text[:MAX_EXCERPT] + "..."


@dataclass(frozen=True)
class Gateway:
    """The sender of an answer, when it is not the server that was asked.

    Attributes:
        name: For the reader of an error.
        refusal: Why it did not forward the request.
        advice: What helps where credentials are not at fault; empty where the sender does not say.
    """

    name: str
    refusal: GatewayRefusal
    advice: str = ""


def identify_gateway(answer: HttpAnswer) -> Gateway | None:
    """The gateway that sent an answer instead of the server; None where the server itself may have sent it."""
    if answer.status == 400 and _TLS_PORT.search(answer.body):
        return Gateway("a port that speaks TLS", GatewayRefusal.OTHER, "the URL must begin with https")
    name = _describe_redirect(answer) or _name(answer)
    if not name:
        return None
    for pattern, refusal, advice in _TOKEN_TEXTS:
        if answer.status in (401, 403) and pattern.match(answer.body.lstrip()):
            return Gateway(name, refusal, advice)
    refusal = _refusal(answer, name)
    return Gateway(name, refusal, _advise(name, refusal))


def leads_to_https(answer: HttpAnswer, url: str) -> bool:
    """The answer redirects a request over http to https on the same host."""
    asked, target = urlsplit(url), urlsplit(answer.headers.get("location", ""))
    same = asked.hostname == target.hostname
    return answer.status in _REDIRECTS and (asked.scheme, target.scheme) == ("http", "https") and same


def explain_silence(error: Exception, url: str) -> str:
    """What helps where a connection was neither accepted nor refused; empty for any other error.

    Args:
        error: Of httpx or botocore, which name it ConnectTimeout and ConnectTimeoutError.
        url: What was asked.
    """
    if "ConnectTimeout" not in type(error).__name__:
        return ""
    return (
        f"packets to {urlsplit(url).netloc.rpartition('@')[2]} are dropped, not refused, as a NetworkPolicy or a "
        "firewall does: kubectl get networkpolicies -A"
    )


def _describe_redirect(answer: HttpAnswer) -> str:
    if answer.status not in _REDIRECTS:
        return ""
    target = urlsplit(answer.headers.get("location", ""))
    place = f"{target.netloc.rpartition('@')[2]}{target.path}" or "an unnamed place"
    return f"a redirect to {place[:MAX_EXCERPT]}"


def _name(answer: HttpAnswer) -> str:
    """The gateway's name, by text that only it sends; empty for any other answer."""
    server = answer.headers.get("server", "").strip()
    if name := _name_by_header(answer):
        return name
    if _is_html(answer) and (page := _name_by_page(answer)):
        return page
    if answer.status >= 400 and (name := _name_by_text(answer, server)):
        return name
    # Envoy names itself in every answer that it passes on, and adds this header to those of the server behind it.
    if "envoy" in server.lower() and answer.status >= 400 and "x-envoy-upstream-service-time" not in answer.headers:
        return f"the service mesh's proxy ({server})"
    if _is_html(answer):
        return f"a web server ({server.split('/')[0]})" if server else "a web page"
    return ""


def _name_by_header(answer: HttpAnswer) -> str:
    for header, name in _BY_HEADER.items():
        if header in answer.headers:
            return name
    for header, name in _BY_HEADER_OF_REFUSALS.items():
        if header in answer.headers and answer.status >= 400:
            return name
    return "a forward proxy" if answer.status == 407 else ""


def _name_by_page(answer: HttpAnswer) -> str:
    if _OAUTH2_PROXY.search(answer.body):
        return "a page of oauth2-proxy"
    if _LOGIN_PAGE.search(answer.body):
        return "a login page (oauth-proxy or similar)"
    if answer.status == 503 and "Application is not available" in answer.body:
        return "the OpenShift router"
    return "HAProxy, which OpenShift's router is" if answer.status >= 400 and _HAPROXY.search(answer.body) else ""


def _name_by_text(answer: HttpAnswer, server: str) -> str:
    text = answer.body.lstrip()
    if _ENVOY.match(text) or (answer.status in (403, 503) and _WRAPPED_ENVOY.search(text)):
        return f"the service mesh's proxy ({server or 'envoy'})"
    if answer.status == 403 and _CILIUM.match(text):
        return "the service mesh's proxy (Cilium's Envoy)"
    if _SELF_NAMING.match(server):
        return f"the API gateway ({server})"
    if _UNAUTHORIZED.match(text) and "envoy" not in server.lower():
        return "an authenticating proxy (kube-rbac-proxy or similar)"
    if text.startswith("{") and _API_STATUS.search(text):
        return "the Kubernetes API server"
    return next((name for pattern, name in _BY_TEXT if pattern.search(text)), "")


def _is_html(answer: HttpAnswer) -> bool:
    return "html" in answer.headers.get("content-type", "") or bool(re.match(r"(?i)\s*<(!doctype|html)\b", answer.body))


def _refusal(answer: HttpAnswer, name: str = "") -> GatewayRefusal:
    if answer.status in (401, 403, 407) and ("API manager" in name or "forward proxy" in name):
        return GatewayRefusal.FORBIDDEN
    if answer.status == 413:
        return GatewayRefusal.LARGE_BODY
    if answer.status == 431 or (answer.status == 400 and _LONG_HEADERS.search(answer.body)):
        return GatewayRefusal.LARGE_HEADERS
    location = answer.headers.get("location", "")
    if answer.status in _REDIRECTS:
        return GatewayRefusal.LOGIN if _LOGIN_PATH.search(location) else GatewayRefusal.OTHER
    if answer.status == 403 and _is_html(answer) and _DENIED_PAGE.search(answer.body):
        return GatewayRefusal.FORBIDDEN
    if answer.status == 401 or (answer.status < 404 and _is_html(answer) and _LOGIN_PAGE.search(answer.body)):
        return GatewayRefusal.LOGIN
    if answer.status == 403:
        # kube-rbac-proxy and the API server name the user that they saw: without credentials, this one.
        return GatewayRefusal.LOGIN if "system:anonymous" in answer.body else GatewayRefusal.FORBIDDEN
    if answer.status == 404:
        return GatewayRefusal.NO_ROUTE
    return GatewayRefusal.UNAVAILABLE if answer.status >= 500 or answer.status == 429 else GatewayRefusal.OTHER


#: Part of a name to what lets a client in that the sender knows and refuses.
_ADVICE = (
    (
        "forward proxy",
        "a proxy between this machine and the server refuses it: HTTP_PROXY, HTTPS_PROXY and NO_PROXY here",
    ),
    (
        "API manager",
        "it asks for a key or a plan of its own, and not for the server's token: its administrator knows which",
    ),
    ("Linkerd", "an AuthorizationPolicy of Linkerd must allow this client: linkerd viz authz"),
    ("Cilium", "a CiliumNetworkPolicy with HTTP rules must allow this request"),
    ("mesh", "an AuthorizationPolicy of the mesh must allow this client; its administrator knows which"),
    ("Authorino", "the AuthPolicy (AuthConfig) of this host must allow the token's user; its reason is above"),
    ("rbac", "a RoleBinding must allow this user what the answer names"),
    ("API server", "a RoleBinding must allow this user what the answer names"),
    ("HAProxy", "the router denies this client: annotation haproxy.router.openshift.io/ip_whitelist of the Route"),
)
_NO_ACCESS = "this client has no access: ask who administers what answered"


def _advise(name: str, refusal: GatewayRefusal) -> str:
    """How to let a client in that is known and has no access, or whose request is too large."""
    if refusal in _SIZE_ADVICE:
        return _SIZE_ADVICE[refusal]
    if refusal is GatewayRefusal.NO_ROUTE and "Authorino" in name:
        return "no AuthConfig of Authorino is for this host: kubectl get authconfigs -A"
    if refusal is not GatewayRefusal.FORBIDDEN:
        return ""
    return next((advice for part, advice in _ADVICE if part in name), _NO_ACCESS)
