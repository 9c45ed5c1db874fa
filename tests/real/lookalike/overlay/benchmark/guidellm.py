"""A stand-in for GuideLLM 0.8 in a benchmark Job's pod: ``python -m guidellm run --config SCENARIO``.

It sends a scenario's prompts at its constant rate to the target and reports the requests as GuideLLM does, as far as a
report is read. Standard library alone.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
#: So long the first request waits, until all threads are there.
LEAD_S = 0.2


def ask(backend: dict[str, Any], prompt: dict[str, Any], targeted: float) -> dict[str, Any]:
    """Send one prompt at its time; the row of its request."""
    time.sleep(max(0.0, targeted - time.time()))
    body = {"model": backend["model"], "stream": True, **prompt, **backend["extras"]["body"]}
    url, headers = backend["target"] + backend["request_format"], {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the scenario's target
    timings: dict[str, Any] = {"targeted_start": targeted, "resolve_start": time.time(), "request_start": time.time()}
    row: dict[str, Any] = {"info": {"timings": timings}, "request_args": json.dumps(body), "output": ""}
    tokens: list[float] = []
    usage: dict[str, Any] = {}
    try:
        with DIRECT.open(request, timeout=backend["timeout"]) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                row["response_id"], usage = event.get("id"), event.get("usage") or usage
                text = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", []))
                if text:
                    row["output"] += text
                    tokens.append(time.time())
    except OSError as error:
        row["info"]["error"] = f"{type(error).__name__}: {error}"
    timings |= {"request_end": time.time(), "resolve_end": time.time(), "token_iterations": len(tokens)}
    if tokens:
        timings |= {"first_token_iteration": tokens[0], "last_token_iteration": tokens[-1]}
    row["input_metrics"] = {"total_tokens": usage.get("prompt_tokens"), "cached_tokens": None}
    row["output_metrics"] = {"total_tokens": usage.get("completion_tokens")}
    return row


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Carry a scenario out; the report."""
    backend, (rate,) = spec["backend"], spec["profile"]["rate"]
    prompts = [json.loads(line) for line in Path(spec["data"][0]["path"]).read_text(encoding="utf-8").splitlines()]
    zero = time.time() + LEAD_S
    with ThreadPoolExecutor(len(prompts)) as pool:
        times = [zero + index / rate for index in range(len(prompts))]
        rows = list(pool.map(ask, [backend] * len(prompts), prompts, times))
    requests = {
        "successful": [row for row in rows if "error" not in row["info"]],
        "errored": [row for row in rows if "error" in row["info"]],
        "incomplete": [],
    }
    totals = {status: len(found) for status, found in requests.items()} | {"total": len(rows)}
    benchmark = {
        "config": {"strategy": {"type_": "constant", "rate": rate}},
        "metrics": {"request_totals": totals},
        "requests": requests,
    }
    metadata = {"version": 2, "guidellm_version": "stand-in"}
    return {"metadata": metadata, "benchmarks": [benchmark]}


if __name__ == "__main__":
    scenario = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text(encoding="utf-8"))
    Path(scenario["spec"]["outputs"][0]["path"]).write_text(json.dumps(run(scenario["spec"])), encoding="utf-8")
