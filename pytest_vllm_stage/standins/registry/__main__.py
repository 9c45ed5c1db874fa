"""``python -m pytest_vllm_stage.standins.registry``: a stand-in for the Model Registry server, as a process."""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
from pathlib import Path

from pytest_vllm_stage.standins.http import Server
from pytest_vllm_stage.standins.registry import SERVER
from pytest_vllm_stage.standins.registry import faults as f
from pytest_vllm_stage.standins.registry.api import PREFIXES, RegistryApi
from pytest_vllm_stage.standins.registry.store import Store


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m pytest_vllm_stage.standins.registry", description=__doc__)
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    result.add_argument("--port", type=int, default=0, help="port to listen on; 0 selects a free one and prints it")
    result.add_argument(
        "--database", default=":memory:", metavar="FILE", help="SQLite file that keeps the entries (default: none)"
    )
    result.add_argument(
        "--api",
        choices=(*PREFIXES, "both"),
        default="both",
        help="prefixes to serve: older servers have only v1alpha3 (default: %(default)s)",
    )
    result.add_argument("--faults", type=Path, metavar="FILE", help="JSON list of faults to start with")
    return result


def load_faults(path: Path | None) -> list[f.RegistryFault]:
    """The faults of a file.

    Raises:
        WrongScript: The file is not a fault script.
    """
    if path is None:
        return []
    try:
        return f.parse_faults(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise f.WrongScript(str(error)) from None


def main() -> int:
    """Run; 2 when the command line is wrong, 1 when the address or the database cannot be used."""
    arguments = parser().parse_args()
    try:
        faults = load_faults(arguments.faults)
    except f.WrongScript as error:
        sys.stderr.write(f"{SERVER}: --faults {arguments.faults}: {error}\n")
        return 2
    try:
        store = Store(arguments.database)
    except sqlite3.Error as error:
        sys.stderr.write(f"{SERVER}: cannot open the database {arguments.database}: {error}\n")
        return 1
    api = RegistryApi(store, tuple(PREFIXES) if arguments.api == "both" else (arguments.api,))
    api.faults = faults
    try:
        server = Server(api.handle, SERVER)
        asyncio.run(server.serve_until_stopped(arguments.host, arguments.port, "a stand-in for the Model Registry"))
    except OSError as error:
        sys.stderr.write(f"{SERVER}: cannot listen on {arguments.host}:{arguments.port}: {error.strerror}\n")
        return 1
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
