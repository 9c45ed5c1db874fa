"""Reading an env file, and the one clear error that each mistake in it gives."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.deploy import secrets

OVERLAY = fixtures_dir() / "overlays" / "local"
VALUE = "correct-horse-battery"
DATA = Path(__file__).parents[1] / "data"
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
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("HF_TOKEN=plain", "plain"),
        ("export HF_TOKEN=plain", "plain"),
        ("  HF_TOKEN = plain  \t", "plain"),
        ("HF_TOKEN='with space # kept'", "with space # kept"),
        ('HF_TOKEN="a=b"', "a=b"),
        ('HF_TOKEN="a b"  # a comment', "a b"),
        ("HF_TOKEN=plain # a comment", "plain"),
        ("HF_TOKEN=plain\t# a comment", "plain"),
        ("HF_TOKEN=#plain#", "#plain#"),
        ("HF_TOKEN=$(whoami)", "$(whoami)"),
        ("HF_TOKEN=a\u2028b", None),
        ("HF_TOKEN='a\u00a0b'", "a\u00a0b"),
        ("HF_TOKEN=\u00fcber\u2603", "\u00fcber\u2603"),
    ],
)
def test_entries_are_read_without_a_shell(tmp_path: Path, line: str, value: str | None) -> None:
    path = env_file(tmp_path, f"# a comment\n\n{line}\n")
    if value is None:
        with pytest.raises(ConfigError, match=r":3: HF_TOKEN has an invisible character, LINE SEPARATOR \(U\+2028\)"):
            secrets.load(OVERLAY, path)
    else:
        assert secrets.load(OVERLAY, path).values == {"HF_TOKEN": Secret(value)}


@pytest.mark.parametrize("value", ["${OTHER}", "\u201cquoted\u201d"])
def test_straight_quotes_keep_a_value_as_it_stands(tmp_path: Path, value: str) -> None:
    assert secrets.load(OVERLAY, env_file(tmp_path, f"HF_TOKEN='{value}'")).values["HF_TOKEN"].reveal() == value


@pytest.mark.parametrize("line", ["HF_TOKEN=", "HF_TOKEN=   ", "HF_TOKEN= # a comment", "HF_TOKEN=''"])
def test_empty_value_counts_as_missing(tmp_path: Path, line: str) -> None:
    assert secrets.load(OVERLAY, env_file(tmp_path, line)).values == {}


@pytest.mark.parametrize("name", ["bom-before-a-key.env", "bom-before-a-comment.env", "utf-16.env"])
def test_files_of_windows_editors_are_read(name: str) -> None:
    found = secrets.load(OVERLAY, DATA / "env-files" / name)
    assert {key: value.reveal() for key, value in found.values.items()} == {
        "MINIO_ACCESS_KEY": "stage-operator",
        "MINIO_SECRET_KEY": "not-a-real-secret-42",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"HF_TOKEN=ok\n{VALUE}\n", ":2: expected KEY=VALUE, got no '='"),
        (f"HF-TOKEN={VALUE}\n", ":1: expected KEY=VALUE, got an invalid key"),
        (f"={VALUE}\n", ":1: expected KEY=VALUE, got an invalid key"),
        (f"HF_TOKEN='{VALUE}\n", ":1: HF_TOKEN has an opening quote without a closing one"),
        (f'HF_TOKEN={VALUE}"\n', ":1: HF_TOKEN has a closing quote without an opening one"),
        (f"HF_TOKEN='ok'{VALUE}\n", ":1: HF_TOKEN has text after its closing quote"),
        (
            f"HF_TOCKEN={VALUE}\n",
            ":1: HF_TOCKEN is not a key of the stage (did you mean HF_TOKEN?); env.template lists",
        ),
        (f"hf_token={VALUE}\n", ":1: hf_token is not a key of the stage (did you mean HF_TOKEN?)"),
        ("Y29ycmVjdC1ob3JzZQ==\n", ":1: unknown key (not shown, it may be part of a secret); env.template lists"),
        (f"HF_TOKEN={VALUE}\nHF_TOKEN={VALUE}\n", ":2: HF_TOKEN is set twice"),
        (f"HF_TOKEN=\u00a0{VALUE}\n", ":1: HF_TOKEN has an invisible character, NO-BREAK SPACE (U+00A0), in its value"),
        (f"HF_TOKEN={VALUE}\u200b\n", ":1: HF_TOKEN has an invisible character, ZERO WIDTH SPACE (U+200B), in its"),
        (f"\u00a0HF_TOKEN={VALUE}\n", ":1: an invisible character, NO-BREAK SPACE (U+00A0), in or next to the key"),
        (f"#\n\ufeffHF_TOKEN={VALUE}\n", ":2: an invisible character, BYTE ORDER MARK (U+FEFF), in or next to the"),
        (
            f"HF_TOKEN=\u201c{VALUE}\u201d\n",
            ":1: HF_TOKEN has typographic quotes around its value: retype them as ' or",
        ),
        (f"HF_TOKEN=${{OTHER}}{VALUE}\n", ":1: HF_TOKEN refers to a variable, which is not expanded: write the value"),
        (f'HF_TOKEN="{VALUE}${{OTHER}}"\n', ":1: HF_TOKEN refers to a variable, which is not expanded"),
        ("MINIO_SECRET_KEY=short\n", ":1: MINIO_SECRET_KEY is too short"),
    ],
)
def test_a_malformed_entry_is_one_error_without_its_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as failed:
        secrets.load(OVERLAY, env_file(tmp_path, text))
    found = str(failed.value)
    assert f"{tmp_path}/.env{message}" in found
    assert VALUE not in found
    assert "Y29y" not in found
    assert "short\n" not in found


def test_a_file_in_another_encoding_is_refused_without_its_values(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(f"HF_TOKEN={VALUE}\xfc\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"env file {path}:1: not valid UTF-8") as failed:
        secrets.load(OVERLAY, path)
    assert VALUE not in str(failed.value)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    before=st.text("HF_TOKEN=#'\" \t\n\r\u00a0\ufeffexport", max_size=12),
    after=st.text("HF_TOKEN=#'\" \t\n\r\u00a0\ufeffexport", max_size=12),
    codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"]),
    noise=st.binary(max_size=3),
)
def test_any_file_gives_its_values_or_one_error_that_shows_none(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str, codec: str, noise: bytes
) -> None:
    path = tmp_path_factory.mktemp("env") / ".env"
    path.write_bytes(f"{before}{VALUE}{after}".encode(codec) + noise)
    found, message = load_or_message(path)
    assert VALUE not in message
    commented = "#" in before
    assert str(path) in message or commented or all(VALUE in value.reveal() for value in found.values())


def load_or_message(path: Path) -> tuple[Mapping[str, Secret], str]:
    try:
        return secrets.load(OVERLAY, path).values, ""
    except ConfigError as error:
        return {}, str(error)


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
    lines = traceback.TracebackException.from_exception(failed.value, capture_locals=True).format()
    assert VALUE not in "".join(lines)


def test_every_key_that_a_template_needs_is_listed() -> None:
    tree = fixtures_dir() / "base-secrets"
    placeholders = {key for file in tree.rglob("*.yaml") for key in secrets.PLACEHOLDER.findall(file.read_text())}
    template = (tree / "env.template").read_text()
    listed = {line.split("=")[0] for line in template.splitlines() if line and not line.startswith("#")}
    assert {key for key in placeholders if key != "KEY"} == listed
