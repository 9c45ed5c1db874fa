"""Models by load steps by objectives: each objective's value, limit, interval and sample size in one cell."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vllm_stage.report.run_data import Gate, RunData, StepData
from pytest_vllm_stage.report.values import format_interval, format_number, format_percentile, unit_of

#: Shape and word of each outcome, so that it is read without its colour.
SIGNS = {
    "pass": "✓ pass",
    "fail": "✗ FAIL",
    "inconclusive": "? inconclusive",
    "invalid": "⊘ invalid",
    "observed": "○ observed",
}


@dataclass(frozen=True)
class Cell:
    """One objective of one step as texts.

    Attributes:
        outcome: ``pass``, ``fail`` or ``inconclusive``; ``observed`` where the step is beyond the promise.
        sign: The outcome's shape and word.
        value: The measured value with its unit.
        limit: The bound with its direction.
        interval: The 95 % confidence interval, or how many requests one takes.
        samples: Requests, and the effective sample size where it is smaller.
        why: The numbers in a sentence.
    """

    outcome: str
    sign: str
    value: str
    limit: str
    interval: str
    samples: str
    why: str


@dataclass(frozen=True)
class Row:
    """One load step.

    Attributes:
        step: The step.
        sign: Shape and word of its verdict.
        cells: One per column; None where the step has no such objective.
    """

    step: StepData
    sign: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Matrix:
    """The whole matrix.

    Attributes:
        columns: The objectives' keys.
        rows: Role to rows.
    """

    columns: tuple[str, ...]
    rows: dict[str, tuple[Row, ...]]


#: Words for an objective of a step beyond the promised rate, which nothing is judged by.
_OBSERVED = {"pass": "kept", "fail": "not kept"}


def build_matrix(data: RunData) -> Matrix:
    """The matrix of a run; without columns where nothing was promised."""
    columns = tuple(dict.fromkeys(gate.objective for step in data.steps for gate in step.gates))
    rows = {role: tuple(_row(step, columns) for step in data.steps if step.role == role) for role in data.roles}
    return Matrix(columns, rows)


def sign_of(outcome: str) -> str:
    """Shape and word of an outcome."""
    return SIGNS.get(outcome, outcome)


def describe_step(step: StepData) -> str:
    """A step's verdict and its objectives, one line each."""
    lines = [f"{sign_of(step.outcome)}: {step.role}, {step.load}: {step.why}"]
    for gate in step.gates:
        cell = _cell(gate, step)
        texts = (cell.sign, f"{cell.value} {cell.limit}", cell.interval, cell.samples)
        lines.append(f"{gate.objective}: {', '.join(filter(None, texts))}")
    return "\n".join([*lines, *(text for text in step.findings if text not in step.why)])


def _row(step: StepData, columns: tuple[str, ...]) -> Row:
    gates = {gate.objective: gate for gate in step.gates}
    cells = tuple(_cell(gates[key], step) if key in gates else None for key in columns)
    return Row(step, sign_of(step.outcome), cells)


def _cell(gate: Gate, step: StepData) -> Cell:
    beyond = step.outcome == "observed"
    unit = unit_of(gate.objective)
    direction = "≥" if gate.is_floor else "≤"
    return Cell(
        outcome="observed" if beyond else gate.outcome,
        sign=f"○ {_OBSERVED.get(gate.outcome, 'not decided')}" if beyond else sign_of(gate.outcome),
        value=f"{format_percentile(step.percentiles.get(gate.objective), gate.observed)} {unit}".strip(),
        limit=f"{direction} {format_number(gate.limit)} {unit}".strip(),
        interval=_interval(gate, step),
        samples=_samples(gate),
        why=gate.why,
    )


def _interval(gate: Gate, step: StepData) -> str:
    if gate.interval:
        return f"95 % CI {format_interval(gate.interval)}"
    needs = step.percentiles.get(gate.objective, {}).get("needs")
    if needs:
        return f"no CI: needs n ≥ {needs}"
    return f"{gate.misses:g} of {gate.n} missed" if not gate.is_floor else ""


def _samples(gate: Gate) -> str:
    fewer = gate.effective_n is not None and gate.effective_n < gate.n
    effective = f", effective {gate.effective_n}" if fewer else ""
    needed = f", needs {gate.needs:,}" if gate.needs else ""
    return f"n {gate.n}{effective}{needed}"
