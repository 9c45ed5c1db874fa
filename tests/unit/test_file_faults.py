"""Every file that the product reads, damaged as a whole: read as it is meant or refused by its name, never a traceback.

test_mutations.py changes single values of the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_vllm_stage.cluster import kubeconfig_files, local
from pytest_vllm_stage.cluster.kind import record as kind_records
from pytest_vllm_stage.cluster.local import record as local_records
from pytest_vllm_stage.cluster.local import status
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.report import index
from pytest_vllm_stage.session import kept
from tests.unit.file_kinds import KINDS, Kind, refusal_of

#: Damage that leaves nothing of the file's meaning.
WRECKS: Mapping[str, bytes] = {
    "empty": b"",
    "blank": b"\n \n",
    "null": b"null",
    "a number": b"12",
    "a string": b'"x"',
    "a list": b"[]",
    "a list of objects": b"[{}]",
    "an empty object": b"{}",
    "NaN": b"NaN",
    "open lists": b"[" * 100_000,
    "open objects": b'{"a":' * 100_000,
    "too many levels": b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5_000 + b"}",
    "a date that does not exist": b"a: 2020-99-99\n",
    "a YAML tag": b"a: !!python/object:os.system x\n",
    "a recursive alias": b"a: &a [*a]\n",
    "binary": bytes(range(256)),
    "Latin-1": b"a = \xfc\n",
    "NUL": b'{"a": \0}',
}
#: These files may be empty, or hold nothing of ours: a kubeconfig that lacks every section, an env file of comments.
MAY_BE_EMPTY = {
    "env file": {"empty", "blank"},
    "baselines": {"empty", "blank"},
    "kubeconfig": {"empty", "blank", "null", "an empty object", "a recursive alias"},
}
#: Files that a person edits; programs alone write the others, always as plain UTF-8.
EDITED = ("profile", "kubeconfig", "reference", "baselines", "env file", "samples")


@pytest.fixture(params=KINDS)
def named(request: pytest.FixtureRequest) -> tuple[str, Kind]:
    return request.param, KINDS[request.param]


def test_a_wreck_is_refused_by_its_name(named: tuple[str, Kind], tmp_path: Path) -> None:
    what, kind = named
    path = tmp_path / kind.name
    messages = {}
    for wreck, data in WRECKS.items():
        path.write_bytes(kind.pack(data))
        messages[wreck] = refusal_of(kind.read, path)
    accepted = {wreck for wreck, message in messages.items() if not message}
    assert accepted <= MAY_BE_EMPTY.get(what, set())
    assert {wreck for wreck, message in messages.items() if message and path.name not in message} == set()


@pytest.mark.parametrize("what", EDITED)
def test_an_edited_file_means_the_same_in_every_encoding(what: str, tmp_path: Path) -> None:
    kind, path = KINDS[what], tmp_path / KINDS[what].name
    text = kind.write(kind.make(tmp_path))
    read = []
    for data in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), text.replace("\n", "\r\n").encode()):
        path.write_bytes(kind.pack(data))
        read.append(kind.read(path))
    assert read[0] == read[1] == read[2] == read[3]


@pytest.mark.parametrize("what", ["profile", "kubeconfig", "reference", "baselines", "artifact", "samples", "env file"])
@pytest.mark.parametrize("state", ["directory", "symlink loop"])
def test_what_is_not_a_file_is_refused_by_its_name(what: str, state: str, tmp_path: Path) -> None:
    kind, path = KINDS[what], tmp_path / KINDS[what].name
    if state == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.name)
    assert path.name in refusal_of(kind.read, path)


def read_index(path: Path) -> object:
    return list(index.read_entries(path.parent.parent))


#: Files that only this package writes and reads, with what their readers give for one that is corrupt.
OWN_FILES: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "kept note": ("run-1.json", lambda path: kept.find("run-1")),
    "record of a kind cluster": ("record.json", lambda path: kind_records.load_record(path.parent)),
    "record of a local cluster": (local_records.FILE, lambda path: local_records.load(path.parent)),
    "states of programs": ("programs.json", status.read),
    "index of runs": ("run.json", read_index),
}


@pytest.mark.parametrize("what", OWN_FILES)
def test_an_own_file_that_is_corrupt_counts_as_absent_or_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(local, "running", lambda: [SimpleNamespace(state_dir="/clusters/one")])
    name, read = OWN_FILES[what]
    path = tmp_path / "kept" / name
    path.parent.mkdir()
    for data in WRECKS.values():
        path.write_bytes(data)
        assert path.stem in (refusal_unless_absent(read, path) or path.stem)
    path.unlink(missing_ok=True)
    path.mkdir()
    assert path.stem in (refusal_unless_absent(read, path) or path.stem)


def refusal_unless_absent(read: Callable[[Path], object], path: Path) -> str:
    found: list[object] = []
    message = refusal_of(lambda path: found.append(read(path)), path)
    assert found in ([], [None], [[]], [{}])
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is set twice in one object"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[1, NaN]", "NaN is not a JSON number"),
        ("{", "Expecting property name"),
    ],
)
def test_every_defect_of_json_is_one_kind_of_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text, finite=True)


def test_constants_are_read_where_a_writer_may_give_them() -> None:
    assert parse_json(b'{"a": Infinity}') == {"a": float("inf")}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xef\xbb\xbfsesame\r\n", ""),
        ("sesame\n".encode("utf-16"), ""),
        (b"open\nsesame\n", "expected visible ASCII characters only"),
        ("sésame".encode(), "expected visible ASCII characters only"),
        (b"\xff\xfe\x00", "not valid UTF-16 LE"),
    ],
    ids=["utf-8-mark", "utf-16", "two lines", "accented", "cut"],
)
def test_a_token_file_gives_a_token_that_a_header_can_carry(data: bytes, message: str, tmp_path: Path) -> None:
    from kubernetes.client import Configuration

    (tmp_path / "token").write_bytes(data)
    user = {"name": "u", "user": {"tokenFile": "token"}}
    made = KINDS["kubeconfig"].make(tmp_path)
    context = made["contexts"][0]
    context["context"]["user"] = "u"
    path = tmp_path / "kubeconfig.json"
    path.write_text(json.dumps(made | {"users": [user]}))
    configuration = Configuration()
    if not message:
        kubeconfig_files.load(str(path), context["name"], configuration, str(tmp_path))
        assert "Bearer sesame" in configuration.api_key.values()
        return
    with pytest.raises(ConfigError, match=message) as refused:
        kubeconfig_files.load(str(path), context["name"], configuration, str(tmp_path))
    assert "sesame" not in str(refused.value)
