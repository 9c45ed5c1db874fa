"""The real engine of a local stage: vLLM on the CPU in an environment of its own, and the weights that it serves."""
