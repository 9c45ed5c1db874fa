"""Facts that one process makes and every other reads: a file and a lock for each, in the run directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pytest_vllm_stage.core import errors
from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.files import write_atomically


class Shared:
    """Named texts under ``folder``; the first process that asks makes them, in whichever xdist worker.

    A failure is a fact too: it is kept, and later calls raise an error of the same type with the headline only, so that
    forty tests do not print one cause forty times.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ensure(self, name: str, make: Callable[[], str]) -> str:
        """The text called ``name``, made by ``make`` on first use.

        Raises:
            StageError: what ``make`` raised, now or in the process that asked first.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{name}.lock"):
            known = self.get(name)
            if known is not None:
                return known
            failure = self.failure(name)
            if failure is not None:
                raise failure
            try:
                text = make()
            except StageError as error:
                self._write(f"{name}.error.json", dump_error(error))
                raise
            self._write(f"{name}.json", text)
            return text

    def get(self, name: str) -> str | None:
        """The text, if it was made."""
        path = self.folder / f"{name}.json"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def failure(self, name: str) -> StageError | None:
        """Why it could not be made, shortened to the headline, if that happened."""
        path = self.folder / f"{name}.error.json"
        if not path.exists():
            return None
        kept = load_error(path.read_text(encoding="utf-8"))
        failure = type(kept)(kept.message.splitlines()[0])
        failure.already_reported = True
        return failure

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, text)


def dump_error(error: StageError) -> str:
    """An error as a text that another process can read."""
    known = [kind for kind in type(error).__mro__ if hasattr(errors, kind.__name__)]
    return json.dumps({"type": known[0].__name__, "message": error.message, "hint": error.hint})


def load_error(text: str) -> StageError:
    """The error of `dump_error`."""
    kept = json.loads(text)
    kind: type[StageError] = getattr(errors, kept["type"], StageError)
    return kind(kept["message"], hint=kept["hint"])
