"""The tables of README and docs that come from the code: ``python -m tests.readme_tables`` writes them.

A test holds the documents equal to what is written here, so that an option, a fixture or a room is explained once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

from pytest_vllm_stage.settings.options import OPTIONS, Option
from pytest_vllm_stage.stage.observe.symptoms import SYMPTOMS
from tests.real import drift_faults
from tests.unit.deployment_faults import FAULTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_vllm_stage"
#: Group to the options in it; every option is in exactly one.
GROUPS = {
    "What is validated": ("cluster", "context", "profile", "namespace", "endpoint", "model", "ca_file", "results"),
    "Deployment": ("deploy", "engine", "env_file", "keep", "reuse"),
    "Load and verdicts": (
        "strict",
        "full_duration",
        "find_capacity",
        "disrupt",
        "disrupt_cluster",
        "load_driver",
        "load_from",
        "load_seed",
        "gpu_metrics",
        "baselines",
    ),
    "Results": ("publish", "registry_url", "run_dir", "report", "keep_reports"),
}
#: From the top down, as imports point.
ROOMS = (
    "session",
    "report",
    "resilience",
    "checks",
    "publication",
    "benchmark",
    "slo",
    "load",
    "measurement",
    "serving",
    "stage",
    "engine",
    "cluster",
    "run",
    "settings",
    "core",
    "standins",
)


def options_table() -> str:
    """The options, group by group."""
    by_name = {option.name: option for option in OPTIONS}
    rows = ["| option | meaning |", "|---|---|"]
    for group, names in GROUPS.items():
        rows += [f"| **{group}** | |", *(_option_row(by_name[name]) for name in names if name in by_name)]
    return "\n".join(rows)


def _option_row(option: Option) -> str:
    value = "" if option.flag else option.metavar or "|".join(option.choices)
    shown = f"[={value}]" if option.bare else f"={value}" if value else ""
    default = f" (default `{option.default}`)" if option.default and not option.flag else ""
    cells = [f"`{option.cli}{shown}`", f"{option.help}{default}"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def fixtures_table() -> str:
    """Each public fixture with its scope, its type and the first sentence of its docstring."""
    tree = ast.parse((PACKAGE / "fixtures.py").read_text(encoding="utf-8"))
    rows = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            scope = next((found for one in node.decorator_list if (found := _fixture_scope(one))), None)
            if scope:
                sentence = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                cells = [f"`{node.name}`", scope, f"`{_yielded(node)}`", sentence]
                rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(["| fixture | scope | type | what it is |", "|---|---|---|---|", *rows])


def _fixture_scope(decorator: ast.expr) -> str | None:
    text = ast.unparse(decorator)
    if not text.startswith("pytest.fixture"):
        return None
    found = re.search(r"scope='(\w+)'", text)
    return found.group(1) if found else "function"


def _yielded(node: ast.FunctionDef) -> str:
    text = ast.unparse(node.returns) if node.returns else "Any"
    found = re.fullmatch(r"(?:Iterator|Generator)\[(.+?)(?:, None, None)?\]", text)
    return found.group(1) if found else text


def rooms_table() -> str:
    """Each room of the package with the first sentence of its docstring."""
    rows = []
    for name in ROOMS:
        text = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))) or ""
        rows.append(f"| `{name}` | {' '.join(text.partition(chr(10) * 2)[0].split())} |")
    return "\n".join(["| room | what it is for |", "|---|---|", *rows])


def symptoms_table() -> str:
    """The runbook: each cause that a log can show, as it is reported, and what to do."""
    actions: dict[str, str] = {}
    for symptom in SYMPTOMS:
        cause = re.sub(r"\s*\((?:vLLM: )?\{line\}\)", "", symptom.cause)
        actions.setdefault(re.sub(r"\{(\w+)\}", r"`\1`", cause), symptom.action)
    rows = [f"| {cause} | {action} |" for cause, action in actions.items()]
    return "\n".join(["| reported cause | what to do |", "|---|---|", *rows])


def deployment_faults_table() -> str:
    """Each planted deployment fault with the first line of its report."""
    rows = [f"| {fault.planted} | `{fault.line}` |" for fault in FAULTS]
    return "\n".join(["| planted | first line |", "|---|---|", *rows])


def drift_faults_table() -> str:
    """Each drift fault that is planted on a live stage with what the line that reports it holds."""
    rows = [f"| {fault.planted} | `{fault.line.strip()}` |" for fault in drift_faults.FAULTS]
    return "\n".join(["| planted | reported as |", "|---|---|", *rows])


#: File and marker to what stands between ``<!-- marker -->`` and ``<!-- end of marker -->``.
TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "options"): options_table,
    ("docs/fixtures.md", "fixtures"): fixtures_table,
    ("docs/architecture.md", "rooms"): rooms_table,
    ("docs/checks.md", "deployment faults"): deployment_faults_table,
    ("docs/checks.md", "drift faults"): drift_faults_table,
    ("docs/troubleshooting.md", "symptoms"): symptoms_table,
}


def updated(text: str, marker: str, table: str) -> str:
    """The document with the table between its markers.

    Raises:
        ValueError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end of {marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no <!-- {marker} --> ... <!-- end of {marker} -->")
    return pattern.sub(lambda match: f"{match.group(1)}{table}\n{match.group(2)}", text)


if __name__ == "__main__":
    for (file, marker), table in TABLES.items():
        path = ROOT / file
        path.write_text(updated(path.read_text(encoding="utf-8"), marker, table()), encoding="utf-8")
