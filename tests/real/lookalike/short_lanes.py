"""A plugin (``-p tests.real.lookalike.short_lanes``): slow lanes that last longer than a router's limit of 10 s.

OpenShift's limit is 30 s, which the suite's own lanes outlast; a unit test holds that.
"""

from __future__ import annotations

from pytest_vllm_stage.checks.inference import pauses, slow_lanes

slow_lanes.LEAST_S, slow_lanes.MOST_S, slow_lanes.TOLERANCE_S = 13.0, 25.0, 1.0
pauses.PAUSE_S = 2.0
