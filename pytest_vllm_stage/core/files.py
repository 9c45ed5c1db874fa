"""Files: files of users are read in any encoding or rejected by name; files of this package are written atomically.

A reader, or a process that is killed, sees the old or the new content and nothing between: a draft in the same folder
is renamed over the file.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError

#: Byte order marks with what they announce; the mark of UTF-32 LE begins with that of UTF-16 LE, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "UTF-8", "utf-8"),
    (codecs.BOM_UTF32_LE, "UTF-32 LE", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "UTF-32 BE", "utf-32-be"),
    (codecs.BOM_UTF16_LE, "UTF-16 LE", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "UTF-16 BE", "utf-16-be"),
)
#: Which bytes of a 4-byte group are zero where ASCII text was encoded without a mark.
_ZEROS = (
    ((False, True, True, True), "UTF-32 LE"),
    ((True, True, True, False), "UTF-32 BE"),
    ((False, True, False, True), "UTF-16 LE"),
    ((True, False, True, False), "UTF-16 BE"),
)
_ADVICE = "save it as UTF-8"


def is_missing(path: Path) -> bool:
    """Whether there is no such file; one behind a symlink loop or in a closed folder is not missing but unreadable."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def read_text(path: Path, what: str = "file") -> str:
    """Read a text file that a person wrote, its line ends normalised to line feeds.

    UTF-8 is read with or without a byte order mark, UTF-16 and UTF-32 with one.

    Args:
        path: The file.
        what: What it is, for the error.

    Raises:
        ConfigError: it cannot be read, or is in another encoding; names the file, the line and the encoding, and never
            quotes its content, which may be secret.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror or type(error).__name__}") from None
    return decode_text(data, f"{what} {path}")


def decode_text(data: bytes, where: str) -> str:
    """The text of a file's bytes; see `read_text`."""
    mark, name, codec = next((entry for entry in _MARKS if data.startswith(entry[0])), (b"", "", "utf-8"))
    if not mark and (guess := _guess_encoding(data)):
        raise ConfigError(f"{where} looks like {guess} without a byte order mark: {_ADVICE}")
    body = data[len(mark) :]
    try:
        text = body.decode(codec)
    except UnicodeDecodeError as error:
        line = _line_number(body[: error.start].decode(codec, "ignore"))
        problem = f"{name}, which its byte order mark announces" if mark else "UTF-8 (Latin-1 or Windows-1252?)"
        raise ConfigError(f"{where}:{line}: not valid {problem}: {_ADVICE}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = _line_number(text[: text.index("\0")])
        raise ConfigError(f"{where}:{line}: contains a NUL character (UTF-16 without a byte order mark?): {_ADVICE}")
    return text


def _line_number(before: str) -> int:
    return before.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1


def _guess_encoding(data: bytes) -> str:
    """The encoding that the zero bytes of unmarked text indicate; empty where they indicate none."""
    start = data[: 64 - 64 % 4]
    groups = [start[i : i + 4] for i in range(0, len(start) - 3, 4)] or [start]
    for zeros, name in _ZEROS:
        if len(data) > 1 and all(tuple(byte == 0 for byte in group) == zeros[: len(group)] for group in groups):
            return name
    return ""


def escape_surrogates(text: str) -> str:
    """The text with each lone surrogate, which no encoding can carry, written as its escape.

    A server that cuts an emoji in two sends such a text in valid JSON, and a failed comparison quotes it.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


#: Permissions of files that hold keys or refer to them.
PRIVATE = 0o600


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file, its folders too, whole or not at all; text is written as UTF-8.

    Args:
        path: The file.
        content: Its whole content.
        mode: Its permissions, from the first byte on, less the process's umask.
    """
    with atomic_draft(path) as draft:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_draft(path: Path) -> Iterator[Path]:
    """The draft of a file for a writer of its own; it replaces the file, unless the writer fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
