"""The filterQuery language: its words, and a parser by recursive descent.

    query      = all { "OR" all }
    all        = term { "AND" term }
    term       = "(" query ")" | comparison
    comparison = property operator value
    property   = ( name | `name` ) [ "." ( string_value | int_value | double_value | bool_value ) ]
    value      = string | integer | number | true | false | "(" [ literal { "," literal } ] ")"

Keywords are upper case. A comment starts with ``--`` and ends with the line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pytest_vllm_stage.standins.registry.refusal import Refusal, bad_request
from pytest_vllm_stage.standins.registry.values import INT64_MAX, INT64_MIN

COMPARISONS: Final = ("=", "!=", "<>", ">=", "<=", ">", "<")
WORD_OPERATORS: Final = ("LIKE", "ILIKE", "IN")
VALUE_TYPES: Final = ("string_value", "int_value", "double_value", "bool_value")
BOOLEANS: Final = {"true": True, "TRUE": True, "false": False, "FALSE": False}

#: More than any query needs: nested parentheses and values. The real server has no such limits, SQLite has.
MAX_DEPTH: Final = 50
MAX_LITERALS: Final = 300

Literal = str | int | float | bool


@dataclass(frozen=True)
class Comparison:
    """One comparison; a list of values stands in parentheses."""

    property: str
    operator: str
    value: Literal | tuple[Literal, ...]
    value_type: str = ""


@dataclass(frozen=True)
class Both:
    """Two conditions joined by AND or OR."""

    operator: str
    left: Condition
    right: Condition


Condition = Comparison | Both


@dataclass(frozen=True)
class Token:
    """One word: its sort (``name``, ``quoted name``, ``string``, ``number``, ``sign`` or ``end``), text and place."""

    sort: str
    text: str
    place: int


def parse(text: str) -> Condition | None:
    """A query's condition; None where it is blank.

    Raises:
        Refusal: It does not follow the grammar.
    """
    if not text.strip():
        return None
    parser = _Parser(tokens_of(text))
    condition = parser.query()
    parser.expect_end()
    return condition


def tokens_of(text: str) -> list[Token]:
    """The words of a query, an end word last."""
    tokens: list[Token] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
        elif text.startswith("--", place):
            place = _while(text, place, lambda character: character not in "\r\n")
        else:
            token = _token(text, place)
            tokens.append(token)
            place += len(token.text)
    return [*tokens, Token("end", "", len(text))]


def _token(text: str, place: int) -> Token:
    character = text[place]
    if _starts_name(character):
        return Token("name", text[place : _while(text, place, _continues_name)], place)
    if character in "'\"":
        return Token("string", text[place : _quoted_end(text, place)], place)
    if character == "`":
        return Token("quoted name", text[place : _quoted_end(text, place)], place)
    end = _number_end(text, place)
    if end > place:
        return Token("number", text[place:end], place)
    for sign in (*COMPARISONS, "(", ")", ".", ","):
        if text.startswith(sign, place):
            return Token("sign", sign, place)
    raise _wrong(character, place)


def _starts_name(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalpha())


def _continues_name(character: str) -> bool:
    return _starts_name(character) or _is_digit(character)


def _is_digit(character: str) -> bool:
    return character.isascii() and character.isdigit()


def _while(text: str, place: int, test: Callable[[str], bool]) -> int:
    while place < len(text) and test(text[place]):
        place += 1
    return place


def _quoted_end(text: str, place: int) -> int:
    """Behind the closing quote; a backslash takes the next character along."""
    at = place + 1
    while at < len(text) and text[at] != text[place]:
        at += 2 if text[at] == "\\" else 1
    if at >= len(text):
        raise _wrong(text[place:], place)
    return at + 1


def _number_end(text: str, place: int) -> int:
    """Behind a number, or ``place`` where there is none: digits are needed before or behind the point."""
    start = place + (text[place] in "+-")
    end = whole = _while(text, start, _is_digit)
    if text[whole : whole + 1] == ".":
        fraction = _while(text, whole + 1, _is_digit)
        end = fraction if fraction > whole + 1 else whole
    if end == start:
        return place
    return _exponent_end(text, end)


def _exponent_end(text: str, end: int) -> int:
    if text[end : end + 1] not in ("e", "E"):
        return end
    start = end + 1 + (text[end + 1 : end + 2] in ("+", "-"))
    stop = _while(text, start, _is_digit)
    return stop if stop > start else end


def _wrong(text: str, place: int) -> Refusal:
    return bad_request(f"error parsing filter query: unexpected {text[:40]!r} at character {place + 1}")


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._literals = 0

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self, *texts: str, sort: str) -> str | None:
        """The next word, if it is one of these; of any text where none is named."""
        token = self._token
        if token.sort != sort or (texts and token.text not in texts):
            return None
        self._next += 1
        return token.text

    def _fail(self) -> Refusal:
        return _wrong(self._token.text or "end of query", self._token.place)

    def expect_end(self) -> None:
        if self._token.sort != "end":
            raise self._fail()

    def query(self) -> Condition:
        condition = self._all()
        while self._take("OR", sort="name"):
            condition = Both("OR", condition, self._all())
        return condition

    def _all(self) -> Condition:
        condition = self._term()
        while self._take("AND", sort="name"):
            condition = Both("AND", condition, self._term())
        return condition

    def _term(self) -> Condition:
        if not self._take("(", sort="sign"):
            return self._comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise bad_request(f"error parsing filter query: more than {MAX_DEPTH} nested parentheses")
        condition = self.query()
        if not self._take(")", sort="sign"):
            raise self._fail()
        self._depth -= 1
        return condition

    def _comparison(self) -> Comparison:
        name = self._property_name()
        value_type = ""
        if self._take(".", sort="sign"):
            value_type = self._take(*VALUE_TYPES, sort="name") or ""
            if not value_type:
                raise self._fail()
        operator = self._take(*COMPARISONS, sort="sign") or self._take(*WORD_OPERATORS, sort="name")
        if operator is None:
            raise self._fail()
        return Comparison(name, operator, self._value(), value_type)

    def _property_name(self) -> str:
        name = self._take(sort="name")
        if name is not None:
            return name
        quoted = self._take(sort="quoted name")
        if quoted is None:
            raise self._fail()
        return quoted[1:-1].replace("\\.", ".").replace("\\\\", "\\")

    def _value(self) -> Literal | tuple[Literal, ...]:
        if not self._take("(", sort="sign"):
            return self._literal()
        values: list[Literal] = []
        while not self._take(")", sort="sign"):
            if values and not self._take(",", sort="sign"):
                raise self._fail()
            values.append(self._literal())
        return tuple(values)

    def _literal(self) -> Literal:
        self._literals += 1
        if self._literals > MAX_LITERALS:
            raise bad_request(f"error parsing filter query: more than {MAX_LITERALS} values")
        text = self._take(sort="string")
        if text is not None:
            return text[1:-1].replace('\\"', '"').replace("\\'", "'").replace("\\\\", "\\")
        number = self._take(sort="number")
        if number is not None:
            return self._number(number)
        word = self._take(*BOOLEANS, sort="name")
        if word is None:
            raise self._fail()
        return BOOLEANS[word]

    def _number(self, text: str) -> int | float:
        if any(character in ".eE" for character in text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise bad_request(f"error parsing filter query: number {text[:40]} is out of range")
            return number
        if len(text) > 20 or not INT64_MIN <= int(text) <= INT64_MAX:
            raise bad_request(f"error parsing filter query: number {text[:40]} is out of range")
        return int(text)
