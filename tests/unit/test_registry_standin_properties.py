"""The stand-in's custom properties and lists, as observed on the real server with PostgreSQL."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.standins.registry.paging import token_of
from tests.unit.standin_registry import Standin, boolean, double, integer, string


@pytest.fixture
def standin() -> Standin:
    return Standin()


def given_properties(standin: Standin, properties: object) -> Any:
    return standin.post("registered_models", {"name": "m", "customProperties": properties})


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
properties = st.dictionaries(
    texts.filter(lambda key: key not in ("experiment_id", "experiment_run_id")),
    st.one_of(
        st.builds(string, texts),
        st.builds(double, st.floats(allow_nan=False, allow_infinity=False)),
        st.builds(integer, st.integers(-(2**31), 2**31 - 1).map(str)),
        st.builds(boolean, st.booleans()),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(properties, st.one_of(st.none(), properties))
def test_what_is_given_is_read_back_and_a_patch_replaces_it_as_a_whole(before: Any, after: Any) -> None:
    standin = Standin()
    standin.model(customProperties=before)
    assert standin.get("registered_models/1").json["customProperties"] == before
    standin.patch("registered_models/1", {"customProperties": after})
    assert standin.get("registered_models/1").json["customProperties"] == (before if after is None else after)


@pytest.mark.parametrize(
    ("property_", "shown"),
    [
        (integer("+5"), integer("5")),
        (integer("007"), integer("7")),
        (integer("-2147483648"), integer("-2147483648")),
        (integer("1000000000"), integer("1000000000")),
        (double(-2), double(-2)),
        (double(1e300), double(1e300)),
        ({"metadataType": "MetadataStringValue"}, string("")),
        ({"metadataType": "MetadataStringValue", "string_value": None}, string("")),
        ({"metadataType": "MetadataDoubleValue"}, double(0)),
        ({"metadataType": "MetadataBoolValue"}, boolean(False)),
        ({**string("x"), "more": 1}, string("x")),
    ],
)
def test_what_is_normalised(standin: Standin, property_: Any, shown: Any) -> None:
    assert given_properties(standin, {"p": property_}).json["customProperties"] == {"p": shown}


def test_a_whole_double_is_written_without_a_fraction(standin: Standin) -> None:
    assert '"double_value":3,' in given_properties(standin, {"p": double(3.0)}).text
    assert '"double_value":3,' in standin.get("registered_models/1").text


@pytest.mark.parametrize(
    "property_",
    [
        None,
        "bare",
        7,
        {},
        {"string_value": "x"},
        {"metadataType": "MetadataNothing"},
        {"metadataType": 7},
        {"metadataType": "MetadataProtoValue", "type": "x", "proto_value": ""},
        {"metadataType": "MetadataStringValue", "string_value": 7},
        {"metadataType": "MetadataIntValue"},
        {"metadataType": "MetadataIntValue", "int_value": 7},
        integer("2147483648"),
        integer("1795521372846"),
        integer("1.0"),
        integer(""),
        integer(" 1"),
        {"metadataType": "MetadataDoubleValue", "double_value": "7"},
        {"metadataType": "MetadataDoubleValue", "double_value": True},
        {"metadataType": "MetadataDoubleValue", "double_value": 10**400},
        {"metadataType": "MetadataBoolValue", "bool_value": "true"},
        {"metadataType": "MetadataBoolValue", "bool_value": 1},
    ],
)
def test_an_invalid_property_is_400_and_stores_nothing(standin: Standin, property_: Any) -> None:
    assert given_properties(standin, {"p": property_}).status == 400
    assert standin.get("registered_models").names == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_or_a_double_lacks_are_400(standin: Standin, text: str) -> None:
    body = f'{{"name":"m","customProperties":{{"p":{{"metadataType":"MetadataDoubleValue","double_value":{text}}}}}}}'
    assert standin.send("POST", "registered_models", body.encode()).status == 400


def test_a_property_may_change_its_type_and_null_keeps_all(standin: Standin) -> None:
    standin.model(customProperties={"p": string("x"), "q": double(1)})
    assert standin.patch("registered_models/1", {"customProperties": None}).json["customProperties"].keys() == {
        "p",
        "q",
    }
    assert standin.patch("registered_models/1", {}).json["customProperties"].keys() == {"p", "q"}
    changed = standin.patch("registered_models/1", {"customProperties": {"p": boolean(True)}}).json
    assert changed["customProperties"] == {"p": boolean(True)}
    assert standin.patch("registered_models/1", {"customProperties": {}}).json["customProperties"] == {}


def test_keys_that_differ_in_case_or_a_blank_are_distinct_and_fields_do_not_clash(standin: Standin) -> None:
    keys = ("TTFT", "ttft", "ttft ", "description", "state", "owner", "name", "id")
    given_ = {key: string(key) for key in keys}
    model = standin.model(description="d", owner="o", customProperties=given_)
    assert (model["customProperties"], model["description"], model["owner"]) == (given_, "d", "o")


def test_reserved_keys_vanish_on_read(standin: Standin) -> None:
    given_ = {"experiment_id": string("1"), "experiment_run_id": string("2"), "p": string("3")}
    assert standin.model(customProperties=given_)["customProperties"] == {"p": string("3")}


def test_a_poisoned_property_is_stored_and_spoils_every_list(standin: Standin) -> None:
    standin.model("healthy")
    answer = standin.post("registered_models", {"name": "sick", "customProperties": {"p": string("mlmd-struct::x")}})
    assert answer.status == 500
    assert standin.get("registered_models/2").status == 400
    assert standin.get("registered_model", name="sick").status == 400
    assert standin.get("registered_models").status == 400
    assert standin.get("registered_models", pageSize="1").names == ["healthy"]
    assert standin.patch("registered_models/2", {}).status == 400
    assert standin.patch("registered_models/2", {"customProperties": {}}).status == 400
    standin.model("well")
    assert standin.patch("registered_models/3", {"customProperties": {"p": string("mlmd-struct::x")}}).status == 500
    assert standin.get("registered_models/3").status == 400


def test_bytes_that_are_not_utf8_become_replacement_characters(standin: Standin) -> None:
    assert standin.send("POST", "registered_models", b'{"name": "a\xff"}').json["name"] == "a\ufffd"
    assert standin.send("POST", "registered_models", b'{"name": "b\\ud800"}').json["name"] == "b\ufffd"
    assert standin.send("POST", "registered_models", b'{"name": "c\\ud83d\\ude00"}').json["name"] == "c\U0001f600"


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from(["", "ID", "CREATE_TIME", "LAST_UPDATE_TIME", "NAME"]),
    st.sampled_from(["", "ASC", "DESC", "desc"]),
    st.lists(st.integers(1, 12), max_size=6),
)
def test_pages_hold_each_entity_once_and_in_order(
    count: int, size: int, order_by: str, sort_order: str, patched: list[int]
) -> None:
    standin = Standin()
    for number in range(1, count + 1):
        standin.model(f"m{number}")
    for number in patched:
        standin.patch(f"registered_models/{number}", {})
    query = {"orderBy": order_by, "sortOrder": sort_order}
    whole = standin.get("registered_models", **query).json["items"]
    key = {"CREATE_TIME": "createTimeSinceEpoch", "LAST_UPDATE_TIME": "lastUpdateTimeSinceEpoch"}.get(order_by, "id")
    expected = sorted(whole, key=lambda item: (int(item[key]), int(item["id"])), reverse=sort_order == "DESC")
    assert whole == expected
    token, seen, tokens = "", [], []
    for _ in range(count + 1):
        answer = standin.get("registered_models", pageSize=str(size), nextPageToken=token, **query).json
        assert answer["pageSize"] == size
        seen += answer["items"]
        token = answer["nextPageToken"]
        tokens.append(token)
        if not token:
            break
    assert seen == whole
    assert len(set(tokens)) == len(tokens)
    first = standin.get("registered_models", pageSize=str(size), nextPageToken="", **query).json
    assert (first["items"], first["nextPageToken"]) == (whole[:size], tokens[0])


def test_sizes_of_pages(standin: Standin) -> None:
    for name in "abc":
        standin.model(name)
    for size, names in {"": "abc", "0": "abc", "-1": "abc", "2": "ab", "3": "abc", "99": "abc"}.items():
        answer = standin.get("registered_models", pageSize=size)
        assert (answer.names, answer.json["pageSize"]) == (list(names), int(size or "0"))
    assert standin.get("registered_models", pageSize="3").json["nextPageToken"] == ""
    for size in ("x", "1.5", "2147483648"):
        assert standin.get("registered_models", pageSize=size).status == 400


def test_tokens_are_base64_of_id_and_value_and_a_forged_one_finds_nothing(standin: Standin) -> None:
    for name in "abc":
        standin.model(name)
    token = standin.get("registered_models", pageSize="2").json["nextPageToken"]
    assert base64.b64decode(token) == b"2:2"
    assert standin.get("registered_models", nextPageToken=token).names == ["c"]
    for forged in (token_of(99, 99), token_of(99, 2**62), base64.b64encode(b"99:x").decode()):
        assert standin.get("registered_models", nextPageToken=forged).names == [], forged
    for wrong in ("no base64", base64.b64encode(b"x").decode(), base64.b64encode(b"x:1").decode()):
        assert standin.get("registered_models", nextPageToken=wrong).status == 400, wrong
