"""Relations that must hold between answers, whatever the model: features x ways, every pair of them covered."""
