"""A plugin for tests of defects (``-p tests.defects.short_waits``): the simulated engine counts at once, or never."""

from __future__ import annotations

from pytest_vllm_stage.checks.inference import together

together.COUNTED_WITHIN_S = 3.0
