"""The Prometheus text format, read strictly."""

from __future__ import annotations

import math

import pytest

from pytest_vllm_stage.serving.metrics import BadExposition, NoSuchSeries, parse

TEXT = r"""# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 2.0
vllm:num_requests_running{engine="1",model_name="a"} 3.0

vllm:generation_tokens_total{engine="0",model_name="a"} 1.5e+03 1795509294941
odd{path="C:\\dir",quote="say \"hi\", {then} go",line="a\nb",} NaN
bare 7
lat_bucket{le="0.5"} 1
lat_bucket{le="+Inf"} 4
lat_sum 3.25
lat_count 4
"""


def test_values_are_summed_over_the_matching_series() -> None:
    metrics = parse(TEXT)
    assert metrics.value("vllm:num_requests_running") == 5.0
    assert metrics.value("vllm:num_requests_running", engine="1") == 3.0
    assert metrics.value("bare") == 7.0
    assert len(metrics.samples) == 9


def test_exemplars_and_time_stamps_do_not_belong_to_a_sample() -> None:
    text = (
        'lat_bucket{le="0.5"} 1 # {trace_id="a b"} 0.4 1795509294.941\n'
        'lat_bucket{le="+Inf"} 4 1795509294.941 # {} 3\n'
        'odd{quote=" # {x} 5"} 7\n'
        "# EOF\n"
    )
    assert [sample.value for sample in parse(text).samples] == [1.0, 4.0, 7.0]
    assert parse(text).series("odd")[0].labels == {"quote": " # {x} 5"}


def test_a_counter_is_found_by_its_documented_name() -> None:
    assert parse(TEXT).value("vllm:generation_tokens") == 1500.0


def test_labels_are_unescaped() -> None:
    (sample,) = parse(TEXT).series("odd")
    assert sample.labels == {"path": "C:\\dir", "quote": 'say "hi", {then} go', "line": "a\nb"}
    assert math.isnan(sample.value)


def test_a_histogram_is_put_together() -> None:
    histogram = parse(TEXT).histogram("lat")
    assert histogram.buckets == {0.5: 1.0, math.inf: 4.0}
    assert (histogram.sum, histogram.count) == (3.25, 4.0)


def test_a_missing_series_is_not_zero() -> None:
    with pytest.raises(NoSuchSeries, match=r"no series vllm:num_requests_runing .*near: vllm:num_requests_running"):
        parse(TEXT).value("vllm:num_requests_runing")
    with pytest.raises(NoSuchSeries):
        parse(TEXT).value("vllm:num_requests_running", engine="2")


@pytest.mark.parametrize(
    "line",
    ["<html>", "name", "name{a=b} 1", 'name{a="b} 1', "name 1 2 3", "name one", '1name{a="b"} 1', 'n{a="\\x"} 1'],
)
def test_a_line_that_is_not_a_sample_is_refused(line: str) -> None:
    with pytest.raises(BadExposition, match="line 2"):
        parse(f"good 1\n{line}\n")


def test_a_series_is_found_by_the_name_of_an_older_release() -> None:
    old = parse(
        'vllm:gpu_prefix_cache_hits_total{model_name="m"} 3\n'
        'vllm:time_per_output_token_seconds_count{model_name="m"} 7\n'
        'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\n'
    )
    assert old.value("vllm:prefix_cache_hits", model_name="m") == 3
    assert old.value("vllm:inter_token_latency_seconds_count") == 7
    assert old.value("vllm:kv_cache_usage_perc") == 0.5
    with pytest.raises(NoSuchSeries):
        old.value("vllm:prefix_cache_queries")
