"""Several workers share one load step: each sends its part, and their samples are merged into one measurement."""
