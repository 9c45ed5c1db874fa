"""Users do not affect each other: concurrent, repeated and abandoned requests do not change an answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient, StreamedAnswer, does_not_apply
from pytest_vllm_stage.checks.inference.effects import UNFILTERED
from pytest_vllm_stage.checks.inference.patterns import Pattern, pattern
from pytest_vllm_stage.checks.inference.queueing import observe_queue
from pytest_vllm_stage.checks.inference.together import is_counted, settled, together
from pytest_vllm_stage.checks.inference.wire import WireConnection
from pytest_vllm_stage.serving.client import COMPLETIONS

Needs = Callable[..., None]

#: Requests sent at a time; more wait in the server's queue, which is part of the check.
AT_ONCE = 12
#: The same for answers that are compared: more than a batch that a graph was captured for, of 16 or fewer.
CROWD = 24
#: Lines of a prompt that is longer than two blocks of any common prefix cache: 128 tokens each in vLLM on a CPU.
MANY_LINES = 50
#: The release from which on vLLM adds something of its own to each id for certain
#: (https://github.com/vllm-project/vllm/pull/27987).
OWN_IDS_SINCE = (0, 15, 0)
FAIRNESS_ATTEMPTS = 5
#: The share of the shorter of two streams during which both must run to count as served at the same time.
LEAST_OVERLAP = 0.25
#: Tokens of the answer by which the server's pace is measured.
PACE_TOKENS = 16
#: Seconds until all slots are seen free; others may use the server meanwhile, and then it takes a gap between them.
FREE_TIMEOUT_S = 30.0


def check(asked: Pattern, said: str, others: list[Pattern], how: str = "") -> None:
    """Fail unless the answer is the pattern's own; name the pattern that it belongs to."""
    if said.startswith(asked.answer):
        return
    whose = [other.line for other in others if said.startswith(other.answer)]
    cause = f", which is the answer to {whose[0]!r}: answers are mixed up" if whose else ""
    pytest.fail(f"{asked.line!r} was shown{how}, and continued with {said!r}{cause}")


def test_concurrent_answers_are_not_mixed_up(endpoint: EndpointClient) -> None:
    """Of thirty-six requests, twenty-four at a time, whole and streamed in turn, each gets its own answer.

    Cross-talk puts one user's data on another's screen. Every prompt's answer is certain and unlike all others. Large
    batches run through other kernels than small ones, and a gateway may send what is too much to another model.
    """
    asked = [pattern(place) for place in range(CROWD * 3 // 2)]

    def ask(place: int) -> tuple[str, set[Any]]:
        parameters = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
        if place % 2:
            streamed = endpoint.stream_completion(asked[place].prompt(), **parameters).read()
            return streamed.text, {chunk.get("model") for chunk in streamed.chunks}
        answer = endpoint.completion(asked[place].prompt(), **parameters)
        return answer.text, {answer.body.get("model")}

    got = together(ask, range(len(asked)), at_once=CROWD)
    for one, (text, _) in zip(asked, got, strict=True):
        check(one, text, asked, f" among {CROWD} at a time")
    others = {name for _, names in got for name in names} - {endpoint.target.model}
    assert not others, f"of {len(asked)} answers, asked for {CROWD} at a time, some name another model: {others}"


def test_requests_with_one_id_are_kept_apart(endpoint: EndpointClient, release: tuple[int, ...] | None) -> None:
    """Four concurrent requests with the same ``X-Request-Id`` each get their own answer.

    Proxies and clients send a retry under the id of the first attempt, while that may still run. A server that keeps
    its requests by this id refuses, mixes up or loses one of the two.
    """
    if release is not None and release < OWN_IDS_SINCE:
        does_not_apply(f"vLLM {'.'.join(map(str, release))} keeps requests by the ids that clients give them")
    asked = [pattern(place) for place in range(45, 49)]
    headers = {"x-request-id": f"vllm-stage-{time.time_ns()}"}

    def ask(shown: Pattern) -> str:
        body = endpoint.completion_body(shown.prompt(), temperature=0, max_tokens=6, ignore_eos=True)
        response = endpoint.raw("POST", COMPLETIONS, json=body, headers=headers)
        assert response.status_code == 200, (
            f"one of {len(asked)} concurrent requests with the same X-Request-Id was answered "
            f"{response.status_code}: {response.text[:200]}"
        )
        return str(response.json()["choices"][0]["text"])

    for one, text in zip(asked, together(ask, asked, at_once=len(asked)), strict=True):
        check(one, text, asked, " under an X-Request-Id that others had too")


def test_answer_belongs_to_its_parameters(endpoint: EndpointClient) -> None:
    """The same prompt with other parameters is another request: the limit, the stop text and the draw are its own.

    A cache keyed by the prompt alone gives the second user the first one's settings.
    """
    shown = pattern(3)
    prompt, number = shown.prompt(), shown.answer
    whole = endpoint.completion(prompt, temperature=0, max_tokens=6, ignore_eos=True)
    check(shown, whole.text, [])
    short = endpoint.completion(prompt, temperature=0, max_tokens=2, ignore_eos=True)
    assert short.usage.completion_tokens == 2, f"max_tokens=2 after max_tokens=6 gave {short.usage.completion_tokens}"
    stopped = endpoint.completion(prompt, temperature=0, max_tokens=6, stop=number[-1])
    assert stopped.text == number.partition(number[-1])[0], f"with stop={number[-1]!r} it said {stopped.text!r}"
    story = "Here is a story that no one has heard yet:"
    endpoint.completion(story, temperature=0, max_tokens=8)
    hot = {"temperature": 2.0, "max_tokens": 8} | UNFILTERED
    drawn = {endpoint.completion(story, seed=seed, **hot).text for seed in range(3)}
    assert len(drawn) > 1, f"three seeds at temperature 2 after a greedy answer all gave {drawn.pop()!r}"


def test_cached_prefix_changes_no_answer(endpoint: EndpointClient) -> None:
    """A long prompt is answered the same cold and from the prefix cache, and another beginning is not mixed up.

    The cache reuses one user's computed prompt for the next: keyed wrongly, it leaks the content too.
    """
    first, other, another = pattern(7), pattern(8), pattern(11)
    same_word = Pattern(first.word, other.number)
    parameters = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    for shown in (first, same_word, first, same_word):
        said = endpoint.completion(shown.prompt(MANY_LINES), **parameters).text
        check(shown, said, [first, same_word])
    for shown in (other, another, other):
        said = endpoint.completion(first.lines(MANY_LINES) + shown.prompt(4), **parameters).text
        check(shown, said, [first, other, another])


def prompt_of_blocks(endpoint: EndpointClient, block_sizes: list[str]) -> str:
    """A prompt of more than two blocks of the prefix cache, which holds whole blocks only.

    vLLM makes the blocks of hybrid models, such as Granite 4 and Qwen3-Next, hundreds of tokens long.
    """
    shown, size = pattern(10), max((int(one) for one in block_sizes if one.isdecimal()), default=0)
    counted = endpoint.tokenize(shown.prompt(MANY_LINES))
    lines = max(MANY_LINES, math.ceil(MANY_LINES * 2.5 * size / counted.count))
    needed = math.ceil(lines * counted.count / MANY_LINES)
    if counted.max_model_len is not None and needed > counted.max_model_len - 1:
        does_not_apply(f"two blocks of the prefix cache, {size} tokens each, do not fit into {counted.max_model_len}")
    return shown.prompt(lines)


def test_enabled_prefix_cache_is_hit(endpoint: EndpointClient, needs: Needs) -> None:
    """If the server reports prefix caching as enabled, a repeated long prompt hits the cache.

    Without hits every turn of a long conversation is computed again: right, slow and expensive. They also prove that
    the check of cached answers looks at cached answers.
    """
    needs("metrics")
    metrics, model = endpoint.metrics(), endpoint.target.model
    if not metrics.series("vllm:cache_config_info", enable_prefix_caching="True"):
        does_not_apply("the server reports prefix caching as disabled")
    before = metrics.value("vllm:prefix_cache_hits", model_name=model)
    caches = metrics.series("vllm:cache_config_info", enable_prefix_caching="True")
    prompt = prompt_of_blocks(endpoint, [one.labels.get("block_size", "") for one in caches])
    # Each engine of each replica has a cache of its own: one request more than engines meets one of them twice.
    engines = len({one.labels.get("engine") for one in caches})
    times = 1 + engines * (endpoint.scrapes.replicas.count if endpoint.scrapes.replicas else 1)
    for _ in range(times):
        tokens = endpoint.completion(prompt, temperature=0, max_tokens=1).usage.prompt_tokens
    hit = is_counted(lambda: endpoint.metrics().value("vllm:prefix_cache_hits", model_name=model) > before)
    came = f"prefix caching is on, a prompt of {tokens} tokens came {times} times"
    assert hit, f"{came}, and vllm:prefix_cache_hits did not move"


def test_abandoned_requests_leave_no_trace(endpoint: EndpointClient, needs: Needs) -> None:
    """After twenty-four streams, all left after their first event, the next answer is right and no slot stays taken.

    It is what an impatient crowd, or a client with a short timeout and retries, does to a server every day.
    """
    needs("metrics")

    def state() -> tuple[float, float]:
        metrics, model = endpoint.metrics(), endpoint.target.model
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return tuple(metrics.value(name, model_name=model) for name in names)  # type: ignore[return-value]

    limit = min(1000, (endpoint.tokenize("x").max_model_len or 2000) // 2)

    def count_aborted() -> float:
        counted = {"model_name": endpoint.target.model, "finished_reason": "abort"}
        return endpoint.metrics().value("vllm:request_success", **counted)

    before, aborted_before = state(), count_aborted()

    def give_up(place: int) -> None:
        with endpoint.stream_completion(pattern(place).prompt(), max_tokens=limit, ignore_eos=True) as stream:
            next(iter(stream))

    together(give_up, range(2 * AT_ONCE), at_once=AT_ONCE)
    shown = pattern(9)
    check(shown, endpoint.completion(shown.prompt(), temperature=0, max_tokens=6, ignore_eos=True).text, [])

    def is_free() -> bool:
        # Other checks may keep the engine full for longer than this one waits.
        fell = all(now <= then for now, then in zip(state(), before, strict=True))
        return fell or count_aborted() >= aborted_before + 2 * AT_ONCE

    free = settled(is_free, FREE_TIMEOUT_S)
    assert free, f"after {2 * AT_ONCE} abandoned streams, running and waiting are {state()}; before them {before}"


def test_client_that_leaves_before_its_answer_frees_its_slot(endpoint: EndpointClient, needs: Needs) -> None:
    """When a client that waits for a whole answer disconnects, the server stops generating it.

    Gateways watch the clients of streams, and often not those of whole answers: after a time-out and a retry the
    engine works on both. How long the answer would take follows from the pace of a stream; half of that is allowed.
    """
    needs("metrics")
    prompt, parameters = pattern(44).prompt(), {"temperature": 0, "ignore_eos": True}
    room = (endpoint.tokenize("x").max_model_len or 2048) - endpoint.tokenize(prompt).count - 8

    def state() -> tuple[float, float]:
        metrics, model = endpoint.metrics(), {"model_name": endpoint.target.model}
        aborted = metrics.value("vllm:request_success", finished_reason="abort", **model)
        return metrics.value("vllm:num_requests_running", **model), aborted

    paced = endpoint.stream_completion(prompt, max_tokens=PACE_TOKENS, **parameters).read().events
    would_take_s = (paced[-1].arrived_at - paced[0].arrived_at) / PACE_TOKENS * room
    running_before, aborted_before = state()
    with WireConnection(endpoint.target) as connection:
        connection.begin(COMPLETIONS, endpoint.completion_body(prompt, max_tokens=room, **parameters))
        settled(lambda: state()[0] > running_before, would_take_s / 4)

    def freed() -> bool:
        running, aborted = state()
        return running <= running_before or aborted > aborted_before

    assert settled(freed, would_take_s / 2), (
        f"{would_take_s / 2:.1f} s after its client left, a whole answer of {would_take_s:.1f} s still runs: "
        f"running {state()[0]:g}, before it {running_before:g}"
    )


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two spans of time have much in common; the last piece of one stream may be read after another began."""
    common_s = min(one[1], other[1]) - max(one[0], other[0])
    return common_s > LEAST_OVERLAP * min(end - start for start, end in (one, other)) > 0


def test_concurrent_streams_all_progress(endpoint: EndpointClient) -> None:
    """Of four streams requested together, all but one send their first piece while another one is still running.

    A server that serves one user after the other makes all others wait for whole answers. What is asked is only that
    each overlaps with one other, so that any limit of two or more slots will do; one may have begun late.
    """
    if endpoint.target.max_num_seqs == 1:
        does_not_apply("the model is declared with --max-num-seqs=1: it serves one request after the other")

    def read(place: int) -> StreamedAnswer:
        return endpoint.stream_completion(pattern(place).prompt(), temperature=0, max_tokens=40, ignore_eos=True).read()

    alone: list[str] = []
    for _ in range(FAIRNESS_ATTEMPTS):
        spans = [(one.deltas[0].arrived_at, one.deltas[-1].arrived_at) for one in together(read, range(4), at_once=4)]
        alone = [
            pattern(place).word
            for place, span in enumerate(spans)
            if not any(overlap(span, other) for at, other in enumerate(spans) if at != place)
        ]
        if len(alone) < 2:
            return
    said = f"of four streams asked for together, {', '.join(alone)} ran alone, {FAIRNESS_ATTEMPTS} times running"
    limit = endpoint.target.max_num_seqs
    queue = observe_queue(endpoint, lambda: together(read, range(4), at_once=4))
    if queue and queue.is_serial and limit is None:
        pytest.skip(
            f"{said}; {queue.describe()}: it is an engine of --max-num-seqs=1, or one that does not serve as many as "
            "it should; max_num_seqs in the profile says which"
        )
    said += f"; {queue.describe()}" if queue else ""
    pytest.fail(said + (f"; --max-num-seqs is {limit}" if limit else ""))
