"""How the body of an event stream is divided into lines and events."""

from __future__ import annotations

import re
from itertools import pairwise

#: The beginnings of a line: fields (https://html.spec.whatwg.org/multipage/server-sent-events.html), and a comment.
BEGINNINGS = ("data:", "event:", "id:", "retry:", ":")
#: What ends a line. JSON may have U+2028 and U+0085, which do not.
_LINE_END = re.compile(r"\r\n|\r|\n")


def find_framing_problem(body: bytes) -> str:
    """What a strict client would not read of a stream, in words; empty where it reads all."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"the stream is not UTF-8 at byte {error.start}: {body[max(0, error.start - 60) : error.end + 20]!r}"
    lines = _LINE_END.split(text)
    odd = [line for line in lines if line and not line.startswith(BEGINNINGS)]
    if odd:
        return f"lines that are not a field of an event: {odd[:3]}"
    if not text.endswith(("\n\n", "\r\n\r\n", "\r\r")):
        return f"the last event is not ended by an empty line: {text[-60:]!r}"
    crowded = [one for one, more in pairwise(lines) if one.startswith("data:") and more.startswith("data:")]
    return f"no empty line follows {crowded[0][:120]!r}" if crowded else ""
