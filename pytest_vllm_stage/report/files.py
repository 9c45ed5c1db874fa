"""The names of a run's documents."""

from __future__ import annotations

PAGE = "report.html"
MARKDOWN = "report.md"
METRICS = "metrics.prom"
