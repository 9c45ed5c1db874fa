"""The simulated engine as a process: vLLM's paths and shapes, any HTTP, real clients, and its own truth."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.serving.client import CHAT, EndpointClient, StreamBroken, Target
from pytest_vllm_stage.standins.engine.faults import registry

FACT = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "pytest_vllm_stage.standins.engine",
        "--model",
        "m",
        "--ttft-ms",
        "2",
        "--itl-ms",
        "1",
    ]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[-1]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start("--max-model-len", "512", "--max-num-seqs", "4") as process:
        yield url_of(process)
        process.terminate()


@pytest.fixture
def client(url: str) -> Iterator[EndpointClient]:
    with EndpointClient(Target("sim", "m", url)) as client:
        assert client.raw("PUT", "/sim/faults", json=[]).json() == []
        yield client


def exchange(url: str, *pieces: bytes) -> bytes:
    """Send bytes on one connection that asks to be closed, and read all that comes."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with socket.create_connection((host, port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


def post(body: dict[str, Any], *headers: str, path: str = CHAT) -> bytes:
    content = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(content)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def test_it_says_everywhere_that_it_is_a_simulator(client: EndpointClient) -> None:
    assert client.raw("GET", "/version").json() == {"version": "0.0.0+vllm-stage-sim", "simulated": True}
    for response in (
        client.raw("GET", "/health"),
        client.raw("GET", "/nothing"),
        client.raw("POST", CHAT, json=client.chat_body("x", max_tokens=1)),
        client.raw("POST", CHAT, json=client.chat_body("x", max_tokens=1, stream=True)),
        client.raw("POST", CHAT, content=b"{", headers={"content-type": "application/json"}),
    ):
        assert response.headers["server"] == "vllm-stage-sim"
    assert client.chat("x", max_tokens=1).body["system_fingerprint"] == "vllm-stage-sim"
    assert client.models()[0]["owned_by"] == "vllm-stage-sim"


def test_tokenize_and_detokenize_are_inverse(client: EndpointClient) -> None:
    text = "Zwölf Boxkämpfer, 你好 🙂\r\n\t ."
    tokens = client.tokenize(text)
    assert tokens.count == len(tokens.ids) > 10
    assert tokens.max_model_len == 512
    assert client.detokenize(tokens.ids) == text
    assert client.completion(tokens.ids, max_tokens=1).usage.prompt_tokens == tokens.count


def test_the_openai_client_drives_it(url: str) -> None:
    import openai  # 0.3 s, which each worker that collects would need

    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
        assert [model.id for model in api.models.list()] == ["m"]
        create: Any = api.chat.completions.create
        asked = {"model": "m", "messages": [{"role": "user", "content": FACT}], "temperature": 0}
        whole = create(**asked)
        assert whole.choices[0].message.content == ANSWER
        assert whole.choices[0].finish_reason == "stop"
        usage = {"include_usage": True}
        chunks = list(create(**asked, stream=True, stream_options=usage))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage == whole.usage
        begun = api.completions.create(model="m", prompt="The capital of Italy is", temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in begun) == " Rome."
        with_logprobs = create(**asked, logprobs=True, top_logprobs=2)
        logprobs = with_logprobs.choices[0].logprobs
        assert len(logprobs.content) == with_logprobs.usage.completion_tokens
        assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in logprobs.content)
        with pytest.raises(openai.NotFoundError, match="The model `other` does not exist"):
            create(**{**asked, "model": "other"})
        with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1"):
            create(**asked, max_tokens=0)


def test_the_openai_client_sees_the_faults_of_requests_and_of_streams(client: EndpointClient, url: str) -> None:
    import openai  # 0.3 s, which each worker that collects would need

    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": FACT}], "temperature": 0}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
        create: Any = api.chat.completions.create
        client.raw("PUT", "/sim/faults", json=["server_error"])
        with pytest.raises(openai.InternalServerError, match="The engine is overloaded") as refused:
            create(**asked)
        assert refused.value.status_code == 503
        client.raw("PUT", "/sim/faults", json=[{"fault": "error_in_stream", "after_tokens": 2}])
        texts: list[str] = []
        with pytest.raises(openai.APIError):
            texts.extend(chunk.choices[0].delta.content or "" for chunk in create(**asked, stream=True))
        assert texts
        assert ANSWER.startswith("".join(texts))
        client.raw("PUT", "/sim/faults", json=["truncated_stream"])
        with pytest.raises(openai.APIConnectionError):
            list(create(**asked, stream=True))
        client.raw("PUT", "/sim/faults", json=[])
        assert create(**asked).choices[0].message.content == ANSWER


def test_two_tool_calls_are_two_calls_plain_and_streamed(url: str) -> None:
    import openai  # 0.3 s, which each worker that collects would need

    said = [{"name": "clock", "arguments": {"zone": "CET"}}, {"name": "clock", "arguments": {"zone": "UTC"}}]
    text = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in said)
    asked: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "What time is it in Paris and in London?"}],
        "tools": [{"type": "function", "function": {"name": "clock"}}],
        "extra_body": {"structured_outputs": {"choice": [text]}},
    }
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
        plain = api.chat.completions.create(**asked)
        chunks = list(api.chat.completions.create(**asked, stream=True))
    calls = plain.choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("clock", {"zone": "CET"}),
        ("clock", {"zone": "UTC"}),
    ]
    assert len({call.id for call in calls}) == 2
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    assert [piece.index for piece in pieces if piece.id] == [0, 1]
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)
    streamed = ["".join(piece.function.arguments or "" for piece in pieces if piece.index == index) for index in (0, 1)]
    assert streamed == [call.function.arguments for call in calls]
    assert {chunks[-1].choices[0].finish_reason, plain.choices[0].finish_reason} == {"tool_calls"}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"model": 7}, 400, "body.model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"content": "x"}]}, 400, "body.messages.0"),
        ({"messages": [{"role": "user", "content": 7}]}, 400, "body.messages.0"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, 400, "input_tokens"),
        ({"max_tokens": 513}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "body.max_tokens"),
        ({"temperature": -0.5}, 400, "temperature"),
        ({"n": 0}, 400, "n"),
        ({"n": 2, "temperature": 0}, 400, "n"),
        ({"temperature": 2.5}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"top_k": -2}, 400, "top_k"),
        ({"frequency_penalty": 3}, 400, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"stop_token_ids": ["a"]}, 400, "body.stop_token_ids"),
        ({"prompt_logprobs": -5}, 400, "prompt_logprobs"),
        ({"continue_final_message": True}, 400, "continue_final_message"),
        ({"structured_outputs": {"regex": "[a-"}}, 400, "structured_outputs"),
        ({"structured_outputs": {"json": {"type": "nope"}}}, 400, "structured_outputs"),
        ({"structured_outputs": "x"}, 400, "body.structured_outputs"),
        ({"response_format": {"type": "nope"}}, 400, "body.response_format.type"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"tool_choice": {"function": {"name": "other"}}, "tools": [{"function": {"name": "f"}}]}, 400, "tool_choice"),
        ({"tools": "x"}, 400, "body.tools"),
        ({"suffix": "x"}, 400, "suffix"),
        ({"truncate_prompt_tokens": "all"}, 400, "body.truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 5}, 400, "truncate_prompt_tokens"),
        ({"chat_template_kwargs": "x"}, 400, "body.chat_template_kwargs"),
        ({"bad_words": [""]}, 400, "bad_words"),
        ({"allowed_token_ids": [5]}, 400, "allowed_token_ids"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": [1]}, 400, "body.stop"),
        ({"top_logprobs": 21, "logprobs": True}, 400, "logprobs"),
        ({"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens"),
        ({"stream_options": []}, 400, "body.stream_options"),
        ({"tools": [{}]}, 400, "body.tools"),
    ],
)
def test_bad_requests_are_refused_as_vllm_does(
    client: EndpointClient, change: dict[str, Any], status: int, param: str
) -> None:
    response = client.raw("POST", CHAT, json={**client.chat_body("x"), **change})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, status, param)
    assert error["message"]
    assert error["type"]


def test_unknown_path_and_wrong_method_are_distinguished(client: EndpointClient) -> None:
    assert client.raw("GET", "/v1/nothing").status_code == 404
    assert client.raw("GET", CHAT).status_code == 405
    assert client.raw("POST", CHAT, content=b"{}", headers={"content-type": "text/plain"}).status_code == 400


def test_requests_in_any_pieces_are_answered_in_order(url: str) -> None:
    first = post({"model": "m", "messages": [{"role": "user", "content": FACT}], "temperature": 0}, "x-request-id: one")
    second = post({"model": "m", "prompt": "x", "max_tokens": 2}, "x-request-id: two", path="/v1/completions")
    last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    for pieces in ([first + second + last], [bytes([byte]) for byte in first + second + last]):
        received = exchange(url, *pieces)
        assert received.count(b"HTTP/1.1 200 OK") == 3
        assert received.index(b'"chatcmpl-one"') < received.index(b'"cmpl-two"')
        assert ANSWER.encode() in received


def test_a_chunked_body_is_taken_and_100_continue_is_sent(url: str) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        b"expect: 100-continue\r\nconnection: close\r\n\r\n"
    )
    body = b'{"model": "m", "prompt": "x", "max_tokens": 2}'
    chunks = b"%x;ext=1\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
    received = exchange(url, head, chunks)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert b'"text_completion"' in received


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/3\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 70_000,
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_bytes_that_are_not_a_request_end_the_connection(url: str, sent: bytes) -> None:
    assert exchange(url, sent).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_http_1_0_gets_a_stream_without_chunks_that_the_connection_ends(url: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": FACT}], "temperature": 0, "stream": True}
    head, _, events = exchange(url, post(body).replace(b"HTTP/1.1", b"HTTP/1.0", 1)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


def test_client_that_disconnects_frees_its_slot(client: EndpointClient) -> None:
    aborted = client.metrics().value("vllm:request_success", finished_reason="abort")
    with client.stream_chat("x", max_tokens=480, ignore_eos=True) as stream:
        next(iter(stream))

    def look() -> Observation:
        metrics = client.metrics()
        running = metrics.value("vllm:num_requests_running")
        gone = metrics.value("vllm:request_success", finished_reason="abort") - aborted
        return Observation(gone == 1 and running == 0, f"{running:g} running, {gone:g} aborted")

    wait_until("abort", look, timeout_s=30, journal=Journal(), interval_s=0.02)


def test_the_truth_about_a_request_is_published(client: EndpointClient) -> None:
    client.raw("DELETE", "/sim/requests")
    body = client.chat_body(FACT, temperature=0)
    client.raw("POST", CHAT, json=body, headers={"x-request-id": "mine"})
    streamed = client.stream_chat(FACT, temperature=0).read()
    truths = client.raw("GET", "/sim/requests").json()
    assert truths["clock"] == "time.perf_counter"
    first, second = truths["requests"]
    assert client.raw("GET", "/sim/requests?id=chatcmpl-mine").json()["requests"] == [first]
    assert client.raw("GET", "/sim/requests?last=1").json()["requests"] == [second]
    assert second["request_id"] == streamed.chunks[0]["id"]
    assert second["completion_tokens"] == len(second["token_times"]) == len(streamed.deltas) + 1
    times = [second["received_at"], second["admitted_at"], *second["token_times"], second["finished_at"]]
    assert times == sorted(times)
    for emitted, delta in zip(second["token_times"], streamed.deltas, strict=False):
        assert streamed.sent_at < emitted < delta.arrived_at, (
            "a token arrived before it left, or left before the request"
        )


def test_more_requests_than_slots_wait_their_turn(client: EndpointClient) -> None:
    streams = [client.stream_chat(f"{number}", max_tokens=100, ignore_eos=True) for number in range(6)]
    metrics = client.metrics()
    assert metrics.value("vllm:num_requests_running") == 4
    assert metrics.value("vllm:num_requests_waiting") == 2
    assert 0 < metrics.value("vllm:kv_cache_usage_perc") < 1
    assert [len(stream.read().finish_reasons) for stream in streams] == [1] * 6


def test_faults_hit_their_share_and_can_be_taken_back(client: EndpointClient) -> None:
    client.raw("PUT", "/sim/faults", json=[{"fault": "server_error", "share": 0.5, "status": 502}])
    statuses = [client.raw("POST", CHAT, json=client.chat_body("x", max_tokens=1)).status_code for _ in range(40)]
    assert set(statuses) == {200, 502}
    client.raw("PUT", "/sim/faults", json=[])
    assert client.chat(FACT, temperature=0).text == ANSWER


def test_a_cut_stream_and_an_error_inside_one_are_seen_by_the_client(client: EndpointClient) -> None:
    client.raw("PUT", "/sim/faults", json=["truncated_stream"])
    with pytest.raises(StreamBroken, match="was cut"):
        client.stream_chat(FACT).read()
    client.raw("PUT", "/sim/faults", json=[{"fault": "error_in_stream", "after_tokens": 1}])
    with pytest.raises(StreamBroken, match="carries an error inside its 200"):
        client.stream_chat(FACT).read()


@pytest.mark.parametrize("name", sorted(set(registry()) - {"server_error", "slow_start", "slow_requests"}))
@pytest.mark.parametrize("stream", [False, True])
def test_no_fault_breaks_the_simulator_itself(client: EndpointClient, name: str, stream: bool) -> None:
    """Whatever a fault does to short and odd requests, it is the fault's doing and not an exception's."""
    client.raw("PUT", "/sim/faults", json=[{"fault": name, "share": 1.0}])
    for parameters in ({"max_tokens": 1}, {"max_tokens": 2, "stop": ["a"]}, {"logprobs": True, "max_tokens": 3}):
        body = client.chat_body(FACT, stream=stream, return_token_ids=True, **parameters)
        assert client.raw("POST", CHAT, json=body).status_code == 200
    client.raw("PUT", "/sim/faults", json=[])
    assert client.chat(FACT, temperature=0).text == ANSWER


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('["no_such_fault"]', "there is no fault 'no_such_fault'; valid: abandoned_answers_go_on, "),
        ('[{"fault": "stall", "seconds": 2}]', "fault stall has no parameter 'seconds'; valid: share, duration_s"),
        ('[{"fault": "stall", "every_s": "2"}]', "fault stall: every_s is '2'; it must be like 15.0"),
        ('{"fault": "stall"}', "a fault script is a list of faults, not dict"),
        ("[", "Expecting value"),
    ],
)
def test_a_fault_script_that_is_wrong_is_refused(tmp_path: Path, script: str, message: str) -> None:
    (tmp_path / "faults.json").write_text(script)
    with start("--faults", str(tmp_path / "faults.json")) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert message in errors
    assert "Traceback" not in errors


def test_it_starts_with_faults_and_ends_on_a_signal(tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text('[{"fault": "wrong_answers"}]')
    with start("--faults", str(tmp_path / "faults.json")) as process:
        with EndpointClient(Target("sim", "m", url_of(process))) as client:
            assert client.chat(FACT, temperature=0).text == "Uif dbqjubm pg Gsbodf jt Qbsjt."
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


#: As the declarations of the stage have them.
VLLM_ARGUMENTS = (
    "--served-model-name=name",
    "--max-model-len=300",
    "--max-num-seqs=3",
    "--dtype=auto",
    "--gpu-memory-utilization=0.70",
    "--tensor-parallel-size=4",
    "--enable-prefix-caching",
    "--enable-chunked-prefill",
    "--disable-custom-all-reduce",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
)


def test_it_starts_with_the_arguments_of_a_declaration_for_vllm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with start(f"--model={tmp_path}", *VLLM_ARGUMENTS) as process:
        with EndpointClient(Target("sim", "name", url_of(process))) as client:
            assert [(card["id"], card["max_model_len"]) for card in client.models()] == [("name", 300)]
            assert client.raw("GET", "/sim/settings").json()["max_num_seqs"] == 3
        process.terminate()


def test_a_served_name_needs_weights_and_no_other_argument_is_swallowed(tmp_path: Path) -> None:
    for arguments, said in [
        ((f"--model={tmp_path}/nowhere", *VLLM_ARGUMENTS), f"error: model path {tmp_path}/nowhere does not exist"),
        ((f"--model={tmp_path}", *VLLM_ARGUMENTS), f"error: model path {tmp_path} does not hold a model: "),
        (("--max-num-seq=3",), "unrecognized arguments: --max-num-seq=3"),
    ]:
        with start(*arguments) as process:
            try:
                _, errors = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 2
        assert said in errors
        assert "Traceback" not in errors


def test_a_port_that_is_taken_is_one_line(url: str) -> None:
    with start("--port", str(httpx.URL(url).port)) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.splitlines()[0].startswith("vllm-stage-sim: cannot listen on 127.0.0.1:")
    assert len(errors.splitlines()) == 1
