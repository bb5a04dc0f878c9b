"""Balance as tables and small pictures: what moves, what does not, and that no scheduler undoes another's work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvstore.placement.operators import Kind
from kvstore.placement.schedulers.leaders import balance_leaders, leader_bounds
from kvstore.placement.schedulers.load import balance_load
from kvstore.placement.schedulers.replicas import balance_bytes, balance_replicas
from kvstore.placement.thresholds import Thresholds
from tests.placement.pictures import picture, plans, settle, told, with_shards

MIB = 1 << 20
WIDE = Thresholds(receiving_max=100, sending_max=100, transfers_max=100, operators_max=100)


def counts(view: Any) -> str:
    return " ".join(f"{node}{len(view.replicas[node])}" for node in sorted(view.nodes))


@pytest.mark.parametrize(
    ("nodes", "shards", "expected"),
    [
        ({"nodes": "abc"}, ["abc"] * 4, "a4 b4 c4"),
        ({"nodes": "abcd"}, ["abc"] * 4, "a3 b3 c3 d3"),
        ({"nodes": "abcd"}, ["abc"], "a1 b1 c1 d0"),  # nothing is gained
        ({"nodes": "abcd"}, ["abc"] * 2, "a1 b2 c2 d1"),
        ({"nodes": "abcd", "draining": "d"}, ["abc"] * 4, "a4 b4 c4 d0"),
        ({"nodes": "abcd", "down": "d"}, ["abc"] * 4, "a4 b4 c4 d0"),
        ({"nodes": "abcd", "full": "d"}, ["abc"] * 4, "a4 b4 c4 d0"),
        ({"nodes": "abcd", "zones": "xyzz"}, ["abc"] * 4, "a4 b4 c2 d2"),  # each zone has one of each shard
        ({"nodes": "abcdef", "zones": "xxyyzz"}, ["ace"] * 4, "a2 b2 c2 d2 e2 f2"),
    ],
)
def test_replicas_by_number(nodes: dict[str, Any], shards: list[str], expected: str) -> None:
    view = with_shards(picture(**nodes, rules=WIDE), *shards)
    found = settle(view, balance_replicas)
    assert {plan.kind for plan in found} <= {Kind.REPLICAS}
    assert sorted(counts(view)) == sorted(expected)
    if "d0" in expected or "zones" in nodes:
        assert counts(view) == expected


def test_a_newcomer_gets_no_more_at_once_than_the_limit() -> None:
    view = with_shards(picture("abcd", rules=Thresholds(receiving_max=2)), *["abc", "bca", "cab"] * 8)
    assert len(plans(view, balance_replicas)) == 2


def test_capacity_counts() -> None:
    view = picture("abcdef", rules=WIDE)
    view.put_node(replace(view.nodes["f"], capacity_bytes=2 * view.nodes["a"].capacity_bytes))
    with_shards(view, *["abc", "bcd", "cde", "dea", "eab"] * 12)
    plans(view, balance_replicas)
    held = {node: len(view.replicas[node]) for node in "abcdef"}
    assert held["f"] > 1.6 * max(held[node] for node in "abcde"), held


def test_bytes_move_within_the_bounds_of_numbers() -> None:
    """Ten large shards on three nodes, ten small ones on three others: large ones go over, as far as numbers allow."""
    view = picture("abcdef", rules=replace_rules(balance_tolerance=0.2))
    with_shards(view, *["abc", "bca"] * 10, data_bytes=60 * MIB)
    with_shards(view, *["def", "efd"] * 10, first=100, data_bytes=MIB)
    before = max(view.data_bytes.values())
    found = plans(view, balance_bytes)
    assert found
    assert max(view.data_bytes.values()) < 0.9 * before
    assert all(abs(len(view.replicas[node]) - 20) <= 4 for node in "abcdef"), counts(view)
    assert plans(view, balance_bytes) == []
    assert plans(view, balance_replicas) == []


def replace_rules(**fields: float) -> Thresholds:
    return Thresholds(receiving_max=100, sending_max=100, transfers_max=100, operators_max=100, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "shards", "expected"),
    [
        ("abc", ["abc"] * 3, [1, 1, 1]),
        ("abc", ["abc", "bca", "cab"], [1, 1, 1]),
        ("abc", ["abc"] * 4, [1, 1, 2]),
        ("abcd", ["abc"] * 9, [0, 3, 3, 3]),
    ],
)
def test_leaders(nodes: str, shards: list[str], expected: list[int]) -> None:
    view = with_shards(picture(nodes, rules=WIDE), *shards)
    found = plans(view, balance_leaders)
    assert sorted(len(view.leaders[node]) for node in nodes) == expected
    assert all(told(plan).startswith(">") for plan in found)
    assert plans(view, balance_leaders) == []


def test_leaderships_go_to_no_node_whose_disk_is_full() -> None:
    """It has just handed them over."""
    view = with_shards(picture("abc", rules=WIDE), *["abc"] * 6, reads=900)
    view.put_node(replace(view.nodes["b"], disk_full=True))
    assert {plan.placement.leader for plan in [*plans(view, balance_leaders), *plans(view, balance_load)]} == {"c"}


def test_leaderships_go_to_no_node_that_is_drained_or_down() -> None:
    view = with_shards(picture("abc", draining="b", rules=WIDE), *["abc"] * 6)
    assert plans(view, balance_leaders) == []  # its shards are drain's business
    view = with_shards(picture("abcd", down="b", rules=WIDE), *["abc", "acd", "adc", "acd"])
    assert all(plan.placement.leader != "b" for plan in plans(view, balance_leaders))


def test_the_meta_group_is_led_where_it_is() -> None:
    view = with_shards(picture("abc", rules=WIDE), "abc", "abc", first=1)
    (plan,) = plans(view, balance_leaders)
    assert plan.shard == 2
    view = with_shards(picture("abcd", rules=WIDE), *["abc"] * 4, first=1)
    assert all(view.placed(1).leader == "a" for _ in settle(view, balance_replicas))
    assert view.shards[1].leader == "a"


def test_two_hot_shards_of_one_leader_are_parted() -> None:
    view = with_shards(picture("abc"), "abc", "abc", reads=3_000)
    with_shards(view, "bca", "cab", first=10)
    (plan,) = plans(view, balance_load)
    assert told(plan) in (">b", ">c")
    assert plans(view, balance_load) == []


def test_one_hot_shard_is_left_where_it_is() -> None:
    """Whoever leads it is the busiest."""
    view = with_shards(picture("abc"), "abc", reads=9_000)
    with_shards(view, "bca", "cab", first=10, reads=10)
    assert plans(view, balance_load) == []


def test_small_differences_move_nothing() -> None:
    view = with_shards(picture("abc"), "abc", "abc", reads=200)
    with_shards(view, "bca", "cab", first=10)
    assert plans(view, balance_load) == []


def test_a_hot_shard_goes_to_an_idle_node_with_a_replica_of_its_own() -> None:
    """All voters are busy: a follower's replica moves, and the newcomer leads."""
    view = with_shards(picture("abcdef"), "abc", "abc", "bca", "bca", "cab", "cab", reads=3_000)
    with_shards(view, *["def", "efd", "fde"] * 2, first=20)
    found = plans(view, balance_load)
    assert any(told(plan).startswith("+") and told(plan).split()[-1][0] == ">" for plan in found), list(
        map(told, found)
    )
    low, high = leader_bounds(view)
    assert all(low <= len(view.leaders[node]) <= high for node in "abcdef")


def test_a_shard_that_was_moved_for_its_load_rests() -> None:
    view = with_shards(picture("abc"), "abc", "abc", reads=3_000)
    with_shards(view, "bca", "cab", first=10)
    (plan,) = plans(view, balance_load)
    moved = replace(view.shards[plan.shard], leader=plan.placement.leader)
    view.put_shard(moved)
    view.end(plan.shard, rest_seconds=30.0)
    with_shards(view, first=50, *["bca", "bca"], reads=9_000)  # noqa: B026
    assert plan.shard not in {one.shard for one in plans(view, balance_load)}
    view.now += 31.0
    assert view.is_calm(plan.shard)
