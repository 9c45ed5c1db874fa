"""The paths of the simulated engine: OpenAI's, vLLM's own, and ``/sim/*`` for what only a simulator knows."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.standins.engine import SERVER, tokenizer, wire
from pytest_vllm_stage.standins.engine.engine import Engine, Job
from pytest_vllm_stage.standins.engine.faults import CUT, Event, Fault, make
from pytest_vllm_stage.standins.engine.generation import Generated, generate
from pytest_vllm_stage.standins.engine.parameters import (
    Kind,
    Parameters,
    check_types,
    messages_of,
    parameters_of_prompts,
    parse_json,
    pieces_of,
    rendered,
)
from pytest_vllm_stage.standins.engine.refusal import Refusal, malformed
from pytest_vllm_stage.standins.engine.settings import Settings
from pytest_vllm_stage.standins.http import JSON_TYPE, Reply, Request

#: What ``/version`` says; no vLLM has a version like it.
VERSION = f"0.0.0+{SERVER}"

Route = Callable[[Request, Reply], None]


class EngineApi:
    """Answers requests; created inside the event loop that serves them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = Engine(settings)
        self.faults: list[Fault] = []
        self._dice = random.Random(settings.seed)  # noqa: S311 - which request a fault affects, not a secret
        #: Two engines with one seed give no id twice.
        self._own_bits = secrets.randbits(64)
        self._served = 0
        #: vLLM's own variable for the key that clients must send.
        self._key = os.environ.get("VLLM_API_KEY", "")
        self._started_at = int(time.time())
        self._routes: dict[tuple[str, str], Route] = {
            ("POST", "/v1/chat/completions"): lambda request, reply: self._generate("chat", request, reply),
            ("POST", "/v1/completions"): lambda request, reply: self._generate("completion", request, reply),
            ("GET", "/v1/models"): self._models,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): lambda _, reply: reply.send(200, b""),
            ("GET", "/version"): self._version,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/sim/settings"): lambda _, reply: reply.send_json(dataclasses.asdict(self.settings)),
            ("GET", "/sim/requests"): self._truths,
            ("DELETE", "/sim/requests"): self._forget_truths,
            ("GET", "/sim/faults"): lambda _, reply: reply.send_json([fault.name for fault in self.faults]),
            ("PUT", "/sim/faults"): self._put_faults,
        }
        self._paths = {path for _, path in self._routes}

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request, at once or when the engine has finished it."""
        for fault in self.faults:
            fault.on_reply(reply)
        if self._key and request.path.startswith("/v1/") and not self._has_key(request):
            reply.send_json({"error": "Unauthorized"}, 401)
            return
        route = self._routes.get((request.method, request.path))
        if route is None and any(fault.knows_every_path for fault in self.faults):
            reply.send(200, b"<html><body>Welcome</body></html>", "text/html")
            return
        if route is None:
            known = request.path in self._paths
            reply.send_json({"detail": "Method Not Allowed" if known else "Not Found"}, 405 if known else 404)
            return
        try:
            route(request, reply)
        except Refusal as refusal:
            self._refuse(refusal, reply)

    def _has_key(self, request: Request) -> bool:
        """The request carries the key, or a fault lets it pass."""
        given = request.headers.get("authorization", "")
        return given == f"Bearer {self._key}" or any(fault.lets_pass(given) for fault in self.faults)

    def set_faults(self, faults: list[Fault]) -> None:
        """Replace the active faults."""
        for fault in self.faults:
            fault.stop()
        self.faults = faults
        for fault in faults:
            fault.start(self.engine)

    def _generate(self, kind: Kind, request: Request, reply: Reply) -> None:
        received_at = time.perf_counter()
        faults = [fault for fault in self.faults if fault.hits(self._dice)] if self.faults else ()
        for fault in faults:
            refusal = fault.refuse()
            if refusal is not None:
                raise refusal
        for fault in faults:
            fault.on_request(request)
        body = _body(request)
        for fault in faults:
            fault.on_body(body, self.settings.model)
        self._check(body)
        parameters = parameters_of_prompts(body, kind, self.settings.max_model_len)
        self._served += 1
        request_id = request.headers.get("x-request-id") or f"{self._dice.getrandbits(64) ^ self._own_bits:016x}"
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        who = wire.Identity(prefix + request_id, kind, int(time.time()), self.settings.model)
        self._start(who, parameters, faults, received_at, reply)

    def _check(self, body: dict[str, Any]) -> None:
        check_types(body)
        model = body.get("model")
        if model is not None and model != self.settings.model:
            message = f"The model `{model}` does not exist. Valid aliases: {self.settings.model}."
            raise Refusal(404, message, "NotFoundError", "model")

    def _start(
        self, who: wire.Identity, parameters: Parameters, faults: Sequence[Fault], received_at: float, reply: Reply
    ) -> None:
        """Decide the whole answer, and submit the job that emits it on schedule."""
        for one in parameters.of_prompts:
            for fault in faults:
                fault.on_parameters(one)
        choices = [
            self._generated(one, index, faults) for one in parameters.of_prompts for index in range(parameters.n)
        ]
        usage = wire.usage_of(parameters, choices)
        for fault in faults:
            fault.on_usage(usage)
        job = Job(
            who.id,
            parameters.prompt,
            max(len(generated.pieces) for generated in choices),
            _ignore,
            # The engine knows no tools: a call ends as any answer does.
            "length" if choices[0].finish_reason == "length" else "stop",
            received_at,
            sum(fault.extra_s() for fault in faults),
            tuple(fault.name for fault in faults),
        )
        reply.on_disconnect = lambda: self._gone(job, faults)
        if parameters.stream:
            emissions = wire.emissions_of(who, parameters, choices, usage)
            job.on_token = self._streamer(job, _changed(emissions, faults) if faults else emissions, reply)
            reply.start_stream()
        else:
            answer = wire.answer_body(who, parameters, choices, usage)
            for fault in faults:
                fault.on_answer(answer)
            job.on_token = _sender(answer, job.tokens - 1, reply)
        self.engine.submit(job)

    def _generated(self, parameters: Parameters, index: int, faults: Sequence[Fault]) -> Generated:
        """One choice; each has its own seed."""
        seed = None if parameters.seed is None else parameters.seed + index
        own = dataclasses.replace(parameters, seed=seed) if index else parameters
        generated = generate(own, self.settings.seed, self._served + (index << 32))
        for fault in faults:
            fault.on_generated(generated, parameters)
        return generated

    def _gone(self, job: Job, faults: Sequence[Fault]) -> None:
        """The client disconnected; the request ends unless a fault hides this from the engine."""
        if all(fault.on_disconnect() for fault in faults):
            self.engine.abort(job)

    def _streamer(self, job: Job, emissions: Sequence[bytes | None], reply: Reply) -> Callable[[int], None]:
        """Sends each token's events when it is emitted; None cuts the connection."""
        last = job.tokens - 1

        def send(place: int) -> None:
            data = emissions[place]
            if data is None:
                reply.cut()
                self.engine.abort(job)
                return
            if data:
                reply.write(data)
            if place == last:
                reply.finish()

        return send

    def _refuse(self, refusal: Refusal, reply: Reply) -> None:
        for fault in self.faults:
            changed = fault.on_refusal(refusal)
            if changed is not None:
                reply.send(*changed)
                return
        reply.send_json(refusal.body(), refusal.status)

    def _models(self, _request: Request, reply: Reply) -> None:
        card = {
            "id": self.settings.model,
            "object": "model",
            "created": self._started_at,
            "owned_by": SERVER,
            "root": self.settings.model,
            "parent": None,
            "max_model_len": self.settings.max_model_len,
        }
        body = {"object": "list", "data": [card]}
        for fault in self.faults:
            fault.on_models(body)
        reply.send_json(body)

    def _tokenize(self, request: Request, reply: Reply) -> None:
        body = _body(request)
        self._check(body)
        if isinstance(body.get("prompt"), str):
            pieces = tokenizer.split(body["prompt"])
        elif body.get("messages") is not None:
            pieces = rendered(body, messages_of(body))
        else:
            raise malformed("missing", "body.prompt", "Field required")
        answer = {
            "count": len(pieces),
            "max_model_len": self.settings.max_model_len,
            "tokens": [tokenizer.token_id(piece) for piece in pieces],
            "token_strs": [piece.decode("latin-1") for piece in pieces] if body.get("return_token_strs") else None,
        }
        for fault in self.faults:
            fault.on_tokens(answer)
        reply.send_json(answer)

    def _detokenize(self, request: Request, reply: Reply) -> None:
        body = _body(request)
        self._check(body)
        numbers = body.get("tokens")
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise malformed("list_type", "body.tokens", "Input should be a list of integers")
        answer = {"prompt": b"".join(pieces_of(numbers, "tokens")).decode(errors="replace")}
        for fault in self.faults:
            fault.on_tokens(answer)
        reply.send_json(answer)

    def _health(self, _request: Request, reply: Reply) -> None:
        statuses = [fault.health_status for fault in self.faults if fault.health_status != 200]
        reply.send(statuses[0] if statuses else 200, b"")

    def _version(self, _request: Request, reply: Reply) -> None:
        body: dict[str, Any] = {"version": VERSION, "simulated": True}
        for fault in self.faults:
            fault.on_version(body)
        reply.send_json(body)

    def _metrics(self, _request: Request, reply: Reply) -> None:
        text = self.engine.stats.exposition(self.engine)
        for fault in self.faults:
            text = fault.on_metrics(text)
        reply.send(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _truths(self, request: Request, reply: Reply) -> None:
        """The true times of finished requests, oldest first; ``?id=`` selects one, ``?last=N`` the newest."""
        jobs = list(self.engine.truths)
        if "id" in request.query:
            jobs = [job for job in jobs if job.request_id == request.query["id"]]
        if request.query.get("last", "").isdecimal():
            jobs = jobs[-int(request.query["last"]) or len(jobs) :]
        reply.send_json({"clock": "time.perf_counter", "requests": [job.truth() for job in jobs]})

    def _forget_truths(self, _request: Request, reply: Reply) -> None:
        self.engine.truths.clear()
        self.engine.lateness_max_s = 0.0
        reply.send_json({})

    def _put_faults(self, request: Request, reply: Reply) -> None:
        try:
            self.set_faults(make(parse_json(b'{"faults":' + request.body + b"}")["faults"]))
        except ConfigError as error:
            raise Refusal(400, error.message, "BadRequestError", "faults") from None
        reply.send_json([fault.name for fault in self.faults])


def _ignore(_place: int) -> None:
    """Called for a token before the reply is ready."""


def _body(request: Request) -> dict[str, Any]:
    if not request.headers.get("content-type", JSON_TYPE).lower().startswith(JSON_TYPE):
        raise malformed("unsupported_media_type", "body", "Only application/json is allowed")
    return parse_json(request.body)


def _sender(answer: dict[str, Any], last: int, reply: Reply) -> Callable[[int], None]:
    def send(place: int) -> None:
        if place == last:
            reply.send_json(answer)

    return send


def _changed(emissions: list[bytes], faults: Sequence[Fault]) -> list[bytes | None]:
    """The emissions after the faults; None cuts the connection."""
    events = [
        Event(place, "[DONE]" if part == b"data: [DONE]" else json.loads(part.removeprefix(b"data: ")))
        for place, data in enumerate(emissions)
        for part in data.split(b"\n\n")[:-1]
    ]
    for fault in faults:
        fault.on_stream(events)
    changed: list[bytes | None] = [b"" for _ in emissions]
    for event in events:
        sent = changed[event.place]
        if sent is None:
            continue
        changed[event.place] = None if event.data == CUT else sent + event.encode()
    return changed
