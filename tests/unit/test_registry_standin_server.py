"""The stand-in's faults, its request log and reset, its store on disk, and the server as a process."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pytest_vllm_stage.core.paths import PACKAGE
from pytest_vllm_stage.standins.http import Server
from pytest_vllm_stage.standins.registry import SERVER
from pytest_vllm_stage.standins.registry.api import PREFIXES
from pytest_vllm_stage.standins.registry.faults import FAULTS, RegistryFault, WrongScript, parse_faults
from tests.unit.standin_registry import Standin, double

MODELS = PREFIXES["v1"] + "/registered_models"


@pytest.fixture
def standin() -> Standin:
    return Standin()


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.registry", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[-1]


@pytest.fixture(scope="module")
def process_url() -> Iterator[str]:
    with start() as process:
        yield url_of(process)
        process.terminate()


@pytest.fixture
def client(process_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=process_url, timeout=30) as client:
        assert client.post("/standin/reset").status_code == 200
        yield client


def exchange(url: str, content: bytes) -> bytes:
    """Send bytes on one connection, and read until the server closes it."""
    with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0), timeout=30) as connection:
        connection.sendall(content)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({}, "a fault script is a list of faults, not dict"),
        (["nothing"], "there is no fault 'nothing'; valid: cut-answer, drop-patches, latency"),
        ([{}], "there is no fault None"),
        ([7], "there is no fault 7"),
        ([{"fault": "latency", "second": 1}], "fault latency has no parameter 'second'; valid: method, path, after"),
        ([{"fault": "latency", "seconds": "1"}], "fault latency: seconds is '1'; expected a value like 0.1"),
        ([{"fault": "latency", "seconds": -1}], "seconds is -1; expected 0 to 86400"),
        ([{"fault": "unavailable", "status": 200}], "status is 200; expected an error status, 400 to 599"),
        ([{"fault": "unavailable", "status": 999}], "status is 999; expected an error status, 400 to 599"),
        ([{"fault": "unavailable", "after": True}], "after is True"),
    ],
)
def test_a_wrong_fault_script_is_named(standin: Standin, script: object, message: str) -> None:
    with pytest.raises(WrongScript) as wrong:
        parse_faults(script)
    assert message in str(wrong.value)
    answer = standin.raw("PUT", "/standin/faults", json.dumps(script).encode())
    assert (answer.status, message in answer.json["error"]) == (400, True)


def test_every_fault_can_be_asked_for_by_its_name(standin: Standin) -> None:
    standin.faults(*FAULTS)
    shown = standin.raw("GET", "/standin/faults").json
    assert [fault["fault"] for fault in shown] == list(FAULTS)


def test_manual_names_every_fault() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in FAULTS if f"`{name}`" not in manual] == []


def test_a_fault_hits_the_requests_that_it_names() -> None:
    fault = RegistryFault(method="PATCH", path="model_versions", after=1, requests=2)
    asked = [("PATCH", "/model_versions/1")] * 5
    assert [fault.hits(*request) for request in asked] == [False, True, True, False, False]
    assert not RegistryFault(method="PATCH").hits("GET", "/x")
    assert not RegistryFault(path="y").hits("GET", "/x")
    assert RegistryFault().hits("GET", "/x")


def test_unavailable_from_a_request_on_for_a_number_of_requests(standin: Standin) -> None:
    standin.faults({"fault": "unavailable", "after": 1, "requests": 2})
    assert [standin.get("registered_models").status for _ in range(5)] == [200, 503, 503, 200, 200]
    standin.faults({"fault": "unavailable", "status": 429, "method": "POST"})
    assert standin.get("registered_models").status == 200
    refused = standin.post("registered_models", {"name": "m"})
    assert (refused.status, refused.response.content_type) == (429, "text/plain; charset=utf-8")
    assert standin.get("registered_models").names == []


def test_a_lost_database_is_500_but_404_by_id(standin: Standin) -> None:
    standin.model()
    standin.faults("lost-database")
    for path in ("registered_models", "registered_model?name=m", "model_versions"):
        assert standin.send("GET", path).status == 500, path
    for path in ("registered_models/1", "model_artifacts/1"):
        assert standin.get(path).status == 404, path
    assert standin.post("registered_models", {"name": "n"}).status == 500
    assert standin.patch("registered_models/1", {}).status == 404
    assert standin.raw("GET", "/readyz/health").status == 503
    standin.faults()
    assert standin.get("registered_models").names == ["m"]
    assert standin.raw("GET", "/readyz/health").status == 200


def test_a_poisoned_row(standin: Standin) -> None:
    version = standin.version("1")
    standin.faults({"fault": "poison", "kind": "model version", "id": version["id"]})
    assert standin.get(f"model_versions/{version['id']}").status == 400
    assert standin.get("model_versions").status == 400
    assert standin.get("registered_models").status == 200


def test_lists_return_another_first(standin: Standin) -> None:
    for name in "abc":
        standin.model(name)
    standin.faults("other-first")
    assert standin.get("registered_models").names == ["b", "c", "a"]
    standin.faults({"fault": "other-first", "avoid": "b"})
    assert standin.get("registered_models").names == ["a", "c", "b"]
    assert standin.get("registered_model", name="b").json["name"] == "b"


def test_orphans_are_refused_on_request(standin: Standin) -> None:
    standin.faults("refuse-orphans")
    assert standin.post("model_versions", {"name": "v", "registeredModelId": "99"}).status == 404
    assert standin.version(standin.model()["id"])["name"] == "v"


def test_a_patch_that_is_not_kept(standin: Standin) -> None:
    standin.model()
    standin.faults("drop-patches")
    patched = standin.patch("registered_models/1", {"customProperties": {"p": double(1)}})
    assert (patched.status, patched.json["customProperties"]) == (200, {"p": double(1)})
    assert standin.get("registered_models/1").json["customProperties"] == {}


def test_requests_are_logged_without_their_credentials(standin: Standin) -> None:
    body = b'{"name": "m"}'
    standin.raw("POST", f"{MODELS}?x=1", body, authorization="Bearer secret", **{"content-type": "application/json"})
    standin.get("registered_models/9")
    first, second = standin.raw("GET", "/standin/requests").json
    assert first.pop("at") <= second.pop("at")
    assert first == {"method": "POST", "path": MODELS, "query": {"x": "1"}, "body": '{"name": "m"}', "status": 201,
                     "content_type": "application/json", "authorized": True}  # fmt: skip
    assert (second["method"], second["path"], second["status"]) == ("GET", f"{MODELS}/9", 404)
    assert not second["authorized"]
    assert "secret" not in standin.raw("GET", "/standin/requests").text
    standin.raw("DELETE", "/standin/requests")
    assert standin.raw("GET", "/standin/requests").json == []


def test_a_reset_forgets_everything(standin: Standin) -> None:
    standin.model()
    standin.faults("lost-database")
    standin.raw("POST", "/standin/reset")
    assert standin.raw("GET", "/standin/requests").json == []
    assert standin.raw("GET", "/standin/faults").json == []
    assert standin.model()["id"] == "1"


def test_every_response_names_the_stand_in(client: httpx.Client) -> None:
    for method, path in [("GET", "/"), ("GET", MODELS), ("GET", f"{MODELS}/1"), ("DELETE", MODELS), ("HEAD", MODELS),
                         ("GET", "/readyz/health"), ("GET", "/standin")]:  # fmt: skip
        assert client.request(method, path).headers["server"] == SERVER, path
    assert SERVER in client.get("/readyz/health").text
    assert client.get("/standin").json() == {"standin": SERVER, "versions": ["v1alpha3", "v1"]}
    assert client.get("/").text == "404 page not found\n"


def test_connections_stay_and_bodies_may_be_chunked(process_url: str, client: httpx.Client) -> None:
    assert client.post(MODELS, content=iter([b'{"na', b'me": "chunked"}'])).status_code == 201
    two = f"GET {MODELS} HTTP/1.1\r\nhost: x\r\n\r\nGET {MODELS}/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    received = exchange(process_url, two.encode())
    assert received.count(b"HTTP/1.1 200 OK") == 2
    head = exchange(process_url, b"HEAD /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found")
    assert head.endswith(b"\r\n\r\n")
    head = exchange(process_url, f"HEAD {MODELS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert head.startswith(b"HTTP/1.1 405 Method Not Allowed")
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/3\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\nlong: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
def test_bytes_that_are_not_http_get_400_and_end_the_connection(process_url: str, content: bytes) -> None:
    assert exchange(process_url, content).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_clients_at_once_lose_nothing(client: httpx.Client, process_url: str) -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        with httpx.Client(base_url=process_url, timeout=60) as own:
            for place in range(20):
                answer = own.post(MODELS, json={"name": f"{number}-{place}"})
                if answer.status_code != 201 or own.get(f"{MODELS}/{answer.json()['id']}").json() != answer.json():
                    failures.append(answer.text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    items = client.get(MODELS).json()["items"]
    assert len({item["id"] for item in items}) == len({item["name"] for item in items}) == 160


def test_of_patches_at_once_one_survives(client: httpx.Client, process_url: str) -> None:
    client.post(MODELS, json={"name": "m"})
    statuses: list[int] = []

    def work(number: int) -> None:
        body = {"customProperties": {f"k{number}": double(number)}}
        statuses.append(httpx.patch(f"{process_url}{MODELS}/1", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 8
    assert len(client.get(f"{MODELS}/1").json()["customProperties"]) == 1


def test_a_cut_answer_is_carried_out(client: httpx.Client) -> None:
    client.put("/standin/faults", json=[{"fault": "cut-answer", "method": "POST", "requests": 1}])
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(MODELS, json={"name": "m"})
    assert [item["name"] for item in client.get(MODELS).json()["items"]] == ["m"]


def test_a_late_answer_keeps_no_other_waiting(client: httpx.Client, process_url: str) -> None:
    """The late request is still unanswered when another one, sent after it, is done."""
    client.put("/standin/faults", json=[{"fault": "latency", "seconds": 20, "path": "model_versions"}])
    with socket.create_connection((httpx.URL(process_url).host, httpx.URL(process_url).port or 0)) as late:
        late.sendall(f"GET {PREFIXES['v1']}/model_versions HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert client.get(MODELS).status_code == 200
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.recv(1)


def test_what_is_stored_survives_a_restart(tmp_path: Path) -> None:
    arguments = ("--database", str(tmp_path / "registry.db"), "--api", "v1")
    with start(*arguments) as process:
        url = url_of(process)
        made = httpx.post(url + MODELS, json={"name": "m", "customProperties": {"p": double(1.5)}}).json()
        assert httpx.get(f"{url}{PREFIXES['v1alpha3']}/registered_models").text == "404 page not found\n"
        process.kill()
    with start(*arguments) as process:
        url = url_of(process)
        assert httpx.get(f"{url}{MODELS}/1").json() == made
        assert httpx.post(url + MODELS, json={"name": "n"}).json()["id"] == "2"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_connections_open(number: signal.Signals) -> None:
    with start() as process:
        url = url_of(process)
        with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0)), httpx.Client() as idle:
            assert idle.get(url + MODELS).status_code == 200
            process.send_signal(number)
            assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_an_answer_on_its_way_is_let_out() -> None:
    """The server is stopped while a request waits; it is still answered, and the connection is closed."""

    async def stop_amid_a_request() -> bytes:
        standin = Standin()
        standin.faults({"fault": "latency", "seconds": 0.2})
        server = Server(standin.api.handle, SERVER)
        host, port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {MODELS} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        async with asyncio.timeout(30):
            while not standin.api.faults[0].seen:
                await asyncio.sleep(0.001)
            await server.stop()
            received = await reader.read()
        writer.close()
        return received

    received = asyncio.run(stop_amid_a_request())
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in received


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--database", "/nowhere/registry.db"), 1, "cannot open the database /nowhere/registry.db"),
        (("--host", "192.0.2.1"), 1, "cannot listen on 192.0.2.1:0"),
        (("--api", "v2"), 2, "invalid choice: 'v2'"),
        (("--faults", "/nowhere/faults.json"), 2, "--faults /nowhere/faults.json: "),
    ],
)
def test_a_wrong_command_line_is_reported(arguments: tuple[str, ...], code: int, message: str) -> None:
    with start(*arguments) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert message in errors
    assert "Traceback" not in errors


def test_it_runs_with_nothing_but_python_and_its_own_modules(tmp_path: Path) -> None:
    """As in a pod: no site-packages, and of this project only the stand-in's own modules."""
    package = tmp_path / "pytest_vllm_stage"
    shutil.copytree(PACKAGE / "standins" / "registry", package / "standins" / "registry")
    for name in ("__init__.py", "standins/__init__.py", "standins/http.py"):
        shutil.copy(PACKAGE / name, package / name)
    command = [sys.executable, "-S", "-P", "-m", "pytest_vllm_stage.standins.registry", "--database", "registry.db"]
    environ = {"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert httpx.post(url_of(process) + MODELS, json={"name": "m"}).status_code == 201
        process.terminate()
    assert process.returncode == 0


def test_faults_can_be_there_from_the_start(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('["lost-database"]')
    with start("--faults", str(script)) as process:
        assert httpx.get(url_of(process) + MODELS).status_code == 500
        process.terminate()
