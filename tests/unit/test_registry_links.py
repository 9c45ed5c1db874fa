"""Names, links and ages: which model and version results belong to, and everything that disagrees about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.publication import check, links, properties, publishing
from pytest_vllm_stage.publication.bucket.stored import StoredRun
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.publication.registry.values import encode
from tests.unit.made_objects import service
from tests.unit.made_results import RUN, SERVICE, made

LABELS = {"vllm-stage/model": "m", "vllm-stage/version": "w4a16"}
MODEL, VERSION = {"id": "1", "name": "m"}, {"id": "2", "name": "w4a16"}


def test_names_come_from_the_labels_or_from_the_profile() -> None:
    assert links.resolve_names(service(labels=LABELS)) == RegisteredNames("m", "w4a16")
    assert links.resolve_names(service(), "m", "w4a16") == RegisteredNames("m", "w4a16")
    assert links.resolve_names(service(labels=LABELS), "m", "w4a16") == RegisteredNames("m", "w4a16")


def test_a_label_that_contradicts_the_profile_is_refused_with_both_names() -> None:
    with pytest.raises(StageFailure) as caught:
        links.resolve_names(service(labels=LABELS | {"vllm-stage/version": "quant-w4a16"}), "m", "quantized-w4a16")
    assert "labelled vllm-stage/version=quant-w4a16" in caught.value.message
    assert "'quantized-w4a16'" in caught.value.message


def test_a_service_without_names_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"inferenceservice/m has no label vllm-stage/version.*names no version"):
        links.resolve_names(service(labels={"vllm-stage/model": "m"}))


@pytest.mark.parametrize("name", ["", " m", "50%", "a\\b", "m\n", "m" * 241])
def test_names_that_cannot_be_found_again_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        entities.check_name(name, "model name")


@pytest.mark.parametrize(
    ("label", "value", "line"),
    [
        ("vllm-stage/version", "w4", "has the name 'w4a16'"),
        ("vllm-stage/model", "n", "has the name 'm'"),
        ("modelregistry.opendatahub.io/registered-model-id", "9", "model m of the registry has the id '1'"),
        ("modelregistry.kubeflow.org/model-version-id", "9", "version w4a16 of the registry has the id '2'"),
    ],
)
def test_every_label_that_links_is_compared(label: str, value: str, line: str) -> None:
    labels = LABELS | {
        "modelregistry.opendatahub.io/registered-model-id": "1",
        "modelregistry.kubeflow.org/model-version-id": "2",
        "app": "x",
    }
    assert links.find_disagreements(service(labels=labels), MODEL, VERSION) == []
    (found,) = links.find_disagreements(service(labels=labels | {label: value}), MODEL, VERSION)
    assert f"label {label} is {value!r}" in found
    assert line in found


def version(name: str, **changes: str) -> dict[str, Any]:
    values = {properties.SERVICE: SERVICE, properties.REVISION: "r1", properties.RUN: RUN} | changes
    return {"name": name, "customProperties": {key: encode(value) for key, value in values.items()}}


@pytest.mark.parametrize(
    ("version", "value"),
    [
        ("w4a16", "true"),
        ("w4a16", "false"),
        ("w4a16", "fp8"),
        ("quantized-w4a16", "bf16"),
        ("bf16", "W4A16"),
        ("v1", "True"),
    ],
)
def test_a_quantization_that_says_nothing_or_another_thing_is_reported(version: str, value: str) -> None:
    entity = {"id": "2", "name": version, "customProperties": {"quantization": encode(value)}}
    (line,) = links.find_wrong_descriptions(MODEL, entity)
    assert line.startswith(f"version {version} has the property quantization with the value {value!r}, expected")
    boolean = {"metadataType": "MetadataBoolValue", "bool_value": True}
    assert links.find_wrong_descriptions({**MODEL, "customProperties": {"Quantization": boolean}}, VERSION)


@pytest.mark.parametrize(
    ("version", "value"),
    [
        ("w4a16", "w4a16"),
        ("w4a16", "int4"),
        ("quantized-w4a16", "compressed-tensors"),
        ("bf16", "none"),
        ("bf16", "false"),
        ("v1", "gptq"),
        ("w8a8", "INT8"),
    ],
)
def test_a_quantization_that_fits_its_version_is_not_reported(version: str, value: str) -> None:
    entity = {"id": "2", "name": version, "customProperties": {"quantization": encode(value), "size": encode(13.0)}}
    assert links.find_wrong_descriptions(MODEL, entity) == []


def test_a_revision_under_two_names_is_found() -> None:
    versions = [version("w4a16"), version("quant"), version("old", benchmark_revision="r0"), {"name": "empty"}]
    (line,) = links.find_duplicate_results(versions, "w4a16", SERVICE, "r1")
    assert line.startswith("version 'quant' of the model holds results of inferenceservice/")
    assert links.find_duplicate_results(versions, "w4a16", "another", "r1") == []


def raw(**changes: Any) -> dict[str, Any]:
    return {name: encode(value) for name, value in (dict(made().values) | changes).items()}


def test_results_of_the_running_revision_are_not_stale() -> None:
    revision = made().source.revision
    assert check.find_stale(raw(), revision, "2026-11-24T09:59:59Z") == []
    assert check.find_stale(raw(), revision, "") == []


def test_stale_results_are_named_with_run_and_revision() -> None:
    (line,) = check.find_stale(raw(), "another", "")
    assert line.startswith(
        f"stale: the results of run {RUN} (2026-11-24T10:00:00Z) are of revision '{SERVICE}-predictor"
    )
    (line,) = check.find_stale(raw(), made().source.revision, "2026-11-24T10:00:01Z")
    assert line.endswith("was created at 2026-11-24T10:00:01Z")


def test_properties_cut_by_the_budget_are_not_reported_as_missing_and_others_are() -> None:
    results = made(1.0, 5.0, 10.0)
    foreign = {f"build-{i}": encode("x") for i in range(4)}
    wanted = properties.within_budget(results.values, foreign, "v")
    full = properties.merged(foreign, wanted)
    assert check.compare_properties(results, full) == []
    with_room = {name: value for name, value in full.items() if name != "build-0"}
    lines = check.compare_properties(results, with_room)
    assert lines
    assert all("is not published" in line for line in lines)


def test_missing_provenance_is_reported_whether_there_is_room_or_not() -> None:
    results = made()
    crowded = {f"build-{i}": encode("x") for i in range(30)} | raw()
    del crowded[properties.RUN]
    assert check.compare_properties(results, crowded) == [
        f"benchmark_test_run is not published ({RUN!r} in the artifact)"
    ]


def test_results_of_another_service_are_reported_field_by_field() -> None:
    results = made()
    assert check.compare_source(results, SERVICE, "w4a16", "vllm-stage", SERVICE) == []
    assert len(check.compare_source(results, "n", "v", "other", "s")) == 4


def test_a_document_without_its_samples_does_not_pass() -> None:
    lines = check.compare_document(made(), StoredRun("s3://b/p/", None, {}, ()))
    assert lines == [f"results of {SERVICE} by run {RUN} are not published: there is no step"]


def test_archived_entities_are_reported() -> None:
    lines = publishing.find_archived(MODEL | {"state": "ARCHIVED"}, VERSION | {"state": "LIVE"})
    assert lines == ["model m is ARCHIVED in the registry"]


def test_a_later_run_sorts_after_an_earlier_one() -> None:
    results = made()
    later = replace(results, timestamp="2026-11-24T10:00:01Z", source=replace(results.source, run="0"))
    assert later.age_key > results.age_key


def named(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": "7", "name": name, "state": "LIVE", **changes}


@pytest.mark.parametrize("name", ["Mistral-24B", "mistral_24b", "mistral 24b "])
def test_a_second_name_that_is_read_as_the_first_is_reported(name: str) -> None:
    own = named("mistral-24b")
    (line,) = links.find_lookalikes("model", [own, named(name), named("llama")], own)
    assert line.startswith(f"model {name!r} (id 7) is registered besides 'mistral-24b'")
    assert links.find_lookalikes("model", [own, named(name, state="ARCHIVED")], own) == []
    assert links.find_lookalikes("model", [own, named(name, owner="another-team")], own) == []


def test_names_that_differ_in_more_than_separators_are_two() -> None:
    assert links.find_lookalikes("version", [named("10"), named("1.0.1"), named("v1.0")], named("1.0")) == []


def test_a_live_artifact_of_other_weights_in_the_same_kind_of_store_is_a_rival() -> None:
    uri = "s3://models/m/2"
    old = {"name": "old", "uri": "s3://models/m/1"}
    image = {"name": "image", "uri": "oci://quay.io/o/m:2", "state": "LIVE"}
    assert links.find_rival_artifacts([{"name": "m", "uri": uri}, old, image], uri) == ["old: s3://models/m/1"]
    assert links.find_rival_artifacts([old | {"state": "ABANDONED"}, {"name": "empty"}], uri) == []
