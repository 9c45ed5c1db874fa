"""The scoreboard of the proxy's defects: each is planted in front of a server, and the inference suite runs through it.

    python -m tests.defects.proxy --upstream URL --model NAME     every defect, against the checks meant for it
    ... --whole                                                   against the whole suite
    ... --only stream_buffered answers_swapped                    some of them, with all messages
    ... --serve stream_buffered --port 8001                       one defect, for any other client, until Ctrl-C

The run without a defect comes first: what fails there fails without the proxy's doing, and counts for nothing. A server
that asks for a key gets it from VLLM_STAGE_API_KEY; in front of any other one the proxy asks for a key of its own.
Exit code 1: a defect was missed or not named, or a check failed without one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

from tests.defects.clean import say
from tests.defects.proxy.catalogue import KINDS, find_defects
from tests.defects.proxy.server import Defect, running_proxy
from tests.defects.runner import KEY, Outcome, run_suite

SHOWN = 110


def run_through(
    upstream: str, defect: Defect, *arguments: str, profile: Path | None = None, slow: bool = False
) -> Outcome:
    """Run the suite through the proxy; in front of a server without a key the proxy asks for one."""
    own_key = os.environ.get("VLLM_STAGE_API_KEY", "")
    with running_proxy(upstream, defect, key="" if own_key else KEY) as url:
        return run_suite(url, *arguments, profile=profile, key=own_key or KEY, slow=slow)


def plant(options: argparse.Namespace, defect: type[Defect], control: set[str]) -> tuple[str, str]:
    """Plant one defect; returns its line of the table, and its state: caught, named, missed or not named."""
    arguments = list(options.arguments)
    if not options.whole:
        arguments += ["-k", " or ".join(sorted(defect.by))]
    started_s = time.monotonic()
    outcome = run_through(options.upstream, defect(), *arguments, profile=options.profile, slow=defect.slow)
    failed = [name for name in outcome.failed if name not in control]
    symptom = next((line for line in outcome.messages if re.search(defect.says, line)), "")
    state = "MISSED" if not failed else "caught" if symptom else "NOT NAMED"
    elapsed_s = time.monotonic() - started_s
    line = f"{defect.name:<32} {state:<10} {len(failed):>6} {elapsed_s:>5.0f} s  {symptom[:SHOWN]}"
    if options.only or state != "caught":
        line += "".join(f"\n    {name}: {message}" for name, message in outcome.failed.items())
        skipped = f"{outcome.passed} passed, {outcome.skipped} skipped"
        line += "" if outcome.failed else f"\n    {skipped}"
    return line, state


def scoreboard(options: argparse.Namespace) -> int:
    """Plant the defects one after the other and print the table."""
    chosen = [defect for name, defect in find_defects().items() if not options.only or name in options.only]
    names = set().union(*(defect.by for defect in chosen))
    scope = [*options.arguments, *([] if options.whole else ["-k", " or ".join(sorted(names))])]
    outcome = run_through(options.upstream, Defect(), *scope, profile=options.profile, slow=True)
    control = set(outcome.failed)
    say(f"without a defect: {outcome.passed} passed, {outcome.skipped} skipped, {len(control)} failed")
    say(*(f"    FALSE ALARM {name}: {message}" for name, message in outcome.failed.items()))
    say(f"{'defect':<32} {'state':<10} {'checks':>6} {'time':>7}  symptom")
    states: dict[str, str] = {}
    for defect in chosen:
        line, states[defect.name] = plant(options, defect, control)
        say(line)
    for module, kind in KINDS.items():
        of_kind = [states[one.name] for one in chosen if one.__module__ == module.__name__]
        say(f"| {kind} | {len(of_kind)} | {sum(state != 'MISSED' for state in of_kind)} | {of_kind.count('caught')} |")
    count = Counter(states.values())
    missed = count["MISSED"]
    say(f"{len(chosen) - missed} of {len(chosen)} caught, {count['caught']} named; {len(control)} false alarms")
    return 1 if control or set(states.values()) - {"caught"} else 0


def serve(options: argparse.Namespace) -> int:
    """Run one defect until interrupted."""
    defect = find_defects()[options.serve] if options.serve != "none" else Defect
    with running_proxy(options.upstream, defect(), port=options.port) as url:
        say(f"{defect.name} in front of {options.upstream}: {url}")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.defects.proxy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", required=True, metavar="URL", help="the server, without /v1")
    parser.add_argument("--model", help="the served model, where there are several")
    parser.add_argument("--profile", type=Path, help="a profile that knows the model: what it cannot do, its reference")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="plant these defects alone")
    parser.add_argument("--whole", action="store_true", help="run the whole suite for each defect")
    parser.add_argument("--serve", metavar="NAME", help="only run the proxy with this defect, or with `none`")
    parser.add_argument("--port", type=int, default=0, help="with --serve: the port")
    options = parser.parse_args()
    options.arguments = [f"--stage-model={options.model}"] if options.model else []
    unknown = {*options.only, *filter(None, [options.serve])} - {*find_defects(), "none"}
    if unknown:
        parser.error(f"no such defect: {', '.join(sorted(unknown))}; there are {', '.join(find_defects())}")
    return serve(options) if options.serve else scoreboard(options)


if __name__ == "__main__":
    sys.exit(main())
