"""References of quality: read, compared, and wide enough that a healthy model is never outside."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.checks.inference.reference import (
    SAME_KERNELS_NATS,
    Reference,
    agreement,
    compare,
    deviation_nats,
    estimate,
    texts,
)
from pytest_vllm_stage.checks.inference.scores import Scores, score
from pytest_vllm_stage.core import processor
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.engine import weights
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed, Target

REFERENCES = sorted((fixtures_dir() / "prompts" / "references").glob("*.json"))


def client(body: dict[str, Any]) -> EndpointClient:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=body))
    return EndpointClient(Target("t", "m", "http://server"), transport=transport)


def scored_answer(**choice: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return {"choices": [{"text": "x", "finish_reason": "length", **choice}], "usage": usage}


def entry(logprob: float, rank: int) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": "x"}


def test_scores_are_those_of_the_prompts_own_tokens() -> None:
    entries = [None, {"8": entry(-0.5, 1)}, {"9": entry(-2.5, 2), "4": entry(-0.1, 1)}]
    found = score(client(scored_answer(prompt_token_ids=[7, 8, 9], prompt_logprobs=entries)), "text")
    assert found == Scores([-0.5, -2.5], [8, 4])
    assert math.isclose(found.perplexity, math.exp(1.5))


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"prompt_token_ids": [7, 8, 9], "prompt_logprobs": None},
        {"prompt_token_ids": [7, 8], "prompt_logprobs": [None]},
        {"prompt_token_ids": [7, 8], "prompt_logprobs": [None, {"9": entry(-1, 1)}]},
    ],
)
def test_a_token_without_a_score_is_an_error(choice: dict[str, Any]) -> None:
    with pytest.raises(RequestFailed, match="prompt_logprobs"):
        score(client(scored_answer(**choice)), "text")


@pytest.mark.parametrize(
    ("said", "recorded", "part"),
    [("abcd", ["abcd"], 1), ("abXX", ["abcd"], 0.5), ("", ["abcd"], 0), ("abc", ["xyz", "ab"], 1), ("x", [""], 0)],
)
def test_agreement_is_the_common_beginning(said: str, recorded: list[str], part: float) -> None:
    assert agreement(said, recorded) == part


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=80))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = estimate(values)
    assert found.low - 1e-9 <= found.mean + 1.0
    assert found.low <= found.high
    assert min(values) - 1e-9 <= found.low
    assert found.high <= max(values) + 1e-9


def test_an_interval_is_as_wide_as_it_says() -> None:
    dice = random.Random(1)
    outside = 0
    for _ in range(60):
        found = estimate([dice.gauss(1.0, 2.0) for _ in range(300)])
        outside += not found.low <= 1.0 <= found.high
    assert outside <= 6, f"{outside} of 60 intervals of 98 % miss the true mean"


def test_a_deviation_of_tokens_does_not_cancel_as_a_mean_does() -> None:
    then = {"a": Scores([-1.0, -2.0], [1, 2]), "b": Scores([-1.0, -1.0], [1, 2])}
    now = {"a": Scores([-1.1, -1.9], [1, 2]), "b": Scores([-1.1, -0.9], [1, 2])}
    assert deviation_nats(then, then) == 0
    assert math.isclose(deviation_nats(now, then), 0.1)
    with pytest.raises(ValueError, match="zip"):
        deviation_nats({**now, "b": Scores([-1.0], [1])}, then)


def test_a_worse_model_is_distinguished_from_an_equal_one() -> None:
    dice = random.Random(2)
    full = {"t": Scores([-dice.random() for _ in range(400)], list(range(400)))}
    worse = {"t": Scores([value - 0.5 * dice.random() * 2 for value in full["t"].logprobs], [7, *range(1, 400)])}
    equal, found = compare(full, full), compare(full, worse)
    assert (equal.gap_nats.low, equal.gap_nats.high, equal.same_token.mean) == (0, 0, 1)
    assert found.gap_nats.low > 0.3
    assert found.same_token.mean == 399 / 400
    with pytest.raises(ValueError, match="zip"):
        compare(full, {"t": Scores([-1.0], [1])})


SCORES = {"logprobs": [-1.0, -2.0], "likeliest": [1, 2]}
RECORDING = {
    "model": "m",
    "golden": {"answers": {"Hi": ["Hello"]}, "max_tokens": 16, "least_agreement": 0.8},
    "scores": {"texts": {"a": SCORES}, "tolerance_nats": 0.1},
}


def write_recording(path: Path, **labels: Any) -> Path:
    """A recording of two tokens, with these keys added or changed."""
    path.write_text(json.dumps(RECORDING | labels))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"golden": {}}, "r.json: golden has no 'answers'"),
        ({"model": 5}, "r.json: model: expected a string, got 5"),
        (
            {"scores": {"texts": {}, "tolerance_nats": 0.1}},
            "r.json: scores.texts: expected an object that is not empty",
        ),
        ({"scores": {"texts": {"a": SCORES}, "tolerance_nats": math.nan}}, "scores.tolerance_nats: expected a number"),
        (
            {"scores": {"texts": {"a": SCORES | {"likeliest": [1]}}, "tolerance_nats": 0.1}},
            "has 2 logprobs and 1 likeliest",
        ),
        (
            {"scores": {"texts": {"a": SCORES | {"logprobs": [None, 1]}}}},
            "texts.a.logprobs[0]: expected a number, got null",
        ),
        ({"quantisation_of": {"reference": "full.json"}}, "r.json: quantisation_of has no 'most_gap_nats'"),
    ],
)
def test_a_reference_with_a_field_of_another_type_is_refused_by_its_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_recording(tmp_path / "r.json")
    assert Reference.read(path).golden == {"Hi": ["Hello"]}
    write_recording(path, **change)
    with pytest.raises(ConfigError) as refused:
        Reference.read(path)
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("own", "known", "taken"),
    [
        ("cpu-avx512", "cpu-avx512", "own"),
        ("cpu-avx512", "cpu-float32", "float32"),
        ("cpu-avx512", "gpu", "gpu"),
        ("cpu-avx512", "another", "own"),
        ("cpu-avx512", "", "own"),
        ("", "cpu-float32", "float32"),
        ("", "cpu-avx512", "own"),
        ("", "", "own"),
    ],
)
def test_the_recording_with_the_kernels_that_compute_the_model_is_taken(
    tmp_path: Path, own: str, known: str, taken: str
) -> None:
    for name, kernels in (("float32", "cpu-float32"), ("gpu", "gpu")):
        write_recording(tmp_path / f"{name}.json", kernels=kernels, engine_version=name)
    labels = {"kernels": own} if own else {}
    path = write_recording(
        tmp_path / "r.json", other_kernels=["float32.json", "gpu.json"], engine_version="own", **labels
    )
    assert Reference.read_recording(path, known).engine_version == taken


def test_a_recording_may_state_how_exactly_its_kernels_repeat_it(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "r.json")
    assert Reference.read(path).same_kernels_nats == SAME_KERNELS_NATS
    stated = {"texts": {"a": SCORES}, "tolerance_nats": 0.1, "same_kernels_nats": 0.005}
    assert Reference.read(write_recording(path, scores=stated)).same_kernels_nats == 0.005


def test_without_other_recordings_the_only_one_is_taken(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "r.json")
    assert Reference.read_recording(path, "cpu-float32") == Reference.read_recording(path, "") == Reference.read(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"kernels": 5}, "r.json: kernels: expected a string, got 5"),
        ({"other_kernels": []}, "r.json: other_kernels: expected a list that is not empty"),
        ({"other_kernels": [1]}, "r.json: other_kernels[0]: expected a string, got 1"),
        ({"other_kernels": ["gone.json"]}, "gone.json"),
    ],
)
def test_a_wrong_name_of_another_recording_is_refused(tmp_path: Path, labels: dict[str, Any], message: str) -> None:
    path = write_recording(tmp_path / "r.json", **labels)
    with pytest.raises(ConfigError) as refused:
        Reference.read_recording(path, "cpu-float32")
    assert message in refused.value.message


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_file_that_is_not_a_reference_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"reference .*r\.json:? "):
        Reference.read(path)


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_what_is_recorded_is_complete_and_says_how_it_was_made(path: Path) -> None:
    reference, data = Reference.read(path), json.loads(path.read_text())
    assert set(reference.scores) == set(texts())
    prompts = json.loads((fixtures_dir() / "prompts" / "golden.json").read_text())
    assert list(reference.golden) == prompts
    assert data["made_with"].startswith("record.py")
    assert f"vLLM {reference.engine_version}. " in data["made_with"]
    assert data["scores"]["spread_nats"] * 2 < reference.tolerance_nats < 0.2
    if reference.full is not None:
        found = compare(Reference.read(reference.full).scores, reference.scores)
        assert found.gap_nats.high < reference.most_gap_nats
        assert found.same_token.low > reference.least_same_token


@pytest.mark.parametrize("model", weights.VARIANTS)
@pytest.mark.parametrize("kernels", [processor.AVX512_KERNELS, processor.FLOAT32_KERNELS])
def test_each_local_model_has_a_recording_of_each_processors_kernels(model: str, kernels: str) -> None:
    found = Reference.read_recording(fixtures_dir() / "prompts" / "references" / f"{model}.json", kernels)
    assert (found.model, found.kernels) == (model, kernels)
    if found.full is not None:
        assert Reference.read(found.full).kernels == kernels


def test_all_recordings_of_a_model_are_of_the_same_texts() -> None:
    for path in REFERENCES:
        found = Reference.read(path)
        for other in map(Reference.read, found.other_kernels):
            assert (other.model, set(other.scores)) == (found.model, set(found.scores))
            assert all(len(other.scores[name].logprobs) == len(one.logprobs) for name, one in found.scores.items())


def test_there_are_references() -> None:
    assert len(REFERENCES) >= 4
