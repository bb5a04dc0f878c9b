"""What a node shows of the shards: the newest that its replicas and the others know, and when that has changed.

Method: replicas that are only what the map asks for, hints from made-up histories, and a client's table that follows
what has changed; waiting on virtual time.
"""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen.sim.loop import simulated
from kvstore.base.errors import Overloaded
from kvstore.base.shards import Replica, Route, ShardDescriptor, keyspace_prefix, keyspace_range
from kvstore.client.routes import RouteTable
from kvstore.gossip.hint import encode
from kvstore.gossip.leader_hints import LeaderHints
from kvstore.replica.environment import NodeAddress, NodeAddresses
from kvstore.replica.host_core import HostCore
from kvstore.router import shard_map as shard_map_module
from kvstore.router.shard_map import ShardMap
from tests.gossip.histories import History, Shard, even_shards, node_bytes

ME = 9
PREFIX = keyspace_prefix(1)
WHOLE = keyspace_range(1)


def node_id(number: int) -> str:
    return node_bytes(number).hex()


def descriptor(shard: Shard, keyspace: int = 1) -> ShardDescriptor:
    return ShardDescriptor(
        id=shard.id,
        keyspace=keyspace,
        start=shard.start,
        end=shard.end,
        version=shard.version,
        conf=shard.conf,
        replicas=tuple(Replica(node_id(one), one) for one in shard.replicas),
    )


class Place:
    """One node: its replicas, what it has heard, and its map."""

    def __init__(self, *, nodes: int = 5, seed: int = 1) -> None:
        self.now_ms = 0
        self.addresses = NodeAddresses()
        for number in (*range(1, nodes + 1), ME):
            self.addresses[node_id(number)] = NodeAddress(f"n{number}", f"h{number}:1")
        environment = SimpleNamespace(
            node=node_id(ME),
            rng=random.Random(seed),
            addresses=self.addresses,
            address_of=self.addresses.get,
            clock=SimpleNamespace(boot_ms=lambda: self.now_ms),
        )
        self.replicas: dict[int, SimpleNamespace] = {}
        self.core = SimpleNamespace(replicas=self.replicas, routes_anew={}, environment=environment)
        self.hints = LeaderHints(node_id(ME))
        self.map = ShardMap(cast(HostCore, self.core))
        self.alive = list(self.addresses.values())
        self.map.attach(self.hints, lambda: self.alive)

    def hear(self, *shards: Shard) -> None:
        self.hints.receive([encode(shard.hint()) for shard in shards], 0.0)

    def replica(self, shard: Shard, *, leader: int | None, term: int | None = None, keyspace: int = 1) -> None:
        """What the replica here has now."""
        self.replicas[shard.id] = SimpleNamespace(
            state=SimpleNamespace(descriptor=descriptor(shard, keyspace)),
            leader_node=None if leader is None else node_id(leader),
            is_leader=leader == ME,
            raw=SimpleNamespace(term=shard.term if term is None else term),
        )
        self.core.routes_anew[shard.id] = None

    def remove(self, shard: int) -> None:
        del self.replicas[shard]
        self.core.routes_anew[shard] = None

    @property
    def routes(self) -> list[Route]:
        return list(self.map.routing().routes)

    @property
    def leaders(self) -> dict[int, str | None]:
        return {route.id: route.leader for route in self.routes}


def shard(start: bytes = b"", end: bytes = b"", **fields: int) -> Shard:
    one = Shard(2, PREFIX + start, PREFIX + end if end else WHOLE[1])
    for name, value in fields.items():
        setattr(one, name, value)
    return one


# -- which route stands


def test_a_hint_is_shown_with_names_and_addresses() -> None:
    place = Place()
    place.hear(shard(b"b", b"d", term=4, leader=2))
    assert place.routes == [
        Route(
            id=2, keyspace=1, start=b"b", end=b"d", version=1, conf=1, term=4, leader="n2", address="h2:1",
            replicas=(("n1", "h1:1", 1), ("n2", "h2:1", 1), ("n3", "h3:1", 1)),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (shard(term=1), shard(term=2, leader=2)),
        (shard(term=1, conf=9), shard(term=2, conf=1, leader=2)),
        (shard(term=9, conf=9), shard(version=2, leader=2)),
    ],
)
def test_higher_version_term_conf_stands_wherever_it_comes_from(older: Shard, newer: Shard) -> None:
    for first, second in ((older, newer), (newer, older)):
        place = Place()
        place.hear(first)
        place.hear(second)
        assert place.leaders == {2: "n2"}
    for hint, local in ((older, newer), (newer, older)):
        place = Place()
        place.hear(hint)
        place.replica(local, leader=local.leader)
        assert place.leaders == {2: "n2"}


def test_a_replica_without_a_leader_does_not_hide_a_hint() -> None:
    place = Place()
    place.replica(shard(term=4), leader=None)
    assert place.leaders == {2: None}
    place.hear(shard(term=4, leader=2))
    assert place.leaders == {2: "n2"}


def test_a_leader_of_before_an_election_that_was_seen_here_is_not_named() -> None:
    place = Place()
    place.replica(shard(term=4), leader=2)
    assert place.leaders == {2: "n2"}
    place.replica(shard(term=5), leader=None)
    assert place.leaders == {2: None}
    place.hear(shard(term=5, leader=3))
    assert place.leaders == {2: "n3"}


def test_this_node_is_named_only_while_it_leads() -> None:
    place = Place()
    place.hear(shard(term=7, leader=ME))
    assert place.leaders == {2: None}, "of before a restart"
    place.replica(shard(term=8), leader=ME)
    assert place.leaders == {2: "n9"}
    place.replica(shard(term=8), leader=None)
    assert place.leaders == {2: None}
    place.replica(shard(term=9), leader=ME)
    place.remove(2)
    assert place.leaders == {2: None}


def test_a_replica_that_waits_for_its_snapshot_has_no_route() -> None:
    place = Place()
    place.replicas[2] = SimpleNamespace(state=None)
    place.core.routes_anew[2] = None
    assert place.routes == []


def test_a_replica_behind_a_split_does_not_hide_the_halves() -> None:
    place = Place()
    place.replica(shard(term=3), leader=1)
    place.hear(shard(b"", b"m", version=2, term=3), shard(b"m", id=3, version=2, leader=2))
    assert place.leaders == {2: "n1", 3: "n2"}
    place.replica(shard(term=4), leader=3)
    assert place.leaders == {2: "n1", 3: "n2"}


def test_a_shard_that_was_merged_into_another_is_not_known_any_more() -> None:
    place = Place()
    place.hear(shard(b"", b"m"), shard(b"m", id=3))
    version = place.map.version
    place.hear(shard(version=2))
    assert place.map.get(3) is None
    assert [route.id for route in place.map.routing(version).routes] == [2]


def test_a_hint_without_replicas_does_not_hide_those_that_are_known_here() -> None:
    place = Place()
    place.replica(shard(), leader=1)
    bare = msgspec.structs.replace(shard().hint(), replicas=())
    place.hints.receive([encode(bare)], 0.0)
    assert len(place.routes[0].replicas) == 3


def test_the_system_keyspace_is_known_and_not_shown() -> None:
    place = Place()
    start, end = keyspace_range(0)
    place.replica(Shard(1, start, end), leader=2, keyspace=0)
    place.hear(shard())
    assert [route.id for route in place.routes] == [2]
    assert place.map.find(0, b"x") is None
    route = place.map.get(1)
    assert route is not None
    assert route.leader == "n2"


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_true_histories_end_in_the_truth(seed: int) -> None:
    rng = random.Random(seed)
    history = History(rng)
    for _ in range(40):
        history.step()
    place = Place()
    told = rng.sample(history.told, rng.randint(0, len(history.told))) + history.newest()
    rng.shuffle(told)
    for hint in told:
        place.hints.receive([encode(hint)], 0.0)
        if rng.random() < 0.2:
            place.map.find(1, b"k")  # takes note of what has come so far
    shown = [(route.id, PREFIX + route.start, route.version, route.term, route.leader) for route in place.routes]
    assert shown == [(one.id, one.start, one.version, one.term, f"n{one.leader}") for one in history.shards]
    for _ in range(30):
        key = bytes(rng.randrange(256) for _ in range(rng.randint(0, 3)))
        holder = next(one for one in history.shards if one.start <= PREFIX + key < one.end)
        found = place.map.find(1, key)
        assert found is not None
        assert found.id == holder.id


# -- what answers of other nodes say


def test_what_an_answer_says_is_merged() -> None:
    place = Place()
    place.hear(shard(term=2, leader=1))
    told = place.routes[0]
    place.map.learn([msgspec.structs.replace(told, term=3, leader="n2", address="h2:1")])
    assert place.leaders == {2: "n2"}
    place.map.learn([told, msgspec.structs.replace(told, term=9, leader="unheard-of")])
    assert place.leaders == {2: "n2"}


def test_a_leader_that_cannot_be_reached_is_not_named_to_the_router_for_a_while() -> None:
    place = Place()
    place.hear(shard(term=2, leader=1))
    before = place.map.version

    def found() -> str | None:
        route = place.map.find(1, b"k")
        assert route is not None
        return route.leader

    place.map.forget_leader(2, "h1:1")
    assert found() is None
    assert place.leaders == {2: "n1"}
    assert place.map.version == before
    place.now_ms += shard_map_module.DENIED_MS
    assert found() == "n1"
    place.map.forget_leader(2, "h1:1")
    place.map.learn(place.routes)
    assert found() == "n1", "somebody names it again"
    place.map.forget_leader(2, "h1:1")
    place.hear(shard(term=3, leader=2))
    assert found() == "n2"


# -- versions


def test_the_version_rises_with_each_change_and_with_nothing_else() -> None:
    place = Place()
    versions = [place.map.version]

    def changed() -> bool:
        versions.append(place.map.version)
        assert versions[-1] >= versions[-2]
        return versions[-1] > versions[-2]

    place.hear(shard())
    assert changed()
    assert not changed()
    place.hear(shard())
    place.replica(shard(), leader=1)
    assert not changed()
    place.replica(shard(term=2), leader=2)
    assert changed()
    place.hear(shard(term=2, leader=2))
    assert not changed()
    place.addresses[node_id(2)] = NodeAddress("n2", "elsewhere:1")
    assert changed()
    place.addresses[node_id(2)] = NodeAddress("n2", "elsewhere:1")
    place.addresses[node_id(77)] = NodeAddress("n77", "h77:1")
    assert not changed()
    place.map.on_members()
    assert not changed()
    place.alive = place.alive[:3]
    place.map.on_members()
    assert changed()


def test_a_node_whose_name_is_learned_late_is_shown_where_it_is() -> None:
    """And only there is anything built anew."""
    place = Place(nodes=1)
    place.hear(*even_shards(100, nodes=2))
    assert {route.leader for route in place.routes} == {"n1", None}
    first = next(route for route in place.routes if route.leader == "n1")
    version = place.map.version
    place.addresses[node_id(77)] = NodeAddress("n77", "h77:1")
    place.addresses[node_id(2)] = NodeAddress("n2", "h2:1")
    assert {route.leader for route in place.routes} == {"n1", "n2"}
    assert place.map.version == version + 1
    del place.addresses[node_id(2)]
    assert {route.leader for route in place.routes} == {"n1", None}
    assert place.map.get(first.id) == first


def test_versions_of_two_nodes_or_starts_are_not_taken_for_each_other() -> None:
    versions = {Place(seed=seed).map.version for seed in range(100)}
    assert len(versions) == 100
    assert all(0 < version < 2**53 for version in versions)
    place = Place()
    place.hear(shard())
    for strange in (0, 1, -1, place.map.version + 1, min(versions), 2**63):
        assert place.map.routing(strange).whole


def test_only_what_has_changed_is_told_to_who_knows_the_rest() -> None:
    place = Place()
    place.hear(*even_shards(100))
    seen = place.map.routing()
    assert (len(seen.routes), len(seen.nodes), seen.whole) == (100, 6, True)
    same = place.map.routing(seen.version)
    assert (list(same.routes), list(same.nodes), same.whole) == ([], [], False)
    place.hear(Shard(7, *bounds_of(place, 7), version=5, term=2, leader=1))
    news = place.map.routing(seen.version)
    assert ([route.id for route in news.routes], list(news.nodes), news.whole) == ([7], [], False)
    place.alive.pop()
    place.map.on_members()
    news = place.map.routing(news.version)
    assert (list(news.routes), len(news.nodes)) == ([], 5)


def bounds_of(place: Place, number: int) -> tuple[bytes, bytes]:
    route = place.map.get(number)
    assert route is not None
    return PREFIX + route.start, PREFIX + route.end


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_who_follows_the_changes_has_what_is_shown(seed: int) -> None:
    """A client's table, given only what has changed, against one that is given everything."""
    rng = random.Random(seed)
    history = History(rng)
    place = Place()
    follower = RouteTable()
    follower.keyspace = 1
    version = told = 0
    for _ in range(15):
        for _ in range(rng.randint(0, 4)):
            history.step()
        place.hints.receive([encode(hint) for hint in history.told[told:]], 0.0)
        told = len(history.told)
        news = place.map.routing(version)
        assert news.whole == (version == 0)
        version = news.version
        follower.merge(news.routes)
        assert list(follower) == place.routes


# -- speed


def test_a_look_up_among_thousands_builds_nothing() -> None:
    place = Place()
    place.hear(*even_shards(5_000))
    keys = [f"user{number:08}".encode() for number in random.Random(1).choices(range(5_000), k=10_000)]
    place.map.find(1, b"k")
    began = time.process_time()
    for key in keys:
        place.map.find(1, key)
    assert time.process_time() - began < 0.5, "about 3 microseconds each"
    one = place.map.find(1, keys[0])
    assert one is place.map.find(1, keys[0])


# -- waiting


@simulated
async def test_who_waits_is_woken_by_a_hint_a_replica_an_address_and_a_member() -> None:
    loop = asyncio.get_running_loop()
    place = Place()
    place.hear(shard())

    async def woken_after(change: object) -> float:
        assert callable(change)
        version = place.map.version
        waiting = asyncio.ensure_future(place.map.wait_changed(version, 30.0))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        began = loop.time()
        change()
        await waiting
        assert place.map.version > version
        return loop.time() - began

    def elect() -> None:
        place.replica(shard(term=3), leader=3)
        place.map.touch()  # as the host does at the end of its turn

    def look_up_first() -> None:
        place.replica(shard(term=4), leader=1)
        place.map.find(1, b"k")  # which takes note of the change before the host's turn has ended

    def leave() -> None:
        place.alive.pop()
        place.map.on_members()

    for change in (
        lambda: place.hear(shard(term=2, leader=2)),
        elect,
        look_up_first,
        lambda: place.addresses.__setitem__(node_id(1), NodeAddress("n1", "new:1")),
        leave,
        lambda: place.map.learn([msgspec.structs.replace(place.routes[0], term=9)]),
    ):
        assert await woken_after(change) <= 2 * shard_map_module.WAKE_SECONDS


@simulated
async def test_nobody_is_woken_by_what_changes_nothing() -> None:
    place = Place()
    place.hear(shard())
    began = asyncio.get_running_loop().time()
    waiting = asyncio.ensure_future(place.map.wait_changed(place.map.version, 5.0))
    await asyncio.sleep(1.0)
    place.hear(shard())
    place.replica(shard(), leader=1)
    place.map.touch()
    place.map.on_members()
    await waiting
    assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)


@simulated
async def test_another_version_is_not_waited_for() -> None:
    place = Place()
    began = asyncio.get_running_loop().time()
    await place.map.wait_changed(place.map.version + 1, 30.0)
    assert asyncio.get_running_loop().time() == began


@simulated
async def test_many_changes_at_once_wake_once() -> None:
    place = Place()
    place.hear(*even_shards(50))
    wakes: list[int] = []
    place.map.watch(place.map.version, lambda: wakes.append(place.map.version), seconds=30.0)
    for term in range(2, 10):
        place.hear(*[Shard(one.id, one.start, one.end, version=5, term=term) for one in even_shards(50)])
        place.routes  # noqa: B018  # each is a version of its own
    await asyncio.sleep(1.0)
    assert wakes == [place.map.version]


@simulated
async def test_thousands_are_woken_some_at_a_time_and_each_once() -> None:
    place = Place()
    woken: list[int] = []
    for number in range(2_000):
        place.map.watch(place.map.version, lambda number=number: woken.append(number), seconds=30.0)  # type: ignore[misc]
    place.hear(shard())
    await asyncio.sleep(shard_map_module.WAKE_SECONDS)
    await asyncio.sleep(0)
    assert 0 < len(woken) < 2_000
    await asyncio.sleep(1.0)
    assert woken == list(range(2_000))


@simulated
async def test_a_watch_can_be_cancelled_and_none_is_left_behind() -> None:
    place = Place()
    wakes: list[int] = []
    cancel = place.map.watch(place.map.version, lambda: wakes.append(1), seconds=3.0)
    cancel()
    cancel()
    waiting = asyncio.ensure_future(place.map.wait_changed(place.map.version, 30.0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    place.hear(shard())
    await asyncio.sleep(5.0)
    assert wakes == []
    assert place.map._watchers == {}


@simulated
async def test_those_who_wait_are_bounded() -> None:
    place = Place()
    limit, shard_map_module.WATCHERS_MAX = shard_map_module.WATCHERS_MAX, 3
    try:
        cancels = [place.map.watch(place.map.version, lambda: None, seconds=5.0) for _ in range(3)]
        with pytest.raises(Overloaded):
            place.map.watch(place.map.version, lambda: None, seconds=5.0)
        cancels[0]()
        place.map.watch(place.map.version, lambda: None, seconds=5.0)
    finally:
        shard_map_module.WATCHERS_MAX = limit


@simulated
async def test_at_the_nodes_end_nobody_waits() -> None:
    place = Place()
    version = place.map.version
    waiting = [asyncio.ensure_future(place.map.wait_changed(version, 30.0)) for _ in range(3)]
    await asyncio.sleep(0)
    began = asyncio.get_running_loop().time()
    place.map.close()
    await asyncio.gather(*waiting)
    await place.map.wait_changed(version, 30.0)
    assert asyncio.get_running_loop().time() == began
    woken = asyncio.Event()
    place.map.watch(version, woken.set, seconds=30.0)
    await woken.wait()
    assert asyncio.get_running_loop().time() - began < 1.0
