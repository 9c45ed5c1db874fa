"""Healthy servers of other kinds raise no alarm: other names, adapters, releases, languages, lengths and batches."""

from __future__ import annotations

import pytest

from tests.defects import checks
from tests.defects.proxy.healthy import (
    Adapter,
    BaseModel,
    ForcedUsage,
    NamedTwice,
    OlderReasoningModel,
    OlderVllm,
    OpenMetrics,
    OtherLanguage,
    ReasoningModel,
    SpeculativeDecoding,
)
from tests.defects.proxy.healthy_gateways import CommentedStream, ListedPathsOnly
from tests.defects.proxy.healthy_models import (
    DataParallel,
    DefaultSystemPrompt,
    FewLargePieces,
    LimitedAnswers,
    MistralTokenizer,
    NoSystemRole,
    PenalisedByDefault,
    SamplingDefaults,
    SentencePieceTokenizer,
)
from tests.defects.proxy.server import Answer, Defect, Exchange, running_proxy
from tests.defects.runner import run_suite, simulator

COUNTING = {checks.METRICS, checks.CACHE_HIT, checks.FREES_SLOT, checks.SERVED_ONCE, checks.ENGINE_ANSWERS}
SERVERS: dict[str, tuple[type[Defect], set[str]]] = {
    "named-twice": (NamedTwice, {*COUNTING, checks.NAMES, checks.LISTED}),
    "adapter": (Adapter, {*COUNTING, checks.DECLARED, checks.LISTED}),
    "older-vllm": (
        OlderVllm,
        {
            *COUNTING,
            checks.BAD_FIELD,
            checks.BAD_JSON,
            checks.OVER_LONG,
            checks.RECOVERS,
            checks.UNKNOWN_MODEL,
            checks.BAD_STRUCTURE,
            checks.CHARACTERS,
            checks.ENGINES_TOKENS,
        },
    ),
    "forced-usage": (ForcedUsage, {checks.STREAM_USAGE, checks.ANY_REQUEST, checks.CONTINUOUS}),
    "open-metrics": (OpenMetrics, {*COUNTING, checks.TYPES}),
    "other-language": (OtherLanguage, {checks.FACT, checks.QUESTION, checks.COMPLETION}),
    "mistral-tokenizer": (MistralTokenizer, {checks.TOOL_RESULT, checks.TOOL_REQUESTED}),
    "sampling-defaults": (
        SamplingDefaults,
        {
            checks.DRAWS,
            checks.SEED,
            checks.N,
            checks.N_STREAMED,
            checks.SAMPLED_APART,
            checks.PARAMETERS,
            checks.EVERYWHERE,
            checks.FILTER,
        },
    ),
    "penalised-by-default": (
        PenalisedByDefault,
        {checks.GREEDY_BEST, checks.LOGPROBS, checks.LOGPROBS_STREAMED, checks.LOGPROBS_COMPLETION, checks.DEFAULTS},
    ),
    "sentence-piece-tokenizer": (
        SentencePieceTokenizer,
        {checks.LOGPROBS, checks.LOGPROBS_COMPLETION, checks.LARGE_EVENT, checks.STOP_ACROSS},
    ),
    "few-large-pieces": (
        FewLargePieces,
        {
            checks.ARRIVES,
            checks.STREAM_EQUAL,
            checks.STREAM_EQUAL_COMPLETION,
            checks.ONE_PIECE,
            checks.LOGPROBS_STREAMED,
            checks.FREES_SLOT,
            checks.ABANDONED,
        },
    ),
    "default-system-prompt": (
        DefaultSystemPrompt,
        {
            checks.NEW_PROMPT,
            checks.PROMPT_CHAT,
            checks.LONG_CONVERSATION,
            checks.TEMPLATE,
            checks.RENDERED,
            checks.ANY_REQUEST,
            checks.COMPLETION_COUNT,
        },
    ),
    "data-parallel": (DataParallel, {checks.CACHE_HIT, checks.METRICS, checks.DECLARED}),
    "listed-paths-only": (ListedPathsOnly, {checks.BAD_PATH, checks.OPEN_PATHS, checks.FACT}),
    "commented-stream": (
        CommentedStream,
        {checks.FRAMED, checks.DONE, checks.ONE_PIECE, checks.STREAM_USAGE, checks.CONTINUOUS, checks.ARRIVES},
    ),
}


#: Checks that ask for a chat in one way each: whole, streamed, raw, tokenized, of a fixture, on its end, for structure.
CHATTING = {
    checks.BAD_FIELD,
    checks.CHOICE,
    checks.ENGINE_ANSWERS,
    checks.FACT,
    checks.FRAMED,
    checks.GREEDY_BEST,
    checks.LOGPROBS,
    checks.MIN_TOKENS,
    checks.N,
    checks.OVER_LONG,
    checks.PARAMETERS,
    checks.QUESTION,
    checks.SAYS_STOP,
    checks.STREAM_EQUAL,
    checks.TEMPLATE,
    checks.TOOL_REQUESTED,
}
#: Server to the checks that it passes all the same, and what the others say.
OTHER_MODELS: dict[str, tuple[type[Defect], int, str]] = {
    "base-model": (BaseModel, 3, "cannot do chat: its tokenizer has no chat template, says the server: "),
    "reasoning-model": (ReasoningModel, 10, "cannot do content: it reasons before it answers"),
    "older-reasoning-model": (OlderReasoningModel, 10, "cannot do structured_outputs: it reasons before it answers"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_healthy_server_raises_no_alarm(name: str) -> None:
    server, watched = SERVERS[name]
    with simulator() as engine, running_proxy(engine, server()) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-k", " or ".join(sorted(watched)))
    assert not outcome.failed, outcome.output
    assert outcome.passed > 2, outcome.output


def test_engine_with_one_slot_is_not_taken_for_a_defect_unless_more_are_declared() -> None:
    with simulator(arguments=["--max-num-seqs", "1"]) as url:
        undeclared = run_suite(url, "--stage-model=sim-model", "-rsfE", "-k", checks.ALL_MOVE, profile=None)
        declared = run_suite(url, "--stage-model=sim-model", "-k", checks.ALL_MOVE)
    assert not undeclared.failed, undeclared.output
    assert "meanwhile the engine reports at most 1 running and " in undeclared.output
    assert "max_num_seqs in the profile says which" in undeclared.output
    assert set(declared.failed) == {checks.ALL_MOVE}, declared.output
    assert "--max-num-seqs is 256" in declared.failed[checks.ALL_MOVE]


def test_short_context_raises_no_alarm() -> None:
    watched = {checks.ABANDONED, checks.LARGE_EVENT, checks.LARGE_BODY, checks.CONTEXT, checks.CACHED}
    with simulator(arguments=["--max-model-len", "512"]) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-k", " or ".join(sorted(watched)))
    assert not outcome.failed, outcome.output
    assert outcome.passed > 3, outcome.output


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_model_of_another_kind_raises_no_alarm(name: str) -> None:
    server, least_passed, said = OTHER_MODELS[name]
    chosen = " or ".join(sorted(CHATTING - ({checks.BAD_FIELD} if server is not BaseModel else set())))
    with simulator() as engine, running_proxy(engine, server()) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-rsfE", "-k", chosen, profile=None)
    assert not outcome.failed, outcome.output
    assert outcome.passed >= least_passed, outcome.output
    assert f"does not apply: sim-model {said}" in outcome.output


def test_template_without_a_system_prompt_raises_no_alarm() -> None:
    chosen = {checks.TURNS, checks.GROWING, checks.PROMPT_CHAT, checks.TEMPLATE, checks.RENDERED, checks.AFTER_FAILURES}
    with simulator() as engine, running_proxy(engine, NoSystemRole()) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-rsfE", "-k", " or ".join(sorted(chosen)))
    assert not outcome.failed, outcome.output
    assert outcome.passed > 5, outcome.output
    assert "does not apply: the server says: System role not supported" in outcome.output


def test_limited_answers_are_not_taken_for_cut_ones() -> None:
    chosen = {checks.SLOW_ANSWER, checks.FREES_SLOT, checks.LEAVES_EARLY, checks.ABANDONED}
    arguments = (
        "--stage-model=sim-model",
        "-p",
        "tests.defects.short_lanes",
        "-rsfE",
        "-k",
        " or ".join(sorted(chosen)),
    )
    with simulator() as engine, running_proxy(engine, LimitedAnswers()) as url:
        outcome = run_suite(url, *arguments, slow=True)
    assert not outcome.failed, outcome.output
    assert outcome.passed > 2, outcome.output
    assert "the whole context of 256 tokens takes" in outcome.output


def test_long_blocks_of_the_prefix_cache_are_hit() -> None:
    with simulator(arguments=["--block-size", "528", "--max-model-len", "4096"]) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-k", checks.CACHE_HIT)
    assert (outcome.passed, outcome.failed) == (1, {}), outcome.output


def test_parameters_that_the_engines_configuration_rules_out_do_not_apply() -> None:
    chosen = {checks.BIAS, checks.FILTER, checks.EVERYWHERE, checks.ANY_REQUEST, checks.IRRELEVANT}
    with simulator() as engine, running_proxy(engine, SpeculativeDecoding()) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-rsfE", "-k", " or ".join(sorted(chosen)))
    assert not outcome.failed, outcome.output
    assert outcome.passed > 8, outcome.output
    said = "does not apply: the server says: The min_p and logit_bias sampling parameters are not yet supported"
    assert said in outcome.output
    assert "reported by an earlier check" not in outcome.output


def test_model_that_lost_its_chat_template_is_a_defect() -> None:
    with simulator() as engine, running_proxy(engine, BaseModel()) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-k", f"{checks.FACT} or {checks.COMPLETION}")
    assert set(outcome.failed) == {checks.FACT}, outcome.output
    assert "you must provide a chat template" in outcome.failed[checks.FACT]


class ParserOfAnotherModel(ReasoningModel):
    """The reasoning parser takes every answer for reasoning."""

    ENOUGH_TOKENS = 10**6

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Let answers end by themselves."""
        exchange.notes["reasons"] = exchange.request.path == "/v1/chat/completions"
        return None


def test_reasoning_parser_that_leaves_no_content_is_a_defect() -> None:
    with simulator() as engine, running_proxy(engine, ParserOfAnotherModel()) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-k", checks.FACT)
    assert "with empty content, and all its text is reasoning" in outcome.failed[checks.FACT], outcome.output
    assert "compare --reasoning-parser" in outcome.output
