"""Read the stage as it is now, and diagnose it."""
