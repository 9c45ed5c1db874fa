"""docs/: the dashboard and the manual name the metrics that are written, and the recipes use options that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pytest_vllm_stage.report.openmetrics import render_metrics
from pytest_vllm_stage.report.run_data import load_run
from pytest_vllm_stage.settings.options import OPTIONS
from tests.unit.made_run import check, make_run, steps

DOCS = Path(__file__).parents[2] / "docs"
NAME = re.compile(r"vllm_stage_[a-z_]+")
RECIPES = sorted((DOCS / "ci").iterdir())
ACCESS = Path(__file__).parents[2] / "fixtures" / "access" / "read-only"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    judged = {
        "kind": "regression", "name": "full-rate-5", "state": "ok", "fails": False, "runs": 5, "text": "",
        "metrics": {"ttft_p50_ms": {"value": 1.0, "baseline": 1.0}},
    }  # fmt: skip
    folder = make_run(tmp_path_factory.mktemp("docs") / "run", check("a.py::test_a"), judged, measurements=steps())
    return set(re.findall(r"^# TYPE (\S+)", render_metrics(load_run(folder)), re.MULTILINE))


def test_manual_names_exactly_the_metrics_that_are_written(written: set[str]) -> None:
    section = (DOCS / "reports.md").read_text().split("## Metrics")[1].split("## In a pipeline")[0]
    assert set(NAME.findall(section)) == written


def test_dashboard_asks_for_metrics_that_are_written(written: set[str]) -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    used = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(used) > 5
    assert used <= written


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.suffix in (".yaml", ".yml")], ids=lambda path: path.name
)
def test_recipe_is_yaml_and_uses_options_that_exist(path: Path) -> None:
    text = path.read_text()
    assert list(yaml.safe_load_all(text))
    options = set(re.findall(r"--stage-[a-z-]+", text))
    assert options, "it runs the suites"
    assert options <= {option.cli for option in OPTIONS}


def test_nightly_run_has_the_account_whose_rights_are_declared() -> None:
    cron, _claim = yaml.safe_load_all((DOCS / "ci" / "cronjob.yaml").read_text())
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    account = yaml.safe_load((ACCESS / "service-account.yaml").read_text())["metadata"]["name"]
    namespace = yaml.safe_load((ACCESS / "kustomization.yaml").read_text())["namespace"]
    assert (pod["serviceAccountName"], cron["metadata"]["namespace"]) == (account, namespace)
    assert "automountServiceAccountToken" not in pod
    names = {entry["name"] for entry in pod["initContainers"][0]["env"]}
    assert {name for name in names if name.startswith("VLLM_STAGE_")} <= {option.env for option in OPTIONS}


def test_manual_links_every_recipe() -> None:
    manual = (DOCS / "reports.md").read_text()
    assert len(RECIPES) >= 4
    assert [path.name for path in RECIPES if f"(ci/{path.name})" not in manual] == []
