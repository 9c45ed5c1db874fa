"""One resolver for every setting: command line, then environment, ini file, profile, default; each with its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.core.suggestions import describe_unknown
from pytest_vllm_stage.settings.agreement import check_agreement
from pytest_vllm_stage.settings.config import Setting, StageConfig, TokenSetting
from pytest_vllm_stage.settings.options import BY_NAME, OPTIONS, TOKENS, Option, Token
from pytest_vllm_stage.settings.urls import normalise_endpoints
from pytest_vllm_stage.settings.variables import find_misspelt

if TYPE_CHECKING:
    from pytest_vllm_stage.settings.profile import Profile

Lookup = Callable[[str], str | None]
_SWITCH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def resolve_settings(cli: Lookup, env: Mapping[str, str], ini: Lookup, rootdir: Path) -> StageConfig:
    """Resolve every option and check them against each other.

    Args:
        cli: Option name to the text given on the command line, or None.
        env: The environment.
        ini: Option name to the text in the ini file, or None.
        rootdir: Where relative paths of the ini file and of the profile's options start.

    Raises:
        ConfigError: naming the option, where it was set and the valid values.
    """
    for name, meant in find_misspelt(env).items():
        raise ConfigError(f"environment variable {name}: no such setting; did you mean {meant}?")
    layers: list[tuple[Callable[[Option], str], Lookup, Path | None]] = [
        (lambda option: option.cli, cli, None),
        (lambda option: option.env, lambda name: env.get(BY_NAME[name].env) or None, None),
        (lambda option: f"ini {option.ini}", ini, rootdir),
    ]
    settings = {option.name: _resolve_option(option, layers) for option in OPTIONS}
    if settings["cluster"].value == "kind" and settings["profile"].source == "default":
        settings["profile"] = Setting("kind", "default")
    # Reading a profile imports pydantic: not at the plugin's load.
    from pytest_vllm_stage.settings.profile import load_profile

    profile = load_profile(str(settings["profile"].value), rootdir)
    for name, value in profile.options.items():
        if settings[name].source == "default":
            settings[name] = _parse(BY_NAME[name], value, "profile", rootdir)
    tokens = {token.name: found for token in TOKENS if (found := _resolve_token(token, env))}
    config = StageConfig(settings, profile, tokens)
    check_agreement(config)
    return replace(config, profile=_simulated(profile, config.source("engine"))) if config.simulated else config


def _resolve_option(option: Option, layers: list[tuple[Callable[[Option], str], Lookup, Path | None]]) -> Setting:
    for source_name, lookup, folder in layers:
        value = lookup(option.name)
        if value is not None:
            return _parse(option, value, source_name(option), folder)
    return Setting(False if option.flag else option.default, "default")


def _parse(option: Option, value: str | bool, source: str, folder: Path | None) -> Setting:
    """Check a value; a relative path of a file's setting starts at the file's folder."""
    if option.flag:
        return Setting(_parse_flag(value, source), source)
    text = str(value)
    if option.choices and text not in option.choices:
        raise ConfigError(f"{source}: {describe_unknown(text, option.choices, f'value {text!r}')}")
    if option.number and not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ConfigError(f"{source}: expected a whole number from 0, got {text[:40]!r}")
    if option.path and text not in option.keywords:
        text = str((folder or Path()) / Path(text).expanduser())
    if option.name == "endpoint":
        text = normalise_endpoints(text, source)
    return Setting(text, source)


def _parse_flag(value: str | bool, source: str) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() not in _SWITCH:
        raise ConfigError(f"{source}: unknown value {value!r}; valid: {', '.join(_SWITCH)}")
    return _SWITCH[value.lower()]


def _resolve_token(token: Token, env: Mapping[str, str]) -> TokenSetting | None:
    """A token without the line end that a file or a shell may add; None where it is not set.

    Raises:
        ConfigError: it has a character that an HTTP header cannot carry; it is not shown.
    """
    value = env.get(token.env, "").strip()
    if not value:
        return None
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(
            f"{token.env}: contains a character that an HTTP header cannot carry (the value is not shown)"
        )
    return TokenSetting(Secret(value), token.env)


def _simulated(profile: Profile, source: str) -> Profile:
    """The profile with the overlay ``NAME-sim`` next to its own, and descriptions that promise no model.

    Raises:
        ConfigError: there is no such overlay.
    """
    overlay = profile.overlay.with_name(f"{profile.overlay.name}-sim")
    if not (overlay / "kustomization.yaml").is_file():
        raise ConfigError(
            f"{source}: profile {profile.name} cannot be simulated: there is no kustomization in {overlay.name} next "
            f"to its overlay {profile.overlay.name}"
        )
    return profile.with_simulated_models(overlay)
