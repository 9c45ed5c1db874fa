"""The JSON Schema of profiles, derived from their types; editors complete and check profiles with it.

``python -m pytest_vllm_stage.settings.profile_schema`` writes it next to the profiles after the types have changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.settings.profile import Profile


def schema_path() -> Path:
    """Where the published schema lies: the profiles' first line names it."""
    return fixtures_dir() / "profiles" / "profile.schema.json"


def profile_schema() -> dict[str, Any]:
    """The JSON Schema, without titles that repeat keys, nulls (TOML has none) and the defaults of whole tables."""
    schema = _simplified(Profile.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "vLLM stage profile", **schema}


def _simplified(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_simplified(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _simplified(value) for key, value in schema.items() if not _is_noise(key, value)}
    choices = [choice for choice in kept.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        return {key: value for key, value in kept.items() if key != "anyOf"} | choices[0]
    return kept


def _is_noise(key: str, value: Any) -> bool:
    return (key == "title" and isinstance(value, str)) or (
        key == "default" and (value is None or isinstance(value, dict))
    )


def main() -> None:
    """Write the schema."""
    schema_path().write_text(json.dumps(profile_schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
