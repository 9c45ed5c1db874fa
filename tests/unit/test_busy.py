"""How long processes have waited for a processor, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_stage.core import busy


@pytest.mark.parametrize(
    ("text", "waited_s"),
    [
        ("some avg10=83.21 avg60=92.39 avg300=85.39 total=7887408620\nfull avg10=0.00 total=0\n", 7887.40862),
        ("some avg10=0.00\n", None),
        ("", None),
        (None, None),
    ],
    ids=["counted", "without a total", "empty", "no such file"],
)
def test_the_total_is_read_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, waited_s: float | None
) -> None:
    path = tmp_path / "cpu"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(busy, "PRESSURE", path)
    assert busy.read_waited_s() == waited_s


def test_this_machines_total_is_read_if_it_has_one() -> None:
    assert busy.PRESSURE.exists() == (busy.read_waited_s() is not None)
