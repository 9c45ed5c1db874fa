"""The project's one error tree.

    StageError                    anything that this plugin raises on purpose
    ├── ConfigError               an option, profile, manifest or file is wrong; nothing was deployed
    ├── EnvironmentUnusable       this machine or cluster cannot run a stage; no verdict on the stage
    │   └── Interrupted           the run was stopped while it waited
    └── StageFailure              the stage itself is broken: the product failed
        └── WaitFailed            a condition of the stage was not reached

Exit codes follow this split: ``StageFailure`` is a product failure (exit code 1, as any failed test), and a run in
which an ``EnvironmentUnusable`` was reported ends with `ENVIRONMENT_EXIT_CODE`.
"""

from __future__ import annotations

#: ``sysexits.h`` EX_UNAVAILABLE; outside pytest's own range 0 to 5.
ENVIRONMENT_EXIT_CODE = 69


class StageError(Exception):
    """An error written for the engineer on call: what happened, then what to do.

    Args:
        message: What happened, where, and the last state seen; its first line is the headline.
        hint: What to run or change next; empty where there is no useful advice.

    Attributes:
        kind: What failed, in the words of live lines, reports and records.
        already_reported: This is the short form of an error that was already shown in full.
    """

    kind = "stage failed"
    already_reported = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def headline(self) -> str:
        """The kind and the message's first line."""
        first, *_ = self.message.splitlines() or [""]
        return f"{self.kind}: {first}"

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[StageError], message: str, hint: str) -> StageError:
    """Restore the error in another process (keyword arguments do not survive plain pickling)."""
    return cls(message, hint=hint)


class ConfigError(StageError):
    """Bad input, found before anything was deployed; names the field and the valid values."""

    kind = "configuration error"


class EnvironmentUnusable(StageError):
    """The machine or the cluster cannot run a stage; no verdict on the stage follows from it."""

    kind = "environment unusable"


class Interrupted(EnvironmentUnusable):
    """The run was stopped while it waited."""


class StageFailure(StageError):
    """The stage is broken."""


class WaitFailed(StageFailure):
    """A condition was not reached: the deadline passed, or the object is in a state that cannot heal."""
