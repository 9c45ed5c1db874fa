"""The registry as users' notebooks see it: through the official client, the package ``model-registry``.

The client speaks API version v1 alone, and checks every answer against its schema. Publication does not use it: it
must work with servers of either version, and the client fails on whole numbers of more than nine digits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import aiohttp
from model_registry import ModelRegistry, __version__
from model_registry.exceptions import StoreError
from mr_openapi.exceptions import ApiException, OpenApiException

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.gateways import HttpAnswer
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.publication.registry.refusals import judge_answer

API_VERSION = "v1"
TIMEOUT_S = 30.0
#: Without a token the client warns, and sends the one of a service account where it finds one.
_NO_TOKEN = "none"  # noqa: S105 - not a token
_DIGITS = "a whole number of more than 9 digits makes it fail on the whole entity: publish it as a double or a string"
_CLIENT = f"the official client (model-registry {__version__})"


def connect_official_client(url: str, *, token: Secret | None = None, ca_file: str | None = None) -> ModelRegistry:
    """The official client of a registry that speaks v1.

    Args:
        url: Root of the registry; the port is part of it, or the scheme's own, since the client would take 8080.
        token: Sent as a bearer token.
        ca_file: PEM file of the authorities that sign the registry's certificate.

    Raises:
        StageError: the registry does not answer, or the client cannot read its list of models.
    """
    with readable_client_errors("list registered_models", url, has_token=token is not None):
        return ModelRegistry(
            url,
            443 if url.startswith("https:") else 80,
            author="pytest-vllm-stage",
            user_token=token.reveal() if token else _NO_TOKEN,
            custom_ca=ca_file,
            # It warns about ports that do not end with 80.
            log_level=logging.ERROR,
            async_runner=_run,
        )


def read_properties(client: ModelRegistry, model: str, version: str, url: str) -> Mapping[str, Any]:
    """A version's custom properties as the client gives them.

    Raises:
        StageError: the client does not find or cannot read the version.
    """
    where = f"version {version} of model {model}"
    with readable_client_errors(f"get {where}", url):
        found = client.get_model_version(model, version)
    if found is None:
        raise StageFailure(
            f"{_CLIENT} does not find {where}, which exists",
            hint="it looks names up as SQL patterns, where _ and % match other characters too: is there another match?",
        )
    return dict(found.custom_properties or {})


@contextmanager
def readable_client_errors(action: str, url: str, *, has_token: bool = True) -> Iterator[None]:
    """Turn the official client's errors into this project's; ``action`` is the request in a few words."""
    try:
        yield
    except ApiException as error:
        headers = {str(name).lower(): str(value) for name, value in dict(error.headers or {}).items()}
        answer = HttpAnswer(int(error.status or 0), headers, str(error.body or ""))
        judged = judge_answer(answer, f"{action} by {_CLIENT}", url, has_token=has_token)
        raise judged or StageFailure(f"{_CLIENT}: {action}: HTTP {answer.status}: {answer.excerpt}") from None
    except (aiohttp.ClientError, TimeoutError) as error:
        text = str(error) or f"nothing within {TIMEOUT_S:g} s"
        raise StageFailure(f"{_CLIENT}: {action}: no answer from {url}: {type(error).__name__}: {text}") from None
    except StoreError as error:
        raise StageFailure(f"{_CLIENT}: {action}: {error}") from None
    except (OpenApiException, ValueError) as error:
        text = " ".join(str(error).split()).split(" For further information")[0][:300]
        message = f"{_CLIENT} cannot read the answer to {action}: {text}"
        raise StageFailure(message, hint=_DIGITS if "MetadataIntValue" in text else "") from None


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in a thread of its own: the caller may have an event loop."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, asyncio.wait_for(coroutine, TIMEOUT_S)).result()
