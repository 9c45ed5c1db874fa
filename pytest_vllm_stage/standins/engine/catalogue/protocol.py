"""Faults of refusals and descriptions: bad requests answered, good ones refused, errors and models misdescribed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from pytest_vllm_stage.standins.engine.faults import Fault, fault
from pytest_vllm_stage.standins.engine.refusal import Refusal

_PAGE = b"<html><head><title>Bad Gateway</title></head><body><center><h1>nginx</h1></center></body></html>"


@fault("server_error")
@dataclass
class ServerError(Fault):
    """Requests are answered with a 5xx.

    Attributes:
        status: The status.
    """

    status: int = 503

    def refuse(self) -> Refusal | None:
        """Refuse."""
        return Refusal(self.status, "The engine is overloaded.", "ServiceUnavailableError")


@fault("any_path_answers")
class AnyPathAnswers(Fault):
    """A gateway answers every path with a page."""

    knows_every_path: ClassVar[bool] = True


@fault("unknown_model_accepted")
class UnknownModelAccepted(Fault):
    """Whatever model is asked for, the served one answers."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        body["model"] = model


@fault("bad_fields_accepted")
class BadFieldsAccepted(Fault):
    """Fields that cannot be are dropped, and their defaults taken."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        for name in ("max_tokens", "temperature"):
            value = body.get(name)
            if isinstance(value, str) or (isinstance(value, int | float) and value < 0):
                del body[name]


@fault("prompt_cut_to_fit")
@dataclass
class PromptCutToFit(Fault):
    """A prompt over the context length is cut, and answered.

    Attributes:
        characters: What is left of it.
    """

    characters: int = 4096

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if isinstance(body.get("prompt"), str):
            body["prompt"] = body["prompt"][: self.characters]
        messages = body.get("messages")
        for message in messages if isinstance(messages, list) else []:
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                message["content"] = message["content"][: self.characters]


@fault("errors_are_500")
class ErrorsAre500(Fault):
    """Every refusal is a 500: the caller's mistakes look like outages."""

    def on_refusal(self, refusal: Refusal) -> tuple[int, bytes, str]:
        body = {"error": {**refusal.body()["error"], "code": 500}}
        return 500, json.dumps(body).encode(), "application/json"


@fault("errors_are_200")
class ErrorsAre200(Fault):
    """A gateway passes error objects on with status 200."""

    def on_refusal(self, refusal: Refusal) -> tuple[int, bytes, str]:
        return 200, json.dumps(refusal.body()).encode(), "application/json"


@fault("errors_are_pages")
class ErrorsArePages(Fault):
    """A proxy replaces the body of errors with a page of its own."""

    def on_refusal(self, refusal: Refusal) -> tuple[int, bytes, str]:
        return refusal.status, _PAGE, "text/html"


@fault("errors_say_nothing")
class ErrorsSayNothing(Fault):
    """Error objects are present, and do not name what to change."""

    def on_refusal(self, refusal: Refusal) -> tuple[int, bytes, str]:
        error = {"message": "Bad request.", "type": "BadRequestError", "param": None, "code": refusal.status}
        return refusal.status, json.dumps({"error": error}).encode(), "application/json"


@fault("wrong_context_length")
@dataclass
class WrongContextLength(Fault):
    """The model list states another context length than the engine has.

    Attributes:
        max_model_len: What it states.
    """

    max_model_len: int = 131072

    def on_models(self, body: dict[str, Any]) -> None:
        for card in body["data"]:
            card["max_model_len"] = self.max_model_len


@fault("wrong_model_listed")
class WrongModelListed(Fault):
    """The model list names another model."""

    def on_models(self, body: dict[str, Any]) -> None:
        for card in body["data"]:
            card["id"] = "some-other-model"
