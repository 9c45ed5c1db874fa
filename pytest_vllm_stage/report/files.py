"""The names of a run's documents, and the one way in which they are written."""

from __future__ import annotations

from pathlib import Path

PAGE = "report.html"
MARKDOWN = "report.md"
METRICS = "metrics.prom"


def replace_file(path: Path, text: str) -> Path:
    """Write a file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path
