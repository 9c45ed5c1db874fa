"""A person's text files are read in the common encodings or refused by name; written files are whole or absent."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.checks.inference.reference import Reference
from pytest_vllm_stage.cluster import kubeconfig_files
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import PRIVATE, atomic_draft, decode_text, read_text, write_atomically
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.measurement.samples_file import read_measurement
from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.slo.baselines import read_baselines
from pytest_vllm_stage.stage.deploy import secrets

TEXT = "# Schlüssel\nKEY=not-shown\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        b"\xff\xfe" + TEXT.encode("utf-16-le"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
    ],
    ids=["utf-8", "utf-8-mark", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "crlf", "cr"],
)
def test_every_marked_encoding_and_line_end_is_read(data: bytes) -> None:
    assert decode_text(data, "file f") == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("KEY=not-shown\n".encode("utf-16-le"), "file f looks like UTF-16 LE without a byte order mark: save it as"),
        ("KEY=not-shown\n".encode("utf-16-be"), "file f looks like UTF-16 BE without a byte order mark"),
        ("KEY=not-shown\n".encode("utf-32-le"), "file f looks like UTF-32 LE without a byte order mark"),
        ("KEY=not-shown\n".encode("utf-32-be"), "file f looks like UTF-32 BE without a byte order mark"),
        ("Ключ=not-shown\n".encode("utf-16-le"), "file f:1: contains a NUL character (UTF-16 without a byte order"),
        (b"a=1\r\nKEY=\xfcnot-shown\n", "file f:2: not valid UTF-8 (Latin-1 or Windows-1252?): save it as UTF-8"),
        (b"a=1\rKEY=not-\0shown\n", "file f:2: contains a NUL character"),
        (b"\xff\xfea\0\n\0b", "file f:2: not valid UTF-16 LE, which its byte order mark announces: save it as UTF-8"),
    ],
)
def test_another_encoding_is_named_and_the_content_is_not_shown(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode_text(data, "file f")
    assert message in caught.value.message
    assert "not-shown" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"env file {tmp_path} cannot be read: Is a directory"):
        read_text(tmp_path, "env file")
    with pytest.raises(ConfigError, match="No such file"):
        read_text(tmp_path / "nothing")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.binary(max_size=80), mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"]))
def test_any_bytes_give_text_or_one_named_error(data: bytes, mark: bytes) -> None:
    text, message = decode_or_message(mark + data)
    assert not {"\0", "\r"} & set(text)
    assert not message or (message.startswith("file f") and "save it as UTF-8" in message)


READERS: dict[str, Callable[[Path], object]] = {
    "baselines": read_baselines,
    "env file": lambda path: secrets.load(fixtures_dir() / "overlays" / "local", path),
    "kubeconfig": lambda path: kubeconfig_files.read(str(path)),
    "profile": lambda path: load_profile("file.toml", path.parent),
    "reference": Reference.read,
    "samples": read_measurement,
}
_TEXT = st.text('{}[]":,= \n\t#-.0123456789truefalsnldKEYa\ufeff\u2028', max_size=40)


@pytest.mark.parametrize("what", READERS)
@settings(derandomize=True, deadline=None, max_examples=150)
@given(content=_TEXT, codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]), noise=st.binary())
def test_any_file_is_read_or_refused_by_its_name(
    tmp_path_factory: pytest.TempPathFactory, what: str, content: str, codec: str, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "file.toml"
    data = content.encode(codec) + noise[:2]
    path.write_bytes(gzip.compress(data) if what == "samples" else data)
    try:
        READERS[what](path)
        message = path.name
    except ConfigError as error:
        message = error.message
    assert path.name in message


def decode_or_message(data: bytes) -> tuple[str, str]:
    try:
        return decode_text(data, "file f"), ""
    except ConfigError as error:
        return "", error.message


def test_a_written_file_is_whole_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomically(path, "Grüße\r\n")
    assert path.read_bytes() == "Grüße\r\n".encode()
    write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert list(path.parent.iterdir()) == [path]


def test_a_private_file_is_private_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_atomically(path, "old", mode=PRIVATE)
    assert path.stat().st_mode & 0o777 == PRIVATE
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800", mode=PRIVATE)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_a_writer_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write_in_part() -> None:
        with atomic_draft(path) as draft:
            draft.write_text("new, in part")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_in_part()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
