"""From a filterQuery's condition to SQL over the store's tables, with PostgreSQL's rules for types.

The literal decides which column of a custom property is compared: an integer looks into integers and doubles, a double
only into doubles. A value that does not fit its column's type is refused, as PostgreSQL refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.standins.registry.filters import Comparison, Condition, Literal
from pytest_vllm_stage.standins.registry.kinds import Kind
from pytest_vllm_stage.standins.registry.refusal import Refusal, bad_request
from pytest_vllm_stage.standins.registry.values import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, integer

#: Fields that every kind has: their column and type.
_COLUMNS = {
    "id": ("entity.id", "int"),
    "name": ("entity.stored_name", "string"),
    "externalId": ("entity.external_id", "string"),
    "createTimeSinceEpoch": ("entity.created_ms", "bigint"),
    "lastUpdateTimeSinceEpoch": ("entity.updated_ms", "bigint"),
}


@dataclass
class Clause:
    """A piece of a WHERE and its parameters."""

    sql: str
    parameters: list[Any] = field(default_factory=list)

    def __and__(self, other: Clause) -> Clause:
        return Clause(f"{self.sql} AND {other.sql}", [*self.parameters, *other.parameters])


def clause_of(condition: Condition, kind: Kind) -> Clause:
    """The condition on rows of a kind.

    Raises:
        Refusal: A value does not fit the type of what it is compared with.
    """
    if isinstance(condition, Comparison):
        return _comparison(condition, kind)
    left, right = clause_of(condition.left, kind), clause_of(condition.right, kind)
    return Clause(f"({left.sql} {condition.operator} {right.sql})", [*left.parameters, *right.parameters])


def _comparison(comparison: Comparison, kind: Kind) -> Clause:
    if comparison.property in _COLUMNS:
        column, column_type = _COLUMNS[comparison.property]
        if comparison.property == "name" and kind.prefixed:
            comparison = _child_name(comparison)
        return _operation(column, column_type, comparison)
    known = kind.field(comparison.property)
    if known is not None and known.filters_as:
        column_type = comparison.value_type.removesuffix("_value") or known.filters_as
        if column_type != known.filters_as:
            # The field is stored in one column; the others of its row are empty.
            return _operation("NULL", column_type, comparison)
        return _operation(f"json_extract(entity.fields, '$.{known.name}')", column_type, comparison)
    return _custom(comparison)


def _child_name(comparison: Comparison) -> Comparison:
    """A child's name is stored behind its parent's: ``=`` looks for any parent, and so does a LIKE that names none."""
    value = comparison.value
    if not isinstance(value, str):
        return comparison
    if comparison.operator == "=" or (comparison.operator == "LIKE" and ":" not in value and not value.startswith("%")):
        return Comparison("name", "LIKE", f"%:{value}")
    return comparison


def _custom(comparison: Comparison) -> Clause:
    """A custom property: there must be one of this name whose value fits."""
    columns = [comparison.value_type] if comparison.value_type else _columns_of(comparison.value)
    parts = [_operation(f"property.{column}", column.removesuffix("_value"), comparison) for column in columns]
    alternatives = " OR ".join(part.sql for part in parts)
    rows = "property.space = entity.space AND property.entity_id = entity.id AND property.key = ?"
    sql = f"EXISTS (SELECT 1 FROM property WHERE {rows} AND ({alternatives}))"  # noqa: S608 - columns named above
    return Clause(sql, [comparison.property, *(value for part in parts for value in part.parameters)])


def _columns_of(value: Literal | tuple[Literal, ...]) -> list[str]:
    first = (value[0] if value else "") if isinstance(value, tuple) else value
    if isinstance(first, bool):
        return ["bool_value"]
    if isinstance(first, int):
        return ["int_value", "double_value"] if not isinstance(value, tuple) else ["int_value"]
    return ["double_value"] if isinstance(first, float) else ["string_value"]


def _operation(column: str, column_type: str, comparison: Comparison) -> Clause:
    operator, value = comparison.operator, comparison.value
    if operator == "IN":
        values = value if isinstance(value, tuple) else (value,)
        marks = ",".join("?" * len(values))
        return Clause(f"{column} IN ({marks})", [_parameter(item, column_type, comparison) for item in values])
    if isinstance(value, tuple):
        raise _mismatch(comparison)
    if operator in ("LIKE", "ILIKE"):
        return _pattern(column, column_type, comparison)
    return Clause(f"{column} {operator} ?", [_parameter(value, column_type, comparison)])


def _pattern(column: str, column_type: str, comparison: Comparison) -> Clause:
    if column_type != "string" or not isinstance(comparison.value, str):
        raise _mismatch(comparison)
    if comparison.operator == "ILIKE":
        return Clause(f"pg_like(pg_lower(?), pg_lower({column}))", [comparison.value])
    return Clause(f"pg_like(?, {column})", [comparison.value])


def _parameter(value: Literal, column_type: str, comparison: Comparison) -> Any:
    """The value as a parameter for a column; text that is a number fits a number's column."""
    if column_type == "string" and isinstance(value, str):
        return value
    if column_type == "bool" and isinstance(value, bool):
        return int(value)
    if column_type in ("int", "bigint") and not isinstance(value, (bool, float)):
        bounds = (INT32_MIN, INT32_MAX) if column_type == "int" else (INT64_MIN, INT64_MAX)
        number = integer(str(value), *bounds)
        if number is not None:
            return number
    if column_type == "double" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise _mismatch(comparison)


def _mismatch(comparison: Comparison) -> Refusal:
    return bad_request(
        f"invalid filter query: {comparison.property} {comparison.operator} does not take this type of value"
    )


def of_kinds(kinds: tuple[Kind, ...], condition: Condition) -> Clause:
    """The condition on rows of several kinds, by each kind's own fields.

    Raises:
        Refusal: It fits none of them.
    """
    parts: list[Clause] = []
    refusals: list[Refusal] = []
    for kind in kinds:
        try:
            parts.append(Clause("entity.kind = ?", [kind.name]) & clause_of(condition, kind))
        except Refusal as refusal:
            refusals.append(refusal)
    if not parts:
        raise refusals[0]
    sql = " OR ".join(f"({part.sql})" for part in parts)
    return Clause(f"({sql})", [value for part in parts for value in part.parameters])
