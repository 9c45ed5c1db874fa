"""The inference suite on the simulated engine: silent on a healthy one, each fault caught by the checks meant for it.

For each fault the table names every check that must fail, and no other may: what a fault does not touch stays green.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.sim.faults import registry

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "suites" / "inference"
MODEL = "sim-model"

ARRIVES = "test_a_stream_arrives_while_it_is_generated"
BAD_FIELD = "test_a_field_that_cannot_be_is_refused_by_name"
BAD_JSON = "test_a_body_that_is_no_json_is_refused"
COMPLETION = "test_a_completion_continues_its_prompt"
COMPLETION_COUNT = "test_completion_tokens_are_the_tokens_generated"
COMPLETION_STREAM_EQUAL = "test_a_streamed_completion_says_what_the_plain_one_says"
CONTEXT = "test_the_context_length_is_the_declared_one"
CUT_SAYS_LENGTH = "test_an_answer_cut_by_its_limit_says_length"
DONE = "test_a_stream_ends_with_done"
END_SAYS_STOP = "test_an_answer_that_ends_by_itself_says_stop"
FACT = "test_a_chat_answer_knows_a_fact"
LISTED = "test_the_served_model_is_listed"
MAX_TOKENS = "test_max_tokens_is_honoured"
NAMES = "test_a_chat_answer_names_what_it_is"
ONE_PIECE = "test_a_stream_is_of_one_piece"
OVER_LONG = "test_a_prompt_over_the_context_length_is_refused"
PROMPT_CHAT = "test_prompt_tokens_of_a_chat_are_the_tokenizers"
PROMPT_COMPLETION = "test_prompt_tokens_of_a_completion_are_the_tokenizers"
QUESTION = "test_answers_depend_on_the_question"
RECOVERS = "test_the_server_answers_after_refusing"
STOP = "test_stop_ends_the_answer_before_the_stop_text"
STREAM_EQUAL = "test_a_stream_says_what_the_plain_answer_says"
STREAM_USAGE = "test_a_stream_carries_usage_when_asked"
UNKNOWN_MODEL = "test_an_unknown_model_is_refused"

STREAMED_TEXT = {STREAM_EQUAL, COMPLETION_STREAM_EQUAL, STOP}
EVERY_STREAM = {*STREAMED_TEXT, CUT_SAYS_LENGTH, ARRIVES, DONE, ONE_PIECE, STREAM_USAGE}
EVERY_REFUSAL = {UNKNOWN_MODEL, BAD_JSON, BAD_FIELD, OVER_LONG, RECOVERS}
ALL_GENERATION = {
    *EVERY_STREAM, *EVERY_REFUSAL, FACT, QUESTION, NAMES, COMPLETION, MAX_TOKENS, END_SAYS_STOP,
    PROMPT_CHAT, PROMPT_COMPLETION, COMPLETION_COUNT,
}  # fmt: skip

#: Fault (a name, or an object of a fault script), every check that must fail, what the output must say.
FAULTS: list[tuple[Any, set[str], str]] = [
    ("always_length", {END_SAYS_STOP, STOP}, "the answer says 'length'"),
    ("always_stop", {CUT_SAYS_LENGTH}, "cut after 4 tokens, the answer says 'stop'"),
    ("bad_fields_accepted", {BAD_FIELD, RECOVERS}, "answered 200, 400 or 422 is due"),
    ("block_buffered_stream", {ARRIVES}, "the stream was buffered in blocks: 40 deltas arrived in 3 bursts"),
    ("buffered_stream", {ARRIVES}, "the stream was buffered: all 40 deltas arrived within"),
    ("constant_id", {NAMES}, "two answers have the same id chatcmpl-0"),
    ("double_done", {DONE}, "[DONE] came 2 times"),
    ("dropped_turns", {PROMPT_CHAT}, "/tokenize"),
    (
        "empty_answers",
        {FACT, QUESTION, COMPLETION, MAX_TOKENS, STOP, COMPLETION_STREAM_EQUAL, ARRIVES, RECOVERS},
        "no text came",
    ),
    ("error_in_stream", EVERY_STREAM, "carries an error inside its 200"),
    ("errors_are_200", EVERY_REFUSAL, "answered 200"),
    ("errors_are_500", EVERY_REFUSAL, "answered 500, 404 is due"),
    ("errors_are_pages", EVERY_REFUSAL, "404 without an error object"),
    ("errors_say_nothing", {UNKNOWN_MODEL, BAD_FIELD, OVER_LONG}, "the error does not name"),
    ("foreign_chunk", {ONE_PIECE}, "the chunks of one stream carry 2 ids"),
    ("hidden_overrun", {MAX_TOKENS}, "18 tokens:"),
    ("ignored_max_tokens", {MAX_TOKENS, CUT_SAYS_LENGTH, COMPLETION_COUNT}, "max_tokens=6 gave 64 tokens"),
    ("ignored_stop", {STOP}, "was ignored or leaked"),
    ("leaked_stop", {STOP}, "was ignored or leaked"),
    ("lost_delta", STREAMED_TEXT, "streamed: "),
    ("malformed_chunk", EVERY_STREAM, "an event of the stream is no JSON"),
    ("missing_done", {DONE}, "the stream ended without [DONE]"),
    ("missing_role", {ONE_PIECE}, "the first delta gives the role None"),
    ("missing_stream_usage", {STREAM_USAGE}, "usage was asked for, 0 chunks carry it"),
    ("off_by_one_usage", {COMPLETION_COUNT}, "usage says 13 completion tokens, 12 were made"),
    ({"fault": "off_by_one_usage", "count": "prompt_tokens"}, {PROMPT_CHAT, PROMPT_COMPLETION}, "/tokenize"),
    ({"fault": "off_by_one_usage", "count": "total_tokens", "by": -1}, {COMPLETION_COUNT}, "its parts sum to"),
    ("prompt_cut_to_fit", {OVER_LONG}, "answered 200, 400 or 413 or 422 is due"),
    ("reordered_deltas", STREAMED_TEXT, "streamed: "),
    ("repeated_delta", STREAMED_TEXT, "streamed: "),
    ("server_error", ALL_GENERATION, "answered 503"),
    ("silently_truncated_stream", STREAMED_TEXT, "streamed: "),
    (
        "stale_cache",
        {QUESTION, MAX_TOKENS, CUT_SAYS_LENGTH, STOP, COMPLETION_COUNT},
        "asked about Japan, the model said 'The capital of France is Paris.'",
    ),
    ("text_after_finish", {ONE_PIECE}, "text came after the finish reason"),
    ("trimmed_prompt", {PROMPT_CHAT}, "/tokenize"),
    ("truncated_stream", EVERY_STREAM, "was cut"),
    ("unknown_model_accepted", {UNKNOWN_MODEL}, "answered 200, 404 is due"),
    ("usage_with_choices", {STREAM_USAGE}, "the usage chunk must have no choices"),
    ("wrong_answers", {FACT, QUESTION, COMPLETION, STOP}, "asked for the capital of France, the model said"),
    ("wrong_context_length", {CONTEXT}, "/tokenize says max_model_len 2048, /v1/models says 131072"),
    ("wrong_model_name", {NAMES, ONE_PIECE}, "some-other-model"),
]

#: Faults of time are no faults of correctness: a slow server passes.
SLOW: list[Any] = [
    {"fault": "stall", "duration_s": 0.2, "every_s": 0.5},
    {"fault": "slow_start", "for_s": 2.0, "delay_s": 0.3},
    {"fault": "slow_requests", "share": 0.3, "delay_s": 0.3},
]

#: Caught by the plugin before any check runs, or by the check that needs a declaration; each has a test of its own.
OTHERWISE = {"wrong_model_listed"}

#: A target of which the model and its context length are declared, as a stage declares them.
DECLARED = """
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.session import targets

def declared(run):
    return {"endpoint": Target("endpoint", "sim-model", run.config.endpoint, max_model_len=4096)}

targets.of_endpoint = declared
"""


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    """The URL of a simulated engine, as fast as leaves time between two tokens."""
    command = [sys.executable, "-m", "pytest_vllm_stage.sim", "--model", MODEL, "--max-model-len", "2048"]
    with subprocess.Popen([*command, "--ttft-ms", "4", "--itl-ms", "4"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def script(simulator: str, *faults: Any) -> None:
    """Exchange the simulator's faults."""
    request = urllib.request.Request(  # noqa: S310 - the simulator's own URL
        f"{simulator}/sim/faults", json.dumps(faults).encode(), {"content-type": "application/json"}, method="PUT"
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        assert len(json.load(response)) == len(faults)


def check(pytester: pytest.Pytester, simulator: str, *arguments: str) -> tuple[set[str], int, str]:
    """The names of the checks that failed, the number of those that passed, and the output."""
    result = pytester.runpytest_subprocess(
        SUITE, f"--stage-endpoint={simulator}", f"--stage-run-dir={pytester.path / 'run'}", "-p", "no:cacheprovider",
        "-p", "no:hypothesispytest", "-rfE", *arguments,
    )  # fmt: skip
    output = result.stdout.str()
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", output, re.MULTILINE))
    return failed, result.parseoutcomes().get("passed", 0), output


@pytest.fixture(autouse=True)
def _own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_healthy_engine_passes(pytester: pytest.Pytester, simulator: str, workers: str) -> None:
    script(simulator)
    failed, passed, output = check(pytester, simulator, "-n", workers)
    assert not failed, output
    assert passed > 30, f"only {passed} checks ran"


@pytest.mark.parametrize(("fault", "caught_by", "says"), FAULTS, ids=[str(fault) for fault, _, _ in FAULTS])
def test_a_fault_is_caught_by_its_checks_and_no_other(
    pytester: pytest.Pytester, simulator: str, fault: Any, caught_by: set[str], says: str
) -> None:
    script(simulator, fault)
    failed, _, output = check(pytester, simulator)
    assert failed == caught_by, f"missed: {caught_by - failed}; unexpected: {failed - caught_by}\n{output}"
    assert says in output, f"no message says {says!r}:\n{output}"


@pytest.mark.parametrize("fault", SLOW, ids=[fault["fault"] for fault in SLOW])
def test_a_slow_engine_is_not_a_wrong_one(pytester: pytest.Pytester, simulator: str, fault: Any) -> None:
    script(simulator, fault)
    failed, passed, output = check(pytester, simulator)
    assert not failed, output
    assert passed > 30, f"only {passed} checks ran"


def test_a_declared_context_length_that_is_not_served_is_caught(pytester: pytest.Pytester, simulator: str) -> None:
    script(simulator)
    pytester.makepyfile(declared=DECLARED)
    failed, _, output = check(pytester, simulator, "-p", "declared", "-k", "test_models")
    assert failed == {CONTEXT}
    assert "declared is max_model_len 4096, served is 2048" in output


def test_a_model_that_is_not_listed_is_caught(pytester: pytest.Pytester, simulator: str) -> None:
    script(simulator, "wrong_model_listed")
    pytester.makepyfile(declared=DECLARED)
    failed, _, output = check(pytester, simulator, "-p", "declared", "-k", LISTED)
    assert failed == {LISTED}
    assert "sim-model is not served here; served: ['some-other-model']" in output


def test_every_fault_of_the_catalogue_is_accounted_for() -> None:
    named = {fault["fault"] if isinstance(fault, dict) else fault for fault, _, _ in FAULTS}
    assert named | {fault["fault"] for fault in SLOW} | OTHERWISE == set(registry())
