"""Asks the cases of the matrix, remembers each answer, and says how another answer to the same request differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.checks.inference.relations.covering import Choice
from pytest_vllm_stage.checks.inference.relations.features import FREE_SPACE, GUIDED, NEUTRAL, Case
from pytest_vllm_stage.checks.inference.relations.reading import (
    ReadChoice,
    Reading,
    find_difference,
    read_answer,
    read_chunks,
)
from pytest_vllm_stage.checks.inference.relations.ways import WAYS
from pytest_vllm_stage.checks.inference.together import together
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed

#: Two likeliest tokens so close may swap with the batch.
NEAR_TIE_NATS = 0.5
#: Characters of a stop text that is taken from the middle of an answer.
STOP_LENGTH = 3
ORDINARY = "kept connection"
#: A request: its body as JSON, whether it is streamed, and its way.
Sent = tuple[str, bool, str]


class RelationBroken(AssertionError):
    """Two answers that must be equal differ, or one of them did not come."""


@dataclass
class Asker:
    """Asks one endpoint.

    Attributes:
        endpoint: The client.
        known: The plain answer to each request that was asked alone, by its body.
        failed: Why a request that was asked ahead of its checks has no plain answer, by its body.
        early: What came of requests that were asked ahead, among others; see `ahead`.
        unanswered: The fewest features with which no plain answer comes, with what came instead.
    """

    endpoint: EndpointClient
    known: dict[str, Reading] = field(default_factory=dict)
    failed: dict[str, RequestFailed] = field(default_factory=dict)
    early: dict[Sent, Reading | RequestFailed] = field(default_factory=dict)
    unanswered: dict[frozenset[Choice], str] = field(default_factory=dict)
    _unused: list[int] = field(default_factory=list, repr=False)

    def body(self, case: Case) -> dict[str, Any]:
        """The body of a case; its stop text is cut out of the middle of the answer without one."""
        body = case.body(self.endpoint.target.model)
        if case.row["extra"] == "bias":
            body["logit_bias"] = {str(self._unused_token()): -100}
        if case.row["end"] != "stop text":
            return body
        text = self.alone(case.without("end")).choices[0].text
        if case.row["answer"] in FREE_SPACE:
            text = max(text.split(), key=len, default="")
        middle = len(text) // 2
        return body | {"stop": [text[middle : middle + STOP_LENGTH] or "absent"]}

    def _unused_token(self) -> int:
        """A token that no answer has."""
        if not self._unused:
            self._unused.append(self.endpoint.tokenize("~").ids[-1])
        return self._unused[0]

    def alone(self, case: Case) -> Reading:
        """The plain answer, asked alone over the ordinary connection; asked once.

        Raises:
            RelationBroken: there is none; `explain_unanswered` gives the reason from then on.
        """
        __tracebackhide__ = True
        body = self.body(case)
        key = json.dumps(body)
        if key not in self.known:
            try:
                if key in self.failed:
                    raise self.failed.pop(key)
                self.known[key] = self.ask(case, body)
            except RequestFailed as error:
                cause = self._find_cause(case, error)
                said = f"no plain answer for {describe(cause)}: {error}"
                self.unanswered[_features(cause)] = said
                raise RelationBroken(said) from None
        return self.known[key]

    def learn(self, case: Case) -> bool:
        """Ask for the plain answer ahead of the checks, once; whether there is one. A failure is kept for `alone`."""
        if case.row["end"] == "stop text" and not self.learn(case.without("end")):
            return False
        body = self.body(case)
        key = json.dumps(body)
        if key not in self.known and key not in self.failed:
            try:
                self.known[key] = self.ask(case, body)
            except RequestFailed as error:
                self.failed[key] = error
        return key in self.known

    def ask_early(self, case: Case, stream: bool, way: str) -> None:
        """Ask ahead of the checks, whatever comes of it."""
        body = self.body(case)
        try:
            got: Reading | RequestFailed = self.ask(case, body, stream=stream, way=way)
        except RequestFailed as error:
            got = error
        self.early[json.dumps(body), stream, way] = got

    def ask_together(self, cases: Sequence[Case], *, at_once: int) -> list[Reading | RequestFailed]:
        """What comes of the cases when they are asked at the same time; taken from ahead where that was done."""
        keys = [(json.dumps(self.body(case)), False, ORDINARY) for case in cases]
        if not self.early.keys() >= set(keys):
            together(lambda case: self.ask_early(case, False, ORDINARY), cases, at_once=at_once)
        return [self.early[key] for key in keys]

    def explain_unanswered(self, case: Case) -> str:
        """Why the case has no plain answer, where `alone` has reported it for features of the case; else empty."""
        return next((said for features, said in self.unanswered.items() if features <= set(case.row.items())), "")

    def _find_cause(self, case: Case, error: RequestFailed) -> Case:
        """The case without the features that the failure does not need."""
        for factor in ("prompt", "extra", "end", "answer"):
            simpler = case.without(factor)
            if simpler != case and self._fails_alike(simpler, error):
                case = simpler
        return case

    def _fails_alike(self, case: Case, error: RequestFailed) -> bool:
        try:
            self.ask(case, self.body(case))
        except RequestFailed as other:
            return other.status == error.status
        except RelationBroken:
            pass
        return False

    def ask(self, case: Case, body: dict[str, Any], *, stream: bool = False, way: str = ORDINARY) -> Reading:
        """One request, now.

        Raises:
            RequestFailed: no usable answer.
        """
        with WAYS[way].client(self.endpoint) as client:
            headers = {"content-type": "application/json", **WAYS[way].headers}
            if not stream:
                return read_answer(client.post(case.path, body, content=WAYS[way].content(body), headers=headers))
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
            opened = client.open_stream(case.path, body, content=WAYS[way].content(body), headers=headers)
            return read_chunks(opened.read().chunks)

    def check(self, relation: str, case: Case, what: str, *, stream: bool = False, way: str = ORDINARY) -> None:
        """Ask again in another way, and compare with the answer alone.

        What was asked ahead, among other requests, is compared first. Where it differs, the request and the plain one
        are asked again alone, so that the error says whether the way or the other requests break the answer.

        Raises:
            RelationBroken: naming the relation, the features and the way.
        """
        __tracebackhide__ = True
        body, expected = self.body(case), self.alone(case)
        early = self.early.pop((json.dumps(body), stream, way), None)
        among_others = ""
        if early is not None:
            among_others = self._find_broken(relation, case, expected, early, what, way)
            if not among_others:
                return
        alone: Reading | RequestFailed
        try:
            alone = self.ask(case, body, stream=stream, way=way)
        except RequestFailed as error:
            alone = error
        if broken := self._find_broken(relation, case, expected, alone, what, way):
            raise RelationBroken(self._find_changed_plain_answer(case, body, alone) or broken)
        if among_others:
            raise RelationBroken(f"{among_others}; asked again without these other requests, it is equal")

    def _find_changed_plain_answer(self, case: Case, body: dict[str, Any], got: Reading | RequestFailed) -> str:
        """How the plain answer, asked again, differs from its first one, where it equals the other answer by now."""
        first = self.known[json.dumps(body)]
        try:
            again = self.ask(case, body)
        except RequestFailed:
            return ""
        if self._find_broken("", case, again, got, "", ORDINARY):
            return ""
        return self._find_broken("again != first", case, first, again, "the plain answer", ORDINARY)

    def _find_broken(
        self, relation: str, case: Case, expected: Reading, got: Reading | RequestFailed, what: str, way: str
    ) -> str:
        """How the relation is broken, in words; empty where it holds."""
        if isinstance(got, RequestFailed):
            return f"{name(relation, case, way)}: {got}"
        difference = find_difference(expected, got, what, free_tokens=case.row["answer"] in GUIDED)
        if difference and not self._is_near_tie(case, expected, got) and not _differ_by_json_space(case, expected, got):
            return f"{name(relation, case, way)}: {difference}"
        return ""

    def compare(self, relation: str, case: Case, expected: Reading, got: Reading | RequestFailed, what: str) -> None:
        """Compare two answers to one case.

        Raises:
            RelationBroken: they differ, and not by a token that was as likely as the expected one; or one did not come.
        """
        __tracebackhide__ = True
        if broken := self._find_broken(relation, case, expected, got, what, ORDINARY):
            raise RelationBroken(broken)

    def _is_near_tie(self, case: Case, expected: Reading, got: Reading) -> bool:
        """Whether the texts part at a token that is about as likely as the one that came instead of it."""
        texts = [[choice.text for choice in reading.choices] for reading in (expected, got)]
        if texts[0] == texts[1] or len(texts[0]) != len(texts[1]) or case.row["answer"] not in ("text", "no tool call"):
            return False
        one, other = next(pair for pair in zip(*texts, strict=True) if pair[0] != pair[1])
        shared = next(
            (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        if shared == min(len(one), len(other)):
            # One text is the beginning of the other: nothing was said instead of it.
            return False
        return self._gap_at(case, shared) < NEAR_TIE_NATS

    def _gap_at(self, case: Case, place: int) -> float:
        """How much likelier the best token at a place of the text is than the second best."""
        scored = Case(case.place, case.row | {"extra": "logprobs", "end": "token limit"})
        body = self.body(case) | scored.body(self.endpoint.target.model)
        try:
            answer = self.endpoint.raw("POST", case.path, json=body).json()
            alternatives = _alternatives(answer["choices"][0]["logprobs"])
        except (RequestFailed, ValueError, LookupError, TypeError):
            return float("inf")
        length = 0
        for token, likeliest in alternatives:
            length += len(token)
            if length > place:
                best = sorted(likeliest, reverse=True)
                return best[0] - best[1] if len(best) > 1 else float("inf")
        return float("inf")


def _features(case: Case) -> frozenset[Choice]:
    return frozenset((factor, value) for factor, value in case.row.items() if factor != "way" and value not in NEUTRAL)


def _differ_by_json_space(case: Case, expected: Reading, got: Reading) -> bool:
    """Whether two answers are the same JSON: the white space in it is free, and a near tie decides it."""
    if case.row["answer"] not in FREE_SPACE or len(expected.choices) != len(got.choices):
        return False
    pairs = list(zip(expected.choices, got.choices, strict=True))
    texts = [([one.text, *_arguments(one)], [other.text, *_arguments(other)]) for one, other in pairs]
    return texts != [(one, one) for one, _ in texts] and all(
        [call.name for call in one.calls] == [call.name for call in other.calls]
        and one.finish_reason == other.finish_reason
        and list(map(_parse_json, expected_texts)) == list(map(_parse_json, got_texts))
        for (one, other), (expected_texts, got_texts) in zip(pairs, texts, strict=True)
    )


def _arguments(choice: ReadChoice) -> list[str]:
    return [call.arguments for call in choice.calls]


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _alternatives(logprobs: Any) -> list[tuple[str, list[float]]]:
    if not isinstance(logprobs, dict):
        return []
    if "content" in logprobs:
        entries = logprobs["content"] or []
        return [(one["token"], [other["logprob"] for other in one["top_logprobs"]]) for one in entries]
    # Of an echoed prompt's first token nothing is said: nothing comes before it.
    return [
        (token, list((likeliest or {}).values()))
        for token, likeliest in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    ]


def name(relation: str, case: Case, way: str = ORDINARY) -> str:
    """The relation, the features and the way: ``streamed != plain for tools x stop text on chat``."""
    return f"{relation} for {describe(case, way)}"


def describe(case: Case, way: str = ORDINARY) -> str:
    """The features and the way: ``tools x stop text on chat, new connection``."""
    return f"{case.features} on {case.row['api']}" + (f", {way}" if way != ORDINARY else "")
