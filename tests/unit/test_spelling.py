"""Tokens that were decoded one by one spell their text, and no other one."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.checks.inference.spelling import spells


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([" kiwi", " 3", "2"], " kiwi 32"),
        (["kiwi", "3", "2"], " kiwi 32"),
        (["Gr", "\ufffd", "\ufffd", "e"], "Größe"[:3] + "e"),
        ([" kiwi", "</s>"], " kiwi"),
        (["(", "a.b"], "(a.b"),
    ],
)
def test_tokens_spell_their_text(tokens: list[str], text: str) -> None:
    assert spells(tokens, text)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [([" kiwi"], " lamp"), ([" kiwi"], " kiwi 32"), ([" kiwi", " 3"], " kiwi"[:3]), (["a.b"], "axb"), ([], "a")],
)
def test_tokens_do_not_spell_another_text(tokens: list[str], text: str) -> None:
    assert not spells(tokens, text)
