"""The plugin in a pytest of its own: manners, one deployment for all workers, exit codes, record."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.forked_runs import run_pytest

HEAVY = (
    "kubernetes",
    "httpx",
    "minio",
    "boto3",
    "hypothesis",
    "model_registry",
    "yaml",
    "aiohttp",
    "pydantic",
)

#: A stage that a setting does not allow.
REFUSING = """
def refuse(run, cluster):
    raise errors.ConfigError("--stage-reuse: another stage was kept")

lifecycle.make_stage = refuse
"""

SUITE = """
import pytest
@pytest.mark.parametrize("n", range(4))
def test_stage(stage, n):
    assert stage.namespace == "small"
def test_per_model(model_role, stage):
    assert model_role in [target.role for target in stage.targets]
"""


def words(calls: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in calls.read_text().splitlines())


def records(place: pytest.Pytester) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (place.path / "reports").glob("*/run.json")]


@pytest.mark.parametrize("arguments", [["-VV"], ["--markers"], ["--help"]])
def test_loading_imports_nothing_heavy(pytester: pytest.Pytester, arguments: list[str]) -> None:
    program = (
        "import pytest, sys\n"
        f"pytest.main({arguments!r})\n"
        "assert 'pytest_vllm_stage.plugin' in sys.modules, 'the plugin was not even loaded'\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    result = pytester.runpython_c(program)
    assert result.ret == 0, result.stderr.str()


def test_validating_an_endpoint_does_not_import_kubernetes(pytester: pytest.Pytester) -> None:
    """It would be half of what a quick look at a server takes."""
    program = (
        "import sys\n"
        "from pytest_vllm_stage.session import controller, finish, lifecycle, targets\n"
        "assert 'kubernetes' not in sys.modules\n"
    )
    result = pytester.runpython_c(program)
    assert result.ret == 0, result.stderr.str()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_one_deployment_is_shared_and_ended_by_the_controller(
    place: pytest.Pytester, calls: Path, workers: str
) -> None:
    place.makepyfile(test_a=SUITE, test_b=SUITE)
    # Not forked, as in use: nothing is imported before.
    result = place.runpytest_subprocess("-n", workers)
    result.assert_outcomes(passed=12)
    assert words(calls) == {"cluster": 1, "stage": 1, "end": 1}
    (record,) = records(place)
    assert (record["exit_status"], len(record["tests"]), record["leftovers"]) == (0, 12, [])
    controller = {event["pid"] for event in record["tests"]}
    end = next(line.split()[1] for line in calls.read_text().splitlines() if line.startswith("end"))
    assert controller == {int(end)}


def test_unrelated_runs_touch_nothing(place: pytest.Pytester, calls: Path) -> None:
    place.makepyfile("def test_plain(): pass")
    result = run_pytest(place)
    result.assert_outcomes(passed=1)
    assert not calls.exists()
    assert not (place.path / "reports").exists()
    result.stdout.no_fnmatch_line("*vllm-stage run*")


def test_collecting_touches_nothing_and_names_the_roles(place: pytest.Pytester, calls: Path) -> None:
    place.makepyfile(SUITE)
    result = run_pytest(place, "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*::test_per_model?quantized?", "*::test_per_model?full?"])
    assert not calls.exists()
    assert not (place.path / "reports").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_stage_is_one_story_and_a_product_failure(
    place: pytest.Pytester, calls: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("FAKE_BROKEN", "1")
    place.makepyfile(SUITE)
    result = run_pytest(place, "-n", workers)
    assert result.ret == 1
    result.assert_outcomes(errors=1, skipped=5)
    assert words(calls)["stage"] == 1
    text = result.stdout.str()
    assert text.count("pod minio-0: waiting") == 1, text
    assert result.stderr.str().count("stage: stage failed: secret minio-credentials") == 1
    assert "Traceback" not in text
    assert 'stage failed: secret minio-credentials has no key "secretkey"' in text
    assert "next: add it" in text


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unusable_environment_has_its_own_exit_code(
    place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("FAKE_UNUSABLE", "1")
    place.makepyfile(SUITE)
    result = run_pytest(place, "-n", workers)
    assert result.ret == 69
    result.stdout.fnmatch_lines(["*environment unusable: no containerd here*"])


def test_a_leftover_fails_the_run_and_is_listed(place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LEFTOVER", "1")
    place.makepyfile(SUITE)
    result = run_pytest(place)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["LEFT OVER *netns vllm-stage-1"])


@pytest.mark.parametrize(("mode", "failing", "end"), [
    ("always", False, "keep"),
    ("on-failure", False, "end"),
    ("on-failure", True, "keep"),
    ("never", True, "end"),
])  # fmt: skip
def test_keep(place: pytest.Pytester, calls: Path, mode: str, failing: bool, end: str) -> None:
    place.makepyfile(f"def test_it(stage): assert not {failing}")
    result = run_pytest(place, f"--stage-keep={mode}")
    assert result.ret == (1 if failing else 0)
    assert words(calls) == {"cluster": 1, "stage": 1, end: 1}


@pytest.mark.parametrize(("mode", "end"), [("never", "end"), ("on-failure", "keep-failed"), ("always", "keep-failed")])
def test_keep_of_a_failed_deployment(
    place: pytest.Pytester, calls: Path, monkeypatch: pytest.MonkeyPatch, mode: str, end: str
) -> None:
    monkeypatch.setenv("FAKE_BROKEN", "1")
    place.makepyfile("def test_it(stage): pass")
    assert run_pytest(place, f"--stage-keep={mode}").ret == 1
    assert words(calls) == {"cluster": 1, "stage": 1, end: 1}


@pytest.mark.parametrize("mode", ["never", "on-failure"])
def test_the_next_command_still_works_when_it_is_read(
    place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The kubeconfig of a cluster that the run removes is gone by then; the diagnostics are not."""
    monkeypatch.setenv("FAKE_BROKEN", "1")
    monkeypatch.setenv("FAKE_HINT", "kubectl --kubeconfig /k -n small get pods,events")
    place.makepyfile("def test_it(stage): pass")
    result = run_pytest(place, f"--stage-keep={mode}", "--stage-run-dir=here")
    if mode == "never":
        expected = f"  next: read {place.path}/here/diagnostics/: objects*; *keep it: --stage-keep=on-failure"
    else:
        expected = "  next: kubectl --kubeconfig /k -n small get pods,events"
    result.stdout.fnmatch_lines([expected])
    result.stderr.fnmatch_lines([expected])


def test_a_misspelt_variable_is_a_usage_error(place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_STAGE_ENPOINT", "http://127.0.0.1:9")
    place.makepyfile("def test_it(): pass")
    result = run_pytest(place)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    message = "no such setting; did you mean VLLM_STAGE_ENDPOINT?"
    result.stderr.fnmatch_lines([f"ERROR: environment variable VLLM_STAGE_ENPOINT: {message}"])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stage_that_is_refused_ends_with_the_code_of_a_usage_error(place: pytest.Pytester, workers: str) -> None:
    conftest = place.path / "conftest.py"
    conftest.write_text(conftest.read_text() + REFUSING)
    place.makepyfile("def test_it(stage): pass\ndef test_other(): assert False")
    result = run_pytest(place, "-n", workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["configuration error: --stage-reuse: another stage was kept"])
    (record,) = records(place)
    assert record["exit_status"] == 4


def test_what_needs_a_cluster_is_skipped_with_the_reason_for_an_endpoint(place: pytest.Pytester) -> None:
    place.makepyfile("def test_it(cluster): pass")
    result = run_pytest(place, "--stage-endpoint=http://127.0.0.1:9", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs a cluster, and --stage-endpoint validates only a server"])


def test_strict_fails_a_run_that_skipped(place: pytest.Pytester) -> None:
    place.makepyfile("import pytest\ndef test_it(stage): pytest.skip('no tool parser')")
    assert run_pytest(place).ret == 0
    assert run_pytest(place, "--stage-strict").ret == 1


def test_an_endpoint_that_does_not_answer_is_an_unusable_environment(place: pytest.Pytester) -> None:
    place.makepyfile("def test_it(endpoint): pass")
    result = run_pytest(place, "--stage-endpoint=http://127.0.0.1:9/v1/")
    assert result.ret == 69
    result.stdout.fnmatch_lines(["*--stage-endpoint http://127.0.0.1:9 does not answer:*", "*curl -i*"])


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage-keep=sometimes"], "--stage-keep: unknown value 'sometimes'; valid: never, on-failure, always"),
        (["--stage-reuse"], "--stage-reuse=latest: no such kept stage; kept: none*"),
        (["--stage-reuse=20260101-000000-abcd"], "--stage-reuse=20260101-000000-abcd: no such kept stage; kept: none*"),
        (["--stage-context=nope"], "--stage-context=nope: no such context in *kubeconfig; valid: c"),
        (["--stage-deploy"], "--stage-deploy deploys on an existing cluster, and none is named: name it with*"),
        (["--stage-run-dir=small.toml"], "--stage-run-dir: *small.toml is not a folder"),
        (["--stage-run-dir=small.toml/run"], "--stage-run-dir: *small.toml is not a folder"),
        (["--stage-env-file=wrong.env"], "env file wrong.env:1: expected KEY=VALUE, got no '='*"),
        (["--stage-profile=nope"], "unknown profile 'nope'; valid: *"),
        (["--stage-cluster=kubeconfig"], "*--stage-context must name the context*"),
    ],
)
def test_bad_options_are_one_line_before_anything_runs(
    place: pytest.Pytester, calls: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(place.path / "cache"))
    (place.path / "wrong.env").write_text("not-shown\n")
    place.makepyfile(SUITE)
    result = run_pytest(place, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.no_fnmatch_line("*not-shown*")
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert not calls.exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_progress_is_seen_past_capture_and_silent_with_q(place: pytest.Pytester, workers: str) -> None:
    place.makepyfile(SUITE)
    loud = run_pytest(place, "-n", workers)
    loud.stderr.fnmatch_lines(["?stage *s? step: cluster ...", "?stage *s? step: cluster: done in * s"])
    assert "step: cluster" not in run_pytest(place, "-n", workers, "-q").stderr.str()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_failure_is_named_and_recorded_by_its_message(place: pytest.Pytester, workers: str) -> None:
    place.makepyfile("def test_it(stage): assert not 'PVC m is Pending'")
    result = place.runpytest_subprocess("-n", workers)
    result.stdout.fnmatch_lines(["FAILED *::test_it - *PVC m is Pending*"])
    (record,) = records(place)
    (test,) = record["tests"]
    assert "PVC m is Pending" in test["reason"]
    assert "[gw" not in test["reason"], test["reason"]


def test_the_run_directory_is_chosen_by_option(place: pytest.Pytester) -> None:
    place.makepyfile(SUITE)
    run_pytest(place, "--stage-run-dir=here")
    assert {path.name for path in (place.path / "here").iterdir()} >= {"run.json", "junit.xml", "allure-results"}
    settings = json.loads((place.path / "here" / "run.json").read_text())["settings"]
    assert settings["run_dir"] == {"value": "here", "source": "--stage-run-dir"}
    assert settings["profile"] == {"value": "small.toml", "source": "ini vllm_stage_profile"}


def test_a_run_directory_is_never_shared_by_two_runs(place: pytest.Pytester, calls: Path) -> None:
    place.makepyfile(SUITE)
    run_pytest(place, "--stage-run-dir=here")
    again = run_pytest(place, "--stage-run-dir=here")
    assert again.ret == pytest.ExitCode.USAGE_ERROR
    again.stderr.fnmatch_lines(["ERROR: --stage-run-dir: *here holds another run's record; name a new folder"])
    assert words(calls)["stage"] == 1


def test_the_installed_plugin_is_this_checkout() -> None:
    import pytest_vllm_stage

    assert Path(pytest_vllm_stage.__file__).parent.parent == Path(__file__).parents[2], os.environ.get("VIRTUAL_ENV")


def test_strict_lets_a_check_be_that_does_not_apply(place: pytest.Pytester) -> None:
    place.makepyfile(
        """
        from pytest_vllm_stage.core.skips import does_not_apply

        def test_a(stage):
            does_not_apply("the profile says so")
        """
    )
    result = run_pytest(place, "--stage-strict", "-rs")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["SKIPPED * does not apply: the profile says so"])


def test_a_restart_during_the_run_fails_it_and_is_named(
    place: pytest.Pytester, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.makepyfile(test_it="def test_it(stage): pass")
    monkeypatch.setenv("FAKE_RESTARTS", "container c was restarted 2 times")
    result = run_pytest(place, "--stage-keep=on-failure")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["RESTARTED container c was restarted 2 times"])
    assert words(calls) == {"cluster": 1, "stage": 1, "keep": 1}


def test_a_step_that_only_the_whole_run_shows_to_be_broken_fails_it_and_keeps_the_stage(
    place: pytest.Pytester, calls: Path
) -> None:
    place.makepyfile(
        judged="from pytest_vllm_stage.session import finish\nfinish.judge_load = lambda run: ['full-rate-2: fail']",
        test_it="def test_it(stage): pass",
    )
    place.syspathinsert()
    result = run_pytest(place, "--stage-keep=on-failure", "-p", "judged")
    assert result.ret == 1
    assert words(calls) == {"cluster": 1, "stage": 1, "keep": 1}
