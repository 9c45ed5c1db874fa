"""Every parameter has its effect in every way of asking, and a list of prompts is answered in its order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.abilities import find_ruled_out
from pytest_vllm_stage.checks.inference.effects import EFFECTS, WayOfAsking
from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.relations.reading import Reading, find_difference, read_answer, read_chunks
from pytest_vllm_stage.checks.inference.together import together
from pytest_vllm_stage.serving.failures import RequestFailed

Needs = Callable[..., None]

#: Effects that are looked for at the same time.
AT_ONCE = 8
WAYS = {
    "chat": ("chat", False),
    "chat-stream": ("chat", True),
    "completions": ("completions", False),
    "completions-stream": ("completions", True),
}
#: Effects on a plain chat that no other check looks for.
ONLY_HERE = (
    "seed",
    "temperature",
    "temperature over 1",
    "temperature below 1",
    "presence_penalty",
    "include_stop_str_in_output",
    "bad_words",
    "allowed_token_ids",
)


@pytest.mark.parametrize("way", WAYS)
def test_parameters_count_in_every_way(endpoint: EndpointClient, needs: Needs, way: str) -> None:
    """Each parameter has its effect on streams and on plain completions too.

    Gateways map parameters per API and per way of asking, and drop one from completions or streams that they pass on
    in a plain chat, for which the other checks look.
    """
    needs("token_ids")
    api, streams = WAYS[way]
    asking = WayOfAsking(endpoint, api, streams)

    def find(parameter: str) -> str:
        try:
            return EFFECTS[parameter](asking)
        except RequestFailed as error:
            return str(error)

    chosen = ONLY_HERE if way == "chat" else tuple(EFFECTS)
    problems = dict(zip(chosen, together(find, chosen, at_once=AT_ONCE), strict=True))
    ignored = {name: problem for name, problem in problems.items() if problem and not find_ruled_out(problem)}
    asked = f"{api}, {'streamed' if streams else 'plain'}"
    assert not ignored, f"parameters without effect on {asked}: {ignored}"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_prompts_of_one_request_are_answered_in_order(endpoint: EndpointClient, stream: bool) -> None:
    """A completion with a list of prompts has the answers of each, in the prompts' order, with ``n`` for each.

    Evaluation harnesses ask so, with texts or, as here for the stream, with their token ids: joined, swapped or dropped
    prompts give every question another one's answer.
    """
    shown = [pattern(40), pattern(41), pattern(42)]
    # vLLM refuses several answers at temperature 0.
    parameters = {"temperature": 1.0, "top_k": 1, "max_tokens": 6, "n": 2}
    prompts = [one.prompt() for one in shown]
    if stream:
        options = {"include_usage": True}
        tokens = [list(endpoint.tokenize(prompt).ids) for prompt in prompts]
        got = read_chunks(endpoint.stream_completion(tokens, stream_options=options, **parameters).read().chunks)
    else:
        got = read_answer(endpoint.completion(prompts, **parameters).body)
    alone = [read_answer(endpoint.completion(prompt, **parameters).body) for prompt in prompts]
    usage = {name: sum(one.usage[name] for one in alone) for name in alone[0].usage}
    expected = Reading([choice for one in alone for choice in one.choices], usage)
    difference = find_difference(expected, got, "the answer to three prompts with n=2")
    assert not difference, f"a list of prompts != each prompt alone{', streamed' if stream else ''}: {difference}"
