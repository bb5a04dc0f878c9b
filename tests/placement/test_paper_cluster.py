"""Clusters on paper: balance comes to rest, near to the least number of moves, and then moves nothing any more."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.placement import PaperCluster, measure, uniform_cluster
from kvstore.placement.thresholds import Thresholds

SMOOTHING = 1 / 16


@pytest.mark.parametrize("seed", range(3))
def test_nodes_that_join_are_filled_with_few_moves(seed: int) -> None:
    cluster = uniform_cluster(18, 600, random.Random(seed))
    cluster.rest()
    for number in (18, 19):
        cluster.add_node(number, zone=f"z{number % 5}")
    result = measure("join", cluster)
    assert result.restless == 0
    assert result.replicas_off <= 0.1
    assert result.leaders_off <= 0.1
    assert result.replica_moves <= 1.25 * result.replica_least


def test_a_drained_node_is_emptied_with_the_least_of_moves() -> None:
    cluster = uniform_cluster(10, 300, random.Random(1))
    cluster.rest()
    cluster.change_node("id003", draining=True)
    result = measure("drain", cluster)
    assert not cluster.view.replicas["id003"]
    assert result.replica_moves <= 1.25 * result.replica_least
    assert result.restless == 0


def test_balance_never_worsens_the_spread() -> None:
    rng = random.Random(5)
    cluster = PaperCluster(Thresholds(receiving_max=50, sending_max=50))
    nodes = [cluster.add_node(number, zone="xyz"[number % 3], host=f"h{number // 2}") for number in range(12)]
    for shard in range(2, 200):
        cluster.add_shard(shard, rng.sample(nodes[:6], 3))
    view = cluster.view
    crowding = {shard.id: view.crowding(shard.voters) for shard in view.shards.values()}
    while cluster.round() or cluster.board.running:
        for shard in view.shards.values():
            if not shard.learners:
                assert view.crowding(shard.voters) <= crowding[shard.id]
                crowding[shard.id] = view.crowding(shard.voters)
    assert not view.crowded


def test_load_that_varies_does_not_keep_leaders_moving() -> None:
    """Every second each shard's load is another one, by a third up or down, and smoothed as reports are: after the
    first minutes hardly anything moves."""
    rng = random.Random(2)
    cluster = uniform_cluster(6, 60, rng, zones=3)
    cluster.rest()
    view = cluster.view
    base = {shard: int(4_000 / (1 + rank) ** 0.5) for rank, shard in enumerate(sorted(view.shards))}
    smooth: dict[int, float] = dict(base)
    moved = []
    for _ in range(4):
        before = cluster.leader_moves
        for _ in range(100):
            for shard, load in base.items():
                smooth[shard] += (load * rng.uniform(0.67, 1.33) - smooth[shard]) * SMOOTHING
                view.put_shard(replace(view.shards[shard], reads=int(smooth[shard])))
            cluster.round()
        moved.append(cluster.leader_moves - before)
    assert moved[-1] <= 3, moved
