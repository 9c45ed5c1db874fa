"""A test session's part in the stage: the run directory, what is shared between workers, and who ends what."""
