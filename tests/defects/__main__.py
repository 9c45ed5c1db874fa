"""The scoreboard: ``python -m tests.defects`` plants every defect of the catalogue and prints which checks caught it.

    python -m tests.defects                          every defect, then a summary
    python -m tests.defects --only buffered_stream   some of them, with the whole message

`python -m tests.defects.clean` counts false alarms. Exit code 1: a defect was not caught as the catalogue says.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.defects import checks
from tests.defects.catalogue import DEFECTS, KINDS, Defect
from tests.defects.clean import say
from tests.defects.oracle import says_something
from tests.defects.runner import Outcome, run_suite, simulator

#: Characters of a symptom that the table shows.
SHOWN = 110


@dataclass(frozen=True)
class Row:
    """One line of the scoreboard."""

    defect: Defect
    outcome: Outcome
    oracle_caught: bool

    @property
    def missed(self) -> list[str]:
        """The checks that should have caught it, and the symptom if no message named it."""
        missed = sorted(self.defect.by - set(self.outcome.failed))
        named = any(self.defect.says in line for line in self.outcome.messages)
        return missed if named else [*missed, f"symptom {self.defect.says!r}"]

    @property
    def unexpected(self) -> list[str]:
        """The checks that failed and should not have."""
        return sorted(set(self.outcome.failed) - self.defect.by - self.defect.also - checks.relations)

    def line(self) -> str:
        """The row of the table."""
        state = "MISSED" if self.missed else "UNEXPECTED" if self.unexpected else "caught"
        oracle = "caught" if self.oracle_caught else "missed"
        symptom = next((line for line in self.outcome.messages if self.defect.says in line), "")
        symptom = re.sub(r"^[\w.]+: ", "", symptom)[:SHOWN]
        return f"{self.defect.name:<44} {state:<10} {len(self.outcome.failed):>6}  {oracle:<6}  {symptom}"


def plant(defect: Defect) -> Row:
    """Run the oracle and the suite, each against an engine of its own with the defect."""
    with simulator(defect.fault) as url:
        caught = not says_something(url)
    with simulator(defect.fault) as url:
        return Row(defect, run_suite(url), caught)


def scoreboard(names: list[str], jobs: int) -> int:
    """Plant the defects and print the table."""
    chosen = [defect for defect in DEFECTS if not names or defect.name in names or defect.fault in names]
    say(f"{'defect':<44} {'suite':<10} {'checks':>6}  {'oracle':<6}  symptom")
    rows = []
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(plant, chosen):
            rows.append(row)
            say(row.line())
            for word, what in (("missed", row.missed), ("unexpected", row.unexpected)):
                say(*(f"    {word}: {one}: {row.outcome.failed.get(one, '')}" for one in what))
            if names:
                say(*(f"    {name}: {message}" for name, message in row.outcome.failed.items()))
    for kind in KINDS.values():
        of_kind = [row for row in rows if row.defect.kind == kind]
        caught = sum(not row.missed and not row.unexpected for row in of_kind)
        say(f"| {kind} | {len(of_kind)} | {caught} | {sum(row.oracle_caught for row in of_kind)} |")
    wrong = [row for row in rows if row.missed or row.unexpected]
    say(
        f"{len(rows) - len(wrong)} of {len(rows)} defects are caught by exactly their checks, their symptom named; "
        f"the plain oracle catches {sum(row.oracle_caught for row in rows)}"
    )
    return 1 if wrong or not rows else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.defects", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="plant these defects alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="defects planted at a time")
    arguments = parser.parse_args()
    return scoreboard(arguments.only, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
