"""Error texts of other programs in short, readable words: pure functions over text."""

from __future__ import annotations

import re
from collections.abc import Iterable

_S3_ERROR = re.compile(r"(?:<\?xml[^>]*\?>\s*)?<Error>.*?<Code>([^<]*)</Code>(.*?)(?:</Error>|$)", re.DOTALL)
_S3_MESSAGE = re.compile(r"<Message>([^<]*)(?:</Message>|$)")
_HTML = re.compile(
    r"(?:<!DOCTYPE[^>]*>\s*)?<html.*?(?:<title>([^<]*)</title>.*)?(?:</html>|$)", re.DOTALL | re.IGNORECASE
)
#: The last line of a traceback: an exception's class, with or without its module, and its message.
_EXCEPTION = re.compile(r"^\s*(?:[\w]+\.)*[A-Z]\w*(?:Error|Exception|Refused|Timeout|Exit|Interrupt|Failure)\b.*")
_ERROR_LINE = re.compile(r"\b(?:error|fatal|panic|failed|cannot|denied|refused|no such)\b", re.IGNORECASE)
#: What container runtimes and the kubelet put before the cause.
_LAYERS = re.compile(
    r"unable to start container process: |(?:runc|crun) (?:create|exec|start) failed: |probe errored[^:]*: |rpc error: "
)
_ELSEWHERE = "See root cause above"
_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)?(?:(?:ERROR|WARNING|INFO|CRITICAL)\s+\S+\s+\S+\s+\[[^\]]*\]\s*)?")


def humanize(text: str) -> str:
    """The text with S3's XML answers as code and message, and HTML pages as their title."""
    text = _S3_ERROR.sub(_describe_s3_error, text)
    return _HTML.sub(lambda match: f"an HTML page{f' ({match[1].strip()})' if match[1] else ''}", text)


def _describe_s3_error(match: re.Match[str]) -> str:
    message = _S3_MESSAGE.search(match[2])
    return f"{match[1]}: {message[1]}" if message and message[1] else match[1]


def without_log_prefix(line: str) -> str:
    """A vLLM log line without its prefix (process, level, time, source)."""
    return _PREFIX.sub("", line)


def last_error(lines: Iterable[str], longest: int = 240) -> str:
    """The line of a log that states the error: a traceback's last, else the last that reads like one; or empty."""
    read = [without_log_prefix(line).strip() for line in lines]
    # vLLM's last line names no cause where its engine's process ended.
    read = [line for line in read if _ELSEWHERE not in line] or read
    for pattern in (_EXCEPTION, _ERROR_LINE):
        found = [line for line in read if pattern.search(line)]
        if found:
            flat = " ".join(humanize(found[-1]).split())
            return flat if len(flat) <= longest else flat[: longest - 1] + "…"
    return ""


def innermost(message: str) -> str:
    """The cause at the end of a container runtime's chain of errors, without the outer layers."""
    cause = _LAYERS.split(message)[-1]
    return cause.removesuffix(": unknown").strip() or message


def describe_config_error(message: str) -> str | None:
    """A kubelet's message about a missing Secret, ConfigMap or key, in the runbook's terms."""
    match = re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:[^/\s]+/)?(\S+)", message)
    if match:
        return f'{match[2].lower()} {match[3]} has no key "{match[1]}"'
    match = re.search(r'(secret|configmap) "([^"]+)" not found', message, re.IGNORECASE)
    return f"{match[1].lower()} {match[2]} does not exist" if match else None
