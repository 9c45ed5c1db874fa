"""The stand-in's contract, as observed on the real server: shapes, statuses, and each endpoint's rules."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pytest_vllm_stage.standins.registry.routes import ROUTES
from tests.unit.standin_registry import Standin, string

UNKNOWN = "404 page not found\n"
#: A path of each kind of entity that is made by itself, and a body that makes one.
MADE_ALONE = {
    "registered_models": {"name": "x"},
    "model_versions": {"name": "x", "registeredModelId": "1"},
}


@pytest.fixture
def standin() -> Standin:
    return Standin()


@pytest.mark.parametrize("versions", [("v1alpha3",), ("v1",), ("v1alpha3", "v1")])
@pytest.mark.parametrize("asked", ["v1alpha3", "v1"])
def test_a_prefix_that_is_not_served_is_an_unknown_path(versions: tuple[str, ...], asked: str) -> None:
    answer = Standin(asked, versions).get("registered_models")
    if asked in versions:
        assert answer.names == []
    else:
        assert (answer.status, answer.text, answer.response.content_type) == (404, UNKNOWN, "text/plain; charset=utf-8")
    assert ("deprecation" in answer.headers) == (asked == "v1alpha3" and len(versions) == 2)
    assert {"sunset", "link"} & answer.headers.keys() == (
        {"sunset", "link"} if "deprecation" in answer.headers else set()
    )


def test_both_prefixes_serve_one_store() -> None:
    standin = Standin("v1")
    model = standin.model()
    standin.prefix = "/api/model_registry/v1alpha3"
    assert standin.get(f"registered_models/{model['id']}").json == model


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "//api/model_registry/v1/registered_models", "/api/model_registry/v1", "/api/model_registry/v1/",
     "/api/model_registry/v1/registered_models/", "/api/model_registry/v1/registered_models/1/",
     "/api/model_registry/v1/registered_models/1/nothing", "/api/model_registry/v1/experiments",
     "/api/model_registry/v1/serving_environments", "/api/model_registry/v2/registered_models"],
)  # fmt: skip
def test_unknown_paths_are_plain_text(standin: Standin, path: str) -> None:
    answer = standin.raw("GET", path)
    assert (answer.status, answer.text, answer.response.content_type) == (404, UNKNOWN, "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", ROUTES)
def test_a_wrong_method_is_405_without_a_body(standin: Standin, path: str) -> None:
    for method in ("DELETE", "PUT", "HEAD", "OPTIONS"):
        answer = standin.send(method, path.replace("{id}", "1"))
        assert (answer.status, answer.text, answer.headers) == (405, "", {"allow": ", ".join(sorted(ROUTES[path]))})


def test_an_entity_has_digits_for_ids_and_equal_times_and_nothing_that_is_null(standin: Standin) -> None:
    model = standin.model()
    assert set(model) == {"id", "name", "state", "customProperties", "createTimeSinceEpoch", "lastUpdateTimeSinceEpoch"}
    assert (model["id"], model["state"], model["customProperties"]) == ("1", "LIVE", {})
    assert re.fullmatch(r"\d{13}", model["createTimeSinceEpoch"])
    assert model["createTimeSinceEpoch"] == model["lastUpdateTimeSinceEpoch"]


def test_an_empty_list(standin: Standin) -> None:
    answer = standin.get("registered_models", pageSize="7")
    assert answer.json == {"items": [], "nextPageToken": "", "pageSize": 7, "size": 0}
    assert answer.response.content_type == "application/json; charset=UTF-8"


def test_any_patch_moves_the_update_time_and_a_child_does_not_touch_its_parent(standin: Standin) -> None:
    model = standin.model()
    version = standin.version(model["id"])
    standin.artifact(version["id"])
    assert standin.get("registered_models/1").json == model
    assert standin.get(f"model_versions/{version['id']}").json == version
    patched = standin.patch("registered_models/1", {}).json
    assert int(patched.pop("lastUpdateTimeSinceEpoch")) > int(model.pop("lastUpdateTimeSinceEpoch"))
    assert patched == model


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"7", b'"x"', b'{"name": 7}', b'{"name": "x", "id": "3"}', b'{"name": "x", "nothing": 1}',
     b'{"name": "x", "createTimeSinceEpoch": "1"}', b'{"name": "x", "state": "GONE"}', b'{"name": "x", "state": 1}',
     b'{"name": "a\\u0000b"}', b'{"name": "a\0b"}', b'{"name": "x", "language": "en"}',
     b'{"name": "x", "language": [1]}', b'{"name": "x", "customProperties": []}', b'{"name": "x"} trailing',
     b"[" * 100_000],
)  # fmt: skip
def test_malformed_bodies_are_400(standin: Standin, body: bytes) -> None:
    answer = standin.send("POST", "registered_models", body)
    assert (answer.status, answer.json["code"]) == (400, "Bad Request")
    assert answer.json["message"].endswith(": bad request")
    assert standin.get("registered_models").names == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("registered_models", {"name": "x"}),
        ("model_versions", {"name": "x", "registeredModelId": "1"}),
    ],
)
def test_a_required_field_that_is_missing_null_or_empty_is_422_and_calls_itself_400(
    standin: Standin, path: str, body: dict[str, str]
) -> None:
    for field in body:
        rest = {key: value for key, value in body.items() if key != field}
        for given in (rest, {**rest, field: None}, {**rest, field: ""}):
            answer = standin.post(path, given)
            assert (answer.status, answer.json["code"]) == (422, "Bad Request"), (field, given)
            assert field in answer.json["message"]


@pytest.mark.parametrize("path", [path for path in ROUTES if path.endswith("{id}")])
def test_ids_that_are_none(standin: Standin, path: str) -> None:
    for text in ("x", "1.5", "2147483648", "-2147483649", "%31", "1_0", "\uff19"):
        answer = standin.get(path.replace("{id}", text))
        assert (answer.status, answer.json["code"]) == (400, "Bad Request"), text
    for text in ("1", "0", "-1", "2147483647"):
        answer = standin.get(path.replace("{id}", text))
        assert (answer.status, answer.json["code"]) == (404, "Not Found"), text
        assert answer.json["message"].endswith(": not found")


def test_external_ids_are_unique_and_the_message_blames_the_name(standin: Standin) -> None:
    standin.model("a", externalId="e")
    answer = standin.post("registered_models", {"name": "b", "externalId": "e"})
    assert (answer.status, answer.json["message"].split(":")[0]) == (409, "registered model with name b already exists")
    standin.model("b")
    assert standin.patch("registered_models/3", {"externalId": "e"}).status == 409
    assert standin.patch("registered_models/1", {"externalId": "e"}).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "x" * 255}, 201),
        ({"name": "ü" * 255}, 201),
        ({"name": "x" * 256}, 500),
        ({"name": "x", "externalId": "x" * 256}, 500),
        ({"name": "x", "customProperties": {"k" * 255: string("v")}}, 201),
        ({"name": "x", "customProperties": {"k" * 256: string("v")}}, 500),
        ({"name": "x", "customProperties": {"k": string("v" * 17 * 1024 * 1024)}}, 201),
        ({"name": "x", "customProperties": {f"k{n}": string("v") for n in range(300)}}, 201),
        ({"name": "x", "customProperties": {key: string("v") for key in ("", "a.b", "a/b", "a b")}}, 201),
    ],
)
def test_sizes(standin: Standin, body: dict[str, Any], status: int) -> None:
    answer = standin.post("registered_models", body)
    assert answer.status == status
    if status == 500:
        assert answer.json["code"] == "Internal Server Error"
        assert standin.get("registered_models").names == []
    else:
        assert standin.get("registered_models/1").json["customProperties"] == body.get("customProperties", {})


def test_a_versions_name_shares_its_room_with_the_parents_id(standin: Standin) -> None:
    standin.version("1", "x" * 253)
    assert standin.post("model_versions", {"name": "y" * 254, "registeredModelId": "1"}).status == 500


def test_fields_merge_and_cannot_be_unset(standin: Standin) -> None:
    standin.model(description="d", owner="o", language=["en"], externalId="e")
    patched = standin.patch("registered_models/1", {"owner": "", "language": [], "description": None}).json
    assert (patched["owner"], patched["language"], patched["description"]) == ("", [], "d")
    assert standin.patch("registered_models/1", {"state": "ARCHIVED"}).json["state"] == "ARCHIVED"
    assert standin.get("registered_models/1").json["externalId"] == "e"


def test_finding_a_model(standin: Standin) -> None:
    one, two = standin.model("one", externalId="1st"), standin.model("two")
    assert standin.get("registered_model", name="one").json == one
    assert standin.get("registered_model", externalId="1st").json == one
    assert standin.get("registered_model", name="two", externalId="1st").json == two
    assert standin.get("registered_model", name="one", parentResourceId="99").json == one
    assert standin.get("registered_model", name="three").status == 404
    for query in ({}, {"name": ""}, {"name": "", "externalId": ""}):
        assert standin.get("registered_model", **query).status == 400


def test_a_name_to_find_is_a_pattern(standin: Standin) -> None:
    standin.model("us_model")
    assert standin.get("registered_model", name="us_model").status == 200
    assert standin.get("registered_model", name="us%").json["name"] == "us_model"
    assert standin.get("registered_model", name="US_MODEL").status == 404
    standin.model("usXmodel")
    answer = standin.get("registered_model", name="us_model")
    assert (answer.status, "multiple" in answer.json["message"]) == (404, True)
    assert standin.get("registered_model", name=r"us\_model").json["name"] == "us_model"
    standin.model("back\\slash")
    assert standin.get("registered_model", name="back\\slash").status == 404


def test_of_a_repeated_parameter_the_first_wins_and_unknown_ones_are_ignored(standin: Standin) -> None:
    standin.model("a")
    standin.model("b")
    answer = standin.raw("GET", f"{standin.prefix}/registered_model?name=b&name=a&nothing=1")
    assert answer.json["name"] == "b"
    answer = standin.raw("GET", f"{standin.prefix}/registered_model?name=a%00")
    assert (answer.status, answer.json["code"]) == (400, "Bad Request")


def test_versions_names_are_unique_by_model(standin: Standin) -> None:
    standin.version("1")
    standin.version("2")
    assert standin.post("model_versions", {"name": "v", "registeredModelId": "1"}).status == 409
    assert standin.get("model_versions", name="x").names == ["v", "v"]


def test_a_version_of_no_model_is_accepted(standin: Standin) -> None:
    for parent in ("99", standin.version("98", "no model")["id"]):
        orphan = standin.version(parent)
        assert (orphan["registeredModelId"], orphan["state"]) == (parent, "LIVE")
    answer = standin.post("model_versions", {"name": "v", "registeredModelId": "x"})
    assert answer.status == 400


def test_finding_a_version(standin: Standin) -> None:
    one, other = standin.version("1", externalId="e"), standin.version("2")
    assert standin.get("model_version", name="v", parentResourceId="1").json == one
    assert standin.get("model_version", name="v", parentResourceId="2").json == other
    assert standin.get("model_version", externalId="e").json == one
    assert standin.get("model_version", externalId="e", parentResourceId="1").json == one
    assert standin.get("model_version", externalId="e", parentResourceId="2").status == 404
    assert standin.get("model_version", name="v", parentResourceId="x").status == 400
    for query in ({"name": "v"}, {"parentResourceId": "1"}, {"name": "", "parentResourceId": "1"}, {}):
        assert standin.get("model_version", **query).status == 400, query


def test_a_models_versions_honour_name_and_external_id(standin: Standin) -> None:
    standin.version("1", "a", externalId="x")
    standin.version("1", "ab")
    standin.version("2", "a")
    assert standin.get("registered_models/1/versions").names == ["a", "ab"]
    assert standin.get("registered_models/1/versions", name="a").names == ["a"]
    assert standin.get("registered_models/1/versions", name="a%").names == ["a", "ab"]
    assert standin.get("registered_models/1/versions", externalId="x").names == ["a"]
    assert standin.get("registered_models/1/versions", name="it's").status == 400
    assert standin.get("registered_models/99/versions").names == []
    assert standin.get("registered_models/x/versions").status == 400


ARTIFACT_TYPES = ("model-artifact", "doc-artifact")


@pytest.mark.parametrize("artifact_type", ARTIFACT_TYPES)
def test_an_artifact_of_a_version_is_an_upsert(standin: Standin, artifact_type: str) -> None:
    version = standin.version("1")
    path = f"model_versions/{version['id']}/artifacts"
    body = {"name": "a", "artifactType": artifact_type, "description": "one"}
    made = standin.post(path, body)
    assert made.status == 201
    assert "state" not in made.json
    assert made.json["artifactType"] == artifact_type
    changed = standin.post(path, {**body, "id": made.json["id"], "description": "two"})
    assert (changed.status, changed.json["id"], changed.json["description"]) == (200, made.json["id"], "two")
    assert standin.post(path, {**body, "description": "three"}).status == 409
    assert standin.get(path).json["items"] == [changed.json]


def test_an_artifact_of_a_version_needs_the_version_and_its_type_and_drops_unknown_fields(standin: Standin) -> None:
    version = standin.version("1")
    path = f"model_versions/{version['id']}/artifacts"
    assert standin.post("model_versions/99/artifacts", {"name": "a", "artifactType": "doc-artifact"}).status == 404
    assert standin.post(path, {"name": "a"}).status == 400
    assert standin.post(path, {"name": "a", "artifactType": "metric"}).status == 400
    made = standin.made(path, name="a", artifactType="doc-artifact", nothing=1, uri="s3://x")
    assert ("nothing" in made, made["uri"]) == (False, "s3://x")
    assert standin.post(path, {"id": "99", "name": "a", "artifactType": "doc-artifact"}).status == 404
    assert standin.post(path, {"id": made["id"], "artifactType": "model-artifact"}).status == 400


def test_listing_the_artifacts_of_a_version(standin: Standin) -> None:
    version = standin.version("1")
    standin.artifact(version["id"], "a", externalId="x")
    standin.artifact(version["id"], "c:b", "doc-artifact")
    path = f"model_versions/{version['id']}/artifacts"
    assert standin.get(path).names == ["a", "c:b"]
    assert standin.get(path, name="b").names == ["c:b"]
    assert standin.get(path, externalId="x").names == ["a"]
    assert standin.get(path, artifactType="doc-artifact").names == ["c:b"]
    assert standin.get(path, artifactType="nothing").status == 400
    assert standin.get("model_versions/99/artifacts").names == []


def test_patching_a_model_artifact(standin: Standin) -> None:
    version = standin.version("1")
    path = f"model_artifacts/{standin.artifact(version['id'])['id']}"
    assert standin.patch(path, {"uri": "s3://y"}).json["uri"] == "s3://y"
    assert standin.patch(path, {"state": "DELETED", "artifactType": "model-artifact"}).json["state"] == "DELETED"
    assert standin.patch(path, {"state": "ARCHIVED"}).status == 400
    assert standin.patch(path, {"artifactType": "doc-artifact"}).status == 400


def test_a_document_and_a_model_of_one_name_hide_each_other(standin: Standin) -> None:
    version = standin.version("1")
    artifact = standin.artifact(version["id"], externalId="e")
    query = {"name": "a", "parentResourceId": version["id"]}
    assert standin.get("model_artifact", **query).json == artifact
    assert standin.get("model_artifact", externalId="e").json == artifact
    standin.artifact(version["id"], "d", "doc-artifact")
    assert standin.get("model_artifact", name="d", parentResourceId=version["id"]).status == 404
    standin.artifact(version["id"], "a", "doc-artifact")
    assert standin.get("model_artifact", **query).status == 404
    for bad in ({"name": "a"}, {"parentResourceId": "1"}, {}):
        assert standin.get("model_artifact", **bad).status == 400


def test_the_last_part_of_the_name_finds_an_artifact_but_not_a_version(standin: Standin) -> None:
    version = standin.version("1", "a:b")
    artifact = standin.artifact(version["id"], "c:d")
    assert standin.get("model_artifact", name="d", parentResourceId=version["id"]).json == artifact
    assert standin.get("model_version", name="b", parentResourceId="1").status == 404
    assert standin.get("model_version", name="a:b", parentResourceId="1").json == version


def test_ids_come_from_two_sequences_and_failed_inserts_burn_them(standin: Standin) -> None:
    assert standin.model()["id"] == "1"
    assert standin.post("registered_models", {"name": "m"}).status == 409
    version = standin.version("1")
    assert version["id"] == "3"
    assert standin.artifact("3")["id"] == "1"
    assert standin.post("registered_models", {"name": "x" * 256}).status == 500
    assert standin.post("registered_models", {}).status == 422
    assert standin.model("n")["id"] == "5"


def test_an_id_of_another_kind_is_404(standin: Standin) -> None:
    standin.model()
    assert standin.get("model_versions/1").status == 404
    assert standin.patch("model_versions/1", {}).status == 404
    standin.artifact(standin.version("1")["id"], "d", "doc-artifact")
    assert standin.get("model_artifacts/1").status == 404
    assert standin.patch("model_artifacts/1", {}).status == 404


def test_model_names_are_unique_and_case_counts(standin: Standin) -> None:
    standin.model("Name", externalId="e")
    answer = standin.post("registered_models", {"name": "Name"})
    assert (answer.status, answer.json["code"]) == (409, "Conflict")
    assert "with name Name already exists" in answer.json["message"]
    standin.model("name")
    standin.model("Name ")


def test_the_list_of_models_ignores_name_and_external_id(standin: Standin) -> None:
    for name in ("a", "b"):
        standin.model(name, externalId=name)
    assert standin.get("registered_models", name="b", externalId="b").names == ["a", "b"]


@pytest.mark.parametrize("path", ["registered_models", "model_versions", "registered_models/1/versions"])
def test_a_filter_query_is_not_implemented(standin: Standin, path: str) -> None:
    """A filter that is ignored would list what the client has excluded."""
    answer = standin.get(path, filterQuery="name = 'a'")
    assert (answer.status, answer.json["code"]) == (501, "Not Implemented")
    assert "does not implement filterQuery" in answer.json["message"]


@pytest.mark.parametrize("path", MADE_ALONE)
def test_a_patch_accepts_neither_id_nor_name_nor_a_parent(standin: Standin, path: str) -> None:
    made = standin.made(path, **MADE_ALONE[path])
    for body in ({"name": "y"}, {"id": "2"}, {"registeredModelId": "2"}, {"createTimeSinceEpoch": "1"}):
        answer = standin.patch(f"{path}/{made['id']}", body)
        assert (answer.status, "unknown field" in answer.json["message"]) == (400, True), body
    assert standin.get(f"{path}/{made['id']}").json == made


def test_one_name_serves_several_types_and_versions(standin: Standin) -> None:
    one, two = standin.version("1", "one"), standin.version("1", "two")
    for version in (one, two):
        for artifact_type in ARTIFACT_TYPES:
            standin.artifact(version["id"], "a", artifact_type)
    assert len(standin.get(f"model_versions/{one['id']}/artifacts").names) == len(ARTIFACT_TYPES)


def test_the_message_of_an_error_is_json(standin: Standin) -> None:
    answer = standin.get("registered_models/9")
    assert json.loads(answer.text) == {
        "code": "Not Found",
        "message": "no registered model found for id 9: not found",
    }
