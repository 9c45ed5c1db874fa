"""How far our load driver and GuideLLM agree on one server, with their steps sent in turn.

    python -m tests.bench.bench_agreement --url URL [--model NAME] [--steps rate-1,rate-5,concurrency-1]
                                          [--prompt-tokens 48] [--output-tokens 4] [--seconds 15] [--repeats 3]

The server is any OpenAI-compatible one with vLLM's ``/tokenize``, such as a kept stage's. Each repeat is one step of
ours and one of GuideLLM's, each the first every other time, so that what drifts on the machine meets both. Ours
count TTFT from the scheduled time, GuideLLM from its own send; ``sent`` is ours counted like GuideLLM's. The two agree
where the medians of their P50s are within 10 % or 5 ms of each other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.load import prepare
from pytest_vllm_stage.load import process as ours
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.load.guidellm import run as guidellm
from pytest_vllm_stage.load.prompts import PromptMaker
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadStep
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.target import Target

RELATIVE, ABSOLUTE_MS = 0.10, 5.0


@dataclass
class Pair:
    """The P50s of one step in ms, one value per repeat."""

    step_id: str
    ours_ms: list[float]
    ours_from_send_ms: list[float]
    guidellm_ms: list[float]
    failed: int = 0

    @property
    def difference_ms(self) -> float:
        """GuideLLM's median less ours."""
        return statistics.median(self.guidellm_ms) - statistics.median(self.ours_ms)

    @property
    def agrees(self) -> bool:
        """Within 10 % or 5 ms, with no request failed."""
        within = max(ABSOLUTE_MS, RELATIVE * statistics.median(self.ours_ms))
        return not self.failed and abs(self.difference_ms) <= within


def step_of(name: str, model: str, arguments: argparse.Namespace, seed: int) -> LoadStep:
    """``rate-5`` or ``concurrency-10`` as a step."""
    kind, _, number = name.partition("-")
    if kind not in ("rate", "concurrency"):
        raise SystemExit(f"--steps: {name!r} is neither rate-N nor concurrency-N")
    return LoadStep(
        name,
        model,
        CONSTANT if kind == "rate" else CLOSED,
        arguments.seconds,
        arguments.prompt_tokens,
        arguments.output_tokens,
        request_rate=float(number) if kind == "rate" else None,
        concurrency=int(number) if kind == "concurrency" else None,
        seed=seed,
    )


def ttft_p50_ms(measurement: Measurement, *, from_send: bool = False) -> float:
    """Nearest rank, of the requests that were answered."""
    rows = [row for row in measurement.samples if row.failure is None and row.first_token_s is not None]
    starts = [(row.sent_s if from_send and row.sent_s is not None else row.scheduled_s) for row in rows]
    values = sorted(1000 * ((row.first_token_s or 0) - start) for row, start in zip(rows, starts, strict=True))
    return nearest_rank(values, 50)


def compare(client: EndpointClient, maker: PromptMaker, name: str, arguments: argparse.Namespace) -> Pair:
    """One step, several times by each driver in turn."""
    pair = Pair(name, [], [], [])

    def job(number: int) -> LoadJob:
        seed = time.time_ns() + number  # fresh prompts each time: the prefix cache would answer the second driver
        return prepare.prepare(step_of(name, client.target.model, arguments, seed), client, maker)

    def send_ours(number: int) -> None:
        measured = ours.measure(job(number), Journal())
        pair.ours_ms.append(ttft_p50_ms(measured))
        pair.ours_from_send_ms.append(ttft_p50_ms(measured, from_send=True))
        pair.failed += sum(row.failure is not None for row in measured.samples)

    def send_theirs(number: int) -> None:
        measured = guidellm.measure(job(number), Journal())
        pair.guidellm_ms.append(ttft_p50_ms(measured, from_send=True))
        pair.failed += sum(row.failure is not None for row in measured.samples)

    for repeat in range(arguments.repeats):
        for send in (send_ours, send_theirs) if repeat % 2 == 0 else (send_theirs, send_ours):
            send(repeat)
    return pair


def table(pairs: Sequence[Pair]) -> str:
    """Markdown."""
    rows = ["| step | ours P50 (each) | sent | GuideLLM P50 (each) | difference | agree |", "|---|---|---|---|---|---|"]
    for pair in pairs:
        middle = statistics.median(pair.ours_ms)
        rows.append(
            f"| {pair.step_id} | {_each(pair.ours_ms)} | {statistics.median(pair.ours_from_send_ms):.1f} ms "
            f"| {_each(pair.guidellm_ms)} | {pair.difference_ms:+.1f} ms, {pair.difference_ms / middle:+.1%} "
            f"| {'yes' if pair.agrees else 'NO'}{f', {pair.failed} failed' if pair.failed else ''} |"
        )
    return "\n".join(rows)


def _each(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ms ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> int:
    """Run and print; the exit status is 1 where one step's drivers disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="root of the server, without /v1")
    parser.add_argument("--model", help="the served model name (default: the first that the server lists)")
    parser.add_argument("--steps", default="rate-1,rate-5,concurrency-1", help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--output-tokens", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with EndpointClient(Target("endpoint", "", arguments.url)) as unnamed:
        model = arguments.model or str(unnamed.models()[0]["id"])
    pairs = []
    with EndpointClient(Target("endpoint", model, arguments.url)) as client:
        for name in arguments.steps.split(","):
            maker = prepare.create_prompt_maker(client, "chat")
            pairs.append(compare(client, maker, name, arguments))
            print(table(pairs[-1:]), flush=True)  # noqa: T201
    print(f"\n{model}\n{table(pairs)}")  # noqa: T201
    return 0 if all(pair.agrees for pair in pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
