"""docs/ci against the schemas of the platforms that read them; the Tekton Pipeline is in test_tekton."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_vllm_stage.core.journal import Journal
from tests import own_environment

pytestmark = pytest.mark.real

RECIPES = Path(__file__).parents[2] / "docs" / "ci"
#: Pinned with their hashes; the command that creates them is in browser/pages.
REQUIREMENTS = Path(__file__).parent / "recipes" / "requirements.txt"
#: Recipe to the schema that check-jsonschema ships, and a change that the schema must refuse.
SCHEMAS = {
    "github-actions.yml": ("vendor.github-workflows", "runs-on:", "runs-in:"),
    "gitlab-ci.yml": ("vendor.gitlab-ci", "script:", "skript:"),
}


@pytest.fixture(scope="module")
def program() -> Path:
    return own_environment.ensure("recipes", REQUIREMENTS, Journal()) / "check-jsonschema"


def check(program: Path, recipe: Path, schema: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), "--builtin-schema", schema, str(recipe)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", SCHEMAS)
def test_recipe_is_valid_by_the_platforms_schema(program: Path, tmp_path: Path, name: str) -> None:
    schema, written, changed = SCHEMAS[name]
    done = check(program, RECIPES / name, schema)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (RECIPES / name).read_text(encoding="utf-8")
    assert written in text
    (tmp_path / name).write_text(text.replace(written, changed), encoding="utf-8")
    assert check(program, tmp_path / name, schema).returncode == 1, "the schema is not looked at"
