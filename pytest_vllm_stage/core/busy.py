"""How long processes of this machine have waited for a processor."""

from __future__ import annotations

from pathlib import Path

#: Linux' pressure stall information; its totals are in microseconds (https://docs.kernel.org/accounting/psi.html).
PRESSURE = Path("/proc/pressure/cpu")


def read_waited_s() -> float | None:
    """Seconds since the machine's start in which at least one process waited; None where the kernel counts none."""
    try:
        some = PRESSURE.read_text(encoding="ascii").splitlines()[0]
    except (OSError, IndexError):
        return None
    fields = dict(part.split("=", 1) for part in some.split()[1:])
    return int(fields["total"]) / 1e6 if "total" in fields else None
