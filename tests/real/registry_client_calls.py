"""The upstream Python client's calls against a registry, and what each gives: run by `test_registry_standin_client`.

    python registry_client_calls.py URL

It runs in the client's own environment, with nothing of this project, and prints a JSON list of call, result and
expectation. The server must be empty.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from model_registry import ModelRegistry
from model_registry.types import DocArtifact, ListOptions, RegisteredModelState
from mr_openapi import (
    MetadataIntValue,
    MetadataValue,
    ModelVersionUpdate,
)

FORMAT = {"model_format_name": "safetensors", "model_format_version": "1"}
EVERY_TYPE = {"text": "x", "empty": "", "count": 999_999_999, "minus": -5, "half": 0.5, "whole": 3.0, "large": 1.8e12,
              "yes": True, "no": False, "ümlaut key/with. blanks": "Zwölf 你好"}  # fmt: skip

RESULTS: list[dict[str, Any]] = []


def call(name: str, run: Callable[[], Any], expected: object) -> Any:
    """Make a call and note its result; what is expected is a value, or a pattern of the text of an error."""
    try:
        value = run()
        result = repr(value)
        good = value == expected and type(value) is type(expected)
    except Exception as error:  # whatever the client raises is the result
        value = None
        text = " ".join(str(error).split())
        result = f"{type(error).__name__}: {text}"
        good = isinstance(expected, re.Pattern) and expected.search(result) is not None
    shown = expected.pattern if isinstance(expected, re.Pattern) else repr(expected)
    RESULTS.append({"call": name, "result": result, "expected": shown, "good": good})
    return value


def fails(pattern: str) -> re.Pattern[str]:
    """An error whose class and text hold this pattern."""
    return re.compile(pattern)


def connect(url: str) -> ModelRegistry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ModelRegistry(url, int(url.rpartition(":")[2]), author="tester", is_secure=False)


def updated(registry: ModelRegistry, thing: Any, **changes: Any) -> Any:
    for field, value in changes.items():
        setattr(thing, field, value)
    return registry.update(thing)


def models(registry: ModelRegistry) -> None:
    def register(name: str, version: str, **more: Any) -> Any:
        return registry.register_model(name, f"s3://models/{name}/{version}", version=version, **FORMAT, **more)

    call("get_registered_model of an unknown name", lambda: registry.get_registered_model("m"), None)
    call("get_registered_models of an empty registry", lambda: list(registry.get_registered_models()), [])
    call("get_model_version of an unknown model", lambda: registry.get_model_version("m", "1"), fails("StoreError.*m"))
    call(
        "get_model_artifact of an unknown model", lambda: registry.get_model_artifact("m", "1"), fails("StoreError.*m")
    )
    call("get_model_versions of an unknown model", lambda: registry.get_model_versions("m"), fails("StoreError.*m"))
    more = {"author": "a", "owner": "o", "version_description": "vd", "metadata": EVERY_TYPE, "storage_key": "k",
            "storage_path": "p", "service_account_name": "s", "model_source_id": "id"}  # fmt: skip
    call("register_model", lambda: register("m", "1", **more).name, "m")
    call("register_model, same version again", lambda: register("m", "1"), fails("StoreError.*already exists"))
    call("register_model, second version", lambda: register("m", "2").id, registry.get_registered_model("m").id)
    model, one = registry.get_registered_model("m"), registry.get_model_version("m", "1")
    call("get_registered_model", lambda: (model.name, model.owner, model.state.value), ("m", "o", "LIVE"))
    call("get_model_version", lambda: (one.name, one.author, one.description), ("1", "a", "vd"))
    call("get_model_version of an unknown version", lambda: registry.get_model_version("m", "9"), None)
    artifact = registry.get_model_artifact("m", "1")
    call("get_model_artifact", lambda: (artifact.name, artifact.uri, artifact.storage_key, artifact.model_source_id),
         ("m", "s3://models/m/1", "k", "id"))  # fmt: skip
    call("custom_properties of a version as registered", lambda: dict(one.custom_properties),
         {**EVERY_TYPE, "whole": 3, "large": 1_800_000_000_000})  # fmt: skip
    call("a whole double comes back as int", lambda: type(one.custom_properties["whole"]).__name__, "int")
    call("a whole double beyond nine digits too", lambda: one.custom_properties["large"], 1_800_000_000_000)
    call("times are equal on create", lambda: model.create_time_since_epoch == model.last_update_time_since_epoch, True)
    call("get_model_versions", lambda: [v.name for v in registry.get_model_versions("m")], ["1", "2"])


def updates(registry: ModelRegistry) -> None:
    def model() -> Any:
        return registry.get_registered_model("m")

    def version() -> Any:
        return registry.get_model_version("m", "1")

    call("update of a model's description", lambda: updated(registry, model(), description="d").description, "d")
    archived = RegisteredModelState.ARCHIVED
    call("update of a model's state", lambda: updated(registry, model(), state=archived).state.value, "ARCHIVED")
    call("update moves last_update_time", lambda: (before := model().last_update_time_since_epoch)
         < updated(registry, model()).last_update_time_since_epoch and before is not None, True)  # fmt: skip
    replaced = {"b": 2}
    call("update replaces custom_properties", lambda: updated(registry, version(), custom_properties=replaced)
         .custom_properties, replaced)  # fmt: skip
    call("update is read back", lambda: version().custom_properties, replaced)
    call("update with {} sends nothing", lambda: updated(registry, version(), custom_properties={}).custom_properties,
         replaced)  # fmt: skip
    call("update with None sends nothing", lambda: updated(registry, version(), description=None).description, "vd")
    artifact = registry.get_model_artifact("m", "1")
    call("update of an artifact", lambda: updated(registry, artifact, uri="s3://new", custom_properties={"k": "v"}).uri,
         "s3://new")  # fmt: skip
    read_back = lambda: dict(registry.get_model_artifact("m", "1").custom_properties)  # noqa: E731
    call("update of an artifact is read back", read_back, {"k": "v"})
    call("update of nothing known", lambda: registry.update(object()), fails("StoreError|AttributeError"))
    many = {f"benchmark_rate_{n}_ttft_p99": n / 7 for n in range(300)}
    call("update with 300 properties", lambda: updated(registry, version(), custom_properties=many).custom_properties,
         many)  # fmt: skip
    call("an int beyond int32", lambda: updated(registry, version(), custom_properties={"n": 2**31}),
         fails("ValidationError|ValueError|BadRequest|400"))  # fmt: skip
    call("nan", lambda: updated(registry, version(), custom_properties={"n": float("nan")}), fails("400|ValueError"))
    call("a key of 256 characters", lambda: updated(registry, version(), custom_properties={"k" * 256: 1}),
         fails("ServiceException.*500"))  # fmt: skip
    call("none of these was kept", lambda: version().custom_properties == many, True)


def lists(registry: ModelRegistry) -> None:
    for number in range(7):
        registry.register_model(f"page-{number}", "s3://x", version="1", **FORMAT)
    names = ["m", *(f"page-{number}" for number in range(7))]

    def paged(pager: Any) -> list[str]:
        found: list[str] = []
        for item in pager:
            found.append(item.name)
            assert len(found) < 100, "the pager does not end"
        return found

    def pager(size: int) -> Any:
        return registry.get_registered_models().page_size(size)

    for size in (1, 3, 8, 100):
        call(f"get_registered_models, page_size {size}", lambda size=size: paged(pager(size)), names)  # type: ignore[misc]
    call("... order_by_creation_time, descending", lambda: paged(pager(3).order_by_creation_time().descending()),
         names[::-1])  # fmt: skip
    call("... order_by_id, ascending", lambda: paged(pager(2).order_by_id().ascending()), names)
    updated(registry, registry.get_registered_model("page-2"), description="newest")
    last = [*(name for name in names if name != "page-2"), "page-2"]
    call("... order_by_update_time", lambda: paged(pager(3).order_by_update_time()), last)
    versions = lambda: paged(registry.get_model_versions("m").page_size(1))  # noqa: E731
    call("get_model_versions, page_size 1", versions, ["1", "2"])
    call("a pager can be restarted", lambda: (p := pager(3), next(p), paged(p.restart()))[2], names)


def by_hand(registry: ModelRegistry) -> None:
    """The client's own lower interface, which its users reach through ``_api``."""
    api, run = registry._api, asyncio.get_event_loop().run_until_complete
    one = registry.get_model_version("m", "1")
    call("get_registered_model_by_id", lambda: run(api.get_registered_model_by_id("1")).name, "m")
    call("get_registered_model_by_id, unknown", lambda: run(api.get_registered_model_by_id("999")), None)
    call("get_registered_model_by_id, no number", lambda: run(api.get_registered_model_by_id("x")), fails("BadRequest"))
    find = api.get_registered_model_by_params
    call("get_registered_model_by_params(external_id)", lambda: run(find(external_id="none")), None)
    call("get_model_version_by_id", lambda: run(api.get_model_version_by_id(one.id)).name, "1")
    found = lambda: run(api.get_model_version_by_params(registered_model_id="1", name="1")).id  # noqa: E731
    call("get_model_version_by_params", found, one.id)
    document = DocArtifact(name="notes", uri="s3://notes")
    upsert = lambda: type(run(api.upsert_model_version_artifact(document, one.id))).__name__  # noqa: E731
    call("upsert_model_version_artifact of a document", upsert, "DocArtifact")
    listed = lambda: sorted(a.name for a in run(api.get_model_version_artifacts(one.id)))  # noqa: E731
    call("get_model_version_artifacts", listed, ["m", "notes"])
    of_version = lambda: [a.name for a in run(api.get_model_artifacts(one.id, ListOptions()))]  # noqa: E731
    call("get_model_artifacts of a version", of_version, ["m"])


def traps(registry: ModelRegistry) -> None:
    """What the real server does to its users. They come last, for they spoil every list."""
    run = asyncio.get_event_loop().run_until_complete
    for name in ("us_model", "usXmodel", "back\\slash"):
        registry.register_model(name, "s3://x", version="1", **FORMAT)
    call("a name with _ once another fits it", lambda: registry.get_registered_model("us_model"), None)
    call("a name with a backslash", lambda: registry.get_registered_model("back\\slash"), None)
    call("a name in another case", lambda: registry.get_registered_model("M"), None)

    async def write(count: str) -> str:
        value = MetadataIntValue.model_construct(int_value=count, metadata_type="MetadataIntValue")
        wrapped = MetadataValue.model_construct(actual_instance=value)
        async with registry._api.get_client() as client:
            version = await client.find_model_version(name="2", parent_resource_id="1")
            body = ModelVersionUpdate.model_construct(custom_properties={"big": wrapped})
            return str((await client.update_model_version(version.id, body)).id)

    call("an int of ten digits is stored and its own answer cannot be read", lambda: run(write("1000000000")),
         fails("ValidationError|ValueError"))  # fmt: skip
    call("... nor its version", lambda: registry.get_model_version("m", "2"), fails("ValidationError|ValueError"))
    versions = lambda: list(registry.get_model_versions("m"))  # noqa: E731
    call("... nor any list that holds it", versions, fails("ValidationError|ValueError"))
    call("... while another version can be read", lambda: registry.get_model_version("m", "1").name, "1")
    model = registry.get_registered_model("page-0")
    poison = {"p": "mlmd-struct::not a struct"}
    call("a poisoned string is answered with 500", lambda: updated(registry, model, custom_properties=poison),
         fails("ServiceException.*500"))  # fmt: skip
    call("... and then its model with 400", lambda: registry.get_registered_model("page-0"), fails("BadRequest.*400"))
    call("... and every list that holds it", lambda: list(registry.get_registered_models()), fails("BadRequest.*400"))
    again = lambda: type(connect(registry._api.config.host)).__name__  # noqa: E731
    call("... but a client can still be made, as it asks for one model", again, "ModelRegistry")


def main() -> int:
    """Run all calls; the table goes to standard output."""
    registry = connect(sys.argv[1])
    for part in (models, updates, lists, by_hand, traps):
        part(registry)
    sys.stdout.write(json.dumps({"client": version("model-registry"), "calls": RESULTS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
