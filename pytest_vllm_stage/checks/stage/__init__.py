"""Checks of suites/deployment."""
