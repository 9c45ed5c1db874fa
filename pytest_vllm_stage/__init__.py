"""A pytest plugin that deploys or takes a vLLM serving stage on Kubernetes and proves it."""

__version__ = "0.1.0"
