"""What the engine and its GPUs did during a step: from an exporter's page to the metrics of the step."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_vllm_stage.benchmark.artifacts import artifact_of, read_artifact, write_csv, write_step
from pytest_vllm_stage.load.monitor import gpu_series
from pytest_vllm_stage.measurement.samples import GpuReading, Measurement, ServerReading
from pytest_vllm_stage.measurement.samples_file import SUFFIX, as_saved, read_measurement, write_measurement
from pytest_vllm_stage.measurement.server_metrics import increase, summarise_server
from pytest_vllm_stage.report import slo_table
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import measurement, open_step, sample
from tests.unit.test_load_monitor import ENGINE, page, readings

GIB = 1024**3
#: As nvidia/dcgm-exporter 4 writes it: help and type lines, all labels, two GPUs, of which one has no utilisation.
DCGM = b"""# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-6ca2",pci_bus_id="00000000:0F:00.0",device="nvidia0",modelName="NVIDIA H100 \
80GB HBM3",Hostname="node-a",DCGM_FI_DRIVER_VERSION="570.86.15",container="kserve-container",namespace="s",pod="p"} 97
# HELP DCGM_FI_DEV_FB_USED Framebuffer memory used (in MiB).
# TYPE DCGM_FI_DEV_FB_USED gauge
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-6ca2",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="node-a"} 73728
DCGM_FI_DEV_FB_USED{gpu="1",UUID="GPU-77b1",device="nvidia1",modelName="NVIDIA H100 80GB HBM3",Hostname="node-a"} 1024
DCGM_FI_DEV_FB_USED_PERCENT{gpu="0",UUID="GPU-6ca2"} 0.9
"""


def test_an_exporters_page_gives_each_gpu() -> None:
    (only,) = asyncio.run(readings(page(ENGINE), page(DCGM)))
    assert only.gpus == (
        GpuReading("node-a/0", 72 * GIB, 0.97),
        GpuReading("node-a/1", 1 * GIB, None),
    )
    assert (only.gpu_memory_used_bytes, only.gpu_utilization) == (73 * GIB, 0.97)


def test_nan_is_skipped() -> None:
    assert gpu_series(b'DCGM_FI_DEV_FB_USED{gpu="0"} NaN\nDCGM_FI_DEV_FB_USED{gpu="1"} 5', b"DCGM_FI_DEV_FB_USED") == {
        "1": 5.0
    }
    (only,) = asyncio.run(readings(page(b"vllm:num_requests_running NaN\nvllm:num_requests_waiting many\n")))
    assert (only.running, only.waiting) == (None, None)


def reading(at_s: float, running: float, utilization: float, memory: float = 10.0, **more: float) -> ServerReading:
    gpus = (GpuReading("0", memory * GIB, utilization), GpuReading("1", 2 * GIB, 0.0))
    return ServerReading(
        at_s,
        running,
        gpu_memory_used_bytes=(memory + 2) * GIB,
        gpu_utilization=utilization / 2,
        gpus=gpus,
        **more,
    )


def step_with_gpus() -> Measurement:
    before = reading(-1.0, 0.0, 0.0, prefix_cache_queries=100, prefix_cache_hits=90, preemptions=3)
    during = [reading(float(at), at % 3, at / 10, 10 + at, kv_cache_usage=at / 20, waiting=1) for at in range(11)]
    after = reading(90.0, 0.0, 0.0, 70.0, prefix_cache_queries=300, prefix_cache_hits=140, preemptions=5)
    rows = [sample(i, i / 10) for i in range(100)]
    return measurement(open_step(duration_s=10.0), rows, [before, *during, after])


def test_gauges_count_within_the_step_and_counters_over_all_of_it() -> None:
    found = summarise_server(step_with_gpus().server, 10.0)
    assert [found.running_mean, found.running_max] == pytest.approx([10 / 11, 2])
    assert (found.waiting_mean, found.waiting_max) == (1, 1)
    assert [found.kv_cache_usage_mean, found.kv_cache_usage_max] == pytest.approx([0.25, 0.5])
    assert found.prefix_cache_hit_rate == pytest.approx(50 / 200)
    assert found.preemptions == 2
    assert found.gpu_memory_peak_bytes == 22 * GIB, "70 GiB were in use after the step"
    assert [found.gpu_utilization_mean, found.gpu_utilization_p90] == pytest.approx([0.25, 0.45])
    first, second = found.gpus
    assert (first.memory_peak_bytes, first.utilization_mean, first.utilization_p90) == (20 * GIB, 0.5, 0.9)
    assert (second.memory_peak_bytes, second.utilization_mean) == (2 * GIB, 0)
    assert found.flat()["gpu_0_utilization_p90"] == 0.9


def test_what_has_no_source_is_absent_and_never_0() -> None:
    assert set(summarise_server([], 10.0).flat().values()) == {None}
    assert set(summarise_server([ServerReading(1.0), ServerReading(2.0)], 10.0).flat().values()) == {None}


@pytest.mark.parametrize(
    ("counts", "grown"),
    [([1, 4, 6], 5), ([100, 120, 5, 9], 29), ([None, 3, None, 5], 2), ([3], None), ([None], None), ([2, 2], 0)],
)
def test_a_counter_that_starts_again_goes_on_from_zero(counts: list[float | None], grown: float | None) -> None:
    assert increase(counts) == grown


def test_the_readings_of_each_gpu_survive_the_file(tmp_path: Path) -> None:
    made = as_saved(step_with_gpus())
    write_measurement(made, tmp_path / f"step{SUFFIX}")
    assert read_measurement(tmp_path / f"step{SUFFIX}") == made


def test_the_numbers_are_in_the_artifact_the_table_and_the_spreadsheet(tmp_path: Path) -> None:
    made = step_with_gpus()
    result = judge(made, [Objective("ttft_p50_ms", 500)])
    artifact = read_artifact(write_step(tmp_path, made, *result))
    assert artifact == artifact_of(made, *result)
    assert artifact.numbers["gpu_memory_peak_bytes"] == pytest.approx(22 * GIB, rel=1e-5)
    assert "gpu_utilization_p90" in write_csv(tmp_path, [artifact]).read_text().splitlines()[0]
    one = {"name": made.step.id, "result": artifact.metrics, "outcome": "pass", "objectives": [], "saved_s": 0}
    data = {"benchmarks": [one | {"gpu_metrics": True, "engine_metrics": True}], "capacities": [], "load_access": []}
    shown = slo_table.lines(data | {"regressions": []})
    for head in ("server, mean/max", "running", "KV %", "preempted", "GPU GiB", "GPU %"):
        assert head in shown[2]
    assert shown[3].split() == ["full-rate-10", "0.909/2", "1/1", "25/50", "25", "2", "22", "25/45"]
    unread = artifact_of(replace(made, server=()), *result)
    bare = {"benchmarks": [one | {"result": unread.metrics, "gpu_metrics": False, "engine_metrics": False}]}
    assert not [line for line in slo_table.lines(data | bare | {"regressions": []}) if line.startswith("server")]
