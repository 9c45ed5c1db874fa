"""Secrets in plain text and values with white space are reported without the value; what only looks like one is not."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from pytest_vllm_stage.checks.stage import secret_values
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.observe.health import SecretReference
from tests.unit.recorded_stage import RecordedStage

Object = dict[str, Any]


def engine(*args: str, **env: str) -> Object:
    model = {"args": list(args), "env": [{"name": name, "value": value} for name, value in env.items()]}
    spec = {"predictor": {"model": model}}
    return {"kind": "InferenceService", "metadata": {"name": "m"}, "spec": spec}


def test_the_manifests_of_a_healthy_stage_show_none() -> None:
    assert secret_values.find_plain_secrets(RecordedStage.load().declared) == []


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (engine("--api-key=sk-4711"), "argument --api-key"),
        (engine("--api-key", "sk-4711"), "argument --api-key"),
        (engine("exec vllm serve /mnt/models --api-key 'sk-4711' --port 8080"), "argument --api-key"),
        (engine("--hf-token=hf_x4711"), "argument --hf-token"),
        (engine(HF_TOKEN="hf_x4711"), "variable HF_TOKEN"),
        (engine(VLLM_API_KEY="sk-4711"), "variable VLLM_API_KEY"),
        (engine(AWS_SECRET_ACCESS_KEY="sk-4711"), "variable AWS_SECRET_ACCESS_KEY"),
        (engine(MINIO_ROOT_PASSWORD="sk-4711"), "variable MINIO_ROOT_PASSWORD"),
    ],
)
def test_a_secret_in_plain_text_is_named_without_its_value(made: Object, name: str) -> None:
    (line,) = secret_values.find_plain_secrets([made])
    assert line == f"InferenceService/m: {name} holds its value in plain text, expected one from a Secret"


@pytest.mark.parametrize(
    "made",
    [
        engine("--api-key=$(VLLM_API_KEY)"),
        engine("--api-key", "$VLLM_API_KEY"),
        engine("--api-key", "--port=8080"),
        engine("--hf-token"),
        engine("--max-token", "10"),
        engine(
            "--tokenizer=/mnt/models", "--max-model-len=2048", "--token-file=/run/token", "--tokenizer-mode", "mistral"
        ),
        engine(OPENAI_API_KEY="EMPTY", HF_TOKEN="", MAX_TOKEN="2048", API_KEY="$(OTHER)"),
        engine(AWS_ACCESS_KEY_ID="minio", TOKENIZERS_PARALLELISM="false", SECRET_NAME="s", TOKEN_FILE="/run/token"),
        engine(MINIO_ROOT_PASSWORD="${MINIO_SECRET_KEY}"),
        engine(EOS_TOKEN="<|eot_id|>", STOP_TOKEN="[INST]"),
    ],
)
def test_what_is_inserted_or_no_secret_is_not_reported(made: Object) -> None:
    assert secret_values.find_plain_secrets([made]) == []


def secret(value: str) -> dict[str, Object]:
    return {"s": {"data": {"k": base64.b64encode(value.encode()).decode()}}}


REFERENCE = SecretReference("s", "k", "Job/download")


@pytest.mark.parametrize(
    ("value", "end"),
    [("hf_4711\n", "ends with a line break"), ("hf_4711 ", "ends with white space"), (" hf_4711", "begins with white")],
)
def test_white_space_around_a_value_is_named_without_it(value: str, end: str) -> None:
    (line,) = secret_values.find_unusable_values([REFERENCE], secret(value))
    assert line.startswith(f'secret s: the value of key "k" {end}')
    assert "4711" not in line


@pytest.mark.parametrize(
    "value",
    [
        "hf_4711",
        "",
        "xxx-4711",
        "your-4711",
        "a passphrase",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        '{"a": 1}\n',
    ],
)
def test_a_whole_value_or_a_text_of_several_lines_is_not_reported(value: str) -> None:
    assert secret_values.find_unusable_values([REFERENCE, SecretReference("s", None, "Pod/p")], secret(value)) == []
    assert secret_values.find_unusable_values([REFERENCE], {}) == [], "another check reports a Secret that is missing"


def test_published_credentials_are_known() -> None:
    assert secret_values.is_default(Secret("minioadmin"), Secret("minioadmin"))
    assert not secret_values.is_default(Secret("minioadmin"), Secret("0e8c1f5d"))
