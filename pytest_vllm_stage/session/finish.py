"""The end of a run: what it created is removed or kept, and the record is written. Only the controller does this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable, StageError
from pytest_vllm_stage.core.journal import read_events
from pytest_vllm_stage.core.skips import DOES_NOT_APPLY
from pytest_vllm_stage.report import allure, junit, record, run_end, terminal
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.session import kept, lifecycle
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.objects import SERVICE_LABEL


def release(run: Run, *, failed: bool) -> list[str]:
    """End or keep the run's cluster and stage; return what could not be removed, a line each."""
    cluster_text, stage_text = run.shared.get("cluster"), run.shared.get("stage")
    if cluster_text is None:
        return []
    cluster = ClusterFacts.from_json(cluster_text)
    stage = StageFacts.from_json(stage_text) if stage_text else None
    # A deployment that failed was diagnosed at once.
    if failed and not (run.directory / "diagnostics").exists():
        _without_raising(run, "diagnostics", lambda: diagnose(run, cluster))
    if run.config.reuse or not lifecycle.deploys_to(run, cluster):
        return []
    if _keeps(run, failed) and (stage or run.shared.failure("stage")):
        return _without_raising(run, "keep", lambda: keep(run, cluster, stage))
    return _without_raising(run, "teardown", lambda: end(run, cluster))


def _keeps(run: Run, failed: bool) -> bool:
    keep = run.config.keep
    return keep == "always" or (keep == "on-failure" and failed)


def _without_raising(run: Run, what: str, act: Callable[[], list[str]]) -> list[str]:
    """The end of a run must reach its record: what fails here is reported as a leftover."""
    try:
        return act()
    except (StageError, OSError) as error:
        kind = error.kind if isinstance(error, StageError) else "error"
        run.journal.event("error", what, reason=str(error), error_kind=kind)
        return [f"{what} failed: {error}"]


def diagnose(run: Run, cluster: ClusterFacts) -> list[str]:
    """Save what is known of the stage's objects, logs and events before they go."""
    from pytest_vllm_stage.stage.observe import diagnose

    with run.journal.phase("step: diagnostics"):
        diagnose.collect(cluster, lifecycle.namespace_of(run), run.directory / "diagnostics")
    return []


def keep(run: Run, cluster: ClusterFacts, stage: StageFacts | None) -> list[str]:
    """Let the stage outlive the run, deployed or as far as its deployment came, and note how to use and remove it."""
    declared = lifecycle.fingerprint(run.config, cluster.kubectl) if stage else {}
    facts = stage or StageFacts(lifecycle.namespace_of(run), run.run_id, owned=True, targets=())
    note = kept.Kept(run.run_id, cluster, facts, declared)
    if cluster.owned and cluster.on_this_machine:
        lifecycle.cluster_module(cluster).keep(cluster)
    kept.note(note)
    commands = {"inspect": kept.inspection_command(note), "remove": kept.removal_command(note)}
    if stage:
        commands["reuse"] = kept.reuse_options(run.config, run.run_id)
    run.journal.event("kept", run.run_id, **commands)
    return []


def end(run: Run, cluster: ClusterFacts) -> list[str]:
    """Remove what the run created; return what is left of it, a line each."""
    with run.journal.phase("step: teardown"):
        if cluster.owned and cluster.on_this_machine and cluster.state_dir:
            left: list[str] = lifecycle.cluster_module(cluster).stop(cluster.state_dir, run.journal)
            return left
        from pytest_vllm_stage.stage.deploy import teardown

        return teardown.teardown(
            cluster, lifecycle.namespace_of(run), run.run_id, run.config.profile.waits_s, run.journal
        )


def environment_failed(run: Run) -> bool:
    """Whether the end of the run met an unusable environment."""
    events = read_events(run.journal_path)
    return any(event["kind"] == "error" and event["error_kind"] == EnvironmentUnusable.kind for event in events)


def is_refused(run: Run) -> bool:
    """Whether there is no stage because a setting or a file is wrong: a usage error found after the collection."""
    return any(isinstance(run.shared.failure(fact), ConfigError) for fact in ("cluster", "stage"))


def skipped(run: Run) -> list[str]:
    """The tests that were skipped though their subject is part of what is validated, with the reasons."""
    tests = [test for test in record.build(run.journal_path, run.config)["tests"] if test["outcome"] == "skipped"]
    gaps = [test for test in tests if not test["reason"].removeprefix("Skipped: ").startswith(DOES_NOT_APPLY)]
    return [f"{test['name']}: {test['reason']}" for test in gaps]


def judge_load(run: Run) -> list[str]:
    """Judge the load steps of the run together; return a line for each that only this shows to be broken."""
    from pytest_vllm_stage.benchmark import steps

    return _without_raising(run, "benchmarks", lambda: steps.finish(run))


def judge_restarts(run: Run) -> list[str]:
    """Return and record a line for each model server that ended while the run went on: an outage between checks.

    A stage that cannot be read any more has none; the checks have reported why.
    """
    cluster_text, stage_text = run.shared.get("cluster"), run.shared.get("stage")
    if cluster_text is None or stage_text is None:
        return []
    cluster, stage = ClusterFacts.from_json(cluster_text), StageFacts.from_json(stage_text)
    events = read_events(run.journal_path)
    # A disruption restarts an engine on purpose, and reports what it saw.
    disrupted_at = [event["at"] for event in events if event["kind"] == "disruption"]
    since_s = max([stage.deployed_at or events[0]["at"], *disrupted_at])
    try:
        lines = find_restarts(cluster, stage, since_s)
    except (StageError, OSError):
        return []
    for line in lines:
        run.journal.event("restart", line)
    return lines


def find_restarts(cluster: ClusterFacts, stage: StageFacts, since_s: float) -> list[str]:
    """Describe the containers of the target models' pods that ended later than ``since_s``, and why."""
    from pytest_vllm_stage.stage import client
    from pytest_vllm_stage.stage.observe import health
    from pytest_vllm_stage.stage.observe.reader import StageReader

    with client.connection(cluster, stage.namespace) as kube:
        reader = StageReader(kube, cluster, stage.namespace)
        events = reader.listed_where_allowed("Event")
        lines = []
        for target in stage.targets:
            pods = reader.listed("Pod", {SERVICE_LABEL: target.inference_service})
            lines += health.find_ends_since(pods, events, since_s, reader.read_ended_log, target.role)
    return lines


def write_record(run: Run, exit_status: int, leftovers: list[str], allure_dir: Path) -> list[str]:
    """Write run.json, JUnit and allure's environment from the journal; return the terminal's summary lines."""
    for line in leftovers:
        run.journal.event("leftover", line)
    run.journal.event("end", run.run_id, exit_status=exit_status)
    data = record.build(run.journal_path, run.config)
    record.write(data, run.directory / "run.json")
    junit.write(data, run.directory / "junit.xml")
    allure.write_environment(data, allure_dir)
    summary = terminal.summary(data, run.directory)
    if not run.config.reports:
        return summary
    options = run_end.end_options(run.config, run.run_id, run.directory)
    return [*summary, *run_end.report_run(run.directory, *options)]
