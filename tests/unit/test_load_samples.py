"""The samples' file: what is written is read back equal, and every fault is named with file, line and field."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.samples import ABANDONED, FAILURES, EarlyStop, Failure, Measurement, ServerReading
from pytest_vllm_stage.measurement.samples_file import SUFFIX, read_measurement, write_measurement
from tests.unit.made_samples import failed, measurement, open_step, sample


def made() -> Measurement:
    samples = [sample(0, 0.0), failed(1, 0.1), failed(2, 0.2, "connection", sent_s=None, status=None)]
    server = [ServerReading(0.0, 1, 2, 0.5), ServerReading(1.0)]
    whole = measurement(open_step(seed=7), samples, server, cpu_s=0.5, wall_s=2.0)
    return replace(
        whole, early_stop=EarlyStop(1.5, 3, "pass", 58.5), facts={"image_digest": "sha256:1", "simulated": True}
    )


def test_a_measurement_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / f"step{SUFFIX}"
    write_measurement(made(), path)
    assert read_measurement(path) == made()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_driver_that_times_first_and_last_tokens_only_says_so_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / f"step{SUFFIX}"
    whole = measurement(open_step(), [sample(0, 0.0, token_times_s=(0.1, 0.4), end_s=0.4, every_token_timed=False)])
    write_measurement(whole, path)
    assert read_measurement(path) == whole


def test_a_file_from_before_that_was_said_has_every_tokens_time(tmp_path: Path) -> None:
    path = tmp_path / f"step{SUFFIX}"
    write_measurement(made(), path)
    lines = gzip.decompress(path.read_bytes()).replace(b',"every_token_timed":true', b"")
    assert b"every_token_timed" not in lines
    path.write_bytes(gzip.compress(lines))
    assert read_measurement(path) == made()


def test_the_same_measurement_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_measurement(made(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


times = st.floats(0, 6e4).map(lambda value: round(value, 6))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    scheduled_s=times,
    gaps=st.lists(st.floats(0.001, 10).map(lambda value: round(value, 6)), max_size=40),
    failure=st.builds(Failure, st.sampled_from(sorted([*FAILURES, ABANDONED])), st.text(max_size=50)),
    numbers=st.tuples(*[st.none() | st.integers(0, 10**6)] * 3),
)
def test_any_sample_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    scheduled_s: float,
    gaps: list[float],
    failure: Failure,
    numbers: tuple[int | None, int | None, int | None],
) -> None:
    arrivals = tuple(round(scheduled_s + sum(gaps[: i + 1]), 6) for i in range(len(gaps)))
    prompt, output, cached = numbers
    cached = min(cached, prompt) if cached is not None and prompt is not None else None
    one = sample(
        0,
        scheduled_s,
        token_times_s=arrivals,
        sent_s=round(scheduled_s + 0.0002, 6),
        end_s=round(scheduled_s + sum(gaps), 6),
        failure=failure,
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
    )
    path = tmp_path_factory.mktemp("samples") / "one"
    write_measurement(measurement(open_step(), [one], []), path)
    assert read_measurement(path).samples == (one,)


Change = Callable[[list[dict[str, Any]]], Any]


def drop(line: int, name: str) -> Change:
    return lambda lines: lines[line].pop(name)


def put(line: int, name: str, value: Any) -> Change:
    return lambda lines: lines[line].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(1, "sent_s"), ":2: sample.sent_s: is missing"),
        (put(1, "sent_s", "soon"), ":2: sample.sent_s: expected a number or null, got 'soon'"),
        (put(1, "scheduled_s", True), ":2: sample.scheduled_s: expected a number, got 'True'"),
        (put(2, "index", 0), ":3: sample.index: 0 is there twice"),
        (put(2, "index", -1), ":3: sample.index: expected a whole number from 0"),
        (put(1, "token_times_s", [1.0, 0.5]), ":2: sample.token_times_s: expected in ascending order"),
        (put(1, "token_times_s", [1.0, None]), ":2: sample.token_times_s: expected a list of numbers"),
        (
            put(2, "failure", {"kind": "bad luck"}),
            ":3: sample.failure: expected null or an object whose kind is one of",
        ),
        (put(1, "resent", 0), ":2: sample.resent: expected true or false"),
        (put(1, "response_id", None), ":2: sample.response_id: expected a string"),
        (put(4, "waiting", "many"), ":5: server.waiting: expected a number or null"),
        (put(0, "schema_version", 2), ":1: header.schema_version: is 2; this version reads 1"),
        (put(0, "schema", "other"), ":1: header.schema: the first line must be a header of vllm-stage/samples"),
        (put(0, "step", {"id": "x"}), "step: "),
        (lambda lines: lines.pop(), "the end line is missing: the file was cut off"),
        (lambda lines: lines.pop(2), "end.samples: says 3, and 2 are there"),
        (put(6, "server", 7), "end.server: says 7, and 2 are there"),
    ],
)
def test_a_fault_is_named_with_file_line_and_field(tmp_path: Path, change: Change, message: str) -> None:
    path = tmp_path / "samples"
    write_measurement(made(), path)
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    with pytest.raises(ConfigError) as caught:
        read_measurement(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain", "not a readable samples file"),
        (gzip.compress(b""), "is empty"),
        (gzip.compress(b"[1]"), ":1: must be a JSON object"),
        (gzip.compress(b"{"), ":1: not JSON"),
        (gzip.compress(b'{"kind": NaN}'), ":1: not JSON: NaN is not a JSON number"),
        (gzip.compress(b'{"kind": "header"}')[:-9], "not a readable samples file"),
    ],
    # Compressed bytes carry the time: as ids they would differ between workers.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "samples").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_measurement(tmp_path / "samples")


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: not a readable samples file"):
        read_measurement(tmp_path / "nowhere")


def test_infinity_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_measurement(measurement(open_step(), [sample(0, 0.0, end_s=math.inf)]), tmp_path / "samples")
    assert not (tmp_path / "samples").exists()
