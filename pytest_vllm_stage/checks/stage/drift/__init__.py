"""Drift of the live stage from its declaration: field by field, in both directions, with the owner of each field."""
