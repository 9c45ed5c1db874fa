"""Error texts of other programs in short, readable words: pure functions over text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

_S3_ERROR = re.compile(r"(?:<\?xml[^>]*\?>\s*)?<Error>.*?<Code>([^<]*)</Code>(.*?)(?:</Error>|$)", re.DOTALL)
_S3_MESSAGE = re.compile(r"<Message>([^<]*)(?:</Message>|$)")
_HTML = re.compile(
    r"(?:<!DOCTYPE[^>]*>\s*)?<html.*?(?:<title>([^<]*)</title>.*)?(?:</html>|$)", re.DOTALL | re.IGNORECASE
)
#: The last line of a traceback: an exception's class, with or without its module, and its message.
_EXCEPTION = re.compile(
    r"^\s*(?:Value error, |(?:[\w]+\.)*[A-Z]\w*(?:Error|Exception|Refused|Timeout|Exit|Interrupt|Failure)\b).*"
)
#: Pydantic states its reasons below this line, each with the rejected input behind it.
_VALIDATION = re.compile(r"\b\d+ validation errors? for \w+$")
_REJECTED_INPUT = re.compile(r"\s*\[type=\w+, input_value=.*")
#: Pydantic names a rejected field on the line above the reason.
_FIELD = re.compile(r"[A-Za-z_][\w.]*")
_ERROR_LINE = re.compile(
    r"\b(?:error|fatal|panic|failed|cannot|denied|refused|no such|not found|unable to|died unexpectedly)\b",
    re.IGNORECASE,
)
#: What container runtimes and the kubelet put before the cause.
_LAYERS = re.compile(
    r"unable to start container process: |(?:runc|crun) (?:create|exec|start) failed: |probe errored[^:]*: |"
    r"error running (?:\w+ )*hook(?: #\d+)?: (?s:.*?)stderr: (?:Auto-detected mode as '\w+'\s*)?"
)
#: What gRPC, the kubelet and containerd put around the cause of an image that cannot be pulled or a failed call.
_WRAPPERS = re.compile(
    r'Back-off pulling image "[^"]*"(?:: ErrImagePull)?: |rpc error: code = \w+ desc = |failed to pull and unpack '
    r'image "[^"]*": |failed to resolve (?:reference|image) "[^"]*": |failed to extract layer \S+: |failed to copy: |'
    r"httpReadSeeker: failed open: |failed to do request: |failed to authorize: |failed to fetch \w+ token: |"
    r"(?:unable to pull image or OCI artifact|initializing source \S+|reading manifest \S+ in \S+): |"  # CRI-O's
    r"(?s:Mounting command: .*?Output: )"
)
_FULL_DISK = re.compile(
    r"(?:write|mkdir|open|link|symlink|copy_file_range:?) /\S*/(\S+): no space left on device(?:: unknown)?"
)
_OTHER_PLATFORM = re.compile(
    r"no match for platform in manifest|no image found in (?:manifest list|image index) for architecture \S+"
)
#: What OpenShift lists before the one constraint that explains anything.
_UNUSABLE = r'provider "?[\w-]+"?: Forbidden: not usable by user or serviceaccount'
_UNUSABLE_CONSTRAINTS = re.compile(rf"{_UNUSABLE}, |, {_UNUSABLE}")
_ELSEWHERE = re.compile(r"See (?:root cause above|stack trace (?:\(above\)|for the root cause))")
_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)?(?:(?:ERROR|WARNING|INFO|CRITICAL)\s+\S+\s+\S+\s+\[[^\]]*\]\s*)?")


def humanize(text: str) -> str:
    """The text with S3's XML answers as code and message, HTML pages as their title, and without nested prefixes."""
    text = _S3_ERROR.sub(_describe_s3_error, _WRAPPERS.sub("", _UNUSABLE_CONSTRAINTS.sub("", text)))
    return _HTML.sub(lambda match: f"an HTML page{f' ({match[1].strip()})' if match[1] else ''}", text)


def _describe_s3_error(match: re.Match[str]) -> str:
    message = _S3_MESSAGE.search(match[2])
    return f"{match[1]}: {message[1]}" if message and message[1] else match[1]


def without_log_prefix(line: str) -> str:
    """A vLLM log line without its prefix (process, level, time, source)."""
    return _PREFIX.sub("", line)


def is_exception(line: str) -> bool:
    """Whether a line without its log prefix is the last of a traceback, and names a cause itself."""
    return bool(_EXCEPTION.search(line)) and not _ELSEWHERE.search(line)


def last_error(lines: Iterable[str], longest: int = 240) -> str:
    """The line of a log that states the error: a traceback's last, else the last that reads like one; or empty."""
    read = [without_log_prefix(line).strip() for line in lines]
    # vLLM's last line names no cause where its engine's process ended.
    read = [line for line in read if not _ELSEWHERE.search(line)] or read
    if rejected := _describe_rejected_field(read):
        return rejected
    read = [_REJECTED_INPUT.sub("", line) for line in read if not _VALIDATION.search(line)] or read
    for pattern in (_EXCEPTION, _ERROR_LINE):
        found = [line for line in read if pattern.search(line)]
        if found:
            flat = " ".join(humanize(found[-1]).split())
            return flat if len(flat) <= longest else flat[: longest - 1] + "…"
    return ""


def _describe_rejected_field(lines: Sequence[str]) -> str:
    """The field that pydantic rejects last, with the reason but without the value; empty where it rejects none."""
    found = [
        f"{field}: {_REJECTED_INPUT.sub('', reason)}"
        for field, reason in pairwise(lines)
        if _FIELD.fullmatch(field) and _REJECTED_INPUT.search(reason)
    ]
    return found[-1] if found else ""


def innermost(message: str) -> str:
    """The cause at the end of a container runtime's chain of errors, without the outer layers."""
    cause = _LAYERS.split(message)[-1]
    return cause.removesuffix(": unknown").strip() or message


def describe_pull_error(message: str) -> str:
    """Why an image cannot be pulled, with the two causes in words that are not the registry's."""
    text = humanize(message)
    if full := _FULL_DISK.search(text):
        return f"the node's disk is full: {full[1]}: no space left on device"
    if other := _OTHER_PLATFORM.search(text):
        return f"it has no variant for the node's processor: {other[0].rstrip(',')}"
    return text


def describe_config_error(message: str) -> str | None:
    """A kubelet's message about a missing Secret, ConfigMap or key, in the runbook's terms."""
    match = re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:[^/\s]+/)?(\S+)", message)
    if match:
        return f'{match[2].lower()} {match[3]} has no key "{match[1]}"'
    match = re.search(r'(secret|configmap) "([^"]+)" not found', message, re.IGNORECASE)
    return f"{match[1].lower()} {match[2]} does not exist" if match else None
