"""Asks ahead of the checks what they will compare: every model at the same time, and many requests of a model at once.

A plain answer counts as asked alone while no request of another kind runs, apart from those of other checks (slow
lanes, another worker). Rows without a grammar are asked one by one; those with the same one, which take most of the
time, are asked together, since they cannot show each other's. What is asked among others goes through one queue, in
which rows of different kinds follow each other: the batch is full to the end.
Whatever fails here is kept for the check that is about it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pytest_vllm_stage.checks.inference.liveness import find_dead_engine
from pytest_vllm_stage.checks.inference.relations.asking import Asker, RelationBroken
from pytest_vllm_stage.checks.inference.relations.features import GUIDED, Case
from pytest_vllm_stage.checks.inference.together import together
from pytest_vllm_stage.serving.failures import RequestFailed

Asked = TypeVar("Asked")

#: Requests that run at the same time.
AT_ONCE = 12
#: After so many failures the rest is left to the checks, of which most are skipped for the cause of the first.
MOST_FAILURES = 3


@dataclass
class Selection:
    """What the chosen checks of one model compare.

    Attributes:
        alone: Rows whose plain answer is compared.
        among_others: Requests that are sent at the same time as others: the row, whether it is streamed, and its way.
    """

    alone: list[Case] = field(default_factory=list)
    among_others: list[tuple[Case, bool, str]] = field(default_factory=list)


class AskingAhead:
    """Asks one model in a thread of its own.

    Args:
        asker: Learns the answers; until `wait` returns, others may only read its plain ones, after `wait_for_plain`.
        selection: What to ask.
    """

    def __init__(self, asker: Asker, selection: Selection) -> None:
        self._asker = asker
        self._selection = selection
        self._stopped = threading.Event()
        self._plain_known = threading.Event()
        # A daemon, so that an interrupted run does not wait for it.
        self._thread = threading.Thread(target=self._run, name="relations asked ahead", daemon=True)
        self._thread.start()

    def wait_for_plain(self) -> Asker:
        """The asker, once all plain answers were asked for."""
        return self._wait(self._plain_known.wait)

    def wait(self) -> Asker:
        """The asker, once everything was asked."""
        return self._wait(self._thread.join)

    def _wait(self, wait: Callable[[], object]) -> Asker:
        try:
            wait()
        except BaseException:
            self.stop()
            raise
        return self._asker

    def stop(self) -> None:
        """Send no further request."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            if self._selection.alone and not find_dead_engine(self._asker.endpoint):
                self._ask()
        except (RequestFailed, RelationBroken):
            pass  # the check that needs the answer asks again, and reports what comes
        finally:
            self._plain_known.set()

    def _ask(self) -> None:
        for cases in group_for_alone(self._selection.alone):
            self._each(self._asker.learn, cases)
        self._plain_known.set()
        known = [request for request in self._selection.among_others if self._asker.learn(request[0])]
        self._each(lambda request: self._asker.ask_early(*request), known)

    def _each(self, ask: Callable[[Asked], object], items: Sequence[Asked]) -> None:
        def ask_unless_stopped(item: Asked) -> None:
            if not self._stopped.is_set() and len(self._asker.failed) < MOST_FAILURES:
                ask(item)

        together(ask_unless_stopped, items, at_once=AT_ONCE)


def group_for_alone(cases: Sequence[Case]) -> list[list[Case]]:
    """The rows that may be asked at the same time and still count as asked alone; a row stands in one group."""
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kind = case.row["answer"] if case.row["answer"] in GUIDED else case.id
        kinds.setdefault(kind, []).append(case)
    return list(kinds.values())
