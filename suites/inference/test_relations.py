"""Answers that must be equal: features in pairs, asked in another way, among others, again, and with their defaults.

Every feature has checks of its own; what public reports are about is a feature that fails together with another one,
in another way of asking, or later. So each row of a covering array (``checks.inference.relations``) is one request, all
pairs of features and ways stand in one of them, and its plain answer, asked alone, is what every other answer to it is
compared with. A test's id names the row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import EndpointClient, Target, does_not_apply
from pytest_vllm_stage.checks.inference.abilities import find_ruled_out
from pytest_vllm_stage.checks.inference.relations.ahead import AT_ONCE, AskingAhead, Selection
from pytest_vllm_stage.checks.inference.relations.asking import ORDINARY, Asker, name
from pytest_vllm_stage.checks.inference.relations.features import CALLED, FREE_SPACE, LABEL, MATRIX, Case
from pytest_vllm_stage.checks.inference.relations.reading import find_difference, read_answer
from pytest_vllm_stage.checks.inference.together import together
from pytest_vllm_stage.serving.client import CHAT, COMPLETIONS
from pytest_vllm_stage.session.lanes import has_whole_lanes

if TYPE_CHECKING:
    import httpx

    from pytest_vllm_stage import ModelProfile, StageConfig

Needs = Callable[..., None]

#: Rows that are asked at the same time: of those that call tools, which are by far the longest answers, one of each
#: kind. The streams of all rows are asked among others, too.
_FIRST_OF_KIND = {case.row["answer"]: case for case in reversed(MATRIX)}
MIXED = [case for case in MATRIX if case.row["answer"] not in CALLED or case is _FIRST_OF_KIND[case.row["answer"]]]
BATCHES = [MIXED[start::6] for start in range(6)]
#: Checks that ask each row again in its way, and whether they stream.
ASKED_IN_THEIR_WAY = {"test_stream_equals_plain": True, "test_way_of_asking_changes_nothing": False}
#: Features that must not change an answer, by factor.
IRRELEVANT = {"extra": ("logprobs", "bias"), "end": ("absent stop text",)}
#: vLLM's documented defaults. Those of temperature, top_p, top_k, min_p and the penalties are left out: a model's
#: generation_config.json changes them (--generation-config).
DEFAULTS: dict[str, Any] = {
    "n": 1,
    "stream": False,
    "stop": [],
    "logit_bias": None,
    "seed": None,
    "min_tokens": 0,
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "stop_token_ids": [],
    "echo": False,
}


#: Parameters for which null counts as absent, as clients that write every field send them.
NULLS = ("stream", "stream_options", "stop", "top_p", "presence_penalty", "frequency_penalty", "logprobs", "user")
#: vLLM 0.32 refuses it for completions, though OpenAI documents it for both.
CHAT_NULLS = ("n", "tools", "tool_choice", "response_format", "top_logprobs", "max_completion_tokens")


def rows(choose: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """One test per row."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in MATRIX if choose(case)])


class AskingByRole:
    """What is asked ahead of the chosen checks: of one model, where its checks are a worker's lane, else of all.

    Two engines on two cores take as long as one.
    """

    def __init__(
        self, config: pytest.Config, chosen: list[pytest.Item], targets: dict[str, Target], stage: StageConfig
    ) -> None:
        # A worker that gets single checks does not know which: there each check asks for itself.
        self._chosen = chosen if has_whole_lanes(config) else []
        self._is_lane = hasattr(config, "workerinput")
        self._targets, self._profile = targets, stage.profile
        self._stack = ExitStack()
        self._asking: dict[str, AskingAhead] = {}

    def find(self, role: str) -> AskingAhead:
        """What is asked ahead of a model's checks; it begins with the first of them."""
        for one in [role] if self._is_lane else self._targets:
            if one not in self._asking:
                self._asking[one] = self._start(one)
        return self._asking[role]

    def _start(self, role: str) -> AskingAhead:
        target = self._targets[role]
        selection = _select(self._chosen, role, self._profile.find_model(role, target.model))
        return AskingAhead(Asker(self._stack.enter_context(EndpointClient(target))), selection)

    def close(self) -> None:
        """Ask nothing more."""
        with self._stack:
            for one in self._asking.values():
                one.stop()
                one.wait()


@pytest.fixture(scope="module")
def _asking_ahead(
    request: pytest.FixtureRequest, targets: dict[str, Target], stage_config: StageConfig
) -> Iterator[AskingByRole]:
    chosen = [item for item in request.session.items if item.path == request.path]
    with closing(AskingByRole(request.config, chosen, targets, stage_config)) as asking:
        yield asking


def _select(items: list[pytest.Item], role: str, profile: ModelProfile | None) -> Selection:
    """What the chosen checks of a model compare, without what its profile rules out."""
    cannot = profile.cannot if profile else {}
    alone: dict[str, Case] = {}
    among_others: list[tuple[Case, bool, str]] = []
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if params.get("model_role") != role:
            continue
        cases = [case for case in _cases_of(params) if not cannot.keys() & set(case.needs)]
        test = getattr(item, "originalname", "")
        simpler = [case.without(_factor_left_out(test, case)) for case in cases if _factor_left_out(test, case)]
        alone |= {case.id: case for case in (*cases, *simpler)}
        if test == test_answer_among_others_equals_answer_alone.__name__:
            among_others += [(case, False, ORDINARY) for case in cases]
        elif test in ASKED_IN_THEIR_WAY:
            among_others += [(case, ASKED_IN_THEIR_WAY[test], case.row["way"]) for case in cases]
    return Selection(list(alone.values()), among_others)


def _factor_left_out(test: str, case: Case) -> str:
    """The factor without which a check asks the row for comparison; empty where it does not."""
    if test == test_irrelevant_feature_changes_nothing.__name__:
        return _irrelevant_factor(case)
    return "extra" if test == test_each_of_n_answers_equals_the_answer_alone.__name__ else ""


def _irrelevant_factor(case: Case) -> str:
    return next(factor for factor, values in IRRELEVANT.items() if case.row[factor] in values)


def _cases_of(params: Mapping[str, Any]) -> list[Case]:
    return [params["case"]] if "case" in params else params.get("batch", [])


@pytest.fixture
def asking(endpoint: EndpointClient, _asking_ahead: AskingByRole) -> AskingAhead:
    """Asks ahead what later checks compare, while those run that need nothing of it."""
    return _asking_ahead.find(endpoint.target.role)


@pytest.fixture
def plain_asker(request: pytest.FixtureRequest, endpoint: EndpointClient, needs: Needs, asking: AskingAhead) -> Asker:
    """Knows the model's plain answers; what was asked among others may still be coming."""
    return _prepare(request, endpoint, needs, asking.wait_for_plain)


@pytest.fixture
def asker(request: pytest.FixtureRequest, endpoint: EndpointClient, needs: Needs, asking: AskingAhead) -> Asker:
    """Knows the model's answers from check to check.

    Where a plain answer cannot be had, the first check that needs it fails, and the others are skipped: one cause is
    one failure.
    """
    return _prepare(request, endpoint, needs, asking.wait)


def _prepare(
    request: pytest.FixtureRequest, endpoint: EndpointClient, needs: Needs, wait: Callable[[], Asker]
) -> Asker:
    case = request.node.callspec.params.get("case")
    if case:
        needs(*case.needs)
    # What is known is shared with what is still being asked; the client is the check's own.
    asker = replace(wait(), endpoint=endpoint)
    if case and (reason := asker.explain_unanswered(case)):
        if ruled_out := find_ruled_out(reason):
            does_not_apply(f"the server says: {ruled_out}")
        pytest.skip(f"reported by an earlier check: {reason}")
    return asker


@pytest.mark.usefixtures("asking")
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_explicit_default_equals_absent_parameter(
    endpoint: EndpointClient, needs: Needs, counting: str, path: str
) -> None:
    """Each documented default, given explicitly, gives the answer that comes without it."""
    if path == CHAT:
        needs("chat")
    body: dict[str, Any] = {"model": endpoint.target.model, "temperature": 0, "max_tokens": 4}
    body |= {"messages": [{"role": "user", "content": counting}]} if path == CHAT else {"prompt": "1, 2, 3, 4, 5, 6,"}
    expected = read_answer(endpoint.raw("POST", path, json=body).json())

    def ask(parameter: str) -> httpx.Response:
        return endpoint.raw("POST", path, json=body | {parameter: DEFAULTS[parameter]})

    changed = {}
    for parameter, response in zip(DEFAULTS, together(ask, DEFAULTS, at_once=AT_ONCE), strict=True):
        if response.status_code != 200:
            changed[parameter] = f"answered {response.status_code}: {response.text[:200]}"
        elif difference := find_difference(expected, read_answer(response.json()), "the answer"):
            changed[parameter] = difference
    assert not changed, f"default given explicitly != absent on {path}: {changed}"
    nulls = dict.fromkeys((*NULLS, *(CHAT_NULLS if path == CHAT else ())))
    response = endpoint.raw("POST", path, json=body | nulls)
    said = f"null != absent on {path} for {', '.join(nulls)}"
    assert response.status_code == 200, f"{said}: answered {response.status_code}: {response.text[:300]}"
    difference = find_difference(expected, read_answer(response.json()), "the answer")
    assert not difference, f"{said}: {difference}"


@pytest.mark.usefixtures("asking")
def test_absent_limit_is_not_a_small_limit(endpoint: EndpointClient, needs: Needs) -> None:
    """A chat without ``max_tokens`` runs to its end, as vLLM documents: the limit is the rest of the context."""
    needs("structured_outputs")
    label = ", ".join([LABEL] * 6)
    answer = endpoint.chat("Name colours.", temperature=0, structured_outputs={"choice": [label]})
    assert (answer.text, answer.finish_reason) == (label, "stop"), (
        f"absent limit != rest of the context: {len(answer.text)} of {len(label)} characters came, "
        f"finish_reason {answer.finish_reason!r}"
    )


@pytest.mark.usefixtures("asking")
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_usage_of_a_new_prompt_is_the_sum_of_its_parts(endpoint: EndpointClient, api: str) -> None:
    """The total is the sum, and no token of a prompt that was never sent before was cached."""
    nonce = f"{time.time_ns()} is a number that was never sent before. " * 8
    ask = endpoint.chat if api == "chat" else endpoint.completion
    usage = ask(nonce, temperature=0, max_tokens=4).body["usage"]
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["total_tokens"] == total, f"whole usage != sum of its parts on {api}: {usage}"
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    # The template's own beginning may have been sent before: Mistral Small's has a system prompt of hundreds of tokens.
    beginning = endpoint.tokenize(messages="x").count if api == "chat" else 0
    assert cached < beginning + (usage["prompt_tokens"] - beginning) // 2, (
        f"cached != 0 for a new prompt on {api}: {cached} of {usage['prompt_tokens']} prompt tokens are cached_tokens"
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in MATRIX[::6]])
def test_answer_after_refused_and_abandoned_requests_equals_answer_before(
    plain_asker: Asker, needs: Needs, case: Case
) -> None:
    """After a refused and an abandoned request with the same features, the answer is what it was before them."""
    needs(*case.needs)
    body = plain_asker.body(case)
    expected = plain_asker.alone(case)
    refused = plain_asker.endpoint.raw("POST", case.path, json=body | {"temperature": -1.0})
    assert refused.status_code in (400, 422), f"temperature -1 was answered with {refused.status_code}"
    headers = {"content-type": "application/json"}
    abandoned = body | {"stream": True, "max_tokens": 100}
    with plain_asker.endpoint.open_stream(
        case.path, abandoned, content=json.dumps(abandoned).encode(), headers=headers
    ) as stream:
        next(iter(stream))
    got = plain_asker.ask(case, body)
    plain_asker.compare(
        "after a refused and an abandoned request != before", case, expected, got, "the answer after them"
    )


@rows()
def test_stream_equals_plain(asker: Asker, needs: Needs, case: Case) -> None:
    """The stream of each row, asked in its way, is the plain answer: text, calls, finish reason, logprobs, usage."""
    needs(*case.needs)
    asker.check("streamed != plain", case, "the stream", stream=True, way=case.row["way"])


@rows(lambda case: case.row["way"] != ORDINARY and case.place % 3 == 0)
def test_way_of_asking_changes_nothing(asker: Asker, needs: Needs, case: Case) -> None:
    """The plain answer is the same over a new connection, from a large or chunked body, and uncompressed."""
    needs(*case.needs)
    asker.check("asked in another way != plain", case, "the answer", way=case.row["way"])


@pytest.mark.parametrize("batch", BATCHES, ids=[f"batch-{place}" for place in range(len(BATCHES))])
def test_answer_among_others_equals_answer_alone(asker: Asker, needs: Needs, batch: list[Case]) -> None:
    """Rows of different kinds that are asked at the same time get the answers that each got alone.

    A grammar, a limit or a stop text of one request must not reach another one.
    """
    cases = [case for case in batch if _can(needs, case) and not asker.explain_unanswered(case)]
    if not cases:
        pytest.skip("no request of this batch has a plain answer, as other checks report")
    expected = [asker.alone(case) for case in cases]
    got = asker.ask_together(cases, at_once=AT_ONCE)
    for case, alone, among in zip(cases, expected, got, strict=True):
        asker.compare("among others of other kinds != alone", case, alone, among, "the answer among others")


def _can(needs: Needs, case: Case) -> bool:
    try:
        needs(*case.needs)
    except pytest.skip.Exception:
        return False
    return True


@rows(lambda case: case.row["extra"] == "n")
def test_each_of_n_answers_equals_the_answer_alone(asker: Asker, needs: Needs, case: Case) -> None:
    """At temperature 0 each of n choices is the answer that comes when one is asked for."""
    needs(*case.needs)
    one = asker.alone(case.without("extra")).choices[0]
    several = asker.alone(case)
    for choice in several.choices:
        # The counts are of all choices together.
        asker.compare(
            "n != each alone",
            case,
            type(several)([one], {}),
            type(several)([choice], {}),
            "a choice",
        )


@rows(lambda case: any(case.row[factor] in values for factor, values in IRRELEVANT.items()))
def test_irrelevant_feature_changes_nothing(asker: Asker, needs: Needs, case: Case) -> None:
    """Logprobs, a bias of a token that no answer has, and a stop text that no answer has leave the text as it is."""
    needs(*case.needs)
    factor = _irrelevant_factor(case)
    without, with_it = asker.alone(case.without(factor)), asker.alone(case)
    if case.row["extra"] == "logprobs":
        with_it = replace(with_it, choices=[replace(one, tokens=[], scores=[]) for one in with_it.choices])
    asker.compare(f"with != without {case.row[factor]}", case, without, with_it, "the answer")


@rows(lambda case: case.row["end"] == "stop text")
def test_stop_text_cuts_the_answer_where_it_begins(asker: Asker, needs: Needs, case: Case) -> None:
    """With a stop text, the answer is the one without it up to the stop text, whatever other features it has."""
    needs(*case.needs)
    stop = asker.body(case)["stop"][0]
    whole, cut = asker.alone(case.without("end")).choices[0], asker.alone(case).choices[0]
    expected = whole.text.partition(stop)[0]
    texts = [cut.text, expected]
    if case.row["answer"] in FREE_SPACE:
        texts = ["".join(text.split()) for text in texts]
    assert texts[0] == texts[1], (
        f"{name('stopped != cut at the stop text', case)}: with stop={stop!r} the answer is {cut.text!r}, "
        f"expected {expected!r} of {whole.text!r}"
    )
