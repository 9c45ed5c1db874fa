"""One resolver for every setting: command line, then environment, ini file, profile, default; each with its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.settings.options import BY_NAME, OPTIONS, Option

if TYPE_CHECKING:
    from pytest_vllm_stage.settings.profile import Profile

#: What files with a load step's samples end with; `load.samples_file` writes them.
SAMPLES = ".samples.jsonl.gz"
#: Said wherever a result of the simulated engine is shown.
SIMULATED_NOTICE = "a stand-in for vLLM answered: nothing here is a result of a model"

Lookup = Callable[[str], str | None]


@dataclass(frozen=True)
class Setting:
    """A resolved value and its source: an option, a variable, an ini key, ``profile`` or ``default``."""

    value: str | None
    source: str


@dataclass(frozen=True)
class StageConfig:
    """Everything that the user decided.

    Attributes:
        settings: Option name to its value and source.
        profile: The parsed profile; with the simulated engine, as `_simulated` changes it.
    """

    settings: Mapping[str, Setting]
    profile: Profile

    def get(self, name: str) -> str | None:
        """The value of an option; None when it is unset."""
        return self.settings[name].value

    def text(self, name: str) -> str:
        """The value of an option that always has one."""
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    @property
    def cluster_kind(self) -> str:
        """``local`` or ``kubeconfig``; ``auto`` is decided by whether a context is named."""
        if self.text("cluster") == "auto":
            return "kubeconfig" if self.get("context") else "local"
        return self.text("cluster")

    @property
    def deploys(self) -> bool:
        """The run deploys the stage itself."""
        without = self.endpoint or self.get("results")
        return not without and (self.cluster_kind == "local" or self.get("deploy") == "true")

    @property
    def simulated(self) -> bool:
        """The run deploys or attaches to the simulated engine."""
        return self.text("engine") == "sim"

    @property
    def endpoint(self) -> str | None:
        """The URL of a server that is validated without a cluster."""
        return self.get("endpoint")

    @property
    def strict(self) -> bool:
        """Skipped and inconclusive checks fail the run."""
        return self.get("strict") == "true"

    @property
    def publishes(self) -> bool:
        """The run publishes what it measured; a stage that it did not deploy is left alone unless told otherwise."""
        return self.text("publish") == "always" or (self.text("publish") == "auto" and self.deploys)

    @property
    def namespace(self) -> str:
        """The stage's namespace."""
        return self.get("namespace") or self.profile.namespace

    @property
    def roles(self) -> tuple[str, ...]:
        """The target models by role; one called ``endpoint`` when a plain server is validated."""
        return ("endpoint",) if self.endpoint else tuple(self.profile.models)

    def to_json(self) -> dict[str, Any]:
        """The settings with their sources and the profile's facts, as plain data for the record of the run."""
        return {
            "settings": {name: vars(setting) for name, setting in self.settings.items()},
            "profile": self.profile.facts() | {"namespace": self.namespace},
        }

    def header(self) -> str:
        """One line for pytest's header: what was chosen, and by what."""
        chosen = [("profile", self.settings["profile"])]
        chosen += [(name, s) for name, s in self.settings.items() if s.source != "default" and name != "profile"]
        line = "vllm-stage: " + ", ".join(f"{name} {s.value} ({s.source})" for name, s in chosen)
        return f"{line}\nvllm-stage: SIMULATED: {SIMULATED_NOTICE}" if self.simulated else line


def resolve(cli: Lookup, env: Mapping[str, str], ini: Lookup, rootdir: Path) -> StageConfig:
    """Resolve every option and check them against each other.

    Args:
        cli: Option name to the text given on the command line, or None.
        env: The environment.
        ini: Option name to the text in the ini file, or None.
        rootdir: Where relative paths of the ini file start.

    Raises:
        ConfigError: naming the option, where it was set and the valid values.
    """
    layers: list[tuple[Callable[[Option], str], Lookup]] = [
        (lambda option: option.cli, cli),
        (lambda option: option.env, lambda name: env.get(BY_NAME[name].env) or None),
        (lambda option: f"ini {option.ini}", ini),
    ]
    settings = {option.name: _first(option, layers) for option in OPTIONS}
    # Reading a profile imports pydantic: not at the plugin's load.
    from pytest_vllm_stage.settings.profile import load_profile

    profile = load_profile(settings["profile"].value or "", rootdir)
    for name, value in profile.options.items():
        if settings[name].source == "default":
            settings[name] = Setting(str(value).lower() if isinstance(value, bool) else value, "profile")
    config = StageConfig(settings, profile)
    _check_agreement(config)
    _check_registry_url(config)
    return replace(config, profile=_simulated(profile, settings["engine"].source)) if config.simulated else config


def _first(option: Option, layers: list[tuple[Callable[[Option], str], Lookup]]) -> Setting:
    for source_name, lookup in layers:
        value = lookup(option.name)
        if value is not None:
            source = source_name(option)
            return Setting(_checked(option, value, source), source)
    return Setting(option.default, "default")


def _checked(option: Option, value: str, source: str) -> str:
    if option.flag:
        value = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}.get(
            value.lower(), value.lower()
        )
    if option.valid and value not in option.valid:
        raise ConfigError(f"{source}: {value!r} is not valid; valid values: {', '.join(option.valid)}")
    return value


def _simulated(profile: Profile, source: str) -> Profile:
    """The profile with the overlay ``NAME-sim`` beside its own, and descriptions that promise no model.

    Raises:
        ConfigError: there is no such overlay.
    """
    overlay = profile.overlay.with_name(f"{profile.overlay.name}-sim")
    if not (overlay / "kustomization.yaml").is_file():
        raise ConfigError(
            f"{source}: profile {profile.name} cannot be simulated: there is no kustomization in {overlay.name} beside "
            f"its overlay {profile.overlay.name}"
        )
    return profile.with_simulated_models(overlay)


def _check_agreement(config: StageConfig) -> None:
    """Refuse options that contradict each other, before anything is made."""
    given = {name: s.source for name, s in config.settings.items() if s.source not in ("default", "profile")}
    if config.endpoint:
        _check_endpoint(config.endpoint, config.settings["endpoint"].source)
        for name in ("cluster", "context", "deploy", "engine", "reuse", "keep", "namespace"):
            if name in given:
                source = config.settings["endpoint"].source
                raise ConfigError(f"{source} validates a server without a cluster: it cannot go with {given[name]}")
    elif "model" in given:
        raise ConfigError(f"{given['model']} goes with --stage-endpoint; a stage's models are named by its profile")
    _check_engine(config)
    if config.text("cluster") == "local" and config.get("context"):
        context, cluster = (config.settings[name].source for name in ("context", "cluster"))
        raise ConfigError(f"{context} names a cluster, but {cluster} asks for a local one")
    if config.text("cluster") == "kubeconfig" and not config.get("context") and not config.get("reuse"):
        raise ConfigError("--stage-cluster=kubeconfig: --stage-context must name the context; none is used unnamed")
    if "reuse" in given and "keep" in given:
        raise ConfigError(f"{given['reuse']} deletes nothing: it cannot go with {given['keep']}")
    for name in ("ca_file", "env_file"):
        path = config.get(name)
        if path and not Path(path).is_file():
            raise ConfigError(f"{config.settings[name].source}: there is no file {path!r}")
    _check_load(config, given)


def _check_load(config: StageConfig, given: Mapping[str, str]) -> None:
    source = {name: setting.source for name, setting in config.settings.items()}
    seed, results, gpu_metrics = config.get("load_seed"), config.get("results"), config.get("gpu_metrics")
    if seed is not None and not (seed.isascii() and seed.isdigit()):
        raise ConfigError(f"{source['load_seed']}: {seed!r} is not valid; valid: a whole number from 0")
    if gpu_metrics and urlsplit(gpu_metrics).scheme not in ("http", "https"):
        raise ConfigError(f"{source['gpu_metrics']}: {gpu_metrics!r} is no URL; valid: http[s]://host:port[/metrics]")
    if not results:
        return
    if not Path(results).is_dir():
        raise ConfigError(f"{source['results']}: there is no folder {results!r}")
    if not [*Path(results).glob(f"*{SAMPLES}"), *Path(results).glob(f"benchmarks/*{SAMPLES}")]:
        raise ConfigError(
            f"{source['results']}: {results!r} has no samples (*{SAMPLES}), nor has its benchmarks folder"
        )
    for name in ("endpoint", "context", "deploy", "reuse", "keep", "find_capacity", "baselines"):
        if name in given:
            raise ConfigError(f"{source['results']} measures nothing: it cannot go with {given[name]}")


def _check_engine(config: StageConfig) -> None:
    if not config.simulated or (config.cluster_kind == "local" and not config.endpoint):
        return
    settings = config.settings
    other = next(settings[name].source for name in ("endpoint", "context", "cluster") if settings[name].value)
    raise ConfigError(
        f"{settings['engine'].source}: engine sim needs a cluster that the run itself makes: it cannot go with {other}"
    )


def _check_registry_url(config: StageConfig) -> None:
    url, source = config.get("registry_url"), config.settings["registry_url"].source
    parts = urlsplit(url or "http://none")
    if parts.username or parts.password:
        raise ConfigError(f"{source}: put the token into VLLM_STAGE_REGISTRY_TOKEN, not into the URL")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ConfigError(f"{source}: {url!r} is no URL of a server; valid: http[s]://host[:port]")


def _check_endpoint(url: str, source: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{source}: {url!r} is no URL; valid: http[s]://host[:port], without /v1")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ConfigError(f"{source}: {url!r} must be the server's root, without /v1")
    if parts.username or parts.password:
        raise ConfigError(f"{source}: put credentials into VLLM_STAGE_API_KEY, not into the URL")
