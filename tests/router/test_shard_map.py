"""Which route stands when several are known."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from kvstore.base.shards import Route
from kvstore.replica.host_core import HostCore
from kvstore.router.shard_map import ShardMap


def route(
    *, version: int = 1, conf: int = 1, term: int = 1, leader: str | None = "n1", start: bytes = b"", end: bytes = b""
) -> Route:
    return Route(
        id=2,
        keyspace=1,
        start=start,
        end=end,
        version=version,
        conf=conf,
        term=term if leader else 0,
        leader=leader,
        address=f"{leader}:1" if leader else None,
    )


class Local:
    """The host's replicas, as far as the map asks."""

    def __init__(self, *routes: Route | None) -> None:
        self.replicas = {number: SimpleNamespace(route=lambda one=one: one) for number, one in enumerate(routes)}


def shard_map(*local: Route | None) -> ShardMap:
    return ShardMap(cast(HostCore, Local(*local)))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (route(term=1), route(term=2, leader="n2")),
        (route(term=9, conf=1), route(term=1, conf=2)),
        (route(term=9, conf=9, version=1), route(version=2)),
    ],
)
def test_higher_version_conf_term_stands_in_any_order(older: Route, newer: Route) -> None:
    for first, second in ((older, newer), (newer, older)):
        known = shard_map()
        known.learn([first])
        known.learn([second])
        assert known.find(1, b"k") == newer


def test_newer_hint_beats_the_local_replica_and_an_older_one_does_not() -> None:
    known = shard_map(route(term=5, leader="n1"))
    known.learn([route(term=4, leader="n2")])
    assert known.find(1, b"k") == route(term=5, leader="n1")
    known.learn([route(term=6, leader="n3")])
    assert known.find(1, b"k") == route(term=6, leader="n3")


def test_local_replica_without_a_leader_does_not_hide_a_hint() -> None:
    known = shard_map(route(leader=None))
    known.learn([route(term=4, leader="n2")])
    found = known.find(1, b"k")
    assert found is not None
    assert found.leader == "n2"


def test_replica_that_waits_for_its_snapshot_has_no_route() -> None:
    assert shard_map(None).routes() == (0, [])


def test_version_rises_only_with_a_change() -> None:
    known = shard_map()
    known.learn([route()])
    version, _ = known.routes()
    known.learn([msgspec.structs.replace(route())])
    assert known.routes()[0] == version
    known.learn([route(term=2)])
    assert known.routes()[0] == version + 1


def test_key_lies_in_the_range_and_the_system_keyspace_is_not_shown() -> None:
    known = shard_map(route(start=b"b", end=b"d"), msgspec.structs.replace(route(), id=1, keyspace=0))
    assert [known.find(1, key) is not None for key in (b"a", b"b", b"c", b"d")] == [False, True, True, False]
    assert known.find(0, b"x") is None


def test_merging_does_not_depend_on_the_order() -> None:
    rng = random.Random(1)
    routes = [route(version=v, conf=c, term=t, leader=f"n{t}") for v in (1, 2) for c in (1, 2) for t in (1, 2)]
    for _ in range(20):
        rng.shuffle(routes)
        known = shard_map()
        for one in routes:
            known.learn([one])
        assert known.find(1, b"k") == route(version=2, conf=2, term=2, leader="n2")
