"""Goal: a node asks again who it is when others took it for gone, ends when it was removed, and connects with its
neighbours only; where the meta group is led, removals are told to gossip.

Method: one coordinator whose surroundings are values: a host that only says what it holds, a gossip that only believes,
an administration that writes down what it was asked for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvstore.base.config import NodeConfig
from kvstore.base.errors import DuplicateName, StartRefused, Unavailable
from kvstore.base.ids import META_SHARD
from kvstore.base.shards import Replica, ShardDescriptor, keyspace_range
from kvstore.gossip.events import MemberView
from kvstore.gossip.member import Member as GossipMember
from kvstore.gossip.member import MemberState
from kvstore.placement import coordinator as coordination
from kvstore.placement import members as member_records
from kvstore.placement.census import Gossip
from kvstore.placement.coordinator import Coordinator
from kvstore.placement.members import Member, MemberRecord, Records
from kvstore.placement.office import PlacementOffice
from kvstore.replica.environment import Environment, NodeAddress
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.neighbours import Neighbours

ALIVE, _, DEAD, LEFT = MemberState
A, B, C, D = (letter * 32 for letter in "abcd")


class FakeGossip:
    """Believes what it was told."""

    def __init__(self, **states: MemberState) -> None:
        """By letter."""
        self.known = {letter * 32: member_of(letter * 32, state) for letter, state in states.items()}
        self.declared: list[str] = []

    def now(self) -> float:
        return 0.0

    def members(self) -> list[MemberView]:
        return [MemberView(member, 0.0, None, None) for member in self.known.values()]

    def member(self, node: str) -> GossipMember | None:
        return self.known.get(node)

    def alive(self, node: str) -> bool:
        member = self.known.get(node)
        return member is not None and not member.is_gone

    def declare_left(self, node: str) -> None:
        self.declared.append(node)
        self.known[node] = member_of(node, LEFT)


def member_of(node: str, state: MemberState = ALIVE, *, incarnation: int = 1_000_000) -> GossipMember:
    return GossipMember(node, f"n{node[0]}", f"{node[0]}:1", incarnation, state)


class FakeActions:
    def __init__(self) -> None:
        self.joins = 0
        self.error: Exception | None = None

    async def join(self, *, name: str, node_id: str, address: str, labels: dict[str, str]) -> dict[str, Any]:
        self.joins += 1
        if self.error is not None:
            raise self.error
        return {}


class FakeOffice:
    def __init__(self) -> None:
        self.rounds: list[Records | None] = []

    async def round(self, records: Records | None) -> None:
        self.rounds.append(records)


def descriptor_of(shard: int, nodes: str, conf: int = 1) -> ShardDescriptor:
    start, end = keyspace_range(shard)
    replicas = tuple(Replica(letter * 32, number) for number, letter in enumerate(nodes, 1))
    return ShardDescriptor(shard, shard, start, end, 1, conf, replicas)


@dataclass
class World:
    """This node is `a`. It holds the meta group if `meta` is set, and leads it if `leads` is."""

    monkeypatch: pytest.MonkeyPatch
    gossip: FakeGossip
    meta: ShardDescriptor | None = None
    leads: bool = False
    records: Records = field(default_factory=lambda: Records([], {}))
    office: FakeOffice = field(default_factory=FakeOffice)
    actions: FakeActions = field(default_factory=FakeActions)
    peers: list[dict[str, str]] = field(default_factory=list)
    refused: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.monkeypatch.setattr(coordination, "ROUND_SECONDS", 0.001)
        self.monkeypatch.setattr(member_records, "read_records", lambda _: self.records)
        self.neighbours = Neighbours(A, linger_ms=1_000)
        replicas: dict[int, Any] = {}
        if self.meta is not None:
            self.state = SimpleNamespace(descriptor=self.meta, revision=0)
            raw = SimpleNamespace(leader_id=1)
            replicas[META_SHARD] = SimpleNamespace(group=META_SHARD, state=self.state, raw=raw)
            self.neighbours.settle(META_SHARD, self.state, 0)
        core = SimpleNamespace(replicas=replicas, neighbours=self.neighbours)
        host = SimpleNamespace(core=core, leads=lambda _: self.leads)
        self.addresses: dict[str, NodeAddress] = {}
        environment = SimpleNamespace(
            config=NodeConfig(name="na", data=Path("/nowhere"), listen="127.0.0.1:7001"),
            node=A,
            addresses=self.addresses,
            address_of=self.addresses.get,
            clock=SimpleNamespace(boot_ms=lambda: 0),
            rng=random.Random(1),
        )
        gossip: Gossip = self.gossip
        self.coordinator = Coordinator(
            cast(HostDriver, host),
            cast(Environment, environment),
            self.actions,
            gossip=gossip,
            office=cast(PlacementOffice, self.office),
            set_peers=self.peers.append,
            on_refused=self.refused.append,
        )

    def bind(self, nodes: str, *, removed: str = "") -> None:
        members = [Member(MemberRecord(f"n{letter}", letter * 32, f"record-{letter}:1"), 1) for letter in nodes]
        self.records = Records(members, {letter * 32: f"n{letter}" for letter in removed})
        self.state.revision += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.coordinator.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def rounds(self, count: int = 5) -> None:
        """At least so many, by the shortest pause there is."""
        await asyncio.sleep(0.004 * count)


async def test_it_says_once_who_it_is_and_again_when_it_was_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, FakeGossip(a=ALIVE))
    async with world.running():
        await world.rounds()
        assert world.actions.joins == 1
        world.gossip.known[A] = member_of(A, incarnation=1_000_001)  # it has denied its death
        await world.rounds()
        assert world.actions.joins == 2
    assert not world.refused


async def test_it_asks_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, FakeGossip(a=ALIVE))
    world.actions.error = Unavailable("no leader")
    async with world.running():
        await world.rounds()
        assert world.actions.joins > 1
        world.actions.error = None
        await world.rounds(1)
        joins = world.actions.joins
        await world.rounds()
        assert world.actions.joins <= joins + 1


async def test_it_ends_when_the_cluster_does_not_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, FakeGossip(a=ALIVE))
    world.actions.error = DuplicateName("removed for good")
    async with world.running():
        await world.rounds()
    assert [str(error) for error in world.refused] == ["DUPLICATE_NAME: removed for good"]
    assert isinstance(world.refused[0], StartRefused)
    assert world.actions.joins == 1


async def test_it_connects_with_neighbours_as_soon_as_it_knows_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, FakeGossip(a=ALIVE, b=ALIVE), meta=descriptor_of(1, "abc"))
    world.addresses.update({node: NodeAddress(node[0], f"{node[0]}:1") for node in (B, D)})
    world.coordinator.connect()
    assert world.peers == [{B: "b:1"}]
    world.addresses[C] = NodeAddress("nc", "c:1")
    world.coordinator.connect()
    world.coordinator.connect()
    assert world.peers[1:] == [{B: "b:1", C: "c:1"}]  # told once; d shares nothing with this node


async def test_a_record_says_where_a_node_is_until_gossip_has_heard_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, FakeGossip(a=ALIVE, b=ALIVE), meta=descriptor_of(1, "abc"))
    world.addresses[B] = NodeAddress("nb", "b:1")  # where gossip says
    world.bind("abc")
    async with world.running():
        await world.rounds()
    assert world.addresses[B].address == "b:1"
    assert world.addresses[C].address == "record-c:1"


async def test_removals_are_told_where_the_records_are_led(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, FakeGossip(a=ALIVE, b=ALIVE, c=DEAD, d=LEFT), meta=descriptor_of(1, "a"))
    world.bind("a", removed="bcde")  # gossip has never heard of e
    async with world.running():
        await world.rounds()
        assert world.gossip.declared == []
        world.leads = True
        await world.rounds()
    assert world.gossip.declared == [B, C]


async def test_the_office_hears_of_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Led here or not: it must know when to close."""
    world = World(monkeypatch, FakeGossip(a=ALIVE), meta=descriptor_of(1, "a"))
    async with world.running():
        await world.rounds()
        world.bind("ab")
        await world.rounds()
    assert len(world.office.rounds) > 2
    assert world.office.rounds[-1] is world.records
