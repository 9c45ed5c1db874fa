"""Objectives, verdicts, saturation, capacity and regression: pure functions over samples and numbers."""
