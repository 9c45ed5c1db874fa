"""Shared basics: errors, the journal, waiting, files, paths, secrets."""
