"""The simulated engine's tokenizer and answers: reversible, deterministic, and cut where they should be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.standins.engine import answers, tokenizer
from pytest_vllm_stage.standins.engine.generation import Generated, generate
from pytest_vllm_stage.standins.engine.parameters import Parameters

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def parameters(question: str = "Say something.", limit: int = 16, **more: object) -> Parameters:
    prompt = tokenizer.render([{"role": "user", "content": question}])
    return replace(Parameters("chat", prompt, question, limit, temperature=0.0), **more)  # type: ignore[arg-type]


def text_of(generated: Generated) -> str:
    return "".join(generated.texts)


@given(TEXTS)
def test_the_tokenizer_is_reversible(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=2, max_size=2, unique=True))
def test_different_pieces_have_different_ids(pieces: list[bytes]) -> None:
    first, second = map(tokenizer.token_id, pieces)
    assert first != second
    assert (tokenizer.piece_of(first), tokenizer.piece_of(second)) == tuple(pieces)
    assert max(first, second) < tokenizer.MAX_ID


@pytest.mark.parametrize("number", [-1, 0, 3, 255, 256 * 2, tokenizer.MAX_ID, 2**70])
def test_a_number_that_is_not_a_token_id_is_refused(number: int) -> None:
    with pytest.raises(tokenizer.UnknownToken, match=str(number)):
        tokenizer.piece_of(number)


def test_text_that_looks_like_a_special_token_is_none() -> None:
    assert tokenizer.token_id(tokenizer.END) not in tokenizer.encode("<|im_end|>")


def test_a_conversation_is_rendered_up_to_the_next_turn() -> None:
    parts = [{"type": "text", "text": "Hi"}]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert b"".join(tokenizer.render(messages)).decode() == expected


def test_every_word_is_one_token() -> None:
    assert all(tokenizer.split(word.decode()) == [word] for word in answers.WORDS)
    assert len(set(answers.WORDS)) == len(answers.WORDS) > 100


def test_the_same_prompt_gets_the_same_answer_in_every_process() -> None:
    program = (
        "from tests.unit.test_sim_answers import generate, parameters, text_of\n"
        "print(text_of(generate(parameters(), 7, 1)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == text_of(generate(parameters(), 7, 99)).strip()


def test_answers_follow_from_prompt_seed_and_temperature() -> None:
    base = text_of(generate(parameters(), 0, 1))
    assert base != text_of(generate(parameters("Say more."), 0, 1)), "the prompt does not matter"
    assert base != text_of(generate(parameters(), 1, 1)), "the engine's seed does not matter"
    warm = parameters(temperature=1.0)
    assert text_of(generate(warm, 0, 1)) != text_of(generate(warm, 0, 2)), "sampled answers are all the same"
    seeded = parameters(temperature=1.0, seed=5)
    assert text_of(generate(seeded, 0, 1)) == text_of(generate(seeded, 0, 2)), "a seed does not repeat"


@pytest.mark.parametrize(("country", "capital"), answers.CAPITALS.items())
def test_it_knows_its_facts(country: str, capital: str) -> None:
    asked = generate(parameters(f"What is the capital of {country}?", limit=64), 0, 1)
    assert text_of(asked) == f"The capital of {country} is {capital}."
    assert (asked.finish_reason, asked.pieces[-1]) == ("stop", tokenizer.END)
    begun = f"The capital of {country} is"
    continued = generate(parameters(begun, limit=64, kind="completion"), 0, 1)
    assert text_of(continued) == f" {capital}."


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["plain", "größer als ich"]))
def test_a_lower_limit_gives_the_beginning(one: int, other: int, question: str) -> None:
    low, high = sorted((one, other))
    short = generate(parameters(question, low, ignore_eos=True), 0, 1)
    long = generate(parameters(question, high, ignore_eos=True), 0, 1)
    assert (len(short.pieces), len(long.pieces)) == (low, high)
    assert long.pieces[:low] == short.pieces
    assert text_of(long).startswith(text_of(short))
    assert short.finish_reason == long.finish_reason == "length"


def test_an_answer_ends_by_itself_unless_the_request_forbids_it() -> None:
    ended = generate(parameters(limit=200), 0, 1)
    assert (ended.finish_reason, ended.texts[-1]) == ("stop", "")
    assert len(ended.pieces) < 200
    longer = generate(parameters(limit=200, min_tokens=100), 0, 1)
    assert (longer.finish_reason, len(longer.pieces)) == ("stop", 101)
    assert len(generate(parameters(limit=200, ignore_eos=True), 0, 1).pieces) == 200


@given(st.integers(0, 10_000), st.integers(1, 60))
def test_no_character_is_released_in_parts(seed: int, limit: int) -> None:
    generated = generate(parameters("größer als ich", limit, ignore_eos=True), seed, 1)
    whole = b"".join(generated.pieces).decode(errors="ignore")
    assert text_of(generated) == whole
    assert len(generated.texts) == len(generated.pieces)


@given(st.data())
def test_a_stop_text_ends_the_answer_and_never_shows(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    free = text_of(generate(parameters(limit=30, ignore_eos=True), seed, 1))
    start = data.draw(st.integers(0, len(free) - 1))
    stop = free[start : data.draw(st.integers(start + 1, min(start + 15, len(free))))]
    stopped = generate(parameters(limit=30, ignore_eos=True, stop=(stop, "never said")), seed, 1)
    assert text_of(stopped) == free.partition(stop)[0]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert len(stopped.texts) == len(stopped.pieces)


def test_a_stop_text_that_does_not_come_changes_no_text() -> None:
    free, other = (generate(parameters(limit=30, stop=stop), 0, 1) for stop in ((), ("never said",)))
    assert text_of(free) == text_of(other)
    assert free.finish_reason == other.finish_reason
