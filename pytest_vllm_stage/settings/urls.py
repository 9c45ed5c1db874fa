"""URLs that a person gave: checked, and repeated in no message where they might hold a credential."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from pytest_vllm_stage.core.errors import ConfigError

#: What is behind a server's root: a URL that ends in one of these is one call's, not a server's.
_ROUTES = ("/chat/completions", "/completions", "/models", "/embeddings", "/health", "/metrics", "/docs")


#: The role of a plain server at ``--stage-endpoint``: a profile's model cannot have its name.
ENDPOINT_ROLE = "endpoint"
#: Names the model of the profile that a server serves, before its URL.
_ROLE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(?=https?:)")


def parse_url(url: str, source: str, *, form: str, token: str) -> SplitResult:
    """Take a server's URL apart.

    Args:
        url: What was given.
        source: Where it was given, for the error.
        form: The valid form, for the error.
        token: The environment variable that a credential belongs into.

    Raises:
        ConfigError: it is not the http or https URL of a server, or holds a credential.
    """
    if "@" in url or "?" in url or "#" in url:
        raise ConfigError(f"{source}: put credentials into {token}, not into the URL (not shown); valid: {form}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not _is_plain(url):
        raise ConfigError(f"{source}: {url!r} is not the URL of a server; valid: {form}")
    return parts


def _is_plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url


def normalise_endpoint(url: str, source: str) -> str:
    """The root of an OpenAI-compatible server, without the ``/v1`` that clients are configured with.

    A path in front of ``/v1`` stays: a gateway serves several servers under one name.

    Raises:
        ConfigError: see `parse_url`; or it is the URL of one call.
    """
    form = "http[s]://host[:port][/prefix][/v1]"
    parts = parse_url(url, source, form=form, token="VLLM_STAGE_API_KEY")  # noqa: S106 - a variable's name
    path = parts.path.rstrip("/")
    for route in _ROUTES:
        if path.endswith(route):
            raise ConfigError(f"{source}: {url!r} is the URL of one call, not of a server; valid: {form}")
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix('/v1').rstrip('/')}"


def normalise_endpoints(text: str, source: str) -> str:
    """One server, or one for each model: ``ROLE=URL,ROLE=URL``.

    Raises:
        ConfigError: see `normalise_endpoint`; or a role is missing or repeated.
    """
    if not _ROLE.match(text):
        return normalise_endpoint(text, source)
    servers: dict[str, str] = {}
    for number, part in enumerate(text.split(","), 1):
        found = _ROLE.match(part.strip())
        if found is None:
            raise ConfigError(f"{source}: server {number}: expected ROLE=URL with a role of the profile")
        if found[1] in servers:
            raise ConfigError(f"{source}: role {found[1]!r} is given twice")
        servers[found[1]] = normalise_endpoint(part.strip()[found.end() :], source)
    return ",".join(f"{role}={url}" for role, url in servers.items())


def split_endpoints(text: str) -> Mapping[str, str]:
    """Role to the root of its server, of a text that `normalise_endpoints` returned."""
    if not _ROLE.match(text):
        return {ENDPOINT_ROLE: text}
    return {role: url for role, _, url in (part.partition("=") for part in text.split(","))}


def check_registry_url(url: str, source: str) -> None:
    """Refuse what is not the root of a Model Registry."""
    form = "http[s]://host[:port]"
    parts = parse_url(url, source, form=form, token="VLLM_STAGE_REGISTRY_TOKEN")  # noqa: S106 - a variable's name
    if parts.path.strip("/"):
        raise ConfigError(f"{source}: {url!r} is not the URL of a server: it has a path; valid: {form}")


def check_gpu_metrics_url(url: str, source: str) -> None:
    """Refuse what is neither a metrics page nor the root of a Prometheus."""
    form = "http[s]://host:port[/metrics]"
    parse_url(url, source, form=form, token="VLLM_STAGE_GPU_METRICS_TOKEN")  # noqa: S106 - a variable's name
