"""What each process of a run pays before its first test: counted, since times differ by machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What the suites use, and no process needs that only collects them: each is imported by the test that uses it.
IMPORTED_ON_USE = ("boto3", "hypothesis", "jinja2", "kubernetes", "model_registry", "numpy", "requests", "yaml")
#: Modules of the package that collecting the suites imports; 201 when this was set.
MOST_MODULES = 215

COLLECT = """
import json, pytest, sys

class Modules:
    def pytest_collection_finish(self, session):
        self.names = sorted(sys.modules)
        self.items = len(session.items)

modules = Modules()
status = pytest.main(["suites", "--collect-only", "-qq", "-n0", "-p", "no:cacheprovider"], plugins=[modules])
print("\\n" + json.dumps({"status": status, "items": modules.items, "names": modules.names}))
"""


def test_collecting_the_suites_imports_only_what_collecting_needs() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "CI")}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT],
        cwd=ROOT, env=environment | {"VLLM_STAGE_REPORT": "never"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stdout
    assert found["items"] > 500
    imported = [name for name in IMPORTED_ON_USE if name in found["names"]]
    assert not imported, f"expected no import of {', '.join(imported)} before a test runs"
    own = [name for name in found["names"] if name.startswith("pytest_vllm_stage.")]
    assert len(own) <= MOST_MODULES, f"expected at most {MOST_MODULES} modules of the package, got {len(own)}: {own}"


@pytest.mark.parametrize(("fixture", "frozen"), [("stage", True), ("tmp_path", False)])
def test_garbage_collector_pauses_while_pytest_collects(place: pytest.Pytester, fixture: str, *, frozen: bool) -> None:
    """What a run of a stage's checks has collected is scanned no more; other runs keep Python's own behaviour."""
    place.makepyfile(f"""
        import gc
        paused = not gc.isenabled()

        def test_collector({fixture}):
            assert paused
            assert gc.isenabled()
            assert bool(gc.get_freeze_count()) is {frozen}
    """)
    # Not forked: a forked run's parent has frozen what it imported.
    place.runpytest_subprocess("-n0").assert_outcomes(passed=1)


def test_garbage_collector_stays_off_where_the_run_has_it_off(bare_place: pytest.Pytester) -> None:
    bare_place.makeconftest("import gc\ngc.disable()\n")
    bare_place.makepyfile("import gc\ndef test_collector(): assert not gc.isenabled()")
    bare_place.runpytest_subprocess("-n0").assert_outcomes(passed=1)


def test_garbage_of_a_pytest_within_a_test_is_collected(place: pytest.Pytester) -> None:
    """A test of a suite may run pytest in its own process again and again."""
    place.makeconftest("pytest_plugins = ['pytester']\n" + (place.path / "conftest.py").read_text())
    place.makepyfile("""
        import gc

        def test_inner(pytester):
            before = gc.get_freeze_count()
            pytester.makepyfile("def test_stage(stage_run): pass")
            pytester.runpytest_inprocess("-n0", "-p", "no:cacheprovider").assert_outcomes(passed=1)
            assert gc.get_freeze_count() == before
    """)
    place.runpytest_subprocess("-n0").assert_outcomes(passed=1)
