"""Text and names use the field's words: a list of words and phrases that read oddly, by word boundaries.

It covers string literals, docstrings, comments and names of the package, the suites, the fixtures' scripts and the
project's own tests, and the documents. The right word is beside each entry.
"""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("pytest_vllm_stage", "suites", "fixtures", "tests", "conftest.py")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "reports/README.md")

#: Pattern to what to write instead.
BANNED = {
    r"anew": "again",
    r"whoever|somebody|nobody(?!:)": "a client, another process, no one",
    r"c[oa]mes? by": "create or attach to, get",
    r"(?:br(?:ings?|ought)) about": "apply, create",
    r"hangs? on": "depends on",
    r"beside": "next to, compared with, in addition to",
    r"(?<!there )(?:is|are) no (?!longer\b|more\b|one\b)": "is not a",
    r"due(?! to\b)(?! date)": "expected, scheduled",
    r"misfit|unfit": "schema violation, unusable",
    r"torn": "corrupt, truncated",
    r"usual": "baseline, common",
    r"worth": "effective_n, effective sample size",
    r"held to": "compared with, constrained to",
    r"told|tells?|telling": "reported, prints, returns, raises",
    r"given-up": "abandoned",
    r"litter": "leftovers",
    r"must be a text": "must be a string",
    r"lies in": "is in",
    r"a (?:request|answer|run|step|job|model|rate|row|metric) a (?:second|run|model|step|job|rate)": "per",
}
_PATTERNS = [(re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), better) for pattern, better in BANNED.items()]


#: Fields that earlier versions wrote, with the modules that may name them: a record of theirs is still read.
FORMER_FIELDS = {'"usual"', '"worth"'}
READ_FORMER_FIELDS = ("pytest_vllm_stage/report/run_data.py", "tests/unit/test_report_run_data.py")
#: Former names that the changelog gives next to the new ones.
FORMER_NAMES = {"CHANGELOG.md": "`beside`"}


def offences(text: str) -> Iterator[str]:
    """What of a text is on the list, with what to write instead."""
    flat = " ".join(text.split())
    for pattern, better in _PATTERNS:
        for match in pattern.finditer(flat):
            yield f"{match.group(0)!r} in {flat[max(0, match.start() - 30) : match.end() + 20]!r}: write {better}"


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string, comment and name of a module; a name's parts are taken as words."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], re.sub(r"\n\s*(?:#\s*)?", " ", token.string)
        elif token.type == tokenize.NAME and "_" in token.string and not keyword.iskeyword(token.string):
            yield token.start[0], token.string.replace("_", " ")


def modules() -> list[Path]:
    found = [ROOT / name for name in CODE if (ROOT / name).is_file()]
    found += [path for name in CODE for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if path != Path(__file__)]


def documents() -> list[Path]:
    found = [ROOT / name for name in DOCUMENTS if (ROOT / name).is_file()]
    found += [path for name in DOCUMENTS for path in sorted((ROOT / name).rglob("*.md"))]
    return found


def test_code_uses_the_fields_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {offence}"
        for path in modules()
        for line, text in texts(path)
        if not (text in FORMER_FIELDS and path.relative_to(ROOT).as_posix() in READ_FORMER_FIELDS)
        for offence in offences(text)
    ]
    assert len(modules()) > 50
    assert not found, "\n".join([f"{len(found)} places", *found])


def test_documents_use_the_fields_words() -> None:
    paragraphs = [
        (path, part) for path in documents() for part in path.read_text(encoding="utf-8").split("\n\n") if part
    ]
    found = [
        f"{path.relative_to(ROOT)}: {offence}"
        for path, part in paragraphs
        for offence in offences(part.replace(FORMER_NAMES.get(path.relative_to(ROOT).as_posix(), "\0"), ""))
    ]
    assert paragraphs
    assert not found, "\n".join([f"{len(found)} places", *found])


def test_the_list_finds_a_planted_word() -> None:
    assert list(offences("the artifact is told anew"))
    assert list(offences(f"rate is no {'number'}"))
    assert not list(offences("there is no such profile, due to a typo; it is no longer used"))
