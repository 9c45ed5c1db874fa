"""The served model is the expected one, at the expected quality: answers and scores equal the recorded ones.

Wrong weights, a broken quantisation or a kernel that computes badly give fluent text, with status 200 and in time.
What a healthy server said is under ``fixtures/prompts/references``, with how it was recorded; the limits leave room for
other batches and other kernels. Where the run knows which kernels compute the model, it takes the recording that was
made with them. A model without a recorded reference is skipped, and says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import fmean

import pytest

from pytest_vllm_stage import EndpointClient, ModelProfile, StageConfig, Target, does_not_apply
from pytest_vllm_stage.checks.inference.reference import (
    Reference,
    agreement,
    compare,
    deviation_nats,
    texts,
)
from pytest_vllm_stage.checks.inference.scores import Scores, score
from pytest_vllm_stage.checks.inference.together import together

Needs = Callable[..., None]

#: What the simulated engine's version says.
SIMULATED = "vllm-stage-sim"


@pytest.fixture
def reference(
    endpoint: EndpointClient, model_profile: ModelProfile | None, record_property: Callable[[str, object], None]
) -> Reference:
    """The recorded reference of the model under check."""
    if model_profile is None:
        pytest.skip(f"no profile names a recorded reference of {endpoint.target.model}")
    if model_profile.reference is None:
        does_not_apply(f"the profile names no recorded reference of {endpoint.target.model}")
    found = Reference.read_recording(model_profile.reference, endpoint.target.kernels)
    record_property("quality.recorded_kernels", found.kernels)
    if SIMULATED in endpoint.version() and not found.simulated:
        does_not_apply("the engine is simulated: it has no model's answers and scores")
    return found


@functools.cache
def scored(endpoint: EndpointClient) -> dict[str, Scores]:
    """The texts as this server scores them; requested once per run, as two checks use them."""
    return {name: score(endpoint, text) for name, text in texts().items()}


def test_golden_answers_equal_the_recorded_ones(
    endpoint: EndpointClient, reference: Reference, record_property: Callable[[str, object], None]
) -> None:
    """The answers to the golden prompts begin as the recorded ones do, over most of their length on average.

    One answer may tip at a close call on other hardware; another model, or damaged weights, tip most of them.
    """
    asked = {"temperature": 0, "max_tokens": reference.golden_tokens}
    answers = together(lambda prompt: endpoint.chat(prompt, **asked).text, reference.golden, at_once=4)
    said = dict(zip(reference.golden, answers, strict=True))
    agreements = {prompt: agreement(said[prompt], recorded) for prompt, recorded in reference.golden.items()}
    mean, worst = fmean(agreements.values()), min(agreements, key=lambda prompt: agreements[prompt])
    record_property("quality.golden_agreement", round(mean, 3))
    assert mean >= reference.least_agreement, (
        f"the golden answers agree by {mean:.2f} on average, expected at least {reference.least_agreement}; "
        f"for {worst!r}, got {said[worst]!r}, recorded is {reference.golden[worst][0]!r}"
    )


def test_perplexity_of_fixed_texts_equals_the_recorded_one(
    endpoint: EndpointClient, reference: Reference, needs: Needs
) -> None:
    """Each fixed text is as likely to the model as it was when recorded, within the reference's tolerance.

    It sees what answers hide: a model that lost a little everywhere still answers easy questions right.
    """
    needs("prompt_logprobs")
    for name, now in scored(endpoint).items():
        then = reference.scores[name]
        assert len(now.logprobs) == len(then.logprobs), (
            f"text {name!r} has {len(now.logprobs) + 1} tokens, expected {len(then.logprobs) + 1} as recorded"
        )
        moved = fmean(now.logprobs) - fmean(then.logprobs)
        assert abs(moved) <= reference.tolerance_nats, (
            f"the perplexity of text {name!r} is {now.perplexity:.2f}, recorded is {then.perplexity:.2f}: "
            f"{moved:+.3f} nats per token, {reference.tolerance_nats} allowed"
        )


def test_scores_of_fixed_texts_equal_the_recorded_ones_token_by_token(
    endpoint: EndpointClient,
    reference: Reference,
    needs: Needs,
    targets: dict[str, Target],
    stage_config: StageConfig,
    record_property: Callable[[str, object], None],
) -> None:
    """The model scores every token as it was recorded, where another model of the stage shows that the engine does.

    It sees what a mean hides, for example wrong scales in one layer. Other kernels move tokens nearly as far as such a
    defect does, so the recorded scores bind only an engine that reproduces them for another model.
    """
    needs("prompt_logprobs")
    version = endpoint.version()
    if reference.engine_version != version:
        recorded = f"recorded from engine {reference.engine_version}" if reference.engine_version else "unlabelled"
        does_not_apply(f"the reference is {recorded}, this is {version}: other kernels round differently")
    try:
        deviation = deviation_nats(scored(endpoint), reference.scores)
    except ValueError:
        pytest.fail("the texts were recorded with other tokens: the server has another tokenizer")
    record_property("quality.deviation_nats", round(deviation, 4))
    if deviation <= reference.same_kernels_nats:
        return
    exact = _find_exact_others(endpoint, targets, stage_config)
    if not exact:
        does_not_apply(
            f"the scores deviate by {deviation:.3f} nats per token from the recorded ones, and no other model of this "
            f"engine reproduces its own: the kernels are not those of the recording ({reference.kernels or 'unstated'})"
        )
    pytest.fail(
        f"the scores of the fixed texts deviate by {deviation:.3f} nats per token from the recorded ones, expected at "
        f"most {reference.same_kernels_nats}; the same engine reproduces those of {', '.join(exact)}: compare the "
        f"weights of {endpoint.target.model} with their source"
    )


def _find_exact_others(endpoint: EndpointClient, targets: dict[str, Target], config: StageConfig) -> list[str]:
    """The other models that the same kernels of the same engine version compute as recorded, with their deviations."""
    found = []
    for role, target in targets.items():
        declared = config.profile.find_model(role, target.model)
        if (
            target.model == endpoint.target.model
            or target.kernels != endpoint.target.kernels
            or declared is None
            or declared.reference is None
            or target.unreachable
        ):
            continue
        reference = Reference.read_recording(declared.reference, target.kernels)
        with EndpointClient(target) as other:
            if reference.engine_version != other.version():
                continue
            deviation = deviation_nats(scored(other), reference.scores)
        if deviation <= reference.same_kernels_nats:
            found.append(f"{target.model} by {deviation:.3f}")
    return found


def test_the_quantised_model_agrees_with_the_full_one(
    endpoint: EndpointClient,
    reference: Reference,
    needs: Needs,
    targets: dict[str, Target],
    record_property: Callable[[str, object], None],
) -> None:
    """Over fixed texts, quantisation costs no more than it did, and both models mostly hold the same token likeliest.

    The full model is asked where the stage serves it, and else its recorded scores are taken. A bound is broken only
    where the whole confidence interval is beyond it.
    """
    needs("prompt_logprobs")
    if reference.full is None:
        does_not_apply(f"{reference.model} is not a quantisation of another model")
    full = targets.get("full")
    if full is not None:
        with EndpointClient(full) as whole:
            against = scored(whole)
    else:
        against = dict(Reference.read(reference.full).scores)
    try:
        found = compare(against, scored(endpoint))
    except ValueError:
        pytest.fail("the full and the quantised model were scored on different tokens: they are not a pair")
    gap, same = found.gap_nats, found.same_token
    record_property("quality.gap_nats", str(gap))
    record_property("quality.same_token", str(same))
    assert gap.low <= reference.most_gap_nats, (
        f"quantisation costs {gap} nats per token, {reference.most_gap_nats} allowed"
    )
    assert same.high >= reference.least_same_token, (
        f"the part of tokens that both models hold likeliest is {same}, expected at least {reference.least_same_token}"
    )
