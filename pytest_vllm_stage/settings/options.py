"""The table of settings: one row makes the command-line option, the environment variable and the ini key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLUSTERS = ("auto", "local", "kind", "kubeconfig", "in-cluster")
ENGINES = ("vllm", "sim")
PUBLISHES = ("auto", "always", "never")
KEEPS = ("never", "on-failure", "always")
LOAD_DRIVERS = ("builtin", "guidellm")
LOAD_SOURCES = ("host", "cluster")
REPORTS = ("always", "never")
#: The value of ca_file that names no file.
CLUSTER_AUTHORITIES = "cluster"


@dataclass(frozen=True)
class Option:
    """One setting of the plugin.

    Attributes:
        name: In snake case; ``run_dir`` makes ``--stage-run-dir``, ``VLLM_STAGE_RUN_DIR`` and ``vllm_stage_run_dir``.
        help: One sentence for ``--help``, the ini help and README's table.
        default: The value when it is not set; None where absence has its own meaning.
        choices: The valid values; empty when any text is valid.
        flag: It is a switch: on or off.
        number: It is a whole number from 0.
        path: It names a file or a folder.
        keywords: Values of a path option that are not paths.
        bare: The value of the option given without one; None where a value is required.
        metavar: The value's name in ``--help``.
    """

    name: str
    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    flag: bool = False
    number: bool = False
    path: bool = False
    keywords: tuple[str, ...] = ()
    bare: str | None = None
    metavar: str | None = None

    @property
    def cli(self) -> str:
        """The command-line spelling."""
        return "--stage-" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment variable."""
        return "VLLM_STAGE_" + self.name.upper()

    @property
    def ini(self) -> str:
        return "vllm_stage_" + self.name

    @property
    def dest(self) -> str:
        """The attribute on pytest's option namespace."""
        return "vllm_stage_" + self.name

    def json_schema(self) -> dict[str, Any]:
        """The value's schema in a profile, where switches are booleans and numbers are numbers."""
        kinds: dict[str, Any] = {"type": "string", "minLength": 1}
        if self.flag:
            kinds = {"type": "boolean"}
        elif self.number:
            kinds = {"type": "integer", "minimum": 0}
        elif self.choices:
            kinds = {"enum": list(self.choices)}
        return {"description": self.help, **kinds}


@dataclass(frozen=True)
class Token:
    """A bearer token, from the environment alone: other processes can read a command line.

    Attributes:
        name: In snake case; ``api_key`` is read from ``VLLM_STAGE_API_KEY``.
        help: What it is sent to.
    """

    name: str
    help: str

    @property
    def env(self) -> str:
        """The environment variable."""
        return "VLLM_STAGE_" + self.name.upper()


TOKENS = (
    Token("api_key", "the endpoints"),
    Token("registry_token", "the Model Registry"),
    Token("gpu_metrics_token", "the server at --stage-gpu-metrics"),
)

OPTIONS: tuple[Option, ...] = (
    Option(
        "cluster",
        "where the stage runs: `local` creates a one-node Kubernetes on this machine, `kind` one in Docker or Podman, "
        "with profile `kind` by default; `kubeconfig` uses the cluster named by --stage-context, `in-cluster` that of "
        "the pod in which pytest runs; `auto` is kubeconfig when a context is named, else in-cluster in a pod with a "
        "ServiceAccount's token, else local",
        default="auto",
        choices=CLUSTERS,
    ),
    Option("context", "context of the kubeconfig ($KUBECONFIG or ~/.kube/config) to use", metavar="NAME"),
    Option(
        "profile",
        "what is deployed and expected: a name in fixtures/profiles, or the path of a TOML file",
        default="local",
        metavar="NAME|FILE",
    ),
    Option("namespace", "namespace of the stage, instead of the profile's", metavar="NAME"),
    Option(
        "deploy",
        "deploy the stage on the existing cluster; without it that cluster is only read",
        default="false",
        flag=True,
    ),
    Option(
        "engine",
        "what serves in the cluster that the run creates: `vllm`, or `sim`, a stand-in without a model, whose "
        "results are labelled simulated and never published as a model's",
        default="vllm",
        choices=ENGINES,
    ),
    Option(
        "endpoint",
        "validate this OpenAI-compatible server instead of a stage (http[s]://host[:port][/v1]); what needs a "
        "cluster is skipped. ROLE=URL,ROLE=URL gives one server for each model of the profile",
        metavar="URL",
    ),
    Option("model", "with --stage-endpoint: the served model to check, when the server has several", metavar="NAME"),
    Option(
        "ca_file",
        "PEM file of the authorities that sign the endpoints' certificates; `cluster` trusts, besides the system's, "
        "those that the stage's cluster publishes: OpenShift's ingress CA, else the namespace's kube-root-ca.crt",
        path=True,
        keywords=(CLUSTER_AUTHORITIES,),
        metavar="FILE|cluster",
    ),
    Option(
        "env_file",
        "KEY=VALUE file with the stage's secrets (template: fixtures/base-secrets/env.template)",
        path=True,
        metavar="FILE",
    ),
    Option(
        "keep",
        "when to keep what this run created: `never`, `on-failure` or `always`",
        default="never",
        choices=KEEPS,
    ),
    Option(
        "reuse",
        "attach to a stage that an earlier run kept, by its run id or `latest`; deletes nothing",
        bare="latest",
        metavar="RUN-ID",
    ),
    Option(
        "publish",
        "when to publish load results to MinIO and the Model Registry: `always`, `never`, or `auto`, which does "
        "where the run deployed the stage",
        default="auto",
        choices=PUBLISHES,
    ),
    Option(
        "registry_url",
        "the Model Registry (http[s]://host[:port]), instead of the stage's service model-registry or the cluster's "
        "ModelRegistry; its token comes from the variable VLLM_STAGE_REGISTRY_TOKEN",
        metavar="URL",
    ),
    Option(
        "strict",
        "a skipped or inconclusive check fails the run, unless the profile declares it not applicable",
        default="false",
        flag=True,
    ),
    Option(
        "results",
        "judge the samples of an earlier run again (its `benchmarks` folder) by this profile, without an endpoint",
        path=True,
        metavar="DIR",
    ),
    Option(
        "full_duration",
        "load steps run for their whole duration, even where their verdict is certain earlier",
        default="false",
        flag=True,
    ),
    Option(
        "find_capacity",
        "search for the highest request rate that keeps each model's objectives, and print it next to the promised one",
        default="false",
        flag=True,
    ),
    Option(
        "disrupt",
        "run suites/resilience: change the stage while traffic runs, and judge the window around each change; `all`, "
        "or some of rollout, pod, engine, drain, readiness, publication, scale, with commas",
        metavar="LIST|all",
    ),
    Option(
        "disrupt_cluster",
        "allow --stage-disrupt on a cluster that this run did not create, by its name: the value of --stage-context or "
        "--stage-reuse, or `in-cluster`",
        metavar="NAME",
    ),
    Option(
        "load_driver",
        "what sends the load: `builtin`, or `guidellm` from the engine's environment",
        default="builtin",
        choices=LOAD_DRIVERS,
    ),
    Option(
        "load_from",
        "where the load comes from: `host`, this machine, or `cluster`, pods of the stage's cluster that share each "
        "load step (`[load] workers` of the profile) and are removed after it",
        default="host",
        choices=LOAD_SOURCES,
    ),
    Option(
        "load_seed",
        "seed of prompts and Poisson arrivals, a whole number; by default each run has its own, since prompts "
        "sent earlier may still be in the server's prefix cache",
        number=True,
        metavar="N",
    ),
    Option(
        "gpu_metrics",
        "where to read GPU memory and utilisation during a load step: a DCGM exporter's page "
        "(http://host:9400/metrics), or the root of a Prometheus that scrapes one; by default a server on this "
        "machine is read through NVML where nvidia-ml-py is installed (extra `gpu`)",
        metavar="URL",
    ),
    Option(
        "baselines",
        "compare each promised load step with the accepted earlier runs in this folder, usually "
        "`reports/baselines`; measure a slower one twice more, fail it if it stays slower, and append this run",
        path=True,
        metavar="DIR",
    ),
    Option(
        "report",
        "when the end of a run makes report.html, report.md and metrics.prom: `always`, or `never`, which saves a few "
        "seconds of a run; `python -m pytest_vllm_stage.report` makes them later",
        default="always",
        choices=REPORTS,
    ),
    Option(
        "keep_reports",
        "keep the records of the newest N runs in reports/, and remove older ones; baselines are never removed",
        number=True,
        metavar="N",
    ),
    Option("run_dir", "folder for this run's record, instead of reports/<run-id>", metavar="DIR"),
)

BY_NAME = {option.name: option for option in OPTIONS}
#: What a profile may set: it does not choose another profile, the run directory exists before a profile is read, and
#: a stage is disrupted by the command of that run alone.
PROFILE_OPTIONS = tuple(
    option for option in OPTIONS if option.name not in ("profile", "run_dir", "disrupt", "disrupt_cluster")
)
