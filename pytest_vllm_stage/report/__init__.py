"""Readers of the run directory: run.json, JUnit, allure and the terminal's summary. They measure nothing themselves."""
