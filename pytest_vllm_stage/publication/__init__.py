"""Publish a run: document, bucket, Model Registry, and the checks of what is there."""
