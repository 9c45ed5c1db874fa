"""suites/registry where there is nothing to look at: it says so, and passes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.forked_runs import run_pytest

SUITE = Path(__file__).parents[2] / "suites" / "registry"


def test_a_server_without_a_cluster_has_no_registry(place: pytest.Pytester) -> None:
    result = run_pytest(
        place, SUITE, f"--rootdir={place.path}",
        f"--stage-profile={place.path}/small.toml", "--stage-endpoint=http://127.0.0.1:9",
        f"--stage-run-dir={place.path}/run", "-p", "no:cacheprovider",
    )  # fmt: skip
    assert result.ret == 0
    assert set(result.parseoutcomes()) == {"skipped"}
    result.stdout.fnmatch_lines(["*needs a cluster, and --stage-endpoint validates only a server"])


@pytest.mark.usefixtures("kubeconfig")
def test_a_runs_own_publication_is_checked_only_where_it_publishes(place: pytest.Pytester) -> None:
    def collected(*options: str) -> str:
        result = run_pytest(
            place,
            SUITE,
            f"--rootdir={place.path}",
            f"--stage-profile={place.path}/small.toml",
            "--collect-only",
            "-q",
            *options,
        )
        assert result.ret == 0
        return result.stdout.str()

    assert "test_publishing.py" in collected()
    assert "test_publishing.py" in collected("--stage-context=c", "--stage-publish=always")
    for options in (["--stage-context=c"], ["--stage-publish=never"]):
        output = collected(*options)
        assert "test_publishing.py" not in output
        assert "test_artifacts.py" in output
