"""The project's one error tree.

    StageError                 anything that this plugin raises on purpose
    ├── ConfigError            an option, profile, manifest or file is wrong; nothing was deployed
    ├── EnvironmentUnusable    this machine or cluster cannot carry a stage; says nothing about the stage
    │   └── Interrupted        the run was told to stop while it waited
    └── StageFailure           the stage itself is broken: the product failed
        └── WaitFailed         a condition of the stage was not reached

The split is what exit codes tell apart: ``StageFailure`` is a product failure (exit code 1, as any failed test),
``EnvironmentUnusable`` ends the run with `ENVIRONMENT_EXIT_CODE`.
"""

from __future__ import annotations

#: ``sysexits.h`` EX_UNAVAILABLE; outside pytest's own range 0 to 5.
ENVIRONMENT_EXIT_CODE = 69


class StageError(Exception):
    """An error made for the person who reads it: what happened, then what to do.

    Args:
        message: What happened, where, and the last state seen; its first line is the headline.
        hint: What to run or change next; empty where nothing sensible can be said.

    Attributes:
        already_reported: This is the short form of an error that was already shown in full.
    """

    already_reported = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[StageError], message: str, hint: str) -> StageError:
    """Make the error anew in another process (keyword arguments do not survive plain pickling)."""
    return cls(message, hint=hint)


class ConfigError(StageError):
    """Bad input, found before anything was deployed; names the field and the valid values."""


class EnvironmentUnusable(StageError):
    """The machine or the cluster cannot carry a stage; no verdict on the stage follows from it."""


class Interrupted(EnvironmentUnusable):
    """The run was told to stop while it waited."""


class StageFailure(StageError):
    """The stage is broken."""


class WaitFailed(StageFailure):
    """A condition was not reached: the deadline passed, or the object is in a state that cannot heal."""
