"""The plan: what is sent and when, and prompts of an exact length that are never alike."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.load.prompts import LEAST_OWN_TOKENS, PromptMaker, make_body, make_prompt_maker
from pytest_vllm_stage.load.words import WORDS
from pytest_vllm_stage.measurement.step import POISSON, LoadPlan, LoadStep, step_from_json
from tests.unit.made_samples import closed_step, open_step


def test_constant_arrivals_are_an_absolute_schedule() -> None:
    schedule = open_step(3, 100).schedule_s()
    assert len(schedule) == 300
    assert schedule[299] == pytest.approx(299 / 3, abs=1e-12)


def test_poisson_arrivals_have_the_planned_number_and_a_poisson_process_gaps() -> None:
    step = open_step(50, 100, arrivals=POISSON)
    schedule = step.schedule_s()
    gaps = [b - a for a, b in pairwise(schedule)]
    assert len(schedule) == step.planned_requests == 5000
    assert schedule == sorted(schedule)
    assert 0 <= schedule[0] < schedule[-1] <= 100
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(1.0, abs=0.05)
    assert step.schedule_s() == schedule != replace(step, seed=2).schedule_s()


def test_a_closed_loop_has_no_schedule() -> None:
    assert closed_step().planned_requests is None
    with pytest.raises(ValueError, match="closed loop"):
        closed_step().schedule_s()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrivals": "bursts"}, "step full-rate-10: arrivals: is 'bursts'; valid: constant, poisson, closed"),
        ({"api": "audio"}, "api: is 'audio'; valid: chat, completions"),
        ({"concurrency": 2}, "concurrency: has no meaning for constant arrivals, which take request_rate"),
        ({"arrivals": "closed", "concurrency": 1}, "request_rate: has no meaning for closed arrivals"),
        ({"request_rate": None}, "request_rate: expected a number above 0, got None"),
        ({"request_rate": float("inf")}, "request_rate: expected a number above 0"),
        ({"duration_s": 0}, "duration_s: expected a number above 0, got 0"),
        ({"prompt_tokens": 2.5}, "prompt_tokens: expected a whole number above 0, got 2.5"),
        ({"output_tokens": True}, "output_tokens: expected a whole number above 0, got True"),
        ({"warmup_requests": -1}, "warmup_requests: expected a whole number from 0, got -1"),
        ({"shared_prefix_tokens": 65}, "shared_prefix_tokens: is more than prompt_tokens (64)"),
        ({"duration_s": 0.01}, "duration_s: is too short for one request at 10.0 requests/s"),
    ],
)
def test_a_wrong_step_is_refused_by_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_step(**change) if "request_rate" not in change else replace(open_step(), **change)
    assert message in str(caught.value)


def test_a_step_survives_json_and_a_later_versions_keys() -> None:
    step = open_step(2.5, 30, arrivals=POISSON, decide_early=True)
    data = json.loads(json.dumps(step.to_json())) | {"colour": "blue"}
    assert step_from_json(data) == step
    with pytest.raises(ConfigError, match="model"):
        step_from_json({"role": "x"})


@pytest.mark.parametrize("role", ["full", "full-int8", "a-rate-5", "endpoint"])
@pytest.mark.parametrize("step", [open_step(5), open_step(2.5), closed_step(25)])
def test_a_step_saved_without_a_role_gets_the_part_of_its_id_before_the_load(role: str, step: LoadStep) -> None:
    data = replace(step, role=role).to_json()
    del data["role"], data["variant"]
    assert step_from_json(data) == replace(step, role=role)


@pytest.mark.parametrize("step_id", ["full-rate-7", "rate-5", "-rate-5", "full-rate-5-rerun-1", "s", ""])
def test_a_step_without_a_role_whose_id_is_not_that_of_its_load_is_refused(step_id: str) -> None:
    data = open_step(5).to_json() | {"id": step_id}
    del data["role"]
    with pytest.raises(ConfigError, match=f"step: role: is missing, and id {step_id!r} does not end with"):
        step_from_json(data)


def test_a_step_whose_id_contradicts_its_fields_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="id: expected 'full-rate-5', which the step's fields give, got 'full-rate-1'"
    ):
        step_from_json(open_step(5).to_json() | {"id": "full-rate-1"})


@pytest.mark.parametrize("rate", ["fast", [5], 10**400, float("nan"), True])
def test_a_level_that_is_not_a_rate_is_refused_by_its_field(rate: Any) -> None:
    with pytest.raises(ConfigError, match=r"step full[^:]*: request_rate: expected a number above 0, got "):
        step_from_json(open_step(5).to_json() | {"request_rate": rate})
    old = open_step(5).to_json() | {"request_rate": rate}
    del old["role"]
    with pytest.raises(ConfigError, match="step: role: is missing"):
        step_from_json(old)


def test_two_levels_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two load steps have the id full-rate-1: their levels are too close"):
        LoadPlan("full", "m", (1.0, 1.0000001), (), open_step()).steps()


def test_a_load_plan_names_its_steps_and_gives_each_its_own_prompts() -> None:
    plan = LoadPlan("quantized", "small", (1.0, 2.5), (5, 25), open_step(seed=10))
    steps = plan.steps()
    assert [step.id for step in steps] == [
        "quantized-rate-1",
        "quantized-rate-2.5",
        "quantized-concurrency-5",
        "quantized-concurrency-25",
    ]
    assert [step.open_loop for step in steps] == [True, True, False, False]
    assert len({step.seed for step in steps}) == 4
    assert {step.model for step in steps} == {"small"}


def tokenizer(overhead: int, double: Callable[[str], bool]) -> tuple[Callable[[str], int], list[str]]:
    """A tokenizer whose words are one token, or two where ``double`` says so; and the texts that it was asked."""
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return overhead + sum(1 + double(word) for word in text.split()[1:])

    return count, asked


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    overhead=st.integers(1, 40),
    prompt_tokens=st.integers(60, 600),
    shared=st.integers(0, 40),
    modulus=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_prompts_have_exactly_the_length_share_exactly_the_prefix_and_are_unique(
    overhead: int, prompt_tokens: int, shared: int, modulus: int, seed: int
) -> None:
    count, _ = tokenizer(overhead, lambda word: len(word) % modulus == 0)
    maker = make_prompt_maker(count)
    step = open_step(prompt_tokens=prompt_tokens, shared_prefix_tokens=shared, seed=seed)
    texts = maker.texts(step, 50, "step")
    assert {count(text) for text in texts} == {prompt_tokens}
    words = [text.split() for text in texts]
    own = 1 + max(0, shared - overhead)
    assert len({tuple(each[:own]) for each in words}) == 1
    assert len({tuple(each[own : own + LEAST_OWN_TOKENS]) for each in words}) == 50
    assert maker.texts(step, 50, "step") == texts
    assert not set(maker.texts(step, 50, "warm-up")) & set(texts)


def test_no_two_prompts_begin_alike_even_where_chance_would_make_them() -> None:
    count, _ = tokenizer(11, lambda _word: False)
    texts = PromptMaker(11, ("a", "b"), count).texts(open_step(), 200, "step")
    assert len(texts) == 200
    assert len({tuple(text.split()[1 : 1 + LEAST_OWN_TOKENS]) for text in texts}) == 200


def test_few_questions_suffice_for_a_tokenizer_that_knows_the_words() -> None:
    count, asked = tokenizer(11, lambda _word: False)
    maker = make_prompt_maker(count)
    assert len(asked) == 2
    assert len(maker.words) == len(set(WORDS))


def test_a_tokenizer_without_usable_words_is_refused() -> None:
    count, _ = tokenizer(11, lambda _word: True)
    with pytest.raises(StageFailure, match=r"has 0 of .* common words as one token"):
        make_prompt_maker(count)


def test_a_prompt_too_short_for_the_template_is_refused() -> None:
    count, _ = tokenizer(60, lambda _word: False)
    with pytest.raises(ConfigError, match="64 is too short: the chat template takes 60"):
        make_prompt_maker(count).texts(open_step(), 1, "step")


def test_a_tokenizer_that_changes_its_mind_is_refused() -> None:
    answers = iter([11, 11 + len(set(WORDS)), 63])
    maker = make_prompt_maker(lambda _text: next(answers))
    with pytest.raises(StageFailure, match="counts 63 tokens in a prompt made of 64"):
        maker.texts(open_step(), 1, "step")


@pytest.mark.parametrize(("api", "field"), [("chat", "messages"), ("completions", "prompt")])
def test_a_body_asks_for_exactly_the_output(api: str, field: str) -> None:
    step: LoadStep = open_step(api=api, output_tokens=128)
    body = json.loads(make_body(step, "Text: a"))
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (128, 128, True)
    assert body["stream"]
    assert body["stream_options"] == {"include_usage": True}
    assert "Text: a" in json.dumps(body[field])
