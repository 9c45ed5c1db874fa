"""``python -m pytest_vllm_stage.cluster.local {list,stop,sweep}``: list and end the local clusters of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_vllm_stage.cluster.local import lifecycle
from pytest_vllm_stage.cluster.local import record as records
from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.journal import Journal


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 when nothing is left behind."""
    parser = argparse.ArgumentParser(prog="python -m pytest_vllm_stage.cluster.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the running cluster of this machine, and the run that holds it")
    stop = commands.add_parser("stop", help="end a cluster and remove everything of it")
    stop.add_argument("cluster", nargs="?", help="its id, its run's id or its folder; default: the running one")
    commands.add_parser("sweep", help="remove leftovers of killed runs; a cluster in use is not touched")
    options = parser.parse_args(arguments)
    journal = Journal(None, _say)
    try:
        if options.command == "list":
            return _list()
        return _stop(options.cluster, journal) if options.command == "stop" else _sweep(journal)
    except StageError as error:
        print(error, file=sys.stderr)  # noqa: T201 the command's output
        return 1


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201 the command's progress


def _list() -> int:
    for record in lifecycle.running():
        print(record.describe())  # noqa: T201 the command's output
        print(f"  export KUBECONFIG={record.state_dir}/kubeconfig")  # noqa: T201 the command's output
    return 0


def _stop(cluster: str | None, journal: Journal) -> int:
    found = lifecycle.running()
    names = {name: record for record in found for name in (record.id, record.run_id, record.state_dir)}
    record = (found[0] if found else None) if cluster is None else names.get(cluster)
    if record is None and cluster is not None:
        record = records.load(Path(cluster)) or records.load(records.clusters_dir() / cluster)
    if record is None:
        print(f"no local cluster {cluster or ''} runs on this machine".replace("  ", " "))  # noqa: T201
        return 0 if cluster is None else 1
    left = lifecycle.stop(record.path, journal)
    for line in left:
        print(f"not removed: {line}")  # noqa: T201 the command's output
    return 1 if left else 0


def _sweep(journal: Journal) -> int:
    for line in lifecycle.sweep(journal):
        print(f"removed {line}")  # noqa: T201 the command's output
    return 0


if __name__ == "__main__":
    sys.exit(main())
