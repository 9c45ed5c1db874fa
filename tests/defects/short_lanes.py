"""A plugin for tests (``-p tests.defects.short_lanes``): slow lanes and pauses that last a second or two."""

from __future__ import annotations

from pytest_vllm_stage.checks.inference import pauses, slow_lanes

slow_lanes.LEAST_S, slow_lanes.MOST_S, slow_lanes.TOLERANCE_S = 2.0, 20.0, 1.0
pauses.PAUSE_S = 2.0
