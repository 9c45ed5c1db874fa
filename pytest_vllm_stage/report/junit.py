"""JUnit XML of a run, in the form that GitHub, GitLab, Jenkins and Tekton dashboards read."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from pytest_vllm_stage.report.record import counts

#: XML 1.0 cannot carry these, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(data: dict[str, Any], path: Path) -> None:
    """Write one ``testsuite`` with a ``testcase`` for each outcome in the record."""
    number = counts(data)
    suite = ET.Element(
        "testsuite",
        name="vllm-stage",
        tests=str(sum(number.values())),
        failures=str(number.get("failed", 0)),
        errors=str(number.get("error", 0)),
        skipped=str(number.get("skipped", 0)),
        time=f"{sum(test['duration_s'] for test in data['tests']):.3f}",
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(data["started_at"])),
    )
    simulated = str(data["simulated"]).lower()
    for key, value in {"run_id": data["run_id"], "simulated": simulated, **data["versions"]}.items():
        _properties(suite).append(ET.Element("property", name=key, value=str(value)))
    for test in data["tests"]:
        suite.append(_case(test))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _properties(element: ET.Element) -> ET.Element:
    found = element.find("properties")
    return found if found is not None else ET.SubElement(element, "properties")


def _case(test: dict[str, Any]) -> ET.Element:
    file, _, name = _NOT_XML.sub("?", test["name"]).partition("::")
    case = ET.Element(
        "testcase", classname=file.removesuffix(".py").replace("/", "."), name=name, time=f"{test['duration_s']:.3f}"
    )
    for key, value in test["properties"].items():
        _properties(case).append(ET.Element("property", name=key, value=_NOT_XML.sub("?", str(value))))
    tag = {"failed": "failure", "error": "error", "skipped": "skipped"}.get(test["outcome"])
    if tag:
        reason = _NOT_XML.sub("?", test["reason"])
        ET.SubElement(case, tag, message=_headline(reason)).text = reason
    return case


def _headline(reason: str) -> str:
    """The line that says what is wrong: pytest marks it with ``E``, else it is the first one."""
    lines = reason.splitlines() or [""]
    marked = [line[1:].strip() for line in lines if line.startswith("E  ")]
    return (marked or lines)[0][:300]
