"""Five minutes of schemathesis against the registry stand-in: no answer may break its own description.

    python tests/bench/schemathesis_standin.py [--minutes 5] [--seed 1]

Schemathesis runs in an environment of its own. It makes requests from the stand-in's description, well-formed and not,
alone and in sequences, under each prefix in turn. Checked are: statuses, content types and bodies as described; 405 for
other methods; each answer names the stand-in; a body that follows the description is not called malformed; and no 5xx
but the two that the real server's database has: a name, external id or key of more than 255 characters, and a property
that is stored and cannot be read back. Schemathesis' own check that malformed requests are refused is left out: the
real server ignores unknown parameters and takes null for absent, and so must its stand-in.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.standins.registry.api import PREFIXES
from tests import own_environment

HERE = Path(__file__).parent
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "no_unintended_server_error",
    "valid_body_is_accepted",
    "every_answer_names_the_stand_in",
)


def run(programs: Path, url: str, prefix: str, seconds: int, seed: int, folder: Path) -> int:
    """One run under one prefix; its exit code."""
    command = [str(programs / "schemathesis"), "--no-color", "run", f"{url}/openapi.json", "--url", url + prefix]
    command += ["--checks", ",".join(CHECKS), "--max-time", str(seconds), "--max-examples", "100000"]
    # NUL is refused wherever it stands, which no schema can say. Sizes and speeds are no concern here.
    command += ["--generation-allow-x00", "false", "--suppress-health-check", "all", "--warnings", "off"]
    command += ["--continue-on-failure", "--seed", str(seed), "--generation-database", "none"]
    environ = os.environ | {"SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py"), "COLUMNS": "120"}
    return subprocess.run(command, cwd=folder, env=environ, check=False).returncode


def statuses(url: str) -> dict[int, int]:
    """How often each status was answered, among the last requests that the stand-in logged."""
    counted: dict[int, int] = {}
    for request in httpx.get(f"{url}/standin/requests", timeout=60).json():
        counted[request["status"]] = counted.get(request["status"], 0) + 1
    return dict(sorted(counted.items()))


def main() -> int:
    """Run under both prefixes; 1 when a check failed or the stand-in died."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="for both prefixes together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first prefix's run (default: %(default)s)")
    arguments = parser.parse_args()
    programs = own_environment.ensure("schemathesis", HERE / "schemathesis.txt", Journal())
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.registry"]
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        for place, prefix in enumerate(PREFIXES.values()):
            seconds = int(arguments.minutes * 60 / len(PREFIXES))
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                url = process.stdout.readline().split()[-1]
                sys.stdout.write(f"\n{prefix}: {seconds} s\n")
                sys.stdout.flush()
                codes.append(run(programs, url, prefix, seconds, arguments.seed + place, Path(folder)))
                alive = process.poll() is None
                sys.stdout.write(
                    f"{prefix}: exit code {codes[-1]}, last statuses {statuses(url) if alive else 'none'}\n"
                )
                process.terminate()
            codes.append(process.returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
