"""The faults that the simulated engine knows; importing this registers them all."""

from pytest_vllm_stage.sim.catalogue import answers, protocol, streams, timing

__all__ = ["answers", "protocol", "streams", "timing"]
