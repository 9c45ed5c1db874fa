"""Reading an env file, and the one clear error that each mistake in it gives."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.deploy import secrets

OVERLAY = fixtures_dir() / "overlays" / "local"
VALUE = "correct-horse-battery"
MANIFESTS = [
    {
        "kind": "Secret",
        "metadata": {"name": "minio-credentials"},
        "stringData": {"accesskey": "${MINIO_ACCESS_KEY}", "secretkey": "${MINIO_SECRET_KEY}"},
    },
    {"kind": "Secret", "metadata": {"name": "huggingface-token"}, "stringData": {"HF_TOKEN": "${HF_TOKEN}"}},
    {"kind": "ConfigMap", "metadata": {"name": "other"}, "data": {"text": "${NOT_A_SECRET}"}},
]


def env_file(folder: Path, text: str) -> Path:
    path = folder / ".env"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("HF_TOKEN=plain", "plain"),
        ("export HF_TOKEN=plain", "plain"),
        ("  HF_TOKEN = plain  ", "plain"),
        ("HF_TOKEN='with space # kept'", "with space # kept"),
        ('HF_TOKEN="a=b"', "a=b"),
        ("HF_TOKEN=plain # a comment", "plain"),
        ("HF_TOKEN=$(whoami)", "$(whoami)"),
    ],
)
def test_entries_are_read_without_a_shell(tmp_path: Path, line: str, value: str) -> None:
    found = secrets.load(OVERLAY, env_file(tmp_path, f"# a comment\n\n{line}\n"))
    assert found.values == {"HF_TOKEN": Secret(value)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"HF_TOKEN=ok\n{VALUE}\n", ":2: no KEY=VALUE"),
        (f"HF_TOKEN='{VALUE}\n", ":1: HF_TOKEN has an opening quote without a closing one"),
        (f'HF_TOKEN={VALUE}"\n', ":1: HF_TOKEN has a closing quote without an opening one"),
        (f"HF_TOCKEN={VALUE}\n", ":1: HF_TOCKEN is not a key of the stage; env.template lists HF_TOKEN, MINIO_ACCESS"),
        (f"HF_TOKEN={VALUE}\nHF_TOKEN={VALUE}\n", ":2: HF_TOKEN is there twice"),
        ("MINIO_SECRET_KEY=short\n", ":1: MINIO_SECRET_KEY is too short"),
    ],
)
def test_a_malformed_entry_is_one_error_without_its_value(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as failed:
        secrets.load(OVERLAY, env_file(tmp_path, text))
    message = str(failed.value)
    assert f"{tmp_path}/.env{told}" in message
    assert VALUE not in message
    assert "short\n" not in message


def test_missing_and_empty_entries_are_named_together(tmp_path: Path) -> None:
    values = secrets.load(OVERLAY, env_file(tmp_path, "MINIO_ACCESS_KEY=someone\nMINIO_SECRET_KEY=\n"))
    with pytest.raises(ConfigError) as failed:
        secrets.complete(MANIFESTS, values, generate=True)
    message = failed.value.message
    assert message.startswith(f"{tmp_path}/.env: missing or empty: ")
    assert "MINIO_SECRET_KEY (for secret minio-credentials)" in message
    assert "HF_TOKEN (for secret huggingface-token)" in message
    assert "MINIO_ACCESS_KEY" not in message


def test_a_local_cluster_makes_its_own_credentials_but_no_token() -> None:
    minio_only = [MANIFESTS[0]]
    first = secrets.complete(minio_only, secrets.load(OVERLAY, None), generate=True)
    second = secrets.complete(minio_only, secrets.load(OVERLAY, None), generate=True)
    assert {key: len(value.reveal()) for key, value in first.items()} == {
        "MINIO_ACCESS_KEY": 20,
        "MINIO_SECRET_KEY": 40,
    }
    assert first != second
    with pytest.raises(ConfigError, match=r"no env file was given.*HF_TOKEN \(for secret huggingface-token\)"):
        secrets.complete(MANIFESTS, secrets.load(OVERLAY, None), generate=True)
    with pytest.raises(ConfigError, match="MINIO_ACCESS_KEY"):
        secrets.complete(minio_only, secrets.load(OVERLAY, None), generate=False)


def test_placeholders_are_filled_in_secrets_alone() -> None:
    values = {key: Secret(f"value-{key}") for key in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "HF_TOKEN")}
    filled = [secrets.fill(manifest, values) for manifest in MANIFESTS]
    assert filled[0]["stringData"] == {
        "accesskey": "value-MINIO_ACCESS_KEY",
        "secretkey": "value-MINIO_SECRET_KEY",
    }
    assert filled[2] == MANIFESTS[2]
    assert "${MINIO_ACCESS_KEY}" in json.dumps(MANIFESTS), "the manifest itself was changed"


def test_values_do_not_show_in_what_holds_them(tmp_path: Path) -> None:
    values = secrets.load(OVERLAY, env_file(tmp_path, f"HF_TOKEN={VALUE}\n"))
    assert VALUE not in repr(values) + str(values) + f"{values.values['HF_TOKEN']}"
    with pytest.raises(ConfigError) as failed:
        secrets.complete(MANIFESTS, values, generate=False)
    told = traceback.TracebackException.from_exception(failed.value, capture_locals=True).format()
    assert VALUE not in "".join(told)


def test_every_key_that_a_template_needs_is_listed() -> None:
    tree = fixtures_dir() / "base-secrets"
    placeholders = {key for file in tree.rglob("*.yaml") for key in secrets.PLACEHOLDER.findall(file.read_text())}
    template = (tree / "env.template").read_text()
    listed = {line.split("=")[0] for line in template.splitlines() if line and not line.startswith("#")}
    assert {key for key in placeholders if key != "KEY"} == listed
