"""Where a run's results are stored: ``s3://test-results/<model>/<version>/<run>/``."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

from pytest_vllm_stage.core.errors import ConfigError

MANIFEST = "manifest.json"
#: Written after the registry has the numbers; a complete upload without it is an interrupted publication.
PUBLISHED = "published.json"


def build_prefix(model: str, version: str, run: str = "") -> str:
    """The common start of the keys of a run, or, without one, of all runs of the version."""
    parts = [part for part in (model, version, run) if part]
    return "/".join(map(_part, parts)) + "/"


def _part(text: str) -> str:
    """A part of a key: a name must neither add a level nor be a relative path."""
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")


def parse_run(key: str, version_prefix: str) -> str:
    """The run that a key under `build_prefix` a version belongs to; empty for a key outside any run."""
    run, slash, _ = key.removeprefix(version_prefix).partition("/")
    return unquote(run) if slash else ""


def build_uri(bucket: str, prefix: str) -> str:
    """The URI that the registry holds."""
    return f"s3://{bucket}/{prefix}"


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix.

    Raises:
        ConfigError: it does not have the form of `build_uri`.
    """
    parts = urlsplit(uri)
    prefix = uri.removeprefix(f"s3://{parts.netloc}/")
    if parts.scheme != "s3" or not parts.netloc or not prefix.strip("/") or not prefix.endswith("/"):
        raise ConfigError(f"artifact URI {uri!r}: must be s3://<bucket>/<model>/<version>/<run>/")
    return parts.netloc, prefix
