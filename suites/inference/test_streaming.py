"""A stream is the same text as without streaming, delivered incrementally: complete, in order, and properly ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient, StreamedAnswer
from pytest_vllm_stage.checks.inference.framing import find_framing_problem
from pytest_vllm_stage.checks.inference.pace import are_time_slices, read_pace
from pytest_vllm_stage.checks.inference.together import settled
from pytest_vllm_stage.serving.answers import DONE
from pytest_vllm_stage.serving.client import CHAT

Needs = Callable[..., None]

#: Characters of two, three and four bytes, which tokens cut in the middle; and what filters of answers replace.
MANY_BYTES = "Grüße 你好 🙂✓ <b>&amp;</b> a@b.de"
#: A tool that is offered, and not to be called.
TOOL = {"type": "function", "function": {"name": "ring", "parameters": {"type": "object", "properties": {}}}}
#: Seconds from the last event of a stream to the end of its response that are a delay, if they are also most of it.
LONG_TAIL_S = 1.0
#: Pieces of a stream after which its client goes away.
READ_BEFORE_LEAVING = 6
#: Seconds in which the server's gauges show a request that runs.
SHOWN_WITHIN_S = 3.0
#: What they show.
GAUGES = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc")

APIS = pytest.mark.parametrize("api", ["chat", "completions"])

#: A hop that buffers does so every time; a busy machine does not hold a stream back three times running.
PACE_ATTEMPTS = 3
#: Tokens of the stream whose pace is judged, and of one whose pieces have many tokens each.
PACED_TOKENS, MORE_TOKENS = 40, 320


def test_chat_stream_text_equals_plain_answer(endpoint: EndpointClient, counting: str) -> None:
    """At temperature 0 the deltas of the stream, concatenated, are the plain answer.

    A hop that loses, repeats or reorders events, or cuts a character in two, changes the text that users read.
    """
    parameters = {"temperature": 0, "max_tokens": 20}
    plain = endpoint.chat(counting, **parameters)
    streamed = endpoint.stream_chat(counting, **parameters).read()
    assert streamed.text == plain.text, f"streamed: {streamed.text!r}\n   plain: {plain.text!r}"


def test_completion_stream_text_equals_plain_answer(endpoint: EndpointClient) -> None:
    """The same for ``/v1/completions``, which has chunks of another shape."""
    prompt, parameters = "1, 2, 3, 4, 5, 6, 7, 8,", {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
    plain = endpoint.completion(prompt, **parameters)
    streamed = endpoint.stream_completion(prompt, **parameters).read()
    assert plain.text, "16 tokens were asked for with the end of text switched off, and no text came"
    assert streamed.text == plain.text, f"streamed: {streamed.text!r}\n   plain: {plain.text!r}"


@APIS
def test_stream_arrives_incrementally(endpoint: EndpointClient, counting: str, lacks: dict[str, str], api: str) -> None:
    """The pieces of a long answer arrive over a good part of the time that the answer takes.

    Behind a buffering proxy a chat pauses and then jumps: a stream in form only, whose time to first token is its whole
    latency. A chat has tools that it may not call: gateways that look for calls hold such streams back. The pace is
    judged relative to the answer's own duration, so a slow machine does not fail this, nor the time slices of a busy
    one. Pieces of many tokens, as speculative decoding and ``--stream-interval`` make them, only need a longer stream.
    """
    ask, tokens = endpoint.stream_chat if api == "chat" else endpoint.stream_completion, PACED_TOKENS
    with_tools = {"tools": [TOOL], "tool_choice": "none"} if api == "chat" and "tools" not in lacks else {}

    def stream(max_tokens: int, **tools: Any) -> StreamedAnswer:
        return ask(counting, temperature=0, max_tokens=max_tokens, ignore_eos=True, **tools).read()

    paces = []
    for _ in range(PACE_ATTEMPTS):
        pace = read_pace(partial(stream, tokens, **with_tools))
        if pace.incremental:
            return
        paces.append(pace)
        if pace.is_short:
            tokens = min(MORE_TOKENS, (endpoint.tokenize("x").max_model_len or MORE_TOKENS) // 2)
    if are_time_slices(paces):
        return
    said = f"{pace.symptom} ({PACE_ATTEMPTS} streams of {PACE_ATTEMPTS})"
    if with_tools and read_pace(partial(stream, tokens)).incremental:
        said += "; the request has tools, without which the stream is incremental"
    pytest.fail(said)


def ask_stream(endpoint: EndpointClient, api: str, max_tokens: int = 8, **parameters: Any) -> StreamedAnswer:
    """A short stream of either API, read to its end; a plain completion may have nothing to add, unless it must."""
    if api == "chat":
        return endpoint.stream_chat("Say hello.", temperature=0, max_tokens=max_tokens, **parameters).read()
    asked = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, **parameters}
    return endpoint.stream_completion("Say hello.", **asked).read()


def tail_s(answer: StreamedAnswer) -> float:
    """For how long the response went on after its last event; 0 unless that is long and most of the time it took."""
    last = answer.events[-1].arrived_at
    waited = answer.ended_at - last
    return waited if waited > max(LONG_TAIL_S, last - answer.sent_at) else 0.0


@pytest.mark.smoke
@APIS
def test_stream_ends_with_done(endpoint: EndpointClient, api: str) -> None:
    """``[DONE]`` is the last event, comes once, and nothing is left unfinished behind it.

    It alone distinguishes a complete answer from one that a proxy's timeout cut off: without it a client waits, or
    takes half an answer for the whole. The response ends with it, since clients read on until it does.
    """
    answer = ask_stream(endpoint, api)
    data = [event.data for event in answer.events]
    assert data, "the stream had no event at all"
    assert DONE in data, f"the stream ended without [DONE]; its last event was {data[-1][:200]}"
    assert data.count(DONE) == 1, f"expected [DONE] once, got it {data.count(DONE)} times"
    assert data[-1] == DONE, f"{len(data) - 1 - data.index(DONE)} events came after [DONE]"
    assert not answer.unfinished.strip(), f"an event was left unfinished after [DONE]: {answer.unfinished[:200]!r}"
    tails = [tail_s(answer)]
    # Once is the machine's load, three times running is the server or what is in front of it.
    while tails[-1] and len(tails) < PACE_ATTEMPTS:
        tails.append(tail_s(ask_stream(endpoint, api)))
    assert not tails[-1], f"the response stayed open for {min(tails):.1f} s after [DONE], {len(tails)} times running"


@APIS
def test_chunks_of_a_stream_are_consistent(endpoint: EndpointClient, api: str) -> None:
    """All chunks carry one id and the model's name, a chat's first the role, and one finish reason follows the text.

    Clients put chunks together by id and stop reading at the finish reason: text after it is lost, a foreign id is
    another user's answer.
    """
    answer = ask_stream(endpoint, api)
    ids, models = {chunk.get("id") for chunk in answer.chunks}, {chunk.get("model") for chunk in answer.chunks}
    assert len(ids) == 1, f"the chunks of one stream carry {len(ids)} ids: {sorted(map(str, ids))}"
    assert models == {endpoint.target.model}, (
        f"asked {endpoint.target.model}, the chunks name {sorted(map(str, models))}"
    )
    role = answer.chunks[0]["choices"][0].get("delta", {}).get("role")
    assert api != "chat" or role == "assistant", f"the first delta gives the role {role!r}"
    objects = {chunk.get("object") for chunk in answer.chunks}
    expected = "chat.completion.chunk" if api == "chat" else "text_completion"
    assert objects == {expected}, f"the chunks are called {sorted(map(str, objects))}, expected {expected!r}"
    choices = [choice for chunk in answer.chunks for choice in chunk["choices"]]
    unended = [choice for choice in choices if not choice.get("finish_reason")]
    odd = [choice for choice in unended if choice.get("finish_reason", "absent") is not None]
    assert not odd, f"before the end the finish reason must be null, it is {odd[0].get('finish_reason', 'absent')!r}"
    assert len(answer.finish_reasons) == 1, f"the stream gave finish reasons {answer.finish_reasons}, expected one"
    assert choices[-1].get("finish_reason"), "text came after the finish reason"


@APIS
def test_stream_carries_usage_when_requested(endpoint: EndpointClient, api: str) -> None:
    """With ``include_usage`` one last chunk reports the token counts, the same as the plain answer's; without it, none.

    Streams are billed and rate-limited by this chunk.
    """
    parameters: dict[str, Any] = {"temperature": 0, "max_tokens": 8} | ({} if api == "chat" else {"ignore_eos": True})
    plain = (endpoint.chat if api == "chat" else endpoint.completion)("Say hello.", **parameters).usage
    asked = ask_stream(endpoint, api, stream_options={"include_usage": True})
    unasked = ask_stream(endpoint, api)
    # With vLLM's --enable-force-include-usage every chunk of every stream carries it.
    forced = len(unasked.usage_chunks) == len(unasked.chunks)
    expected = len(asked.chunks) if forced else 1
    carry = len(asked.usage_chunks)
    assert carry == expected, f"usage was requested, but {carry} chunks carry it, expected {expected}"
    chunk = asked.usage_chunks[-1]
    assert chunk is asked.chunks[-1], "text chunks came after the usage chunk"
    assert chunk.get("choices") == [], f"the usage chunk must have no choices, it has {chunk.get('choices')}"
    streamed = plain.of(chunk)
    assert streamed == plain, f"streamed: {streamed}, plain: {plain}"
    assert forced or not unasked.usage_chunks, "usage was not requested, but returned"


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_continuous_usage_grows_with_the_stream(endpoint: EndpointClient, counting: str, api: str) -> None:
    """With ``continuous_usage_stats`` every chunk counts the tokens so far, and the last count is the plain answer's.

    Clients that leave early are billed by the last chunk that they saw.
    """
    parameters = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    ask = endpoint.stream_chat if api == "chat" else endpoint.stream_completion
    chunks = ask(counting, stream_options=options, **parameters).read().chunks
    said = [chunk.get("usage") or {} for chunk in chunks]
    without = sum(not usage for usage in said)
    assert not without, f"each chunk was to have usage, {without} of {len(said)} have none"
    counts = [usage["completion_tokens"] for usage in said]
    assert counts == sorted(counts), f"the completion tokens of the chunks do not grow: {counts}"
    assert counts[-1] == 6, f"6 tokens were generated, the last chunk counts {counts[-1]}: {counts}"
    assert counts[0] < 6, f"the first chunk counts all tokens already: {counts}"
    prompts = {usage["prompt_tokens"] for usage in said}
    assert len(prompts) == 1, f"the prompt tokens of one stream are {sorted(prompts)}"


def test_stream_is_framed_as_events(endpoint: EndpointClient, needs: Needs) -> None:
    """Every line of the body is a field or a comment, every event ends with an empty line, and all of it is UTF-8.

    Browsers and clients in other languages are stricter than ours: an invalid line is dropped with its text.
    """
    needs("chat")
    body = endpoint.chat_body("Say hello.", temperature=0, max_tokens=6, stream=True)
    raw = endpoint.raw("POST", CHAT, json=body).content
    problem = find_framing_problem(raw)
    assert not problem, problem


def test_characters_are_never_cut(endpoint: EndpointClient, needs: Needs) -> None:
    """An answer constrained to multi-byte characters, markup and an address arrives intact, streamed or not.

    Tokens end inside characters: a server or relay that decodes token by token shows replacement characters to users
    who do not write English. Filters of answers escape markup and mask addresses.
    """
    needs("structured_outputs")
    parameters = {"temperature": 0, "max_tokens": 64, "structured_outputs": {"choice": [MANY_BYTES]}}
    plain = endpoint.chat("Say something.", **parameters).text
    assert plain == MANY_BYTES, f"constrained to {MANY_BYTES!r}, the answer is {plain!r}"
    streamed = endpoint.stream_chat("Say something.", **parameters).read()
    assert streamed.text == MANY_BYTES, f"constrained to {MANY_BYTES!r}, the streamed text is {streamed.text!r}"


def test_client_that_disconnects_frees_its_slot(endpoint: EndpointClient, counting: str, needs: Needs) -> None:
    """When a client disconnects from a long stream, the server stops generating it, long before it would have ended.

    Users close their windows: a server that goes on generating is full of answers that no client reads. How long it
    would have taken follows from the server's own pace; half of that is the deadline. While it runs, the gauges by
    which autoscalers and routers see the load count it, and its part of the KV cache.
    """
    needs("metrics")
    room = (endpoint.tokenize("x").max_model_len or 2048) - endpoint.tokenize(messages=counting).count - 8

    def gauge(name: str) -> float:
        return endpoint.metrics().value(name, model_name=endpoint.target.model)

    def state() -> tuple[float, float]:
        metrics, model = endpoint.metrics(), {"model_name": endpoint.target.model}
        aborted = metrics.value("vllm:request_success", finished_reason="abort", **model)
        return metrics.value("vllm:num_requests_running", **model), aborted

    running_before, aborted_before = state()
    with endpoint.stream_chat(counting, temperature=0, max_tokens=room, ignore_eos=True) as stream:
        events = iter(stream)  # kept: the connection is closed where nothing refers to it any more
        arrivals = [event.arrived_at for event in islice(events, READ_BEFORE_LEAVING)]
        assert len(arrivals) == READ_BEFORE_LEAVING, f"a stream of {room} tokens ended after {len(arrivals)} events"
        would_take_s = (arrivals[-1] - arrivals[1]) / (READ_BEFORE_LEAVING - 2) * room
        within_s = min(SHOWN_WITHIN_S, would_take_s / 4) / len(GAUGES)
        hidden = [name for name in GAUGES if not settled(lambda name=name: gauge(name) > 0, within_s)]  # type: ignore[misc]
        # A busy client may look when the stream has ended.
        late = time.perf_counter() - arrivals[0] > would_take_s / 2
    assert late or not hidden, f"while a stream of {room} tokens was read, {' and '.join(hidden)} was 0"

    def freed() -> bool:
        running, aborted = state()
        return running <= running_before or aborted > aborted_before

    assert settled(freed, would_take_s / 2), (
        f"{would_take_s / 2:.1f} s after its client left, a stream of {would_take_s:.1f} s still runs: "
        f"running {state()[0]:g}, before it {running_before:g}"
    )
