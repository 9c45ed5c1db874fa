"""The settings of a run: one typed accessor each, every value with its source; `settings.resolver` finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.settings import pod
from pytest_vllm_stage.settings.disruptions import parse_disruptions
from pytest_vllm_stage.settings.options import BY_NAME, CLUSTER_AUTHORITIES
from pytest_vllm_stage.settings.urls import split_endpoints

if TYPE_CHECKING:
    from pytest_vllm_stage.settings.profile import Profile

#: Suffix of files with a load step's samples; `measurement.samples_file` writes them.
SAMPLES = ".samples.jsonl.gz"
#: Shown with every result of the simulated engine.
SIMULATED_NOTICE = "a stand-in for vLLM answered: nothing here is a result of a model"
#: Shown with every result of a model that is served with random weights.
DUMMY_WEIGHTS_NOTICE = "random weights have the model's shape: speed and memory are a result, answers are not"


@dataclass(frozen=True)
class Setting:
    """A resolved value and its source: an option, a variable, an ini key, ``profile`` or ``default``."""

    value: str | bool | None
    source: str

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{value} ({self.source})"


@dataclass(frozen=True)
class TokenSetting:
    """A resolved token, which shows its source and never its value."""

    value: Secret
    source: str

    def __str__(self) -> str:
        return f"{self.value} ({self.source})"


@dataclass(frozen=True)
class StageConfig:
    """The settings of a run.

    Attributes:
        settings: Option name to its value and source.
        profile: The parsed profile; with the simulated engine, its overlay is the simulated one.
        tokens: Token name to its value and source, for those that are set.
    """

    settings: Mapping[str, Setting]
    profile: Profile
    tokens: Mapping[str, TokenSetting] = field(default_factory=dict)

    def get(self, name: str) -> str | None:
        """The value of an option other than a flag; None when it is unset."""
        value = self.settings[name].value
        if isinstance(value, bool):
            raise TypeError(f"{name} is a flag: ask flag({name!r})")
        return value

    def text(self, name: str) -> str:
        """The value of an option that always has one."""
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def flag(self, name: str) -> bool:
        """Whether a flag is set."""
        return self.settings[name].value is True

    def path(self, name: str) -> Path | None:
        """The file or folder that an option names."""
        value = self.get(name)
        return Path(value) if value else None

    def source(self, name: str) -> str:
        """Where a setting comes from, for messages."""
        return self.settings[name].source

    def is_given(self, name: str, *, typed: bool = False) -> bool:
        """Whether the user set it, on the command line if ``typed``; a flag that was switched off does not count."""
        setting = self.settings[name]
        chosen = setting.source == BY_NAME[name].cli if typed else setting.source not in ("default", "profile")
        return chosen and setting.value is not False

    @property
    def cluster_kind(self) -> str:
        """``local``, ``kind``, ``kubeconfig`` or ``in-cluster``.

        ``auto`` is the cluster of a named context, else that of the pod, else a local one. The simulated engine and a
        stage that is reused do not depend on the pod.
        """
        if self.text("cluster") != "auto":
            return self.text("cluster")
        if self.context:
            return "kubeconfig"
        return "in-cluster" if pod.runs_in_pod() and not self.simulated and not self.reuse else "local"

    @property
    def creates_cluster(self) -> bool:
        """The run creates its cluster on this machine, unless it reuses a stage."""
        return self.cluster_kind in ("local", "kind")

    @property
    def context(self) -> str | None:
        """The context of the kubeconfig that names the cluster."""
        return self.get("context")

    @property
    def deploys(self) -> bool:
        """The run deploys the stage itself."""
        without = self.endpoint or self.results
        return not without and (self.creates_cluster or self.flag("deploy"))

    @property
    def engine(self) -> str:
        """``vllm`` or ``sim``."""
        return self.text("engine")

    @property
    def simulated(self) -> bool:
        """The run deploys or attaches to the simulated engine."""
        return self.engine == "sim"

    @property
    def endpoint(self) -> str | None:
        """The roots of the servers that are validated without a cluster, as text; see `endpoints`."""
        return self.get("endpoint")

    @property
    def endpoints(self) -> Mapping[str, str]:
        """Role to the root of its server, without ``/v1``; a plain server has the role ``endpoint``."""
        return split_endpoints(self.endpoint) if self.endpoint else {}

    @property
    def model(self) -> str | None:
        """The model to check at `endpoint`."""
        return self.get("model")

    @property
    def ca_file(self) -> str | None:
        """The PEM file of trusted authorities; None for the system's, or where `trusts_cluster`."""
        return None if self.trusts_cluster else self.get("ca_file")

    @property
    def trusts_cluster(self) -> bool:
        """The authorities that the cluster publishes are trusted; `cluster.authorities` collects them in a file."""
        return self.get("ca_file") == CLUSTER_AUTHORITIES

    @property
    def env_file(self) -> Path | None:
        """The file with the stage's secrets."""
        return self.path("env_file")

    @property
    def keep(self) -> str:
        """``never``, ``on-failure`` or ``always``."""
        return self.text("keep")

    @property
    def reuse(self) -> str | None:
        """The run id of the kept stage to attach to, or ``latest``."""
        return self.get("reuse")

    @property
    def strict(self) -> bool:
        """Skipped and inconclusive checks fail the run."""
        return self.flag("strict")

    @property
    def results(self) -> Path | None:
        """The folder of an earlier run's samples, which are judged again."""
        return self.path("results")

    @property
    def full_duration(self) -> bool:
        """Load steps run for their whole duration."""
        return self.flag("full_duration")

    @property
    def find_capacity(self) -> bool:
        """The run searches the capacity of each model."""
        return self.flag("find_capacity")

    @property
    def disruptions(self) -> tuple[str, ...]:
        """The disruptions of --stage-disrupt, in the order in which they are carried out; usually none."""
        given = self.get("disrupt")
        return parse_disruptions(given, self.source("disrupt")) if given else ()

    @property
    def load_driver(self) -> str:
        """``builtin`` or ``guidellm``."""
        return self.text("load_driver")

    @property
    def load_from(self) -> str:
        """``host`` or ``cluster``."""
        return self.text("load_from")

    @property
    def load_seed(self) -> int | None:
        """The seed of prompts and arrivals; None for one of the run's own."""
        seed = self.get("load_seed")
        return int(seed) if seed is not None else None

    @property
    def gpu_metrics(self) -> str | None:
        """The URL of a DCGM exporter's page, or of a Prometheus."""
        return self.get("gpu_metrics")

    @property
    def baselines(self) -> Path | None:
        """The folder of earlier runs to compare with."""
        return self.path("baselines")

    @property
    def reports(self) -> bool:
        """The end of the run makes its reports."""
        return self.text("report") == "always"

    @property
    def keep_reports(self) -> int | None:
        """How many records stay in ``reports/``; None keeps all."""
        keep = self.get("keep_reports")
        return int(keep) if keep is not None else None

    @property
    def registry_url(self) -> str | None:
        """The Model Registry, instead of the stage's own."""
        return self.get("registry_url")

    @property
    def publishes(self) -> bool:
        """The run publishes what it measured: always, or because it deployed the stage."""
        return self.text("publish") == "always" or (self.text("publish") == "auto" and self.deploys)

    @property
    def namespace(self) -> str:
        return self.get("namespace") or self.profile.namespace

    @property
    def roles(self) -> tuple[str, ...]:
        """The target models by role; one called ``endpoint`` when a plain server is validated."""
        return tuple(self.endpoints or self.profile.models)

    @property
    def api_key(self) -> Secret | None:
        """The bearer token of the endpoints."""
        return self._token("api_key")

    @property
    def registry_token(self) -> Secret | None:
        """The bearer token of the Model Registry."""
        return self._token("registry_token")

    @property
    def gpu_metrics_token(self) -> Secret | None:
        """The bearer token of the server at `gpu_metrics`."""
        return self._token("gpu_metrics_token")

    def _token(self, name: str) -> Secret | None:
        return self.tokens[name].value if name in self.tokens else None

    def to_json(self) -> dict[str, Any]:
        """The settings with their sources and the profile's facts, as plain data for the record of the run."""
        tokens = {name: {"value": str(token.value), "source": token.source} for name, token in self.tokens.items()}
        return {
            "settings": {name: vars(setting) for name, setting in self.settings.items()} | tokens,
            "cluster_kind": self.cluster_kind,
            "profile": self.profile.facts() | {"namespace": self.namespace},
        }

    def header(self) -> str:
        """One line for pytest's header: what was chosen, and by what."""
        chosen: list[tuple[str, Setting | TokenSetting]] = [("profile", self.settings["profile"])]
        chosen += [(name, s) for name, s in self.settings.items() if s.source != "default" and name != "profile"]
        if self.cluster_kind == "in-cluster" and not (self.is_given("cluster") or self.endpoint or self.results):
            chosen.append(("cluster", Setting("in-cluster", "this pod has a ServiceAccount's token")))
        line = "vllm-stage: " + ", ".join(f"{name} {setting}" for name, setting in (*chosen, *self.tokens.items()))
        return f"{line}\nvllm-stage: SIMULATED: {SIMULATED_NOTICE}" if self.simulated else line
