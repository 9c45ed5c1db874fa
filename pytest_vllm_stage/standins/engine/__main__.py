"""``python -m pytest_vllm_stage.standins.engine``: a simulated engine as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import sys
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.standins.engine import SERVER
from pytest_vllm_stage.standins.engine.api import EngineApi
from pytest_vllm_stage.standins.engine.faults import Fault, make
from pytest_vllm_stage.standins.engine.settings import Settings
from pytest_vllm_stage.standins.http import Server

#: Serving arguments of vLLM that a declaration may carry and that have no meaning without a model, with a value or not.
_VLLM_VALUES = ("dtype", "gpu-memory-utilization", "kv-cache-memory-bytes", "tensor-parallel-size", "tool-call-parser")
_VLLM_FLAGS = (
    "disable-custom-all-reduce",
    "enable-auto-tool-choice",
    "enable-chunked-prefill",
    "enable-prefix-caching",
    "enforce-eager",
)

_HELP = {
    "model": "served model name",
    "max_model_len": "context length in tokens",
    "max_num_seqs": "requests that run at once",
    "ttft_ms": "time to first token of a request that starts, without its prefill",
    "prefill_tokens_per_s": "prompt tokens prefilled a second",
    "itl_ms": "time between two tokens of a request that runs alone",
    "itl_growth": "part added to it by each further running request",
    "jitter": "sigma of the lognormal factor of each request's times",
    "block_size": "tokens of a prefix cache block",
    "kv_cache_tokens": "tokens that the KV cache holds",
    "seed": "decides every answer and every drawn time",
}


def parser() -> argparse.ArgumentParser:
    """The command line: an option for each field of `Settings`."""
    prog = "python -m pytest_vllm_stage.standins.engine"
    result = argparse.ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    result.add_argument("--port", type=int, default=0, help="port to listen on; 0 selects a free one and prints it")
    result.add_argument("--faults", type=Path, metavar="FILE", help="JSON list of faults to start with")
    for field in dataclasses.fields(Settings):
        option = "--" + field.name.replace("_", "-")
        kind = type(field.default)
        result.add_argument(
            option, type=kind, default=field.default, help=f"{_HELP[field.name]} (default: %(default)s)"
        )
    _add_vllm_arguments(result)
    return result


def _add_vllm_arguments(result: argparse.ArgumentParser) -> None:
    """What lets a declaration for vLLM start the simulator as it is; anything else is refused, as vLLM does."""
    group = result.add_argument_group("arguments of vLLM")
    group.add_argument(
        "--served-model-name",
        metavar="NAME",
        help="served model name; --model is then the folder of the weights, which must be there, and is not read",
    )
    for name in _VLLM_VALUES:
        group.add_argument(f"--{name}", metavar="VALUE", help="no effect")
    for name in _VLLM_FLAGS:
        group.add_argument(f"--{name}", action="store_true", help="no effect")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the command line gives."""
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}
    return Settings(**given | ({"model": arguments.served_model_name} if arguments.served_model_name else {}))


def check_weights(arguments: argparse.Namespace) -> None:
    """Hold the folder of weights to what vLLM asks of it first, where the arguments are vLLM's.

    Raises:
        ConfigError: there is no model in it.
    """
    if arguments.served_model_name is None:
        return
    folder = Path(arguments.model)
    if not folder.is_dir():
        raise ConfigError(f"model path {folder} does not exist")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model path {folder} does not hold a model: there is no config.json")


def load_faults(path: Path | None) -> list[Fault]:
    """The faults of a file.

    Raises:
        ConfigError: the file is not a fault script.
    """
    if path is None:
        return []
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"--faults {path}: {error}") from None


async def serve(arguments: argparse.Namespace, faults: list[Fault]) -> None:
    """Serve until SIGTERM or SIGINT."""
    api = EngineApi(settings_of(arguments))
    api.set_faults(faults)
    # A full collection walks all that start-up made and every kept job: a pause of milliseconds amid streams.
    gc.freeze()
    gc.set_threshold(50_000, 50, 10_000)
    server = Server(api.handle, SERVER)
    await server.serve_until_stopped(arguments.host, arguments.port, "a simulated engine without any model")


def main() -> int:
    """Run; 2 when the command line or what it names is wrong, 1 when the address cannot be used."""
    arguments = parser().parse_args()
    try:
        faults = load_faults(arguments.faults)
        check_weights(arguments)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    try:
        asyncio.run(serve(arguments, faults))
    except OSError as error:
        sys.stderr.write(f"{SERVER}: cannot listen on {arguments.host}:{arguments.port}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
