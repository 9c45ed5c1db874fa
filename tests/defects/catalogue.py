"""The defects of an endpoint that the suite must catch: each with the checks that must fail, and the symptom they name.

A defect is a fault of the simulated engine, by its name or as an object of a fault script. No check may fail beyond
those in ``by`` and ``also``: what a defect does not touch stays green. ``also`` is for defects that change what is
drawn, where a check can come out right by chance.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.standins.engine.faults import registry
from tests.defects import checks
from tests.defects.checks import (
    ABANDONED,
    ABSENT_LIMIT,
    AFTER_FAILURES,
    ALL_MOVE,
    AMONG_OTHERS,
    ANY_REQUEST,
    ANY_TEXT,
    ANY_WAY,
    ARRIVES,
    AT_ONCE,
    BAD_FIELD,
    BAD_JSON,
    BAD_PATH,
    BAD_STRUCTURE,
    BIAS,
    CACHE_HIT,
    CACHED,
    CHARACTERS,
    CHOICE,
    COMPLETION,
    COMPLETION_COUNT,
    CONNECTION,
    CONTEXT,
    CREATED,
    DECLARED,
    DEFAULTS,
    DONE,
    DRAWS,
    EACH_OF_N,
    ENGINES_TOKENS,
    EVERYWHERE,
    EXPRESSION,
    FACT,
    FILTER,
    FRAMED,
    FREES_SLOT,
    GOLDEN,
    GREEDY_AGAIN,
    GREEDY_BEST,
    GROWING,
    IDS,
    IRRELEVANT,
    KEY,
    KEY_SECRET,
    LARGE_EVENT,
    LISTED,
    LOGPROBS,
    LOGPROBS_COMPLETION,
    LOGPROBS_STREAMED,
    LOGPROBS_UNASKED,
    MAX_TOKENS,
    METRICS,
    MIN_TOKENS,
    N_STREAMED,
    NAMES,
    NEW_CONNECTION,
    NEW_PROMPT,
    ONE_PIECE,
    OPEN_PATHS,
    OTHER_ORIGINS,
    OVER_LONG,
    PARAMETERS,
    PENALTY,
    PERPLEXITY,
    PROMPT_CHAT,
    PROMPT_COMPLETION,
    PROMPT_UNCHANGED,
    PROMPTS_PRIVATE,
    QUANTISED,
    QUESTION,
    RECOVERS,
    RENDERED,
    SAMPLED_APART,
    SAYS_LENGTH,
    SAYS_STOP,
    SCHEMA,
    SEED,
    SLOW_ANSWER,
    SLOW_FIRST,
    SLOW_IDLE,
    SLOW_READER,
    SLOW_STREAM,
    STOP,
    STOP_ACROSS,
    STOP_CUTS,
    STOP_TOKEN,
    STOP_TOKEN_STREAMED,
    STREAM_EQUAL,
    STREAM_EQUAL_COMPLETION,
    STREAM_IS_PLAIN,
    STREAM_USAGE,
    SURVIVES,
    TEMPLATE,
    TOKEN_SCORES,
    TOOL_AUTO,
    TOOL_NONE,
    TOOL_PARALLEL,
    TOOL_REQUESTED,
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
    def kind(self) -> str:
        """Where the fault belongs; see `KINDS`."""
        fault = self.fault if isinstance(self.fault, str) else self.fault["fault"]
        return KINDS[registry()[fault].__module__.rpartition(".")[2]]

    @property
    def name(self) -> str:
        """The fault's name, with its parameters where it has some."""
        if isinstance(self.fault, str):
            return self.fault
        return " ".join(
            [self.fault["fault"], *(f"{key}={value}" for key, value in self.fault.items() if key != "fault")]
        )


STREAMED_TEXT = {STREAM_EQUAL, STREAM_EQUAL_COMPLETION, STOP, CHARACTERS, AT_ONCE}
#: Every check that reads a stream of more than three tokens as our client does.
EVERY_STREAM = {
    *STREAMED_TEXT,
    SAYS_LENGTH,
    SAYS_STOP,
    ARRIVES,
    DONE,
    ONE_PIECE,
    STREAM_USAGE,
    CREATED,
    N_STREAMED,
    ALL_MOVE,
    LOGPROBS_STREAMED,
    TOOL_AUTO,
    TOOL_REQUESTED,
    FREES_SLOT,
}
EVERY_REFUSAL = {UNKNOWN_MODEL, BAD_JSON, BAD_FIELD, BAD_STRUCTURE, OVER_LONG, RECOVERS}
PROMPTS = {PROMPT_CHAT, PROMPT_COMPLETION, ENGINES_TOKENS, RENDERED, GROWING, ANY_REQUEST, ANY_TEXT}
GUIDED = {SCHEMA, EXPRESSION, CHOICE, CHARACTERS}

#: Module of the simulated engine's catalogue to the kind of its faults.
KINDS = {
    "answers": "what is said, how it ends, how it is counted",
    "prompts": "conversations, templates, tokenizers, text",
    "parameters": "parameters not passed on, log probabilities",
    "streams": "streams",
    "structure": "guided output and tool calls",
    "protocol": "refusals and descriptions",
    "service": "health, headers, counters, keys, connections, weights",
    "combinations": "features together, in another way, after another request",
    "sharing": "concurrent requests, caches, abandoned requests",
}
EVERY_CHECK = {value for name, value in vars(checks).items() if name.isupper()}

EVERY_PROMPT = {GROWING, ANY_REQUEST, RENDERED, PROMPT_CHAT}
ALL_LOGPROBS = {LOGPROBS, LOGPROBS_STREAMED, LOGPROBS_COMPLETION}
EVERY_SHORT_STREAM = {*EVERY_STREAM, STOP_ACROSS, CHOICE, ANY_REQUEST}

DEFECTS = (
    # What is said, how it ends, and how it is counted.
    Defect(
        "always_length",
        {SAYS_STOP, STOP, STOP_TOKEN, SCHEMA, TOOL_AUTO, TOOL_REQUESTED},
        "of 256 tokens, the finish reason is 'length'",
    ),
    Defect("always_stop", {SAYS_LENGTH, TOOL_AUTO, TOOL_REQUESTED}, "cut after 4 tokens, the finish reason is 'stop'"),
    Defect("constant_id", {NAMES, IDS}, "two answers have the same id chatcmpl-0"),
    Defect("dropped_turns", {TURNS, GROWING, RENDERED, PROMPT_CHAT}, "/tokenize 44", also={TOOL_RESULT}),
    Defect(
        "empty_answers",
        {
            *GUIDED,
            FACT,
            QUESTION,
            COMPLETION,
            RECOVERS,
            GOLDEN,
            MAX_TOKENS,
            STOP,
            STOP_ACROSS,
            STREAM_EQUAL_COMPLETION,
            ARRIVES,
            ALL_MOVE,
            AT_ONCE,
            CACHED,
            ABANDONED,
            PARAMETERS,
            ENGINES_TOKENS,
            TURNS,
            LOGPROBS_COMPLETION,
            DRAWS,
            N,
            N_STREAMED,
            PENALTY,
            SEED,
            TOOL_AUTO,
            TOOL_REQUESTED,
            CONTEXT,
        },
        "no text came",
    ),
    Defect("hidden_overrun", {MAX_TOKENS, LOGPROBS, LOGPROBS_COMPLETION, ANY_REQUEST, CONTEXT}, "18 tokens:"),
    Defect(
        "ignored_max_tokens",
        {
            MAX_TOKENS,
            SAYS_LENGTH,
            COMPLETION_COUNT,
            GROWING,
            ANY_REQUEST,
            N,
            PARAMETERS,
            BIAS,
            CONTEXT,
            LOGPROBS_COMPLETION,
        },
        "max_tokens=6 gave 64 tokens",
    ),
    Defect("ignored_stop", {STOP, STOP_ACROSS, PARAMETERS}, "was ignored or leaked", also={ANY_REQUEST}),
    Defect("leaked_stop", {STOP, STOP_ACROSS, PARAMETERS}, "was ignored or leaked", also={ANY_REQUEST}),
    Defect(
        "off_by_one_usage",
        {COMPLETION_COUNT, ANY_REQUEST, CONTEXT, GROWING, LOGPROBS, METRICS, N, PARAMETERS, STOP_TOKEN},
        "usage reports 13 completion tokens, expected 12",
    ),
    Defect(
        {"fault": "off_by_one_usage", "count": "prompt_tokens"},
        {PROMPT_CHAT, PROMPT_COMPLETION, GROWING, ANY_REQUEST, ANY_TEXT, CONTEXT, METRICS},
        "/tokenize",
    ),
    Defect({"fault": "off_by_one_usage", "count": "total_tokens", "by": -1}, {COMPLETION_COUNT}, "its parts sum to"),
    Defect(
        "stale_cache",
        {QUESTION, AT_ONCE, PARAMETERS, DRAWS, SEED, TURNS, GOLDEN},
        # Which question is answered first, and so whose answer the others get, is the server's choice.
        "asked about Japan, got ",
        also={
            *GUIDED,
            ALL_MOVE,
            ANY_REQUEST,
            ARRIVES,
            BIAS,
            CACHED,
            COMPLETION,
            COMPLETION_COUNT,
            CONTEXT,
            ENGINES_TOKENS,
            ABANDONED,
            FACT,
            FREES_SLOT,
            GROWING,
            MAX_TOKENS,
            METRICS,
            LOGPROBS_COMPLETION,
            MIN_TOKENS,
            N,
            PENALTY,
            SAYS_LENGTH,
            SAYS_STOP,
            STOP,
            STOP_ACROSS,
            STOP_TOKEN,
            TOOL_AUTO,
            TOOL_REQUESTED,
        },
    ),
    Defect("trimmed_prompt", {PROMPT_CHAT, GROWING}, "/tokenize"),
    Defect(
        "wrong_answers",
        {*GUIDED, FACT, QUESTION, COMPLETION, GOLDEN, STOP, STOP_ACROSS, LOGPROBS, TOOL_AUTO, TOOL_REQUESTED},
        "expected Paris as the capital of France, got",
        also={ANY_REQUEST},
    ),
    Defect("wrong_model_name", {NAMES, ONE_PIECE, AT_ONCE}, "some-other-model"),
    # Refusals and descriptions.
    Defect("any_path_answers", {BAD_PATH}, "/v1/no-such-path answered 200, expected 404", also={OPEN_PATHS}),
    Defect("bad_fields_accepted", {BAD_FIELD, RECOVERS}, "answered 200, expected 400 or 422"),
    Defect("errors_are_200", {*EVERY_REFUSAL, CONTEXT}, "answered 200"),
    Defect("errors_are_500", {*EVERY_REFUSAL, CONTEXT}, "answered 500, expected 404"),
    Defect("errors_are_pages", {*EVERY_REFUSAL, TYPES}, "404 without an error object"),
    Defect("errors_say_nothing", {UNKNOWN_MODEL, BAD_FIELD, OVER_LONG}, "the error does not name"),
    Defect("prompt_cut_to_fit", {OVER_LONG}, "answered 200, expected 400 or 413 or 422"),
    Defect(
        "server_error",
        # The relations behind the first plain answer that does not come are skipped for it.
        EVERY_CHECK
        - {KEY, BAD_PATH, WELL, SURVIVES, TEMPLATE, DECLARED, LISTED}
        - {ANY_WAY, AMONG_OTHERS, STREAM_IS_PLAIN, EACH_OF_N, IRRELEVANT, STOP_CUTS}
        # Refusals repeat no text, and slow lanes are planted by the proxy.
        - {KEY_SECRET, PROMPTS_PRIVATE, OTHER_ORIGINS, OPEN_PATHS}
        - {SLOW_STREAM, SLOW_ANSWER, SLOW_READER, SLOW_IDLE, SLOW_FIRST},
        "answered 503",
    ),
    Defect("unknown_model_accepted", {UNKNOWN_MODEL}, "answered 200, expected 404"),
    Defect("wrong_context_length", {DECLARED}, "/tokenize reports max_model_len 2048, /v1/models reports 131072"),
    # On the way in: conversations and tokenizers.
    Defect("ascii_prompts", {*PROMPTS, PERPLEXITY, QUANTISED}, "'german' has 61 tokens, expected 68 as recorded"),
    Defect("four_bytes_break", {GROWING, ANY_REQUEST, ANY_TEXT, ENGINES_TOKENS, PROMPT_CHAT, RENDERED}, "answered 500"),
    Defect("dropped_system_prompt", {TURNS, GROWING, RENDERED, PROMPT_CHAT}, "the system says 'table 7906' 6 times"),
    Defect(
        "flattened_roles", {GROWING, RENDERED, PROMPT_CHAT}, "did not see the conversation as the template renders it"
    ),
    Defect("foreign_tokenizer", {*PROMPTS, SURVIVES}, "/tokenize reports"),
    Defect("lossy_detokenizer", {GROWING, SURVIVES, TEMPLATE}, "became ''"),
    Defect(
        "miscounted_tokens",
        {PROMPT_CHAT, PROMPT_COMPLETION, GROWING, ANY_REQUEST, ANY_TEXT, SURVIVES},
        "/tokenize counts 19 tokens and lists 18",
    ),
    Defect("roles_not_rendered", {*EVERY_PROMPT, TEMPLATE}, "the roles are lost"),
    Defect("short_memory", {TURNS, GROWING, RENDERED}, "the first-question says 'table 7906' 6 times"),
    Defect(
        "twice_begun",
        {*PROMPTS, CONTEXT, GOLDEN, PERPLEXITY, QUANTISED},
        "usage reports 26 prompt tokens, /tokenize 25",
        also={PROMPT_UNCHANGED, LARGE_EVENT, TOKEN_SCORES},
    ),
    # Parameters that are not passed on.
    Defect(
        "always_drawn",
        {GREEDY_AGAIN, GREEDY_BEST, STREAM_EQUAL, STREAM_EQUAL_COMPLETION, GOLDEN, BAD_FIELD},
        "was likelier",
        also={
            MAX_TOKENS,
            STOP,
            STOP_ACROSS,
            STOP_TOKEN,
            LOGPROBS,
            LOGPROBS_STREAMED,
            LOGPROBS_COMPLETION,
            FILTER,
            BIAS,
            NEW_CONNECTION,
        },
    ),
    Defect("context_one_too_short", {CONTEXT}, "maximum context length is exceeded"),
    Defect("context_overrun", {CONTEXT}, "2047 and 1 tokens gave"),
    Defect("first_choice_counted", {N, ANY_REQUEST}, "expected 24 completion tokens for three answers of 8, got 8"),
    Defect("ignored_bias", {BIAS}, "was forbidden by logit_bias -100, but generated"),
    Defect("ignored_filters", {FILTER}, "the only token left gives"),
    Defect("ignored_min_tokens", {MIN_TOKENS}, "min_tokens=24 gave 10 tokens"),
    Defect("ignored_n", {N, N_STREAMED, ANY_REQUEST}, "n=3 gave 1 choices"),
    Defect("ignored_penalties", {PENALTY}, "{'frequency_penalty': 2.0} changed nothing"),
    Defect("ignored_seed", {SEED}, "no seed repeated its answer"),
    Defect("ignored_stop_tokens", {STOP_TOKEN}, "is token 5 of the answer, which went on to 12"),
    Defect(
        "ignored_temperature",
        {DRAWS, SEED, N, PARAMETERS},
        "four answers drawn at temperature 2 without a seed are all",
        also={SAMPLED_APART},
    ),
    Defect("merged_choices", {N_STREAMED, ANY_REQUEST}, "n=2 streamed text under the indexes [0]"),
    Defect("one_seed_for_all", {DRAWS}, "four answers drawn at temperature 2 without a seed are all"),
    Defect("stop_found_in_one_token_only", {STOP_ACROSS, STOP}, "across two tokens"),
    # Scores.
    Defect("broken_quantisation", {PERPLEXITY, QUANTISED}, "quantisation costs 0.79"),
    Defect("foreign_logprobs", ALL_LOGPROBS, "is not among its 5 likeliest"),
    Defect("half_of_the_logprobs", ALL_LOGPROBS, "8 tokens were made, 4 have logprobs", also={STOP_ACROSS}),
    Defect("logprobs_unasked", {LOGPROBS_UNASKED}, "logprobs were not requested, but returned"),
    Defect("missing_logprobs", {*ALL_LOGPROBS, STOP_ACROSS, GREEDY_BEST}, "logprobs were requested, got None"),
    Defect("probabilities_for_logprobs", {*ALL_LOGPROBS, GREEDY_BEST}, "the probabilities of 5 alternatives sum to 6."),
    Defect("unsorted_logprobs", {LOGPROBS, LOGPROBS_STREAMED}, "the alternatives are not in order"),
    # The server around the model.
    Defect("answers_called_text", {TYPES}, "an answer has content type 'text/plain; charset=utf-8'"),
    Defect("any_key_will_do", {KEY}, "answered 200 with a wrong key, expected 401"),
    Defect("closed_connections", {CONNECTION}, "the server closed the connection after an answer"),
    Defect("created_anew", {CREATED}, "the chunks of one stream were created at"),
    Defect("created_in_milliseconds", {CREATED}, "created is 1"),
    Defect(
        "frozen_metrics",
        {METRICS, CACHE_HIT, FREES_SLOT},
        "not counted in /metrics: {'vllm:request_success': '0 of 1'",
    ),
    Defect("key_not_asked_for", {KEY, OPEN_PATHS}, "answered 200 without a key, expected 401"),
    Defect("no_version", {WELL}, "/version reports 'unknown'"),
    Defect("recycled_ids", {IDS}, "12 answers carry only 4 ids"),
    Defect("streams_called_json", {TYPES}, "a stream has content type 'application/json'"),
    Defect("uncounted_generation", {METRICS}, "{'vllm:generation_tokens': '0 of 5'}"),
    Defect("unhealthy", {WELL, RECOVERS}, "GET /health answered 503"),
    # Requests that meet.
    Defect("abandoned_answers_go_on", {FREES_SLOT}, "after its client left, a stream of", also={ABANDONED}),
    Defect(
        "cache_ignores_parameters",
        {PARAMETERS, MAX_TOKENS, STOP, STOP_ACROSS, STOP_TOKEN, SEED, DRAWS, N, MIN_TOKENS, BIAS, PENALTY},
        "max_tokens=2 after max_tokens=6 gave 6",
        also={
            ANY_REQUEST,
            AT_ONCE,
            CHARACTERS,
            COMPLETION_COUNT,
            EXPRESSION,
            SCHEMA,
            TOOL_AUTO,
            TOOL_NONE,
            TOOL_REQUESTED,
            LOGPROBS_COMPLETION,
            FILTER,
        },
    ),
    Defect("confused_by_aborts", {ABANDONED}, "was shown, and continued with '######'"),
    # Other checks ask several things at a time too, and meet it or not.
    Defect(
        "cross_talk",
        {AT_ONCE, AMONG_OTHERS},
        "answers are mixed up",
        also={ANY_REQUEST, EVERYWHERE, EXPRESSION, GOLDEN, PENALTY, SCHEMA, TOOL_PARALLEL},
    ),
    Defect("one_at_a_time", {ALL_MOVE}, "of four streams asked for together, kiwi, lamp, river, stone ran alone"),
    Defect("prefix_cache_garbles", {CACHED}, "was shown, and continued with '######'"),
    Defect("prefix_cache_mixes_prompts", {CACHED}, "answers are mixed up"),
    Defect("prefix_cache_off", {CACHE_HIT}, "vllm:prefix_cache_hits did not move"),
    # Features that work alone.
    Defect(
        "held_back_text_lost",
        {STREAM_IS_PLAIN},
        "x absent stop text x logprobs on completions, chunked body: the stream lost",
    ),
    Defect("streamed_calls_share_an_index", {STREAM_IS_PLAIN}, "streamed != plain for several tool calls"),
    Defect("large_bodies_refused", {STREAM_IS_PLAIN, ANY_WAY}, "on chat, body of 64 KiB: POST /v1/chat"),
    Defect("chunked_bodies_lost", {STREAM_IS_PLAIN, ANY_WAY}, "on chat, chunked body: POST /v1/chat"),
    Defect("grammar_reaches_others", {AMONG_OTHERS}, "among others of other kinds != alone for"),
    Defect("abandoned_grammar_stays", {AFTER_FAILURES}, "after a refused and an abandoned request != before for"),
    Defect("grammar_for_the_first_choice_only", {EACH_OF_N}, "n != each alone for"),
    Defect("logprobs_free_the_answer", {IRRELEVANT}, "with != without logprobs for"),
    Defect("stop_ignored_in_grammars", {STOP_CUTS}, "stopped != cut at the stop text for"),
    Defect("nulls_refused", {DEFAULTS}, "default given explicitly != absent on"),
    Defect("small_default_limit", {ABSENT_LIMIT}, "absent limit != rest of the context"),
    Defect("invented_cached_tokens", {NEW_PROMPT}, "cached != 0 for a new prompt on"),
    # Answers that programs read.
    Defect("another_tool", {TOOL_REQUESTED}, "expected a call of get_time, got get_weather"),
    Defect("bad_structures_accepted", {BAD_STRUCTURE}, "answered 200, expected 400 or 422"),
    Defect("characters_cut_in_streams", {CHARACTERS}, "the streamed text is 'Grü\ufffd"),
    Defect("cut_tool_arguments", {TOOL_REQUESTED, TOOL_AUTO}, "the text of get_time's arguments is not JSON"),
    Defect("dropped_tool_results", {TOOL_RESULT}, "the tool's result is not in the prompt"),
    Defect("forbidden_tool_call", {TOOL_NONE}, "tool_choice is none, but get_time was called"),
    Defect("ignored_structure", {*GUIDED, TOOL_AUTO}, "constrained to one of ['violet', 'orange', 'white and black']"),
    Defect("lost_tool_piece", {TOOL_REQUESTED, TOOL_AUTO}, "arguments is not JSON"),
    Defect("mangled_unicode", {CHARACTERS, EXPRESSION}, "the answer is 'GrÃ¼", also={SCHEMA}),
    Defect("structure_in_a_fence", GUIDED, "the answer is '```\\nGrüße"),
    Defect("tool_arguments_ignore_schema", {TOOL_REQUESTED, TOOL_AUTO}, "arguments is {'anything': 1}"),
    Defect("tool_arguments_in_a_string", {TOOL_REQUESTED, TOOL_AUTO}, "not of type object"),
    Defect("tool_call_says_stop", {TOOL_REQUESTED, TOOL_AUTO}, "after a tool call the finish reason is 'stop'"),
    Defect("tool_call_without_id", {TOOL_REQUESTED, TOOL_AUTO}, "has no id to answer it by"),
    Defect("tool_calls_as_text", {TOOL_REQUESTED, TOOL_AUTO}, "expected one tool call, got 0"),
    Defect("tool_parser_fails", {TOOL_AUTO}, "answered 500 Internal Server Error: {", also={TOOL_REQUESTED}),
    Defect("wrong_tool", {TOOL_REQUESTED, TOOL_AUTO}, "unknown tool 'get_time_v2' was called"),
    # Streams.
    Defect("bare_lines", {FRAMED}, "lines that are not a field of an event: ['flushed 1 chunk']"),
    Defect("single_newlines", {*EVERY_SHORT_STREAM, FRAMED}, "no empty line follows"),
    Defect("block_buffered_stream", {ARRIVES}, "the stream was buffered in blocks: 40 deltas arrived in 3 bursts"),
    Defect("buffered_stream", {ARRIVES, ALL_MOVE}, "the stream was buffered: all 40 deltas arrived within"),
    Defect("double_done", {DONE}, "expected [DONE] once, got it 2 times"),
    Defect("error_in_stream", EVERY_STREAM, "carries an error inside its 200"),
    Defect("foreign_chunk", {ONE_PIECE}, "the chunks of one stream carry 2 ids"),
    Defect("lost_delta", {*STREAMED_TEXT, LOGPROBS_STREAMED}, "streamed: "),
    Defect("malformed_chunk", EVERY_SHORT_STREAM - {FREES_SLOT}, "an event of the stream is not JSON"),
    Defect("missing_done", {DONE}, "the stream ended without [DONE]"),
    Defect("missing_role", {ONE_PIECE, N_STREAMED}, "the first delta gives the role None"),
    Defect("missing_stream_usage", {STREAM_USAGE, ANY_REQUEST}, "usage was requested, but 0 chunks carry it"),
    Defect("reordered_deltas", {*STREAMED_TEXT, LOGPROBS_STREAMED}, "streamed: "),
    Defect("repeated_delta", {*STREAMED_TEXT, LOGPROBS_STREAMED}, "streamed: "),
    Defect("silently_truncated_stream", {*STREAMED_TEXT, STOP_ACROSS, CHOICE}, "streamed: "),
    Defect("text_after_finish", {ONE_PIECE, LOGPROBS_STREAMED}, "text came after the finish reason"),
    Defect("truncated_stream", {*EVERY_STREAM, FRAMED}, "was cut", also={STOP_TOKEN_STREAMED}),
    Defect("usage_with_choices", {STREAM_USAGE}, "the usage chunk must have no choices"),
)
