"""What each process of a run pays before its first test: counted, since times differ by machine."""

from __future__ import annotations

import pytest


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
