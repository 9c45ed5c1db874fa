"""The defects of an endpoint that the suite must catch: each with the checks that must fail, and the symptom they name.

A defect is a fault of the simulated engine, by its name or as an object of a fault script. No check may fail beyond
those in ``by`` and ``also``: what a defect does not touch stays green. ``also`` is for defects that change what is
drawn, where a check can come out right by chance.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from tests.defects.checks import (
    ALL_MOVE,
    ANY_REQUEST,
    ANY_TEXT,
    ARRIVES,
    AT_ONCE,
    BAD_FIELD,
    BAD_JSON,
    BAD_STRUCTURE,
    BIAS,
    CACHE_HIT,
    CACHED,
    CHARACTERS,
    CHOICE,
    COMPLETION_COUNT,
    CONNECTION,
    CONTEXT,
    CREATED,
    DONE,
    DRAWS,
    ENGINES_TOKENS,
    EXPRESSION,
    FILTER,
    FRAMED,
    FREES_SLOT,
    GIVEN_UP,
    GOLDEN,
    GREEDY_AGAIN,
    GREEDY_BEST,
    GROWING,
    IDS,
    KEY,
    LOGPROBS,
    LOGPROBS_COMPLETION,
    LOGPROBS_STREAMED,
    LOGPROBS_UNASKED,
    MAX_TOKENS,
    METRICS,
    MIN_TOKENS,
    N_STREAMED,
    ONE_PIECE,
    OVER_LONG,
    PARAMETERS,
    PENALTY,
    PERPLEXITY,
    PROMPT_CHAT,
    PROMPT_COMPLETION,
    QUANTISED,
    RECOVERS,
    RENDERED,
    SAYS_LENGTH,
    SCHEMA,
    SEED,
    STOP,
    STOP_ACROSS,
    STOP_TOKEN,
    STREAM_EQUAL,
    STREAM_EQUAL_COMPLETION,
    STREAM_USAGE,
    SURVIVES,
    TEMPLATE,
    TOOL_AUTO,
    TOOL_DUE,
    TOOL_NONE,
    TOOL_RESULT,
    TURNS,
    TYPES,
    UNKNOWN_MODEL,
    WELL,
    N,
)  # fmt: skip


@dataclass(frozen=True)
class Defect:
    """One defect.

    Attributes:
        fault: The fault's name, or an object of a fault script.
        by: Every check that must fail.
        says: What the output must say: the symptom in words.
        also: Checks that may fail as well.
    """

    fault: Any
    by: Set[str]
    says: str
    also: Set[str] = frozenset()

    @property
    def name(self) -> str:
        """The fault's name, with its parameters where it has some."""
        if isinstance(self.fault, str):
            return self.fault
        return " ".join(
            [self.fault["fault"], *(f"{key}={value}" for key, value in self.fault.items() if key != "fault")]
        )


STREAMED_TEXT = {STREAM_EQUAL, STREAM_EQUAL_COMPLETION, STOP, STOP_ACROSS, CHARACTERS}
EVERY_STREAM = {*STREAMED_TEXT, SAYS_LENGTH, ARRIVES, DONE, ONE_PIECE, STREAM_USAGE, CREATED, N_STREAMED}
EVERY_REFUSAL = {UNKNOWN_MODEL, BAD_JSON, BAD_FIELD, BAD_STRUCTURE, OVER_LONG, RECOVERS}
PROMPTS = {PROMPT_CHAT, PROMPT_COMPLETION, ENGINES_TOKENS, RENDERED, GROWING, ANY_REQUEST, ANY_TEXT}
GUIDED = {SCHEMA, EXPRESSION, CHOICE, CHARACTERS}

DEFECTS: list[Defect] = []


def _add(fault: Any, by: Set[str], says: str, also: Set[str] = frozenset()) -> None:
    DEFECTS.append(Defect(fault, by, says, also))


# What is said, and how it ends.

# On the way in: conversations and tokenizers.
EVERY_PROMPT = {GROWING, ANY_REQUEST, RENDERED, PROMPT_CHAT}
_add("ascii_prompts", {*PROMPTS, PERPLEXITY, QUANTISED}, "'german' has 61 tokens, recorded are 68")
_add("control_characters_break", {GROWING, ANY_REQUEST, ANY_TEXT}, "answered 500")
_add("dropped_system_prompt", {TURNS, GROWING, RENDERED, PROMPT_CHAT}, "the system says 'table 7906' four times")
_add("flattened_roles", {GROWING, RENDERED, PROMPT_CHAT}, "did not see the conversation as the template renders it")
_add("foreign_tokenizer", {*PROMPTS, SURVIVES}, "/tokenize says")
_add("lossy_detokenizer", {GROWING, SURVIVES, TEMPLATE}, "became ''")
_add(
    "miscounted_tokens",
    {PROMPT_CHAT, PROMPT_COMPLETION, GROWING, ANY_REQUEST, ANY_TEXT, SURVIVES},
    "/tokenize counts 19 tokens and lists 18",
)
_add("roles_not_rendered", {*EVERY_PROMPT, TEMPLATE}, "the roles are lost")
_add("short_memory", {TURNS, GROWING}, "the first-question says 'table 7906' four times")
_add("twice_begun", {*PROMPTS, CONTEXT, GOLDEN, PERPLEXITY, QUANTISED}, "usage says 26 prompt tokens, /tokenize 25")

# Parameters that are not passed on.
_add(
    "always_drawn",
    {GREEDY_AGAIN, GREEDY_BEST, STREAM_EQUAL, STREAM_EQUAL_COMPLETION, GOLDEN, BAD_FIELD},
    "though ' other1' (-0.74) was likelier",
    also={MAX_TOKENS, STOP, STOP_ACROSS, STOP_TOKEN, LOGPROBS, LOGPROBS_STREAMED, LOGPROBS_COMPLETION, FILTER, BIAS},
)
_add("context_one_too_short", {CONTEXT}, "maximum context length is exceeded")
_add("context_overrun", {CONTEXT}, "2047 and 1 tokens gave")
_add("first_choice_counted", {N, ANY_REQUEST}, "three answers of 12 tokens are 12 in the usage")
_add("ignored_bias", {BIAS}, "was forbidden by logit_bias -100, and came")
_add("ignored_filters", {FILTER}, "the only token left gives")
_add("ignored_min_tokens", {MIN_TOKENS}, "min_tokens=40 gave 10 tokens")
_add("ignored_n", {N, N_STREAMED, ANY_REQUEST}, "n=3 gave 1 choices")
_add("ignored_penalties", {PENALTY}, "{'frequency_penalty': 2.0} changed nothing")
_add("ignored_seed", {SEED}, "no seed repeated its answer")
_add("ignored_stop_tokens", {STOP_TOKEN}, "is token 5 of the answer, which went on to 12")
_add("ignored_temperature", {DRAWS, SEED, N, PARAMETERS}, "four answers drawn at temperature 2 without a seed are all")
_add("merged_choices", {N_STREAMED, ANY_REQUEST}, "n=2 streamed text under the indexes [0]")
_add("one_seed_for_all", {DRAWS}, "four answers drawn at temperature 2 without a seed are all")
_add("stop_found_in_one_token_only", {STOP_ACROSS, STOP}, "across two tokens")

# Scores.
ALL_LOGPROBS = {LOGPROBS, LOGPROBS_STREAMED, LOGPROBS_COMPLETION}
_add("broken_quantisation", {PERPLEXITY, QUANTISED}, "quantisation costs 0.79")
_add("foreign_logprobs", ALL_LOGPROBS, "is not among its 5 likeliest")
_add("half_of_the_logprobs", ALL_LOGPROBS, "8 tokens were made, 4 have logprobs", also={STOP_ACROSS})
_add("logprobs_unasked", {LOGPROBS_UNASKED}, "logprobs were not asked for, and came")
_add("missing_logprobs", {*ALL_LOGPROBS, STOP_ACROSS, GREEDY_BEST}, "logprobs were asked for, and are None")
_add("probabilities_for_logprobs", {*ALL_LOGPROBS, GREEDY_BEST}, "the probabilities of 5 alternatives sum to 6.4")
_add("unsorted_logprobs", {LOGPROBS, LOGPROBS_STREAMED}, "the alternatives are not in order")

# The server around the model.
_add("answers_called_text", {TYPES}, "an answer comes as 'text/plain; charset=utf-8'")
_add("any_key_will_do", {KEY}, "answered 200 with a wrong key; 401 is due")
_add("closed_connections", {CONNECTION}, "the server closed the connection after an answer")
_add("created_anew", {CREATED}, "the chunks of one stream were created at")
_add("created_in_milliseconds", {CREATED}, "created is 1")
_add("frozen_metrics", {METRICS, CACHE_HIT}, "served, but not counted in /metrics: {'vllm:request_success': '0 of 1'")
_add("key_not_asked_for", {KEY}, "answered 200 without a key; 401 is due")
_add("no_version", {WELL}, "/version says 'unknown'")
_add("recycled_ids", {IDS}, "12 answers carry only 4 ids")
_add("streams_called_json", {TYPES}, "a stream comes as 'application/json'")
_add("uncounted_generation", {METRICS}, "{'vllm:generation_tokens': '0 of 5'}")
_add("unhealthy", {WELL, RECOVERS}, "GET /health answered 503")

# Requests that meet.
_add("abandoned_answers_go_on", {FREES_SLOT}, "after its client left, a stream of", also={GIVEN_UP})
_add(
    "cache_ignores_parameters",
    {PARAMETERS, MAX_TOKENS, STOP, STOP_ACROSS, STOP_TOKEN, SEED, DRAWS, N, MIN_TOKENS, BIAS, PENALTY},
    "max_tokens=2 after max_tokens=6 gave 6",
    also={COMPLETION_COUNT, EXPRESSION, SCHEMA, TOOL_AUTO, TOOL_DUE, LOGPROBS_COMPLETION, FILTER},
)
_add("confused_by_aborts", {GIVEN_UP}, "was shown, and went on with '######'")
_add("cross_talk", {AT_ONCE}, "answers are mixed up")
_add("one_at_a_time", {ALL_MOVE}, "of four streams asked for together, kiwi, lamp, river, stone ran alone")
_add("prefix_cache_garbles", {CACHED}, "was shown, and went on with '######'")
_add("prefix_cache_mixes_prompts", {CACHED}, "answers are mixed up")
_add("prefix_cache_off", {CACHE_HIT}, "vllm:prefix_cache_hits did not move")

# Answers that programs read.
_add("another_tool", {TOOL_DUE}, "get_time was asked for by name, get_weather was called")
_add("bad_structures_accepted", {BAD_STRUCTURE}, "answered 200, 400 or 422 is due")
_add("characters_cut_in_streams", {CHARACTERS}, "the stream says 'Grü\ufffd")
_add("cut_tool_arguments", {TOOL_DUE, TOOL_AUTO}, "the text of get_weather's arguments is no JSON")
_add("dropped_tool_results", {TOOL_RESULT}, "the tool's result is not in the prompt")
_add("forbidden_tool_call", {TOOL_NONE}, "tool_choice none, and get_time was called")
_add("ignored_structure", {*GUIDED, TOOL_AUTO}, "held to one of ['violet', 'orange', 'white and black']")
_add("lost_tool_piece", {TOOL_DUE, TOOL_AUTO}, "arguments is no JSON")
_add("mangled_unicode", {CHARACTERS, EXPRESSION}, "the answer is 'GrÃ¼", also={SCHEMA})
_add("structure_in_a_fence", GUIDED, "the answer is '```\\nGrüße")
_add("tool_arguments_ignore_schema", {TOOL_DUE, TOOL_AUTO}, "arguments is {'anything': 1}")
_add("tool_arguments_in_a_string", {TOOL_DUE, TOOL_AUTO}, "not of type object")
_add("tool_call_says_stop", {TOOL_DUE, TOOL_AUTO}, "after a tool call the finish reason is 'stop'")
_add("tool_call_without_id", {TOOL_DUE, TOOL_AUTO}, "has no id to answer it by")
_add("tool_calls_as_text", {TOOL_DUE, TOOL_AUTO}, "one tool call is due, 0 came")
_add("wrong_tool", {TOOL_DUE, TOOL_AUTO}, "the tool 'get_time_v2' was called")

# Streams.
EVERY_STREAMED = {*EVERY_STREAM, AT_ONCE, ALL_MOVE, ANY_REQUEST, CHOICE, LOGPROBS_STREAMED, TOOL_AUTO, TOOL_DUE}
_add("bare_lines", {FRAMED}, "lines that are no field of an event: ['flushed 1 chunk']")
_add("single_newlines", {*EVERY_STREAMED, FRAMED, FREES_SLOT}, "no empty line follows")
