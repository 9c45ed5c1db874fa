"""Whether a tool call was cut, whatever the server says of it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage.checks.inference.tools import is_cut


@pytest.mark.parametrize(
    ("body", "finish_reason", "cut"),
    [
        ({"usage": {"completion_tokens": 80}}, "tool_calls", True),
        ({"usage": {"completion_tokens": 79}}, "tool_calls", False),
        ({"usage": {"completion_tokens": 12}}, "length", True),
        ({"usage": None}, "length", True),
        ({"usage": {"completion_tokens": None}}, "stop", False),
        ({}, None, False),
    ],
)
def test_call_is_cut_by_its_reason_or_by_its_tokens(body: dict[str, Any], finish_reason: str | None, cut: bool) -> None:
    assert is_cut(body, finish_reason, 80) is cut
