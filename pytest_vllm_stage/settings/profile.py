"""Profiles: what is expected of a stage that its manifests cannot say, as TOML under ``fixtures/profiles/``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.settings.options import BY_NAME

#: Seconds that each wait of a deployment may take; a profile may override each.
DEFAULT_WAITS_S = {
    "namespace_s": 30.0,
    "persistent_volume_claim_s": 60.0,
    "minio_s": 120.0,
    "model_download_s": 900.0,
    "inference_service_s": 600.0,
    "first_answer_s": 120.0,
    "teardown_s": 180.0,
}


#: What a check may need of a model or of its server's flags, and a profile may say that it cannot do.
CAPABILITIES = (
    "auto_tools",
    "continue_final_message",
    "logprobs",
    "lossless_tokenizer",
    "metrics",
    "prompt_logprobs",
    "structured_outputs",
    "token_ids",
    "tools",
)
#: Texts by which a model is made to call a tool, for the parsers that read them; see `ModelProfile.tool_format`.
TOOL_FORMATS = ("hermes",)


@dataclass(frozen=True)
class ModelProfile:
    """One target model.

    Attributes:
        role: What the model is in this stage, ``quantized`` or ``full``; test ids use it.
        inference_service: Name of the InferenceService, which is the served model name.
        description: What it really is, for reports.
        rate_limit_requests_per_s: The operational promise of one instance; None where nothing is promised.
        cost_per_hour_usd: Price of its node; None where it has none.
        load: Its ``load`` table, which overrides the profile's; `load.tables` reads it.
        slo: Its ``slo`` table, which overrides the profile's; `slo.objectives` reads it.
        reference: File of recorded answers and scores; None where nothing is recorded. A profile names it by its stem
            in ``fixtures/prompts/references``, or by its path beside the profile.
        tool_format: One of `TOOL_FORMATS` for a model too small to call a tool by itself, which is then made to; None
            for one that does when asked.
        cannot: Capability to the reason why this model or its server lacks it; the checks that need it are skipped.
    """

    role: str
    inference_service: str
    description: str = ""
    rate_limit_requests_per_s: float | None = None
    cost_per_hour_usd: float | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    slo: Mapping[str, Any] = field(default_factory=dict)
    reference: Path | None = None
    tool_format: str | None = None
    cannot: Mapping[str, str] = field(default_factory=dict)


#: Fields of a model that say how it is checked, not what it is.
_OF_CHECKS = ("role", "load", "slo", "reference", "tool_format", "cannot")


@dataclass(frozen=True)
class RegistryNames:
    """Under which names a model's results are filed; an empty one is taken from the InferenceService's label.

    Attributes:
        model: The registered model.
        version: Its version.
    """

    model: str = ""
    version: str = ""


@dataclass(frozen=True)
class RegistryProfile:
    """Where results go.

    Attributes:
        bucket: The bucket of results.
        models: Role to names.
    """

    bucket: str = "test-results"
    models: Mapping[str, RegistryNames] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A parsed profile.

    Attributes:
        name: Its name.
        description: One sentence.
        overlay: Folder of the kustomize overlay that is deployed or expected.
        namespace: Namespace of the stage.
        models: Role to target model, in the file's order.
        waits_s: Wait name to seconds; see `DEFAULT_WAITS_S`.
        options: Plugin options that the profile sets.
        source: The file it was read from.
        load: The ``load`` table of all models; empty where no load is planned.
        slo: The ``slo`` table of all models.
        regression: The ``regression`` table; `slo.regression` reads it.
        registry: Where results go.
    """

    name: str
    description: str
    overlay: Path
    namespace: str
    models: Mapping[str, ModelProfile]
    waits_s: Mapping[str, float]
    options: Mapping[str, str]
    source: Path
    load: Mapping[str, Any] = field(default_factory=dict)
    slo: Mapping[str, Any] = field(default_factory=dict)
    regression: Mapping[str, Any] = field(default_factory=dict)
    registry: RegistryProfile = field(default_factory=RegistryProfile)

    def facts(self) -> dict[str, Any]:
        """What makes two stages comparable, as flat fields: used to refuse reuse under another profile."""
        models = {
            f"models.{role}.{key}": value
            for role, model in self.models.items()
            for key, value in vars(model).items()
            if key not in _OF_CHECKS
        }
        return {"name": self.name, "overlay": self.overlay.name, "namespace": self.namespace, **models}

    def model_of(self, role: str, served_name: str) -> ModelProfile | None:
        """The model of a role, or of a server that serves it under its name; None where the profile knows neither."""
        named = (model for model in self.models.values() if model.inference_service == served_name)
        return self.models.get(role) or next(named, None)


def load_profile(name: str, rootdir: Path) -> Profile:
    """Read a profile by name (in ``fixtures/profiles/``) or by path (with ``.toml``; relative to ``rootdir``).

    Raises:
        ConfigError: naming the file, the key and the valid keys or values.
        OSError: the file cannot be read.
        tomllib.TOMLDecodeError: it is no TOML.
    """
    folder = fixtures_dir() / "profiles"
    path = rootdir / name if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise ConfigError(f"there is no profile {name!r}; valid: {known}, or the path of a .toml file")
    return parse_profile(tomllib.loads(path.read_text(encoding="utf-8")), path)


def parse_profile(data: Mapping[str, Any], path: Path) -> Profile:
    """Check a profile's data key by key; see `load_profile`."""
    table = _Table(dict(data), path, "")
    name, description = table.text("name"), table.text("description", "")
    overlay = _overlay(table.text("overlay"), table)
    namespace = table.text("namespace")
    models = {role: _model(role, table.table("models").table(role)) for role in table.table("models").keys_or_fail()}
    waits = table.table("waits", optional=True)
    waits_s = {key: waits.number(key, default) or default for key, default in DEFAULT_WAITS_S.items()}
    waits.done()
    options = _options(table.table("options", optional=True))
    load, slo, regression = (dict(table.table(key, optional=True).data) for key in ("load", "slo", "regression"))
    registry = _registry(table.table("registry", optional=True), models)
    table.done()
    return Profile(
        name, description, overlay, namespace, models, waits_s, options, path, load, slo, regression, registry
    )


def _registry(table: _Table, roles: Mapping[str, ModelProfile]) -> RegistryProfile:
    bucket = table.text("bucket", "test-results")
    models = table.table("models", optional=True)
    names = {}
    for role in models.data:
        if role not in roles:
            raise models.error(role, f"is no role; valid: {', '.join(roles)}")
        entry = models.table(role)
        names[role] = RegistryNames(entry.text("model", ""), entry.text("version", ""))
        entry.done()
    table.done()
    return RegistryProfile(bucket, names)


def _overlay(text: str, table: _Table) -> Path:
    for base in (fixtures_dir() / "overlays", table.path.parent):
        if (base / text / "kustomization.yaml").is_file():
            return (base / text).resolve()
    raise table.error("overlay", f"there is no kustomization in fixtures/overlays/{text} nor beside the profile")


def _model(role: str, table: _Table) -> ModelProfile:
    model = ModelProfile(
        role=role,
        inference_service=table.text("inference_service"),
        description=table.text("description", ""),
        rate_limit_requests_per_s=table.number("rate_limit_requests_per_s"),
        cost_per_hour_usd=table.number("cost_per_hour_usd"),
        load=dict(table.table("load", optional=True).data),
        slo=dict(table.table("slo", optional=True).data),
        reference=_reference(table.text("reference", ""), table),
        tool_format=table.one_of("tool_format", TOOL_FORMATS),
        cannot=_cannot(table.table("cannot", optional=True)),
    )
    table.done()
    return model


def _reference(text: str, table: _Table) -> Path | None:
    if not text:
        return None
    known = fixtures_dir() / "prompts" / "references" / f"{text}.json"
    path = known if not text.endswith(".json") else table.path.parent / text
    if not path.is_file():
        raise table.error("reference", f"there is no file {path.name} in {path.parent}")
    return path.resolve()


def _cannot(table: _Table) -> dict[str, str]:
    for key in table.data:
        if key not in CAPABILITIES:
            raise table.error(key, f"is no capability; valid: {', '.join(CAPABILITIES)}")
    return {key: table.text(key) for key in table.data}


def _options(table: _Table) -> dict[str, str]:
    allowed = sorted(set(BY_NAME) - {"profile"})
    for key in table.data:
        if key not in allowed:
            raise table.error(key, f"is no option; valid: {', '.join(allowed)}")
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in table.data.items()}


class _Table:
    """A TOML table that is emptied key by key, so that what is left at the end was not understood."""

    def __init__(self, data: dict[str, Any], path: Path, prefix: str) -> None:
        self.data = data
        self.path = path
        self.prefix = prefix
        self._known: list[str] = []

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"profile {self.path.name}: {self.prefix}{key}: {problem}")

    def _take(self, key: str) -> Any:
        self._known.append(key)
        return self.data.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (not value and default is None):
            raise self.error(key, "must be a text that is not empty" if value is not None else "is missing")
        return value

    def one_of(self, key: str, valid: tuple[str, ...]) -> str | None:
        value = self._take(key)
        if value is not None and value not in valid:
            raise self.error(key, f"is {value!r}; valid: {', '.join(valid)}")
        return value if isinstance(value, str) else None

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(key, f"must be a number above 0, not {value!r}")
        return float(value)

    def table(self, key: str, *, optional: bool = False) -> _Table:
        value = self._take(key)
        if value is None and optional:
            value = {}
        if not isinstance(value, dict):
            raise self.error(key, "must be a table" if value is not None else "is missing")
        return _Table(value, self.path, f"{self.prefix}{key}.")

    def keys_or_fail(self) -> list[str]:
        if not self.data:
            raise self.error("<role>", "at least one model is needed")
        return list(self.data)

    def done(self) -> None:
        for key in self.data:
            if key not in self._known:
                raise self.error(key, f"is unknown; valid keys: {', '.join(sorted(set(self._known)))}")
