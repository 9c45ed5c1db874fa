"""``python -m pytest_vllm_stage.cluster.kind {list,stop,sweep}``: list and remove the kind clusters of this machine."""

from __future__ import annotations

import argparse
import sys

from pytest_vllm_stage.cluster.kind import lifecycle
from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.journal import Journal


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 when nothing is left behind."""
    parser = argparse.ArgumentParser(prog="python -m pytest_vllm_stage.cluster.kind", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the clusters in use, with their runs")
    commands.add_parser("stop", help="delete a cluster").add_argument("cluster", help="its name")
    commands.add_parser("sweep", help="delete the clusters of killed runs")
    options = parser.parse_args(arguments)
    journal = Journal(None, _print_progress)
    try:
        if options.command == "list":
            lines = [f"{one.name} of run {one.run_id}: {one.kubeconfig}" for one in lifecycle.running()]
        elif options.command == "sweep":
            lines = [f"removed {line}" for line in lifecycle.sweep(journal)]
        else:
            return _stop(options.cluster, journal)
    except StageError as error:
        print(error, file=sys.stderr)  # noqa: T201 the command's output
        return 1
    print(*lines, sep="\n", end="\n" if lines else "")  # noqa: T201 the command's output
    return 0


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201 the command's progress


def _stop(name: str, journal: Journal) -> int:
    found = [record for record in lifecycle.running() if record.name == name]
    left = lifecycle.stop(found[0].path, journal) if found else [f"no kind cluster {name} of this machine is known"]
    for line in left:
        print(line, file=sys.stderr)  # noqa: T201 the command's output
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
