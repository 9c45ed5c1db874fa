"""Render the stage, apply it, wait for it, take it away."""
