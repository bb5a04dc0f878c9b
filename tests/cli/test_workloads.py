"""Goal: bench asks for what it says. Method: drawn frequencies against the exact distribution; counts of kinds."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from kvstore.cli import zipf
from kvstore.cli.workloads import KEY_PREFIX, SCAN_KEYS_MAX, WORKLOADS, Kind, Operation, Plan, key_of

DRAWS = 100_000


def assert_of_distribution(counts: Counter[int], expected: dict[int, float]) -> None:
    """Pearson's statistic has mean `freedom` and variance 2 * freedom; four deviations are allowed."""
    freedom = len(expected) - 1
    statistic = sum((counts[rank] - want) ** 2 / want for rank, want in expected.items())
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [1, 2, 3, 50, 1_000])
@pytest.mark.parametrize("exponent", [0.5, 0.99, 1.5])
def test_zipf_ranks_have_the_exact_frequencies(n: int, exponent: float) -> None:
    ranks = zipf.ZipfRanks(n, rng=random.Random(7), exponent=exponent)
    counts = Counter(ranks.draw() for _ in range(DRAWS))
    assert set(counts) <= set(range(1, n + 1))
    total = sum(rank**-exponent for rank in range(1, n + 1))
    expected = {rank: DRAWS * rank**-exponent / total for rank in range(1, n + 1)}
    often = {rank: want for rank, want in expected.items() if want >= 5}
    if len(often) > 1:
        assert_of_distribution(counts, often)


def test_zipf_of_a_hundred_million_keys_needs_no_table() -> None:
    ranks = zipf.ZipfRanks(100_000_000, rng=random.Random(1))
    drawn = [ranks.draw() for _ in range(10_000)]
    assert min(drawn) == 1
    assert max(drawn) <= 100_000_000
    assert sum(rank <= 1_000_000 for rank in drawn) / len(drawn) == pytest.approx(0.74, abs=0.03)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 4_096, 10_007])
def test_scatter_is_a_bijection_that_separates_neighbours(n: int) -> None:
    place = zipf.scatter(n)
    assert sorted(place(rank) for rank in range(n)) == list(range(n))
    if n >= 100:
        assert min(abs(place(rank) - place(rank + 1)) for rank in range(n - 1)) > n // 10


def test_uniform_reaches_every_key_equally() -> None:
    draw = zipf.uniform(50, rng=random.Random(3))
    counts = Counter(draw() for _ in range(DRAWS))
    assert_of_distribution(counts, {key: DRAWS / 50 for key in range(50)})


def take(name: str, count: int, *, loaded: int = 1_000, distribution: str | None = None) -> list[Operation]:
    workload = WORKLOADS[name]
    plan = Plan(workload, loaded, distribution or workload.distribution, random.Random(5))
    return list(itertools.islice(plan.operations(), count))


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_kinds_come_in_their_shares(name: str) -> None:
    counts = Counter(kind for kind, _, _ in take(name, 20_000))
    for kind, share in WORKLOADS[name].shares:
        assert counts.pop(kind) / 20_000 == pytest.approx(share, abs=0.02)
    assert not counts


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_reads_name_keys_that_exist(name: str) -> None:
    newest = 999
    for kind, key, scan_keys in take(name, 20_000):
        number = int(key.removeprefix(KEY_PREFIX))
        if kind is Kind.INSERT:
            assert number == newest + 1
            newest = number
        else:
            assert 0 <= number <= newest
        assert (1 <= scan_keys <= SCAN_KEYS_MAX) if kind is Kind.SCAN else scan_keys == 0


def test_latest_prefers_what_was_just_inserted() -> None:
    newest, distances = 999, []
    for kind, key, _ in take("ycsb-d", 20_000):
        if kind is Kind.INSERT:
            newest += 1
        else:
            distances.append(newest - int(key.removeprefix(KEY_PREFIX)))
    assert sum(distance < 10 for distance in distances) / len(distances) == pytest.approx(0.39, abs=0.03)


def test_a_plan_is_the_same_for_the_same_seed_and_the_distribution_can_be_overruled() -> None:
    assert take("ycsb-a", 5_000) == take("ycsb-a", 5_000)
    hottest = Counter(key for _, key, _ in take("ycsb-a", 5_000)).most_common(1)[0][1]
    coolest = Counter(key for _, key, _ in take("ycsb-a", 5_000, distribution="uniform")).most_common(1)[0][1]
    assert hottest > 10 * coolest
    assert key_of(1) < key_of(999_999_999_999)
