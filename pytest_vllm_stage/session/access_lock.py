"""Readers/writer locks of the machine in files that are removed after use."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def try_lock(path: Path, *, exclusive: bool) -> int | None:
    """The descriptor that holds the lock until it is closed; None while others hold the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _hold(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), path, exclusive=exclusive)


def remove_unused(folder: Path) -> None:
    """Remove the files of the locks that nothing holds."""
    for path in folder.glob("*.lock"):
        try:
            descriptor = _hold(os.open(path, os.O_RDWR), path, exclusive=True)
        except OSError:  # removed meanwhile, or another user's
            continue
        if descriptor is not None:
            path.unlink()
            os.close(descriptor)


def _hold(descriptor: int, path: Path, *, exclusive: bool) -> int | None:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        # Between opening and locking another process may have removed the file; a lock on it excludes no other process.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
