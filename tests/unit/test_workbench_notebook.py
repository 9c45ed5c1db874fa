"""The workbench's notebook as it is committed: clean, importable where it runs, and given its variables."""

from __future__ import annotations

import ast
import json
import re
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.publication.properties import PER_STEP
from pytest_vllm_stage.settings.profile import load_profile

NOTEBOOK = fixtures_dir() / "workbench" / "01-benchmark.ipynb"
OPENSHIFT = fixtures_dir() / "overlays" / "openshift"
#: What the data-science images of OpenShift AI have, of what it could want.
IN_THE_IMAGE = {"boto3", "botocore", "IPython", "matplotlib", "pandas", "requests"}
ROLES = {"quantized": "QUANTIZED", "full": "FULL"}


@cache
def notebook() -> dict[str, Any]:
    return dict(json.loads(NOTEBOOK.read_text()))


def sources(kind: str) -> dict[str, str]:
    found = {cell["id"]: "".join(cell["source"]) for cell in notebook()["cells"] if cell["cell_type"] == kind}
    assert found
    return found


@cache
def settings() -> dict[str, str]:
    lines = (OPENSHIFT / "workbench" / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_no_cell_has_an_output_or_execution_count() -> None:
    cells = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []
    assert [cell["id"] for cell in notebook()["cells"] if cell["metadata"]] == []
    assert notebook()["metadata"]["language_info"] == {"name": "python"}


def test_every_code_cell_follows_a_text_and_compiles() -> None:
    cells = notebook()["cells"]
    assert [
        after["id"] for before, after in pairwise(cells) if before["cell_type"] == after["cell_type"] == "code"
    ] == []
    assert cells[0]["cell_type"] == "markdown"
    for name, source in sources("code").items():
        compile(source, name, "exec")


def test_notebook_contains_no_machine_path() -> None:
    assert re.findall(r"(?<![\w.:}])/(?:home|root|tmp|work|opt|usr|mnt|var|Users)\b", NOTEBOOK.read_text()) == []


def test_notebook_imports_only_packages_of_the_workbench_image() -> None:
    found = set()
    for source in sources("code").values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).split(".")[0])
    assert found & IN_THE_IMAGE == IN_THE_IMAGE
    assert found - set(sys.stdlib_module_names) - IN_THE_IMAGE == set()


def asked_for() -> set[str]:
    """The variables that the notebook reads."""
    code = "\n".join(sources("code").values())
    plain = set(re.findall(r"""environ(?:\.get\(|\[)["'](\w+)""", code))
    each = set(re.findall(r"""setting\(role, ["'](\w+)""", code))
    return plain | {f"{prefix}_{name}" for prefix in ROLES.values() for name in each}


def test_notebook_reads_exactly_the_settings_of_the_overlay() -> None:
    (resource,) = [
        item
        for item in yaml.safe_load_all((OPENSHIFT / "workbench" / "notebook.yaml").read_text())
        if item["kind"] == "Notebook"
    ]
    (container,) = resource["spec"]["template"]["spec"]["containers"]
    secret = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"][2:]}
    assert secret == {
        "AWS_ACCESS_KEY_ID": {"name": "minio-credentials", "key": "accesskey"},
        "AWS_SECRET_ACCESS_KEY": {"name": "minio-credentials", "key": "secretkey"},
    }
    assert settings().keys() == asked_for() - {"MODEL_REGISTRY_TOKEN"}
    assert container["name"] == resource["metadata"]["name"], "the controller finds the server by this name"


@pytest.mark.parametrize("role", ROLES)
def test_names_and_costs_are_the_profiles(role: str) -> None:
    model = load_profile("l4", Path("/")).models[role]
    service = yaml.safe_load((OPENSHIFT / f"{model.inference_service}.yaml").read_text())
    labels = service["metadata"]["labels"]
    given = {
        name.removeprefix(f"{ROLES[role]}_"): value
        for name, value in settings().items()
        if name.startswith(ROLES[role])
    }
    assert (given["MODEL"], given["VERSION"]) == (labels["vllm-stage/model"], labels["vllm-stage/version"])
    assert float(given["COST_PER_HOUR_USD"]) == model.cost_per_hour_usd
    defaults = re.search(rf'"{role}": {{"MODEL": "(\S+)", "VERSION": "(\S+)"}}', sources("code")["settings"])
    assert defaults is not None
    assert defaults.groups() == (given["MODEL"], given["VERSION"])


def test_notebook_compares_every_property_of_a_step() -> None:
    source = NOTEBOOK.read_text(encoding="utf-8")
    assert [name for name in PER_STEP if f'\\"{name}\\": ' not in source] == []
