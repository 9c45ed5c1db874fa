"""Paths of the stage's GitOps tree and of the cache for what is built once."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def fixtures_dir() -> Path:
    """The GitOps tree, profiles and prompt sets: the checkout's ``fixtures/``, or the copy that the wheel carries."""
    checkout = PACKAGE.parent / "fixtures"
    return checkout if (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE / "_fixtures"


def cache_dir() -> Path:
    """The cache that all runs on this machine share: ``$VLLM_STAGE_CACHE_DIR``, else a folder in the user's cache."""
    configured = os.environ.get("VLLM_STAGE_CACHE_DIR")
    if configured:
        return Path(configured).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pytest-vllm-stage"
