"""GuideLLM 0.8.1 as a second load driver, and its report as a measurement.

`measure` carries a step out with it, `read_report` makes a measurement of what it wrote. GuideLLM runs from the engine's
environment; nothing here imports it.
"""

from __future__ import annotations

from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.load.guidellm.run import measure

__all__ = ["measure", "read_report"]
