"""Render the stage, apply it, wait for it, delete it."""
