"""README lists the commands and every option, fixture, marker and support row."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_stage.plugin import MARKERS
from pytest_vllm_stage.settings.options import OPTIONS, Option
from tests.readme_tables import GROUPS, TABLES, updated

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_readme_explains_every_option_in_its_own_words(option: Option) -> None:
    cell = r"(?:[^|\\]|\\.)*"
    row = re.search(rf"^\| `{option.cli}{cell}\| (.*) \|$", README, re.MULTILINE)
    assert row, f"README's table of options lacks {option.cli}"
    assert option.help.replace("|", "\\|") in row.group(1)


def test_the_manual_names_every_fixture() -> None:
    manual = (ROOT / "docs" / "fixtures.md").read_text(encoding="utf-8")
    source = (ROOT / "pytest_vllm_stage" / "fixtures.py").read_text(encoding="utf-8")
    names = re.findall(r"@pytest\.fixture.*\ndef ([a-z]\w*)", source)
    assert len(names) >= 5
    assert [name for name in names if f"`{name}`" not in manual] == []


def test_readme_names_every_marker() -> None:
    assert [text for text in MARKERS if f"`{text.split(':')[0]}`" not in README] == []


@pytest.mark.parametrize("name", ["main", "tests"])
def test_the_two_commands_are_single_lines_that_ci_can_find(name: str) -> None:
    found = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.+)\n```$", README, re.MULTILINE)
    assert len(found) == 1


def test_collecting_the_suites_needs_nothing() -> None:
    command = [sys.executable, "-m", "pytest", "suites", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for suite in ("deployment", "inference", "slo"):
        assert f"suites/{suite}/" in done.stdout


@pytest.mark.parametrize(("file", "marker"), [key for key in TABLES if key[0].startswith("docs/")])
def test_generated_tables_are_current(file: str, marker: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert updated(text, marker, TABLES[file, marker]()) == text, "write it again: python -m tests.readme_tables"


def test_every_option_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert {option.name for option in OPTIONS} <= set(grouped)
