"""Profiles: what is expected of a stage that its manifests cannot say, as TOML under ``fixtures/profiles/``.

The classes here are the schema, the parsed profile, and the source of docs/profiles.md and of
fixtures/profiles/profile.schema.json, which editors complete from; see `settings.profile_schema`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import read_text
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.suggestions import describe_unknown
from pytest_vllm_stage.settings.load_table import LoadTable
from pytest_vllm_stage.settings.options import PROFILE_OPTIONS
from pytest_vllm_stage.settings.resilience_table import ResilienceTable
from pytest_vllm_stage.settings.slo_tables import RegressionTable, SloTable
from pytest_vllm_stage.settings.tables import (
    OptionalText,
    Positive,
    PositiveCount,
    Table,
    Text,
    describe_problems,
    expect,
    one_of,
    refuse,
    require_table,
    show,
)
from pytest_vllm_stage.settings.urls import ENDPOINT_ROLE

#: Capabilities of a model or its server that checks need, and that a profile may declare missing.
CAPABILITIES = {
    "auto_tools": "Calling a tool on the model's own decision (`tool_choice` `auto`).",
    "chat": "Chat completions: the model has a chat template.",
    "content": "Answers whose first tokens are the answer: the model does not reason before it.",
    "continue_final_message": "Continuing an answer that the request began.",
    "logprobs": "Log probabilities of the answer's tokens.",
    "lossless_tokenizer": "A text is the same after it was tokenized and detokenized.",
    "metrics": "vLLM's metrics at `/metrics`.",
    "prompt_logprobs": "Log probabilities of the prompt's tokens.",
    "structured_outputs": "Answers constrained to a schema, a pattern or a choice.",
    "token_ids": "Token ids in requests and answers.",
    "tools": "Calling the tool that a request names.",
}
#: Texts by which a model is made to call a tool, for the parsers that read them; see `ModelProfile.tool_format`.
TOOL_FORMATS = ("hermes",)
#: The longest load step of a simulated engine.
SIMULATED_STEP_S = 2.0
#: At low rates it is as long as so many requests take, the fewest of which a median can pass.
SIMULATED_REQUESTS = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _matching(pattern: re.Pattern[str], what: str) -> tuple[Any, ...]:
    """The metadata of a string type: for the JSON Schema, and for the message."""
    return Field(pattern=f"^{pattern.pattern}$"), expect(what)


def _find_overlay(text: Any, info: ValidationInfo) -> Path:
    if not isinstance(text, str) or not text:
        refuse(f"expected a string that is not empty, got {show(text)}")
    places = [base / text for base in (fixtures_dir() / "overlays", _folder(info))]
    found = next((place for place in places if _is_file(place / "kustomization.yaml")), None)
    if found is None:
        refuse(f"there is no kustomization in fixtures/overlays/{text} nor next to the profile")
    return found.resolve()


def _find_reference(text: Any, info: ValidationInfo) -> Path | None:
    if text == "":
        return None
    if not isinstance(text, str):
        refuse(f"expected a string, got {show(text)}")
    known = fixtures_dir() / "prompts" / "references" / f"{text}.json"
    path = known if not text.endswith(".json") else _folder(info) / text
    if not _is_file(path):
        refuse(f"there is no file {path.name} in {path.parent}")
    return path.resolve()


def _folder(info: ValidationInfo) -> Path:
    """The profile's own folder, which its relative paths start from."""
    return _source_of(info).parent


def _source_of(info: ValidationInfo) -> Path:
    source: Path = (info.context or {})["source"]
    return source


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False  # a name that is too long


def _check_capabilities(table: Any) -> Any:
    for key in require_table(table):
        if key not in CAPABILITIES:
            refuse(describe_unknown(key, CAPABILITIES, "capability"), key)
    return table


def _table_schema(properties: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"type": "object", "properties": properties, "additionalProperties": False})


def _parse_options(table: Any) -> dict[str, str | bool]:
    return {key: _parse_option(key, value) for key, value in require_table(table).items()}


def _parse_option(key: str, value: Any) -> str | bool:
    """An option's value, in the type that TOML has for it."""
    option = next((option for option in PROFILE_OPTIONS if option.name == key), None)
    if option is None:
        refuse(describe_unknown(key, [option.name for option in PROFILE_OPTIONS], "option"), key)
    if option.flag:
        right, what = isinstance(value, bool), "true or false"
    elif option.number:
        right, what = isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number from 0"
    else:
        right, what = isinstance(value, str) and value != "", "a string that is not empty"
    if not right:
        refuse(f"expected {what}, got {show(value)}", key)
    if option.choices and value not in option.choices:
        refuse(describe_unknown(value, option.choices, f"value {show(value)}"), key)
    return value if isinstance(value, bool) else str(value)


class ModelProfile(Table):
    """One target model; the table's name is its role, ``quantized`` or ``full``, which test ids use."""

    inference_service: Text
    """Name of the InferenceService, which is the served model name."""
    description: OptionalText = ""
    """What the model really is, for reports."""
    rate_limit_requests_per_s: Positive | None = None
    """The operational promise: requests per second of one instance."""
    cost_per_hour_usd: Positive | None = None
    """Price of the model's node."""
    max_num_seqs: PositiveCount | None = None
    """Requests that the engine runs at once (`--max-num-seqs`), for an endpoint, where no manifest says it."""
    dummy_weights: bool = False
    """Served with random weights (`--load-format=dummy`): labelled so in every report, and never published."""
    token_account: Text | None = None
    """ServiceAccount whose token is sent to the model; default for a protected InferenceService: `NAME-sa`."""
    token_audience: Text | None = None
    """Audience of that token; by default the API server's own, as proxies expect that review it there."""
    load: LoadTable = LoadTable()
    """Overrides the profile's `load` table, key by key."""
    slo: SloTable = SloTable()
    """Overrides the profile's `slo` table, key by key."""
    reference: Annotated[Path | None, BeforeValidator(_find_reference), WithJsonSchema({"type": "string"})] = None
    """Recorded answers and scores: a name in `fixtures/prompts/references`, or the path of a `.json` file."""
    kernels: OptionalText = ""
    """Which kernels compute the model, as a recording of its reference names them; the local stage knows its own."""
    tool_format: Annotated[
        str | None, one_of(TOOL_FORMATS, "tool format"), WithJsonSchema({"enum": list(TOOL_FORMATS)})
    ] = None
    """For a model too small to call a tool by itself: the text format of a call that it is made to write."""
    cannot: Annotated[
        dict[str, Text],
        BeforeValidator(_check_capabilities),
        _table_schema(
            {key: {"type": "string", "minLength": 1, "description": text} for key, text in CAPABILITIES.items()}
        ),
    ] = Field(default_factory=dict)
    """Capabilities that the model or its server lacks, with the reason; the checks that need one are skipped."""

    _role: str = PrivateAttr("")

    @property
    def role(self) -> str:
        """The name of the model's table."""
        return self._role


class RegistryNames(Table):
    """Under which names a model's results are filed; an empty one is taken from the InferenceService's label."""

    model: OptionalText = ""
    """The registered model."""
    version: OptionalText = ""
    """Its version."""


class RegistryProfile(Table):
    """Where results go."""

    bucket: Text = "test-results"
    """The bucket of results."""
    models: dict[str, RegistryNames] = Field(default_factory=dict)
    """Per role: the names in the Model Registry."""


class Waits(Table):
    """Seconds that each wait of a deployment may take."""

    namespace_s: Positive = 30.0
    """Until the namespace is active."""
    persistent_volume_claim_s: Positive = 60.0
    """Until a PersistentVolumeClaim is bound."""
    minio_s: Positive = 120.0
    """Until MinIO is available."""
    model_download_s: Positive = 900.0
    """Until a model's download Job is complete."""
    inference_service_s: Positive = 600.0
    """Until an InferenceService is ready."""
    first_answer_s: Positive = 120.0
    """Until a ready model answers its first request."""
    teardown_s: Positive = 180.0
    """Until the namespace is gone."""


#: Wait name to seconds, where the profile sets none.
DEFAULT_WAITS_S: dict[str, float] = Waits().model_dump()


def _check_roles(models: dict[str, ModelProfile]) -> dict[str, ModelProfile]:
    if not models:
        refuse("at least one model is required, as a table [models.<role>]")
    for role in models:
        if not _NAME.fullmatch(role):
            refuse("expected a role of letters, digits, '.', '_' and '-'", role)
        if role == ENDPOINT_ROLE:
            refuse("this role is reserved for the server of --stage-endpoint", role)
    return models


class Profile(Table):
    """A profile: the stage, its models, and what they promise."""

    name: Annotated[str, *_matching(_NAME, "a name of letters, digits, '.', '_' and '-'")]
    """The profile's name, which is its file's."""
    description: OptionalText = ""
    """One sentence."""
    overlay: Annotated[Path, BeforeValidator(_find_overlay), WithJsonSchema({"type": "string", "minLength": 1})]
    """The kustomize overlay that is deployed or expected: a folder in `fixtures/overlays`, or next to the profile."""
    namespace: Annotated[str, *_matching(_NAMESPACE, "a namespace of lower-case letters, digits and '-', at most 63")]
    """Namespace of the stage."""
    models: Annotated[
        dict[str, ModelProfile],
        Field(json_schema_extra={"minProperties": 1}),
        BeforeValidator(require_table),
        AfterValidator(_check_roles),
    ]
    """The target models by role, in the order in which they are tested."""
    waits: Waits = Waits()
    """Seconds that each wait of a deployment may take."""
    options: Annotated[
        dict[str, str | bool],
        BeforeValidator(_parse_options),
        _table_schema({option.name: option.json_schema() for option in PROFILE_OPTIONS}),
    ] = Field(default_factory=dict)
    """Plugin options that the profile sets; command line, environment and ini file override them."""
    load: LoadTable = LoadTable()
    """The load steps of all models; without this table no load is planned."""
    slo: SloTable = SloTable()
    """The objectives of all models."""
    regression: RegressionTable = RegressionTable()
    """How a run is compared with earlier ones (`--stage-baselines`)."""
    registry: RegistryProfile = RegistryProfile()
    """Where results go."""
    resilience: ResilienceTable = ResilienceTable()
    """The traffic and the objectives while the stage is disrupted (`--stage-disrupt`)."""

    _source: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _check_tables_together(self, info: ValidationInfo) -> Profile:
        self._source = _source_of(info)
        for role, model in self.models.items():
            model._role = role
            for key in self.load.override(model.load).missing_keys():
                refuse("required key is missing, here and in load", "models", role, "load", key)
        for role in self.registry.models:
            if role not in self.models:
                refuse(describe_unknown(role, self.models, "role"), "registry", "models", role)
        for role in self.resilience.roles:
            if role not in self.models:
                refuse(describe_unknown(role, self.models, "role"), "resilience", "roles")
        return self

    @property
    def source(self) -> Path:
        """The file that the profile was read from."""
        return self._source

    @property
    def waits_s(self) -> Mapping[str, float]:
        """Wait name to seconds."""
        return self.waits.model_dump()

    def facts(self) -> dict[str, Any]:
        """What makes two stages comparable, as flat fields: used to refuse reuse under another profile."""
        keys = ("inference_service", "description", "rate_limit_requests_per_s", "cost_per_hour_usd", "dummy_weights")
        models = {f"models.{role}.{key}": getattr(model, key) for role, model in self.models.items() for key in keys}
        return {"name": self.name, "overlay": self.overlay.name, "namespace": self.namespace, **models}

    def find_model(self, role: str, served_name: str) -> ModelProfile | None:
        """The model of a role, or of a server that serves it under its name; None where the profile has neither."""
        named = (model for model in self.models.values() if model.inference_service == served_name)
        return self.models.get(role) or next(named, None)

    def with_simulated_models(self, overlay: Path) -> Profile:
        """The profile with another overlay, short load steps, and descriptions that do not claim results of the models.

        How fast a simulated engine answers is declared: longer steps would find out no more.
        """
        models = {
            role: model.model_copy(
                update={
                    "description": f"simulated, in the place of: {model.description or model.inference_service}",
                    "load": model.load.shorten(SIMULATED_STEP_S, SIMULATED_REQUESTS),
                }
            )
            for role, model in self.models.items()
        }
        load = self.load.shorten(SIMULATED_STEP_S, SIMULATED_REQUESTS)
        return self.model_copy(update={"overlay": overlay, "models": models, "load": load})


def load_profile(name: str, rootdir: Path) -> Profile:
    """Read a profile by name (in ``fixtures/profiles/``) or by path (with ``.toml``; relative to ``rootdir``).

    Raises:
        ConfigError: naming the file, the key and the valid keys or values.
    """
    folder = fixtures_dir() / "profiles"
    path = rootdir / name if name.endswith(".toml") else folder / f"{name}.toml"
    if not _is_file(path):
        known = sorted(file.stem for file in folder.glob("*.toml"))
        problem = describe_unknown(name, known, f"profile {name!r}")
        raise ConfigError(f"{problem}, or the path of a .toml file")
    text = read_text(path, "profile")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"profile {path}: not valid TOML: {error}") from None
    return parse_profile(data, path)


def parse_profile(data: Mapping[str, Any], path: Path) -> Profile:
    """Check a profile's data key by key; see `load_profile`."""
    try:
        return Profile.model_validate(data, context={"source": path})
    except ValidationError as error:
        problems = describe_problems(error)
    where = f"profile {path.name}"
    if len(problems) == 1:
        raise ConfigError(f"{where}: {problems[0]}")
    raise ConfigError("\n  ".join([f"{where}: {len(problems)} problems:", *problems]))
