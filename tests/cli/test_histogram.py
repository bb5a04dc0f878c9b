"""Goal: the figures that bench prints are right. Method: sorted lists as the oracle, on values of every size."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from kvstore.cli.histogram import BUCKETS, VALUE_MAX, Histogram, bucket_of, lower

VALUES = st.one_of(st.integers(0, 2_000), st.integers(0, VALUE_MAX))


@given(VALUES)
def test_a_value_lies_in_its_bucket(value: int) -> None:
    bucket = bucket_of(value)
    assert 0 <= bucket < BUCKETS
    assert lower(bucket) <= value < lower(bucket + 1)


def test_buckets_are_never_wider_than_the_promised_error() -> None:
    for bucket in range(256, BUCKETS):
        assert (lower(bucket + 1) - lower(bucket)) * 128 <= lower(bucket)
    assert bucket_of(VALUE_MAX) == BUCKETS - 1


@given(st.lists(VALUES, min_size=1, max_size=200), st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_percentiles_against_a_sorted_list(values: list[int], percent: float) -> None:
    """Nearest rank: the least value with at least `percent` of all values at or below it."""
    histogram = Histogram()
    histogram.record_all(values)
    ordered = sorted(values)
    exact = next(value for place, value in enumerate(ordered, 1) if place * 100 >= percent * len(ordered))
    told = histogram.percentile(percent)
    assert exact <= told <= min(exact * (1 + 1 / 128) + 1, max(values))
    assert histogram.mean() * len(values) - sum(values) < 1e-3 * (sum(values) + 1)
    assert (histogram.minimum, histogram.maximum, histogram.count) == (ordered[0], ordered[-1], len(values))


def test_adding_is_recording_together() -> None:
    rng = random.Random(1)
    values = [int(rng.expovariate(1e-6)) for _ in range(5_000)]
    whole, left, right = Histogram(), Histogram(), Histogram()
    whole.record_all(values)
    left.record_all(values[:1_000])
    right.record_all(values[1_000:])
    left.add(right)
    assert (left.counts, left.count, left.total) == (whole.counts, whole.count, whole.total)
    assert (left.minimum, left.maximum) == (whole.minimum, whole.maximum)


def test_values_out_of_range_and_nothing_at_all() -> None:
    histogram = Histogram()
    assert (histogram.percentile(99), histogram.mean()) == (0, 0.0)
    histogram.record(-5)
    histogram.record(VALUE_MAX * 10)
    assert (histogram.minimum, histogram.maximum) == (0, VALUE_MAX)
