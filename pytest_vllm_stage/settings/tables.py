"""What every table of a profile shares: strict types, and one message per problem that names key, value and valid ones.

Declared with pydantic because the model-registry client brings it anyway, it derives a JSON Schema that editors
complete from, and its errors carry the path of the field. Importing it takes longer than the whole plugin, so this
module and those that declare tables with it are imported when a profile is read, not when pytest loads the plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pytest_vllm_stage.core.suggestions import describe_unknown

_SHOWN_CHARACTERS = 60


class Table(BaseModel):
    """A TOML table: it has the declared keys only, and does not convert values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_table(cls, data: Any) -> Any:
        """Refuse what is not a table, and keys that the table does not have."""
        for key, value in require_table(data).items():
            cls.check_key(key, value)
        return data

    @classmethod
    def check_key(cls, key: str, _value: Any) -> None:
        """Refuse a key that the table does not have."""
        if key not in cls.model_fields:
            refuse(describe_unknown(key, cls.model_fields, "key"), key)


def require_table(data: Any) -> Mapping[str, Any]:
    """The value of a key that holds a table."""
    if not isinstance(data, Mapping):
        refuse(f"expected a table, got {show(data)}")
    return data


def refuse(problem: str, *path: str) -> NoReturn:
    """Report a problem with the validated value, or with what lies at a path below it."""
    raise PydanticCustomError("problem", "{problem}", {"problem": problem, "path": path})


def show(value: Any) -> str:
    """A value as TOML spells it, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def expect(what: str) -> WrapValidator:
    """A validator that reports every problem of its type as ``expected <what>, got <value>``."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            refuse(f"expected {what}, got {show(value)}")

    return WrapValidator(validate)


def one_of(valid: Sequence[str], noun: str) -> WrapValidator:
    """A validator of a string that has few valid values."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, str):
            refuse(f"expected a string, got {show(value)}; valid: {', '.join(valid)}")
        if value not in valid:
            refuse(describe_unknown(value, valid, f"{noun} {show(value)}"))
        return handler(value)

    return WrapValidator(validate)


def require_list(value: Any) -> Any:
    """The value of a key that holds a list."""
    if not isinstance(value, list | tuple):
        refuse(f"expected a list, got {show(value)}")
    return value


def require_unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list that has a value twice; numbers are the same where steps would be named the same."""
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        refuse(f"{twice} is listed twice")
    return values


Text: TypeAlias = Annotated[str, Field(min_length=1), expect("a string that is not empty")]
OptionalText: TypeAlias = Annotated[str, expect("a string")]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False), expect("a number above 0")]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False), expect("a number from 0")]
PositiveCount: TypeAlias = Annotated[int, Field(gt=0), expect("a whole number above 0")]
Count: TypeAlias = Annotated[int, Field(ge=0), expect("a whole number from 0")]


def describe_problems(error: ValidationError) -> list[str]:
    """One line per problem: the path of the key, and what is wrong with it."""
    return [_describe_problem(problem) for problem in error.errors(include_url=False)]


def _describe_problem(problem: Any) -> str:
    context = problem.get("ctx", {})
    path = ".".join(str(part) for part in (*problem["loc"], *context.get("path", ())))
    text = context.get("problem") or ("required key is missing" if problem["type"] == "missing" else problem["msg"])
    return f"{path}: {text}" if path else text
