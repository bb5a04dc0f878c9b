"""Goal: a node is connected with exactly those that share a group with it, and a while longer with former ones.

Method: a table of what happens to descriptors, and random histories compared with counting everything anew.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from kvstore.base.shards import Replica, ReplicaRole, ShardDescriptor
from kvstore.replica.neighbours import Neighbours

LINGER_MS = 1_000


@dataclass
class State:
    descriptor: ShardDescriptor


def state(group: int, nodes: str, learners: str = "") -> State:
    """Nodes are letters; this one is `a`."""
    roles = [(node, ReplicaRole.VOTER) for node in nodes] + [(node, ReplicaRole.LEARNER) for node in learners]
    replicas = tuple(Replica(node, number, role) for number, (node, role) in enumerate(roles, 1))
    return State(ShardDescriptor(group, 1, b"a", b"b", 1, 1, replicas))


@pytest.fixture
def neighbours() -> Neighbours:
    return Neighbours("a", linger_ms=LINGER_MS)


def test_a_learner_counts_at_once(neighbours: Neighbours) -> None:
    neighbours.settle(1, state(1, "abc"), 0)
    assert neighbours.anew
    assert neighbours.nodes(0) == ["b", "c"]
    assert not neighbours.anew
    neighbours.settle(1, state(1, "abc", "d"), 5)
    assert neighbours.anew
    assert neighbours.nodes(5) == ["b", "c", "d"]


def test_a_former_one_lingers(neighbours: Neighbours) -> None:
    neighbours.settle(1, state(1, "abc"), 0)
    neighbours.settle(2, state(2, "abd"), 0)
    neighbours.nodes(0)
    neighbours.settle(1, state(1, "ab"), 100)
    assert neighbours.nodes(100 + LINGER_MS - 1) == ["b", "c", "d"]
    assert neighbours.nodes(100 + LINGER_MS) == ["b", "d"]
    neighbours.drop(2, 5_000)
    assert neighbours.nodes(5_000 + LINGER_MS) == ["b"]  # still shared by group 1
    assert not neighbours.anew


def test_who_comes_back_in_time_is_no_news(neighbours: Neighbours) -> None:
    neighbours.settle(1, state(1, "abc"), 0)
    neighbours.nodes(0)
    neighbours.settle(1, state(1, "ab"), 100)
    neighbours.settle(1, state(1, "abc"), 200)
    assert not neighbours.anew
    assert neighbours.nodes(10_000) == ["b", "c"]


def test_a_replica_without_state_has_no_neighbours(neighbours: Neighbours) -> None:
    neighbours.settle(1, None, 0)
    assert neighbours.nodes(0) == []
    neighbours.settle(1, state(1, "abc"), 0)
    neighbours.settle(1, None, 100)
    assert neighbours.nodes(100 + LINGER_MS) == []
    neighbours.drop(7, 0)  # never seen


@pytest.mark.parametrize("seed", range(50))
def test_any_history_comes_to_the_same_as_counting_anew(seed: int, neighbours: Neighbours) -> None:
    rng = random.Random(seed)
    held: dict[int, State | None] = {}
    told: list[str] = []
    expected: set[str] = set()
    for _ in range(60):
        group = rng.randint(1, 4)
        if rng.random() < 0.2:
            held.pop(group, None)
            neighbours.drop(group, 0)
        else:
            held[group] = None if rng.random() < 0.2 else state(group, "".join(rng.sample("abcdef", rng.randint(1, 4))))
            neighbours.settle(group, held[group], 0)
        expected = {place.node for one in held.values() if one for place in one.descriptor.replicas} - {"a"}
        assert neighbours.anew or expected <= set(told)
        if rng.random() < 0.5:
            told = neighbours.nodes(0)
            assert expected <= set(told)
    assert set(neighbours.nodes(LINGER_MS)) == expected
