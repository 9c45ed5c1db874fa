"""The resolver: order of the sources, and every refusal names the option, its source and the valid values."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.benchmark import plans
from pytest_vllm_stage.benchmark.undecidable import find_undecidable
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.settings import pod
from pytest_vllm_stage.settings.config import Setting, StageConfig
from pytest_vllm_stage.settings.load_table import LoadTable
from pytest_vllm_stage.settings.options import OPTIONS, TOKENS, Option, Token
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.settings.urls import normalise_endpoint

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "from-profile"
[models.full]
inference_service = "one"
[options]
keep = "on-failure"
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    path = tmp_path / "small.toml"
    path.write_text(PROFILE)
    return str(path)


@pytest.fixture
def pod_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files and variables of a pod with a ServiceAccount."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text("t")
    (folder / "namespace").write_text("of-the-pod")
    monkeypatch.setattr(pod, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    return folder


def settings(
    profile: str,
    cli: dict[str, str] | None = None,
    env: dict[str, str] | None = None,
    ini: dict[str, str] | None = None,
) -> StageConfig:
    cli = {"profile": profile, **(cli or {})}
    return resolve_settings(cli.get, env or {}, (ini or {}).get, Path())


def test_each_source_beats_the_next(profile: str) -> None:
    cli, env, ini = {"keep": "never"}, {"VLLM_STAGE_KEEP": "always"}, {"keep": "on-failure"}
    seen = [
        settings(profile, cli, env, ini).settings["keep"],
        settings(profile, None, env, ini).settings["keep"],
        settings(profile, None, None, ini).settings["keep"],
        settings(profile).settings["keep"],
        settings(profile).settings["cluster"],
    ]
    assert [(s.value, s.source) for s in seen] == [
        ("never", "--stage-keep"),
        ("always", "VLLM_STAGE_KEEP"),
        ("on-failure", "ini vllm_stage_keep"),
        ("on-failure", "profile"),
        ("auto", "default"),
    ]


def test_an_empty_variable_is_unset(profile: str) -> None:
    assert settings(profile, env={"VLLM_STAGE_CONTEXT": ""}).get("context") is None


def choices_of(option: Option) -> tuple[str, ...]:
    return ("true", "1", "yes", "on", "false", "0", "no", "off") if option.flag else option.choices


@pytest.mark.parametrize("option", [option for option in OPTIONS if choices_of(option)], ids=lambda option: option.name)
@pytest.mark.parametrize("layer", ["cli", "env", "ini"])
def test_a_bad_value_is_refused_with_source_and_valid_values(profile: str, option: Option, layer: str) -> None:
    key = option.env if layer == "env" else option.name
    with pytest.raises(ConfigError) as caught:
        settings(profile, **{layer: {key: "bogus"}})
    source = {"cli": option.cli, "env": option.env, "ini": f"ini {option.ini}"}[layer]
    assert str(caught.value) == f"{source}: unknown value 'bogus'; valid: {', '.join(choices_of(option))}"


def test_a_misspelt_value_is_refused_with_a_suggestion(profile: str) -> None:
    with pytest.raises(ConfigError, match=r"--stage-keep: unknown value 'allways' \(did you mean always\?\); valid: "):
        settings(profile, {"keep": "allways"})


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("ON", True), ("no", False), ("0", False)])
def test_a_flag_is_a_boolean_from_every_source(profile: str, text: str, value: bool) -> None:
    for config in (
        settings(profile, {"strict": text}),
        settings(profile, env={"VLLM_STAGE_STRICT": text}),
        settings(profile, ini={"strict": text}),
    ):
        assert (config.strict, config.flag("strict"), config.settings["strict"].value) == (value, value, value)
    assert settings(profile).settings["strict"] == Setting(False, "default")


def test_a_flag_of_the_profile_is_a_boolean(profile: str, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(PROFILE + "find_capacity = true\nload_seed = 7\n")
    config = settings(profile)
    assert (config.find_capacity, config.load_seed, config.source("load_seed")) == (True, 7, "profile")
    assert not settings(profile, {"find_capacity": "false"}).find_capacity


def test_a_flag_cannot_be_read_as_text(profile: str) -> None:
    with pytest.raises(TypeError, match="strict is a flag"):
        settings(profile).get("strict")


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "²", "9" * 5000])
def test_a_seed_is_a_whole_number(profile: str, seed: str) -> None:
    with pytest.raises(ConfigError, match="--stage-load-seed: expected a whole number from 0, got "):
        settings(profile, {"load_seed": seed})


def test_a_relative_path_starts_where_its_source_lies(profile: str, tmp_path: Path) -> None:
    cli = {"profile": profile}
    assert resolve_settings({**cli, "baselines": "b"}.get, {}, lambda _name: None, tmp_path).baselines == Path("b")
    assert resolve_settings(cli.get, {}, {"baselines": "b"}.get, tmp_path).baselines == tmp_path / "b"
    assert (
        resolve_settings({**cli, "baselines": "~/b"}.get, {}, lambda _name: None, tmp_path).baselines
        == Path.home() / "b"
    )


@pytest.mark.parametrize(
    ("cli", "named"),
    [
        ({"cluster": "local", "context": "c"}, ["--stage-context", "--stage-cluster"]),
        ({"cluster": "kubeconfig"}, ["--stage-cluster is kubeconfig", "--stage-context"]),
        ({"deploy": "true"}, ["--stage-deploy deploys on an existing cluster", "name it with --stage-context"]),
        ({"reuse": "latest", "keep": "always"}, ["--stage-reuse", "--stage-keep"]),
        ({"reuse": "latest", "deploy": "true"}, ["--stage-reuse", "--stage-deploy"]),
        ({"reuse": "latest", "context": "c"}, ["--stage-reuse", "--stage-context"]),
        ({"reuse": "latest", "env_file": "e"}, ["--stage-reuse", "--stage-env-file"]),
        ({"cluster": "in-cluster"}, ["--stage-cluster is in-cluster", "got no /var/run/secrets/"]),
        ({"cluster": "in-cluster", "context": "c"}, ["--stage-context", "--stage-cluster asks for the pod's own"]),
        ({"context": "c", "keep": "always"}, ["--stage-context is only read without --stage-deploy", "--stage-keep"]),
        ({"context": "c", "env_file": "e"}, ["--stage-context is only read", "--stage-env-file"]),
        ({"endpoint": "http://h", "cluster": "local"}, ["--stage-endpoint", "--stage-cluster"]),
        ({"endpoint": "http://h", "context": "c"}, ["--stage-endpoint", "--stage-context"]),
        ({"endpoint": "http://h", "deploy": "true"}, ["--stage-endpoint", "--stage-deploy"]),
        ({"endpoint": "http://h", "reuse": "latest"}, ["--stage-endpoint", "--stage-reuse"]),
        ({"endpoint": "http://h", "keep": "always"}, ["--stage-endpoint", "--stage-keep"]),
        ({"endpoint": "http://h", "publish": "always"}, ["--stage-endpoint", "--stage-publish"]),
        ({"endpoint": "http://h", "env_file": "e"}, ["--stage-endpoint", "--stage-env-file"]),
        ({"endpoint": "http://h", "registry_url": "http://r"}, ["--stage-endpoint", "--stage-registry-url"]),
        ({"model": "m"}, ["--stage-model", "--stage-endpoint"]),
        ({"engine": "sim", "endpoint": "http://h"}, ["--stage-engine", "--stage-endpoint"]),
        ({"engine": "vllm", "endpoint": "http://h"}, ["--stage-engine", "--stage-endpoint"]),
        ({"engine": "sim", "context": "c"}, ["--stage-engine", "the run itself creates", "--stage-context"]),
        ({"engine": "sim", "context": "c", "deploy": "true"}, ["--stage-engine", "--stage-context"]),
        ({"engine": "sim", "cluster": "kubeconfig", "reuse": "r"}, ["--stage-engine", "--stage-cluster"]),
        ({"engine": "sim", "publish": "always"}, ["--stage-engine sim has results that are never", "--stage-publish"]),
        ({"engine": "sim"}, ["--stage-engine", "profile small cannot be simulated", "overlay-sim"]),
        ({"ca_file": "no-such-file"}, ["--stage-ca-file: there is no file", "no-such-file"]),
        ({"env_file": "no-such-file"}, ["--stage-env-file: there is no file", "no-such-file"]),
        ({"results": "no-such-folder"}, ["--stage-results: there is no folder", "no-such-folder"]),
        ({"namespace": "My_Stage"}, ["--stage-namespace: 'My_Stage' is not a namespace; valid: lower-case letters"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_contradictions_are_refused_by_name(profile: str, cli: dict[str, str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(profile, cli)
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize(
    "other",
    [
        {"endpoint": "http://h"},
        {"context": "c"},
        {"cluster": "local"},
        {"deploy": "true"},
        {"reuse": "latest"},
        {"keep": "always"},
        {"find_capacity": "true"},
        {"baselines": "b"},
        {"load_driver": "guidellm"},
        {"load_from": "cluster"},
        {"load_seed": "1"},
        {"full_duration": "true"},
        {"gpu_metrics": "http://h:9400"},
        {"publish": "always"},
        {"registry_url": "http://r"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_saved_samples_are_judged_alone(profile: str, tmp_path: Path, other: dict[str, str]) -> None:
    (tmp_path / "full-rate-1.samples.jsonl.gz").touch()
    assert settings(profile, {"results": str(tmp_path)}).results == tmp_path
    option = "--stage-" + next(iter(other)).replace("_", "-")
    with pytest.raises(ConfigError, match=rf"--stage-results .*: it cannot go with {option}"):
        settings(profile, {"results": str(tmp_path), **other})


@pytest.mark.parametrize("other", [{"endpoint": "http://h"}, {"load_driver": "guidellm"}])
def test_load_from_the_cluster_needs_a_cluster_and_the_own_driver(profile: str, other: dict[str, str]) -> None:
    assert settings(profile, {"load_from": "cluster"}).load_from == "cluster"
    option = "--stage-" + next(iter(other)).replace("_", "-")
    with pytest.raises(ConfigError, match=rf"--stage-load-from .*: it cannot go with {option}"):
        settings(profile, {"load_from": "cluster", **other})


def test_what_has_no_effect_may_stay_in_the_environment_and_in_the_ini_file(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.touch()
    env, ini = {"VLLM_STAGE_ENV_FILE": str(path), "VLLM_STAGE_DEPLOY": "0"}, {"registry_url": "http://r"}
    assert settings(profile, {"endpoint": "http://h"}, env, ini).endpoint == "http://h"


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h", "http://h"),
        ("http://h/", "http://h"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://gateway/team/qwen/v1", "https://gateway/team/qwen"),
        ("https://gateway/team/qwen", "https://gateway/team/qwen"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_an_endpoint_is_the_servers_root_with_or_without_v1(profile: str, url: str, root: str) -> None:
    config = settings(profile, {"endpoint": url})
    assert config.endpoint == root
    assert f"endpoint {root} (--stage-endpoint)" in config.header()


@pytest.mark.parametrize(
    "url",
    [
        "h:8000",
        "ftp://h",
        "http://",
        "http://[::1",
        "http://h:99999",
        "http://h:x",
        "http://h:0",
        "http://a b",
        "http://h\n",
    ],
)
def test_an_endpoint_that_is_not_a_url_is_refused(profile: str, url: str) -> None:
    with pytest.raises(ConfigError, match=r"--stage-endpoint: .* is not the URL of a server; valid: http\[s\]://host"):
        settings(profile, {"endpoint": url})


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/models", "/health", "/metrics", "/v1/completions/"])
def test_the_url_of_one_call_is_not_an_endpoint(profile: str, route: str) -> None:
    with pytest.raises(ConfigError, match="is the URL of one call, not of a server; valid: "):
        settings(profile, {"endpoint": f"http://h:8000{route}"})


@pytest.mark.parametrize("option", ["endpoint", "registry_url", "gpu_metrics"])
@pytest.mark.parametrize("url", ["http://u:sesame@h", "u:sesame@h", "http://h/?key=sesame", "http://h#sesame"])
def test_a_credential_in_a_url_is_refused_and_not_repeated(profile: str, option: str, url: str) -> None:
    with pytest.raises(ConfigError, match="put credentials into VLLM_STAGE_") as caught:
        settings(profile, {option: url})
    assert "sesame" not in str(caught.value)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=200)
@given(url=st.text(max_size=20) | st.from_regex(r"https?://[\[\]a-z0-9:.@/?#%]*"))
def test_any_text_is_an_endpoint_or_one_error(url: str) -> None:
    with contextlib.suppress(ConfigError):
        assert normalise_endpoint(url, "--stage-endpoint").startswith(("http://", "https://"))


def test_tokens_come_from_the_environment_with_their_source_and_are_never_shown(profile: str) -> None:
    env = {token.env: f"sesame-{token.name}\n" for token in TOKENS}
    config = settings(profile, env=env)
    assert [config.api_key, config.registry_token, config.gpu_metrics_token] == [
        Secret("sesame-api_key"),
        Secret("sesame-registry_token"),
        Secret("sesame-gpu_metrics_token"),
    ]
    assert "api_key *** (VLLM_STAGE_API_KEY)" in config.header()
    assert config.to_json()["settings"]["api_key"] == {"value": "***", "source": "VLLM_STAGE_API_KEY"}
    assert "sesame" not in config.header() + repr(config) + json.dumps(config.to_json(), default=str)
    assert (settings(profile).api_key, settings(profile).tokens) == (None, {})


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token.name)
def test_a_token_that_a_header_cannot_carry_is_refused_and_not_shown(profile: str, token: Token) -> None:
    for value in ("sesame two", "sesame\u00a0x", "sesame\nX-Evil: 1", "sesamé"):
        with pytest.raises(ConfigError, match=f"{token.env}: contains a character that an HTTP header") as caught:
            settings(profile, env={token.env: value})
        assert "sesam" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "expected BEGIN CERTIFICATE"),
        (b"hello\n", "expected BEGIN CERTIFICATE"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "expected BEGIN CERTIFICATE"),
        ("\ufeff-----BEGIN CERTIFICATE-----\n".encode(), "byte order mark: save it as UTF-8 without one"),
        ("-----BEGIN CERTIFICATE-----\n".encode("utf-16-le"), "looks like UTF-16 LE"),
        (b"\x30\x82\x05\xe0\x30\x82", "not valid UTF-8"),
    ],
)
def test_a_ca_file_without_certificates_is_refused(profile: str, tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        settings(profile, {"ca_file": str(path)})
    assert str(caught.value).startswith("--stage-ca-file: ")


@pytest.mark.parametrize(
    ("cli", "kind", "deploys"),
    [
        ({}, "local", True),
        ({"context": "prod"}, "kubeconfig", False),
        ({"context": "prod", "deploy": "true"}, "kubeconfig", True),
        ({"endpoint": "http://h:1"}, "local", False),
    ],
)
def test_existing_cluster_is_read_only_by_default(profile: str, cli: dict[str, str], kind: str, deploys: bool) -> None:
    config = settings(profile, cli)
    assert (config.cluster_kind, config.deploys) == (kind, deploys)


def test_kind_creates_a_cluster_and_deploys_its_own_profile_by_default(profile: str) -> None:
    config = settings(profile, {"cluster": "kind"})
    assert (config.cluster_kind, config.deploys, config.profile.name) == ("kind", True, Path(profile).stem)
    config = resolve_settings({"cluster": "kind"}.get, {}, lambda _: None, Path.cwd())
    assert (config.profile.name, config.profile.overlay.name) == ("kind", "kind")
    for other, why in (("context", "names a cluster, but --stage-cluster asks for one of kind"), ("engine", "sim")):
        with pytest.raises(ConfigError, match=why):
            settings(profile, {"cluster": "kind", other: "sim"})


@pytest.mark.parametrize(
    ("cli", "kind", "deploys"),
    [
        ({"keep": "never"}, "in-cluster", False),
        ({"deploy": "true"}, "in-cluster", True),
        ({"cluster": "in-cluster", "keep": "never"}, "in-cluster", False),
        ({"cluster": "local"}, "local", True),
        ({"context": "prod", "keep": "never"}, "kubeconfig", False),
        ({"reuse": "latest"}, "local", True),
        ({"endpoint": "http://h:1"}, "in-cluster", False),
    ],
)
def test_a_pod_with_a_token_uses_its_own_cluster(
    profile: str, pod_files: Path, cli: dict[str, str], kind: str, deploys: bool
) -> None:
    config = settings(profile, cli)
    assert (config.cluster_kind, config.deploys) == (kind, deploys)
    assert config.namespace == "from-profile", "the pod may be in another namespace than the stage"


def test_the_simulated_engine_needs_a_local_cluster_also_in_a_pod(
    profile: str, pod_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "overlay-sim").mkdir()
    (tmp_path / "overlay-sim" / "kustomization.yaml").write_text("resources: []\n")
    assert settings(profile, {"engine": "sim"}).cluster_kind == "local"
    with pytest.raises(ConfigError, match=r"--stage-engine: engine sim needs .* it cannot go with --stage-cluster"):
        settings(profile, {"engine": "sim", "cluster": "in-cluster"})


def test_the_header_names_the_cluster_that_auto_found(profile: str, pod_files: Path) -> None:
    found = "cluster in-cluster (this pod has a ServiceAccount's token)"
    assert found in settings(profile).header()
    for cli in ({"cluster": "in-cluster"}, {"endpoint": "http://h:1"}, {"context": "c"}):
        assert found not in settings(profile, cli).header()
    (pod_files / "token").unlink()
    assert found not in settings(profile).header()


def test_a_pod_without_a_token_gets_a_local_cluster(profile: str, pod_files: Path) -> None:
    (pod_files / "token").unlink()
    assert settings(profile).cluster_kind == "local"


def test_the_cluster_of_the_pod_is_only_read_by_default(profile: str, pod_files: Path) -> None:
    with pytest.raises(ConfigError, match=r"the cluster of the pod is only read without --stage-deploy.* --stage-keep"):
        settings(profile, {"keep": "always"})
    with pytest.raises(ConfigError, match=r"--stage-cluster is only read without --stage-deploy.* --stage-env-file"):
        settings(profile, {"cluster": "in-cluster", "keep": "never", "env_file": "e"})


def test_the_simulated_engine_has_an_overlay_of_its_own_and_is_described_as_what_it_is(
    profile: str, tmp_path: Path
) -> None:
    assert (settings(profile).simulated, settings(profile).profile.overlay.name) == (False, "overlay")
    (tmp_path / "overlay-sim").mkdir()
    (tmp_path / "overlay-sim" / "kustomization.yaml").write_text("resources: []\n")
    config = settings(profile, {"engine": "sim"})
    assert (config.simulated, config.deploys) == (True, True)
    assert config.profile.overlay == tmp_path / "overlay-sim"
    assert config.profile.models["full"].description.startswith("simulated, ")
    assert "SIMULATED" in config.header()
    assert "SIMULATED" not in settings(profile).header()


def test_load_steps_of_the_simulated_engine_are_short() -> None:
    """The plan of the local profile, in which every step can still pass."""
    with_vllm, simulated = (settings("local", {"engine": engine}) for engine in ("vllm", "sim"))
    assert with_vllm.profile.load.duration_s > simulated.profile.load.duration_s == 2
    assert simulated.profile.load.requests_min == 5
    assert [model.load.is_empty for model in simulated.profile.models.values()] == [True, True]
    assert simulated.profile.load.override(simulated.profile.models["full"].load).duration_s == 2
    planned = list(plans.steps_of(simulated, "run"))
    assert {one.step.name: one.step.duration_s for one in planned if one.step.duration_s != 2} == {"rate-1": 5}
    assert list(find_undecidable(planned)) == []
    short = LoadTable.model_validate({"duration_s": 2})
    assert (short.shorten(5, 5).duration_s, short.shorten(5, 5).requests_min) == (2, 0)
    long = LoadTable.model_validate({"duration_s": 9, "requests_min": 8})
    assert (long.shorten(5, 5).duration_s, long.shorten(5, 5).requests_min) == (5, 5)


def test_a_low_rate_is_sent_until_it_has_its_fewest_requests() -> None:
    planned = [one.step for one in plans.steps_of(settings("local"), "run") if one.role == "full"]
    assert [(step.name, step.planned_requests, step.duration_s) for step in planned[:2]] == [
        ("rate-1", 5, 5),
        ("rate-5", 20, 4),
    ]
    assert {step.duration_s for step in planned[2:]} == {4}


def test_an_engine_that_the_profile_chose_does_not_pass_for_a_real_one(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(PROFILE + 'engine = "sim"\n')
    with pytest.raises(ConfigError, match=r"^profile: engine sim needs .* --stage-endpoint$"):
        settings(profile, {"endpoint": "http://h"})


def test_endpoints_by_role_are_normalised(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(PROFILE.replace("[models.full]", '[models.small]\ninference_service = "s"\n\n[models.full]'))
    config = settings(str(path), {"endpoint": "full=http://a:1/v1, small=https://b/x/"})
    assert config.endpoints == {"full": "http://a:1", "small": "https://b/x"}
    assert config.roles == ("full", "small")
    assert "endpoint full=http://a:1,small=https://b/x (--stage-endpoint)" in config.header()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoint": "ful=http://a"}, "unknown role 'ful' (did you mean full?); valid: full"),
        ({"endpoint": "full=http://a,full=http://b"}, "role 'full' is given twice"),
        ({"endpoint": "full=http://a,http://u:sesame@b"}, "server 2: expected ROLE=URL with a role of the profile"),
        ({"endpoint": "full=http://a,small=http://u:sesame@b"}, "put credentials into VLLM_STAGE_API_KEY"),
        ({"endpoint": "full=http://a", "model": "m"}, "names each server's model by its role"),
    ],
)
def test_wrong_endpoints_by_role_are_refused(profile: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^--stage-endpoint.*{re.escape(says)}") as caught:
        settings(profile, options)
    assert "sesame" not in str(caught.value)


def test_roles_come_from_the_profile_or_are_the_endpoint(profile: str) -> None:
    assert settings(profile).roles == ("full",)
    assert settings(profile, {"endpoint": "http://h:1"}).roles == ("endpoint",)


def test_the_header_shows_values_with_sources(profile: str) -> None:
    header = settings(profile, {"namespace": "mine"}).header()
    assert "namespace mine (--stage-namespace)" in header
    assert "keep on-failure (profile)" in header
    assert "cluster" not in header


def test_results_are_published_only_to_a_deployed_stage_by_default(profile: str) -> None:
    attached = {"cluster": "kubeconfig", "context": "c"}
    assert settings(profile).publishes
    assert not settings(profile, attached).publishes
    assert settings(profile, attached | {"publish": "always"}).publishes
    assert not settings(profile, {"publish": "never"}).publishes


@pytest.mark.parametrize("url", ["registry:8080", "ftp://registry", "http://registry/api/model_registry", "http://"])
def test_a_registry_url_that_is_not_a_servers_root_is_refused(profile: str, url: str) -> None:
    with pytest.raises(ConfigError, match=r"--stage-registry-url: .* is not the URL of a server"):
        settings(profile, {"registry_url": url})


@pytest.mark.parametrize(("options", "kind"), [({}, "local"), ({"context": "c"}, "kubeconfig")])
def test_record_has_the_cluster_that_auto_chose(profile: str, options: dict[str, str], kind: str) -> None:
    assert settings(profile, options).to_json()["cluster_kind"] == kind
