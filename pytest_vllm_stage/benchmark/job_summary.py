"""What a benchmark Job says of itself in ``summary.json``, checked before anything is derived from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pytest_vllm_stage.load.guidellm.document import Node, parse_document
from pytest_vllm_stage.measurement.samples import MEASURED_AGAIN

#: Reports become files of the run directory.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_POSITIVE = ("duration_s", "prompt_tokens", "output_tokens", "request_timeout_s")
_WHOLE = ("prompt_tokens", "output_tokens", "warmup_requests", "lead_in")
#: Seconds until a Job that was held was ready, and until it was released: no part of its measurement.
TIMES = ("prepared_s", "held_s")
_HINT = "run the benchmark Job again, or remove what it left: this summary is not one that the Job writes"


def parse_summary(content: bytes, where: str) -> Mapping[str, Any]:
    """Read a summary.

    Args:
        content: The file.
        where: What it is called in errors.

    Raises:
        ConfigError: it is not JSON, a field is missing or cannot be, or two contradict each other; names the field.
    """
    parse_objects(content, where)
    summary = parse_document(content, where, _HINT)
    if not summary.child("model").text():
        summary.child("model").expect("the served model's name")
    for name in _WHOLE:
        if summary.child(name).count_or_none() is None:
            summary.child(name).expect("a whole number from 0")
    for name in _POSITIVE:
        if summary.child(name).number() <= 0:
            summary.child(name).expect("a number above 0")
    for name in TIMES:
        if name in summary.value and summary.child(name).number() < 0:
            summary.child(name).expect("a number from 0")
    steps = list(summary.child("steps").items())
    for step in steps:
        _check_step(step, summary.child("duration_s").number())
    rates = [step.child("request_rate").number() for step in steps]
    if len(set(rates)) < len(rates):
        summary.child("steps").refuse(f"has a rate twice: {rates}")
    found: Mapping[str, Any] = summary.value
    return found


def parse_objects(content: bytes, where: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """A summary before it is checked as a whole, and the SHA-256 of each report that it names.

    Raises:
        ConfigError: it is not JSON, or names its reports in a way that cannot be; names the field.
    """
    summary = parse_document(content, where, _HINT)
    digests = {}
    for step in summary.child("steps").items():
        name, digest = step.child("object"), step.child("sha256")
        if not _NAME.fullmatch(name.text()):
            name.expect("a file's name without a folder")
        if not re.fullmatch("[0-9a-f]{64}", digest.text()):
            digest.expect("64 hexadecimal digits")
        digests[name.text()] = digest.text()
    return summary.value, digests


def _check_step(step: Node, duration_s: float) -> None:
    rate = step.child("request_rate")
    if rate.number() <= 0:
        rate.expect("a number above 0")
    if MEASURED_AGAIN in step.value:
        step.child(MEASURED_AGAIN).text()
    counts = {key: step.child(key).count_or_none() for key in ("samples", "failed", "planned") if key in step.value}
    samples, failed = counts.get("samples"), counts.get("failed")
    if samples is not None and failed is not None and failed > samples:
        step.child("failed").refuse(f"is {failed} of {samples} samples")
    if samples is not None and samples > rate.number() * duration_s + 1:
        step.child("samples").refuse(f"is {samples}, and {rate.value:g} requests/s for {duration_s:g} s are fewer")
