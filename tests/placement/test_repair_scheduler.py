"""Repair, drain and spread as tables: from a picture in one line to the steps that are wanted."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.placement.schedulers.drain import drain, drain_state
from kvstore.placement.schedulers.repair import LEARNER_SECONDS_MAX, repair
from kvstore.placement.schedulers.split import split
from kvstore.placement.schedulers.spread import spread
from kvstore.placement.thresholds import Thresholds
from tests.placement.pictures import picture, plans, told, with_shards


@pytest.mark.parametrize(
    ("nodes", "shard", "expected"),
    [
        ({"nodes": "abc"}, "abc", ""),
        ({"nodes": "a"}, "a", ""),  # nowhere to go
        ({"nodes": "abc"}, "a", "+b ^b"),
        ({"nodes": "abcd", "down": "b"}, "a", "+c ^c"),
        ({"nodes": "abcd", "down": "c"}, "abc", ""),  # down is not lost
        ({"nodes": "abcd", "lost": "c"}, "abc", "+d ~d-c"),
        ({"nodes": "abcde", "lost": "c", "full": "d"}, "abc", "+e ~e-c"),
        ({"nodes": "abcde", "lost": "c", "draining": "d"}, "abc", "+e ~e-c"),
        ({"nodes": "abc", "lost": "c"}, "abc", ""),  # nobody can take over: it may come back
        ({"nodes": "abcd", "removed": "c"}, "abc", "+d ~d-c"),
        ({"nodes": "abc", "removed": "c"}, "abc", "-c"),  # no successor: 2 of 2 is better than 2 of 3
        ({"nodes": "abcd", "removed": "d"}, "abc", ""),
        ({"nodes": "abcd", "removed": "c", "down": "d"}, "abc", ""),  # d may come back and take over
        ({"nodes": "abcd"}, "abcd", "-d"),
        ({"nodes": "abcd", "lost": "b"}, "abcd", "-b"),
        ({"nodes": "abcd", "draining": "a"}, "abcd", ">b -a"),  # a leader hands over first
        ({"nodes": "abcd", "zones": "xyzy"}, "abcd", "-d"),
        ({"nodes": "abcd", "lost": "bc"}, "abc", ""),  # no quorum: nothing can be done
        ({"nodes": "abcdef", "lost": "c", "zones": "xyzxyz"}, "abc", "+f ~f-c"),  # the zone of the lost one
        ({"nodes": "abcde", "lost": "c", "zones": "xyzxy"}, "abc", "+d ~d-c"),  # no choice: better than nothing
    ],
)
def test_repair(nodes: dict[str, Any], shard: str, expected: str) -> None:
    view = with_shards(picture(**nodes), shard)
    assert " ".join(map(told, plans(view, repair))) == expected


@pytest.mark.parametrize(
    ("nodes", "voters", "learner", "expected"),
    [
        ({"nodes": "abc"}, "ab", "c", "^c"),  # finish what broke off
        ({"nodes": "abcd"}, "abc", "d", "-d"),  # not needed
        ({"nodes": "abcd", "lost": "c"}, "abc", "d", "~d-c"),
        ({"nodes": "abcd", "draining": "a"}, "abc", "d", ">b ~d-a"),
        ({"nodes": "abcd", "draining": "a", "lost": "c"}, "abc", "d", "~d-c"),
        ({"nodes": "abc", "draining": "a"}, "a", "b", "^b"),  # nobody else could lead before
        ({"nodes": "abcd", "down": "d"}, "ab", "d", "-d"),
        ({"nodes": "abcd", "removed": "d"}, "ab", "d", "-d"),
        ({"nodes": "abcd", "draining": "d"}, "ab", "d", "-d"),
    ],
)
def test_additions_that_broke_off(nodes: dict[str, Any], voters: str, learner: str, expected: str) -> None:
    view = with_shards(picture(**nodes), voters, learners=learner)
    view.now += LEARNER_SECONDS_MAX
    assert " ".join(map(told, plans(view, repair))) == expected


@pytest.mark.parametrize(
    ("nodes", "voters", "expected"),
    [
        ({"nodes": "abc"}, "abc", ""),
        ({"nodes": "abcd"}, "abc", ""),  # four voters bear no more losses than three
        ({"nodes": "abcde"}, "abc", "+d ^d"),
        ({"nodes": "abcdef"}, "abcde", ""),
        ({"nodes": "abcdef", "lost": "e"}, "abcde", "+f ~f-e"),
        ({"nodes": "abcde", "draining": "e"}, "abcde", "-e"),  # five are not to be had any more
        ({"nodes": "abcd", "draining": ""}, "abcd", "-d"),
        ({"nodes": "abcd", "removed": "c"}, "abc", "+d ~d-c"),
        ({"nodes": "ab"}, "a", "+b ^b"),
    ],
)
def test_meta_group(nodes: dict[str, Any], voters: str, expected: str) -> None:
    """Up to five voters, odd, replaced when one dies or is drained. One plan at a time for one shard."""
    view = with_shards(picture(**nodes), voters, first=1)
    assert " ".join(map(told, plans(view, repair))) == expected


def test_the_worst_shard_comes_first() -> None:
    rules = Thresholds(operators_max=1, replication_factor=5)
    view = with_shards(picture("abcdefg", lost="de", rules=rules), "abcfd", "abcde", "abcgd")
    assert [plan.shard for plan in plans(view, repair)] == [3]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"receiving_max": 2, "sending_max": 50}, 2),  # one node receives all
        ({"receiving_max": 50, "sending_max": 3}, 3),  # one node leads, and sends, all
        ({"receiving_max": 50, "sending_max": 50, "operators_max": 4}, 4),
        ({"receiving_max": 50, "sending_max": 50}, 10),
    ],
)
def test_limits_hold(limits: dict[str, int], expected: int) -> None:
    view = with_shards(picture("abcd", lost="c", rules=Thresholds(**limits)), *["abc"] * 10)
    assert len(plans(view, repair)) == expected
    assert len(plans(view, repair)) == 0  # those under way count


def test_factor_of_a_keyspace() -> None:
    view = with_shards(picture("abcde", factors={1: 5}), "abc")
    assert told(plans(view, repair)[0]) == "+d ^d"
    view = with_shards(picture("abcde", factors={1: 1}), "abc")
    assert told(plans(view, repair)[0]) == "-c"  # followers first
    view.end(2)
    view.set_rules(view.thresholds, {})
    assert plans(view, repair) == []


@pytest.mark.parametrize(
    ("nodes", "voters", "expected"),
    [
        ({"nodes": "abcd", "draining": "c"}, "abc", ["+d ~d-c"]),
        ({"nodes": "abcd", "draining": "a"}, "abc", [">b"]),  # the leadership first, the replica in the next plan
        ({"nodes": "abc", "draining": "a"}, "abc", [">b"]),
        ({"nodes": "abc", "draining": "c"}, "abc", []),
        ({"nodes": "ab", "draining": "a"}, "a", [">b"]),
        ({"nodes": "abcd", "draining": "c", "down": "c"}, "abc", ["+d ~d-c"]),
        ({"nodes": "abcd", "draining": "c", "full": "d"}, "abc", []),
        ({"nodes": "abcdef", "draining": "a", "down": "cde"}, "abcde", []),  # no quorum: nobody can take over
    ],
)
def test_drain(nodes: dict[str, Any], voters: str, expected: list[str]) -> None:
    rules = Thresholds(replication_factor=len(voters))
    view = with_shards(picture(**nodes, rules=rules), voters)
    if voters == "a":
        expected = ["+b ^b >b -a"]  # nobody else can lead before the newcomer
    assert list(map(told, plans(view, drain))) == expected


def test_drain_tells_how_far_it_is_and_what_blocks_it() -> None:
    view = with_shards(picture("abc", draining="c"), "abc", "cab", data_bytes=10)
    state = drain_state(view, "c")
    assert (state.leaders, state.replicas, state.data_bytes, state.moving, state.done) == (1, 2, 20, 0, False)
    assert [shard for shard, _why in state.blocked] == [2, 3]
    assert "every node has a replica already" in state.blocked[0][1]
    view = with_shards(picture("abcd", draining="c", full="d"), "abc")
    assert "d: its disk is nearly full" in drain_state(view, "c").blocked[0][1]
    view = with_shards(picture("abcd", draining="d"), "abc")
    assert drain_state(view, "d").done


@pytest.mark.parametrize(
    ("nodes", "voters", "expected"),
    [
        ({"nodes": "abcd", "zones": "xyzz"}, "abc", ""),
        ({"nodes": "abcd", "zones": "xyyz"}, "abc", "+d ~d-b"),
        ({"nodes": "abcd", "zones": "yyxz"}, "abc", "+d ~d-b"),  # rather a follower than the leader
        ({"nodes": "abc", "zones": "xyy"}, "abc", ""),  # no choice
        ({"nodes": "abcd", "hosts": "hhij"}, "abc", "+d ~d-b"),
        ({"nodes": "abcd", "zones": "xyyz", "down": "d"}, "abc", ""),
        ({"nodes": "abcd", "zones": "xyyz", "full": "d"}, "abc", ""),
        ({"nodes": "abcd", "zones": "xxxy"}, "abc", "+d ~d-b"),  # two in x is better than three
    ],
)
def test_spread(nodes: dict[str, Any], voters: str, expected: str) -> None:
    assert " ".join(map(told, plans(with_shards(picture(**nodes), voters), spread))) == expected


def test_split_by_size_and_by_load() -> None:
    view = with_shards(picture("abc"), "abc", data_bytes=64 << 20)
    view = with_shards(view, "abc", first=3, data_bytes=63 << 20)
    view = with_shards(view, "abc", first=4, reads=9_000, writes=1_000)
    view = with_shards(view, "abc", first=5, data_bytes=99 << 20, splittable=False)
    view = with_shards(view, "abc", first=6, data_bytes=99 << 20, joint=True)
    view = with_shards(view, "abc", first=1, data_bytes=99 << 20)
    found = {plan.shard: (plan.kind.value, plan.reason) for plan in plans(view, split)}
    assert found == {2: ("split", "64 MiB"), 4: ("split by load", "10000 operations a second")}
