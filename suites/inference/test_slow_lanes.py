"""What lasts half a minute or longer: it runs during the other checks, from the first one on, and is joined at the end.

Half a minute is the common limit of routers, one minute that of proxies and load balancers; both are reached where the
other checks take as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.checks.inference.pauses import AfterPause, ask_after_pause
from pytest_vllm_stage.checks.inference.slow_lanes import LaneResult, SlowLanes

Needs = Callable[..., None]
Record = Callable[[str, Any], None]


def verify(result: LaneResult, what: str, record_property: Record) -> None:
    """Fail with what went wrong and when; record how long it lasted."""
    record_property("lasted_s", round(result.lasted_s, 1))
    if result.problem:
        pytest.fail(f"{what} failed after {result.lasted_s:.0f} s: {result.problem}")
    if result.too_short:
        does_not_apply(f"no answer of this model lasts as long as a gateway's limit: {result.too_short}")


def test_long_stream_arrives_whole(slow_lanes: SlowLanes, record_property: Record) -> None:
    """A stream that lasts half a minute or longer is not cut.

    Routes have a limit for the whole answer, which short answers never reach: long ones end in the middle.
    """
    verify(slow_lanes.join_stream(), "a long stream", record_property)


def test_slow_reader_gets_everything(slow_lanes: SlowLanes, needs: Needs, record_property: Record) -> None:
    """A stream whose client reads slowly, over half a minute or longer, arrives whole.

    Phones read slowly: a gateway that does not wait for them drops events, or the connection.
    """
    needs("chat", "logprobs")
    verify(slow_lanes.join_reader(), "a stream that is read slowly", record_property)


def test_long_answer_arrives_whole(slow_lanes: SlowLanes, record_property: Record) -> None:
    """A whole answer that the engine needs half a minute for arrives.

    Until it begins, not one byte comes, which looks like a dead server to a gateway: 504 for the longest answers only.
    """
    verify(slow_lanes.join_answer(), "an answer without a byte for so long", record_property)


def test_idle_connection_is_usable(slow_lanes: SlowLanes, record_property: Record) -> None:
    """After half a minute or longer without traffic a connection still serves, or was closed where a client sees it.

    Connections that a gateway forgets without closing them lose the first request after each pause.
    """
    verify(slow_lanes.join_idle(), "the next request on an idle connection", record_property)


def test_request_after_a_pause_is_as_fast_as_others(
    endpoint: EndpointClient, slow_lanes: SlowLanes, record_property: Record
) -> None:
    """The first request after a pause of the endpoint is answered as fast as those after it.

    Gateways close connections, look up names and routes again, or put a backend to sleep: the first user after a quiet
    minute waits for seconds, which no test under load shows. A second pause has to confirm it, so that a busy machine
    does not fail this.
    """
    slow_lanes.join_all()
    slow: list[AfterPause] = []
    for _ in range(2):
        found = ask_after_pause(endpoint)
        record_property("first_after_pause_s", round(found.first_s, 3))
        record_property("others_s", round(found.others_s, 3))
        if not found.is_slow:
            return
        slow.append(found)
    pytest.fail(f"the first request after a pause is slow: {' and '.join(one.describe() for one in slow)}")
