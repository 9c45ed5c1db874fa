"""GuideLLM 0.8.1 as a second load driver, and its report as an input and output format.

`measure` carries a step out with it, `read_report` converts its report to a measurement, `write_report` writes a
report that GuideLLM itself loads. GuideLLM runs from the engine's environment; nothing here imports it.
"""

from __future__ import annotations

from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.load.guidellm.run import measure
from pytest_vllm_stage.load.guidellm.writing import write_report

__all__ = ["measure", "read_report", "write_report"]
