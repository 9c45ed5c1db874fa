"""Disruptions of a stage while traffic runs: carried out, judged by the window around each, and undone."""
