"""base/metrics.py: what a scrape shows. Method: the text format is parsed back by prometheus_client itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kvstore.base import metrics as module
from kvstore.base.metrics import LATENCY_BOUNDS, Histogram, Metrics


def scrape(metrics: Metrics) -> dict[str, Metric]:
    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(family: Metric, name: str, **labels: str) -> float:
    (sample,) = [one for one in family.samples if one.name == name and one.labels == labels]
    return sample.value


def test_everything_declared_is_scraped_with_help_and_prometheus_names() -> None:
    families = scrape(Metrics(node="n1", process=False))
    declared = {name for _, name, _ in (*module._COUNTERS, *module._HISTOGRAMS)} | set(module._GAUGES)
    assert declared <= families.keys()
    for name, family in families.items():
        assert name.startswith("kvstore_")
        assert family.documentation.endswith((".", "..."))
        assert not name.endswith(("_ms", "_millis", "_kb", "_total"))


def test_every_number_of_metrics_is_scraped() -> None:
    """A counter that is bumped and never shown is a bug."""
    metrics = Metrics(node="n1", process=False)
    numbers = {name for name, one in vars(metrics).items() if type(one) is int}
    histograms = {name for name, one in vars(metrics).items() if type(one) is Histogram}
    assert numbers == {attribute for attribute, _, _ in module._COUNTERS}
    assert histograms == {attribute for attribute, _, _ in module._HISTOGRAMS}


def test_counters_histograms_and_gauges_arrive() -> None:
    metrics = Metrics(node="n1", process=False)
    metrics.proposals += 3
    metrics.commit_seconds.observe(0.003, times=5)
    metrics.commit_seconds.observe(99.0)
    metrics.add_gauge("kvstore_queue_depth", lambda: {"staged": 2, "log": 1})
    metrics.add_gauge("kvstore_queue_depth", lambda: {"staged": 3})
    metrics.count_stream("mutate", "OK")
    families = scrape(metrics)
    assert value(families["kvstore_raft_proposals"], "kvstore_raft_proposals_total") == 3
    commit = families["kvstore_raft_commit_seconds"]
    assert value(commit, "kvstore_raft_commit_seconds_bucket", le="0.0025") == 0
    assert value(commit, "kvstore_raft_commit_seconds_bucket", le="0.005") == 5
    assert value(commit, "kvstore_raft_commit_seconds_bucket", le="+Inf") == 6
    assert value(commit, "kvstore_raft_commit_seconds_count") == 6
    assert math.isclose(value(commit, "kvstore_raft_commit_seconds_sum"), 99.015)
    assert value(families["kvstore_queue_depth"], "kvstore_queue_depth", queue="staged") == 5
    requests = families["kvstore_stream_requests"]
    assert value(requests, "kvstore_stream_requests_total", type="mutate", code="OK") == 1


def test_nodes_of_one_process_do_not_share() -> None:
    one, two = Metrics(node="n1"), Metrics(node="n2")
    one.proposals += 1
    assert value(scrape(two)["kvstore_raft_proposals"], "kvstore_raft_proposals_total") == 0
    assert "process_resident_memory_bytes" in scrape(one)


def test_a_gauge_must_be_declared() -> None:
    with pytest.raises(AssertionError, match="not a gauge"):
        Metrics(node="n1", process=False).add_gauge("kvstore_made_up", dict)


@given(st.lists(st.floats(0, 20, allow_nan=False), max_size=50))
def test_a_histogram_counts_each_observation_in_its_bucket(values: list[float]) -> None:
    histogram = Histogram()
    for one in values:
        histogram.observe(one)
    for bound, count in histogram.cumulative():
        assert count == sum(one <= float(bound) for one in values)
    assert histogram.count == len(values)
    if values:
        median = sorted(values)[(len(values) - 1) // 2]
        assert histogram.quantile(0.5) >= min(median, LATENCY_BOUNDS[-1])
    else:
        assert histogram.quantile(0.5) == 0
