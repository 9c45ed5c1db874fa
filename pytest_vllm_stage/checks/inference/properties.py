"""Property tests against a server: the same examples every time, few enough to pay for, shrunk when they fail.

Hypothesis is imported by what uses it: each worker of a run imports this module, and few run a property test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_vllm_stage.checks.inference.together import together

if TYPE_CHECKING:
    from hypothesis import settings
    from hypothesis import strategies as st

Example = TypeVar("Example")

#: Examples that are asked at the same time.
AT_ONCE = 8
#: So many are drawn for each one that is asked for.
SPREAD = 4


def any_text() -> st.SearchStrategy[str]:
    """Texts of every script, with characters of one to four bytes.

    Left out are lone surrogates, which JSON cannot carry, and control and unassigned characters: a tokenizer may lack a
    byte that only they need, as SmolLM2's does.
    """
    from hypothesis import strategies as st

    return st.text(
        st.characters(exclude_categories=["Cs", "Cn", "Co", "Cc"], include_characters="\n\t")
        | st.sampled_from("éßж中日🙂🙃𝒳𐍈"),
        min_size=1,
        max_size=40,
    )


def examples(count: int, *, steps: int = 50) -> settings:
    """So many examples, derived from the test itself alone: a failure is a failure of the server, not of luck.

    Args:
        count: How many.
        steps: Of a stateful test: the most steps of each.
    """
    from hypothesis import HealthCheck, Phase, settings

    return settings(
        max_examples=count,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def check_examples(
    strategy: st.SearchStrategy[Example], count: int, check: Callable[[Example], Any], *, at_once: int = AT_ONCE
) -> None:
    """Check so many examples, several at the same time: an engine decodes eight answers in hardly more time than one.

    Once one has failed, they are checked again one by one, so that Hypothesis shrinks the failure.

    Args:
        strategy: What the examples are drawn from.
        count: How many.
        check: Asks for one example, and fails where the answer is wrong; it is called from several threads.
        at_once: How many run at the same time.

    Raises:
        Exception: what ``check`` raised for the smallest example that fails alone, else for the first one that failed
            among the others, with a note that says so.
    """
    from hypothesis import given

    __tracebackhide__ = True
    drawn: dict[str, Example] = {}

    def collect(example: Example) -> None:
        drawn.setdefault(repr(example), example)

    visit: Callable[[Example], None] = collect

    @examples(count * SPREAD)
    @given(strategy)
    def each(example: Example) -> None:
        visit(example)

    each()
    # Hypothesis varies an example several times in a row.
    chosen = list(drawn.items())[:: max(1, len(drawn) // count)][:count]
    found = together(lambda one: _find_failure(check, one[1]), chosen, at_once=at_once)
    failures = {name: failure for (name, _), failure in zip(chosen, found, strict=True) if failure}
    if not failures:
        return
    visit = _Shrinking(check, failures)
    each()
    failure = next(iter(failures.values()))
    failure.add_note(f"It came only among {at_once} requests at the same time: each example passes alone.")
    raise failure


class _Shrinking:
    """Checks what has failed, and from the first failure on whatever Hypothesis makes of it."""

    def __init__(self, check: Callable[[Any], Any], failed: Collection[str]) -> None:
        self._check, self._failed = check, failed
        self._shrinks = False

    def __call__(self, example: Any) -> None:
        if not self._shrinks and repr(example) not in self._failed:
            return
        failure = _find_failure(self._check, example)
        if failure:
            self._shrinks = True
            raise failure


def _find_failure(check: Callable[[Example], Any], example: Example) -> BaseException | None:
    try:
        check(example)
    except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
        return error
    return None
