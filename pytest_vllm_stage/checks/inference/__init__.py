"""Oracles of suites/inference."""
