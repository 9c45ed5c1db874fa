"""Benchmark results in an S3 bucket: uploaded completely or not at all, and checked by hash when they are read."""
