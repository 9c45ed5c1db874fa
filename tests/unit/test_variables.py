"""Misspelt environment variables are found; those of other programs are left alone."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.settings.variables import find_misspelt, known_variables


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("VLLM_STAGE_ENPOINT", "VLLM_STAGE_ENDPOINT"),
        ("VLLM_STAGE_KEPP", "VLLM_STAGE_KEEP"),
        ("VLLM_STAGE_API_KEYS", "VLLM_STAGE_API_KEY"),
        ("VLLM_STAGE_CACHEDIR", "VLLM_STAGE_CACHE_DIR"),
        ("VLLM_STAGE_RUNDIR", "VLLM_STAGE_RUN_DIR"),
    ],
)
def test_the_variable_that_was_meant_is_named(name: str, meant: str) -> None:
    assert find_misspelt({name: "x", "PATH": "/bin"}) == {name: meant}


def test_known_and_foreign_variables_are_not_misspelt() -> None:
    links = ["PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR"]
    foreign = ["VLLM_STAGE_NIGHTLY", "VLLM_STAGE_IMAGE", *(f"VLLM_STAGE_{link}" for link in links)]
    assert find_misspelt(dict.fromkeys([*known_variables(), *foreign], "x")) == {}
