"""The view's indexes against a naive count after random changes; shares and crowding against small truths."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from kvstore.base.shards import Replica, ReplicaRole, ShardDescriptor
from kvstore.placement.filters import blocked_by, keeps_spread, targets, veto
from kvstore.placement.moves import replace as replaced
from kvstore.placement.moves import transfer
from kvstore.placement.operators import Kind, Placement
from kvstore.placement.shares import least_crowding, node_shares
from kvstore.placement.thresholds import Thresholds
from kvstore.placement.view import Health, ShardView, View, shard_view
from tests.placement.pictures import picture, with_shards


def naive(view: View) -> dict[str, object]:
    """What the indexes should hold, counted from nothing."""
    replicas: dict[str, set[int]] = {}
    leaders: dict[str, set[int]] = {}
    data: Counter[str] = Counter()
    load: Counter[str] = Counter()
    for shard in view.shards.values():
        plan = view.running.get(shard.id)
        placement = plan.placement if plan else Placement(shard.nodes, shard.leader)
        for node in placement.nodes:
            replicas.setdefault(node, set()).add(shard.id)
            data[node] += shard.data_bytes
        if placement.leader:
            leaders.setdefault(placement.leader, set()).add(shard.id)
            load[placement.leader] += shard.load
    unwell = {
        shard.id
        for shard in view.shards.values()
        if shard.learners or len(shard.voters) != view.wanted(shard) or not all(map(view.in_service, shard.voters))
    }
    return {"replicas": replicas, "leaders": leaders, "bytes": +data, "load": +load, "unwell": unwell}


def indexed(view: View) -> dict[str, object]:
    return {
        "replicas": {node: set(shards) for node, shards in view.replicas.items() if shards},
        "leaders": {node: set(shards) for node, shards in view.leaders.items() if shards},
        "bytes": +view.data_bytes,
        "load": +view.load,
        "unwell": set(view.unwell),
    }


@pytest.mark.parametrize("seed", range(30))
def test_indexes_are_what_a_naive_count_says(seed: int) -> None:
    rng = random.Random(seed)
    view = picture("abcdefg", zones="xxyyzzz", rules=Thresholds(operators_max=1_000))
    for _ in range(200):
        _change_something(view, rng)
    assert indexed(view) == naive(view)
    for shard in list(view.running):
        view.end(shard)
    assert indexed(view) == naive(view)
    assert not +view.receiving
    assert not +view.sending
    assert view.transfers == 0


def _change_something(view: View, rng: random.Random) -> None:
    dice = rng.random()
    shard = view.shards.get(rng.randint(1, 30))
    if dice < 0.1:
        node = view.nodes[rng.choice("abcdefg")]
        view.put_node(replace(node, health=rng.choice(list(Health)), draining=rng.random() < 0.3))
    elif dice < 0.5 or shard is None:
        voters = tuple(rng.sample("abcdefg", rng.randint(1, 4)))
        learners = tuple(node for node in "abc" if node not in voters and rng.random() < 0.2)
        number = rng.randint(1, 30)
        leader = rng.choice([None, *voters])
        fresh = ShardView(id=number, keyspace=1, version=1, conf=1, voters=voters, learners=learners, leader=leader)
        view.put_shard(replace(fresh, data_bytes=rng.randint(0, 99), reads=rng.randint(0, 9), writes=rng.randint(0, 9)))
    elif shard.id in view.running:
        view.end(shard.id, rest_seconds=rng.choice([0.0, 5.0]))
    elif dice < 0.8 and shard.leader in shard.voters:
        view.begin(transfer(view, shard, to=rng.choice(shard.voters), kind=Kind.LEADERS, reason="at random"))
    else:
        to = next((node for node in "abcdefg" if node not in shard.nodes), None)
        if to is not None:
            away = rng.choice(shard.voters)
            view.begin(replaced(view, shard, away=away, to=to, kind=Kind.REPLICAS, reason="at random"))


def test_a_running_plan_counts_as_done() -> None:
    view = with_shards(picture("abcd"), "abc", data_bytes=7, reads=5)
    view.begin(replaced(view, view.shards[2], away="a", to="d", kind=Kind.DRAIN, reason=""))
    assert (len(view.replicas["a"]), len(view.replicas["d"])) == (0, 1)
    assert (view.receiving["d"], view.sending["a"], view.data_bytes["d"]) == (1, 1, 7)
    assert view.load["a"] == 0  # another one leads by then
    assert view.load["b"] + view.load["c"] == 5


def test_lost_only_after_the_time() -> None:
    view = with_shards(picture("abc", down="c", rules=Thresholds(dead_after_seconds=60)), "abc")
    assert not view.is_lost("c")
    view.now += 59
    assert view.is_lost("c")
    assert not view.is_lost("nobody")


def test_from_a_descriptor() -> None:
    places = (Replica("a", 1), Replica("b", 2), Replica("c", 1_003, ReplicaRole.LEARNER))
    descriptor = ShardDescriptor(id=9, keyspace=1, start=b"a", end=b"b", version=4, conf=5, replicas=places)
    shard = shard_view(descriptor, leader="a", data_bytes=3)
    assert (shard.voters, shard.learners, shard.leader, shard.data_bytes) == (("a", "b"), ("c",), "a", 3)
    assert (shard.version, shard.conf, shard.quorum) == (4, 5, 2)


@pytest.mark.parametrize("seed", range(40))
def test_least_crowding_is_the_least_of_all_choices(seed: int) -> None:
    """Zones count first; among the choices with the fewest pairs in a zone, the greedy one has few on a host."""
    rng = random.Random(seed)
    places = [(rng.choice("xyz"), rng.choice("hijk")) for _ in range(rng.randint(1, 7))]
    places = [(zone, zone + host) for zone, host in places]  # a host is in one zone
    count = rng.randint(1, len(places))

    def pairs(chosen: tuple[tuple[str, str], ...]) -> tuple[int, int]:
        zones, hosts = Counter(zone for zone, _ in chosen), Counter(host for _, host in chosen)
        return sum(n * (n - 1) // 2 for n in zones.values()), sum(n * (n - 1) // 2 for n in hosts.values())

    assert least_crowding(places, count) == min(map(pairs, combinations(places, count)))


@pytest.mark.parametrize(
    ("zones", "count", "expected"),
    [
        ("xxyyzz", 3, [1 / 6] * 6),
        ("xyzz", 3, [1 / 3, 1 / 3, 1 / 6, 1 / 6]),
        ("xxxxyz", 3, [1 / 12] * 4 + [1 / 3] * 2),
        ("xxyy", 3, [1 / 4] * 4),
        ("xy", 3, [1 / 2] * 2),
        ("wxyz", 3, [1 / 4] * 4),
        ("wwwwwwxyz", 3, [1 / 18] * 6 + [2 / 9] * 3),
    ],
)
def test_shares(zones: str, count: int, expected: list[float]) -> None:
    nodes = {f"n{number}": zone for number, zone in enumerate(zones)}
    shares = node_shares(dict.fromkeys(nodes, 100), nodes, {count: 50})
    assert list(shares.values()) == pytest.approx(expected, abs=1e-6)


def test_filters_say_why() -> None:
    view = with_shards(picture("abcdefgh", down="d", draining="e", removed="f", full="g"), "abc", data_bytes=1)
    said = {node: veto(view, view.shards[2], view.nodes[node]) for node in "adefgh"}
    assert said == {
        "a": "it has a replica already",
        "d": "it is down",
        "e": "it is being drained",
        "f": "it was removed from the cluster",
        "g": "its disk is nearly full",
        "h": None,
    }
    assert [node.id for node in targets(view, view.shards[2], away="c")] == ["h"]
    assert "g: its disk is nearly full" in blocked_by(view, view.shards[2])


def test_spread_is_kept() -> None:
    view = with_shards(picture("abcde", zones="xyzzx"), "abc")
    assert keeps_spread(view, view.shards[2], away="c", to="d")
    assert not keeps_spread(view, view.shards[2], away="c", to="e")
    assert keeps_spread(view, view.shards[2], away="a", to="e")
