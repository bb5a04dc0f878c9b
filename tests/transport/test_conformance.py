"""Goal: both transports keep one contract, so that what holds in simulation holds on sockets.

Method: the same tests on real sockets and on a `MemoryNetwork`, each on the machine's clock.
"""

from __future__ import annotations

import asyncio
import os
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import pytest

from kvstore.base.limits import MIB
from kvstore.transport.hello import Identity
from kvstore.transport.memory import MemoryNetwork, Weather
from kvstore.transport.protocol import GroupMessage, PeerTransport, SnapshotRefused
from raft.types import ConfState, Entry, EntryKind, Message, MessageType, SnapshotMeta
from tests.transport.rig import CLUSTER, FAST, IDS, Node, Recorder, append, heartbeat

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


class World(ABC):
    """Three nodes. `killed` ones do not say goodbye; `boot` counts starts."""

    @abstractmethod
    async def start(self, name: str) -> None: ...
    @abstractmethod
    async def kill(self, name: str) -> None: ...
    @abstractmethod
    async def close(self, name: str) -> None: ...
    @abstractmethod
    def transport(self, name: str) -> PeerTransport: ...
    @abstractmethod
    def handler(self, name: str) -> Recorder: ...
    @abstractmethod
    def boot(self, name: str) -> str: ...
    @abstractmethod
    def addresses(self) -> dict[str, str]: ...

    async def until_connected(self, *names: str) -> None:
        for name in names:
            for other in names:
                if other != name:
                    await self.handler(name).until_event("up", IDS[other], self.boot(other))

    async def start_all(self) -> None:
        for name in IDS:
            await self.start(name)
        await self.until_connected(*IDS)


class SocketWorld(World):
    def __init__(self) -> None:
        self.nodes = {name: Node(name) for name in IDS}

    async def start(self, name: str) -> None:
        await self.nodes[name].start(self.addresses())

    async def kill(self, name: str) -> None:
        await self.nodes[name].kill()

    async def close(self, name: str) -> None:
        await self.nodes[name].stop()

    def transport(self, name: str) -> PeerTransport:
        return self.nodes[name].transport

    def handler(self, name: str) -> Recorder:
        return self.nodes[name].handler

    def boot(self, name: str) -> str:
        return self.nodes[name].boot

    def addresses(self) -> dict[str, str]:
        return {node.node: node.address for node in self.nodes.values()}


class MemoryWorld(World):
    def __init__(self) -> None:
        weather = Weather(latency_seconds_min=0.0, latency_seconds_max=0.0005)
        self.network = MemoryNetwork(random.Random(1), weather=weather, settings=FAST)
        self.transports: dict[str, PeerTransport] = {}
        self.handlers = {name: Recorder() for name in IDS}
        self.boots = dict.fromkeys(IDS, 0)

    async def start(self, name: str) -> None:
        self.boots[name] += 1
        identity = Identity(cluster=CLUSTER, node=IDS[name], name=name, boot=self.boot(name))
        transport = self.transports[name] = self.network.transport(identity, f"{name}:7001")
        transport.set_peers(self.addresses())
        await transport.start(self.handlers[name])

    async def kill(self, name: str) -> None:
        transport = self.network.at(f"{name}:7001")
        assert transport is not None
        transport.kill()

    async def close(self, name: str) -> None:
        await self.transports[name].close()

    def transport(self, name: str) -> PeerTransport:
        return self.transports[name]

    def handler(self, name: str) -> Recorder:
        return self.handlers[name]

    def boot(self, name: str) -> str:
        return f"{name}-boot-{self.boots[name]}"

    def addresses(self) -> dict[str, str]:
        return {IDS[name]: f"{name}:7001" for name in IDS}


@pytest.fixture(params=[SocketWorld, MemoryWorld])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world: World = request.param()
    yield world
    for name in IDS:
        await world.close(name)


async def until_count(handler: Recorder, node: str, count: int) -> None:
    await handler.until(lambda: len(handler.messages.get(node, ())) >= count)


async def test_every_field_arrives(world: World) -> None:
    await world.start_all()
    conf = ConfState((1, 2), (3,), (1, 4), (4,), True)
    entries = (
        Entry(3, 101, EntryKind.NORMAL, b"a"),
        Entry(3, 102, EntryKind.CONF_CHANGE, b""),
        Entry(4, 103, EntryKind.NORMAL, os.urandom(70_000)),
    )
    sent = [
        GroupMessage(1, Message(MessageType.APPEND, 2, 1, 5, 3, 100, 99, entries)),
        GroupMessage(2, Message(MessageType.APPEND_REPLY, 1, 2, 5, 2, 90, 0, (), True, 88)),
        GroupMessage(3, Message(MessageType.HEARTBEAT, 2, 1, 5, commit=7, lease=True, context=b"round 9")),
        GroupMessage(4, Message(MessageType.VOTE, 2, 1, 6, 5, 103, transfer=True)),
        GroupMessage(5, Message(MessageType.SNAPSHOT, 2, 1, 6, snapshot=SnapshotMeta(100, 5, conf))),
    ]
    assert world.transport("n1").send(IDS["n2"], sent)
    received = world.handler("n2").messages
    await world.handler("n2").until(lambda: len(received.get(IDS["n1"], ())) == len(sent))
    assert received[IDS["n1"]] == sent
    assert IDS["n1"] not in world.handler("n3").messages


async def test_order_holds_in_every_direction(world: World) -> None:
    await world.start_all()
    for index in range(200):
        for name in IDS:
            for other in IDS.values():
                if other != IDS[name]:
                    assert world.transport(name).send(other, [heartbeat(index), append(index, b"x" * (index % 50))])
        if index % 10 == 0:
            await asyncio.sleep(0)
    wanted = [index for index in range(200) for _ in range(2)]
    for name in IDS:
        handler = world.handler(name)
        for other in IDS.values():
            if other != IDS[name]:
                await until_count(handler, other, 400)
                assert handler.indexes(other) == wanted


async def test_a_handler_is_never_called_inside_send(world: World) -> None:
    await world.start_all()
    calls = world.handler("n2").calls
    world.transport("n1").send(IDS["n2"], [heartbeat(1)])
    world.transport("n1").send_removed(IDS["n2"], 3, 4)
    assert world.handler("n2").calls == calls
    assert ("removed", IDS["n1"], 3, 4) not in world.handler("n2").events
    await world.handler("n2").until_event("removed", IDS["n1"], 3, 4)


async def test_an_idle_peer_is_heard_of_and_a_dead_one_is_not(world: World) -> None:
    await world.start_all()
    assert world.transport("n1").heard("f" * 32) == 0
    names = list(IDS)
    for other in names[1:]:
        before = world.transport("n1").heard(IDS[other])
        async with asyncio.timeout(20 * FAST.beat_seconds):
            while world.transport("n1").heard(IDS[other]) < before + 3:  # noqa: ASYNC110  (nothing tells of a beat)
                await asyncio.sleep(FAST.beat_seconds / 4)
    await world.kill("n2")
    await world.handler("n1").until_event("gone", IDS["n2"])
    last = world.transport("n1").heard(IDS["n2"])
    await asyncio.sleep(3 * FAST.beat_seconds)
    assert world.transport("n1").heard(IDS["n2"]) == last


async def test_without_a_connection_nothing_is_queued(world: World) -> None:
    await world.start("n1")
    assert not world.transport("n1").send(IDS["n2"], [heartbeat(1)])
    assert not world.transport("n1").send("f" * 32, [heartbeat(1)])
    world.transport("n1").send_removed(IDS["n2"], 1, 1)
    assert not world.transport("n1").connected(IDS["n2"])
    await world.start("n2")
    await world.start("n3")
    await world.until_connected(*IDS)
    assert world.transport("n1").connected(IDS["n2"])
    assert not world.handler("n2").messages


async def test_a_full_queue_drops_and_says_so(world: World) -> None:
    await world.start_all()
    message = append(1, b"x" * MIB)
    outcomes = [world.transport("n1").send(IDS["n2"], [message]) for _ in range(FAST.queue_bytes_max // MIB + 1)]
    assert outcomes[0]
    assert not outcomes[-1]
    arrived = outcomes.count(True)
    received = world.handler("n2").messages
    await world.handler("n2").until(lambda: len(received.get(IDS["n1"], ())) == arrived)
    assert world.transport("n1").send(IDS["n2"], [message])


@pytest.mark.parametrize("victim", IDS)
async def test_a_killed_process_is_evidence_for_all_and_its_new_boot_is_told(world: World, victim: str) -> None:
    await world.start_all()
    others = [name for name in IDS if name != victim]
    before = {name: len(world.handler(name).events) for name in others}
    await world.kill(victim)
    for name in others:
        await world.handler(name).until_event("gone", IDS[victim], seconds_max=1.0)
        assert not world.transport(name).connected(IDS[victim])
        assert world.transport(name).connected(IDS[next(one for one in others if one != name)])
    await world.start(victim)
    await world.until_connected(*IDS)
    for name in others:
        assert world.transport(name).send(IDS[victim], [heartbeat(1)])
        assert {event[1] for event in world.handler(name).events[before[name] :]} == {IDS[victim]}


async def test_a_closed_transport_is_gone_too(world: World) -> None:
    await world.start_all()
    await world.close("n1")
    for name in ("n2", "n3"):
        await world.handler(name).until_event("gone", IDS["n1"])
    assert not world.transport("n1").send(IDS["n2"], [heartbeat(1)])
    calls = len(world.handler("n1").events)
    await world.close("n2")
    assert len(world.handler("n1").events) == calls


async def test_a_node_that_is_no_peer_any_more_is_disconnected(world: World) -> None:
    await world.start_all()
    without = {node: address for node, address in world.addresses().items() if node != IDS["n2"]}
    world.transport("n3").set_peers(without)
    assert not world.transport("n3").send(IDS["n2"], [heartbeat(1)])
    addresses = {node: address for node, address in world.addresses().items() if node != IDS["n3"]}
    world.transport("n2").set_peers(addresses)
    assert not world.transport("n2").connected(IDS["n3"])
    world.transport("n2").set_peers(world.addresses())
    world.transport("n3").set_peers(world.addresses())
    await world.handler("n2").until_event("up", IDS["n3"], world.boot("n3"), count=2)
    assert world.transport("n1").connected(IDS["n2"])


@pytest.mark.parametrize(("unknown", "knows"), [("n1", "n2"), ("n2", "n1")])
async def test_a_node_that_the_other_one_does_not_know_connects_all_the_same(
    world: World, unknown: str, knows: str
) -> None:
    """One that was removed while it was down must be told so, whichever of the two ids is the lower one."""
    await world.start(knows)
    world.transport(knows).set_peers({})
    await world.start(unknown)
    await world.handler(knows).until_event("up", IDS[unknown], world.boot(unknown))
    await world.handler(unknown).until_event("up", IDS[knows], world.boot(knows))
    assert world.transport(unknown).send(IDS[knows], [heartbeat(1)])
    await until_count(world.handler(knows), IDS[unknown], 1)
    world.transport(knows).send_removed(IDS[unknown], 2, 7)
    await world.handler(unknown).until_event("removed", IDS[knows], 2, 7)
    await world.start("n3")


async def test_a_snapshot_arrives_and_a_refusal_is_told(world: World) -> None:
    await world.start_all()
    chunks = [os.urandom(1_000) for _ in range(30)]

    async def read(number: int) -> bytes | None:
        return chunks[number] if number < len(chunks) else None

    await world.transport("n3").send_snapshot(IDS["n1"], b"header", read)
    assert world.handler("n1").snapshots[IDS["n3"], b"header"] == chunks
    world.handler("n1").refusal = SnapshotRefused("not now")
    with pytest.raises(SnapshotRefused, match="not now"):
        await world.transport("n2").send_snapshot(IDS["n1"], b"header", read)


async def test_a_snapshot_goes_on_with_what_a_restarted_receiver_still_has(world: World) -> None:
    await world.start_all()
    handler = world.handler("n2")
    chunks = [os.urandom(1_000) for _ in range(30)]
    reads: list[int] = []

    async def read(number: int) -> bytes | None:
        reads.append(number)
        if number == 20 and reads.count(20) == 1:
            await handler.until(lambda: len(handler.partial[IDS["n1"], b"header"]) > 10)
            await world.kill("n2")
            await world.start("n2")
        return chunks[number] if number < len(chunks) else None

    await world.transport("n1").send_snapshot(IDS["n2"], b"header", read)
    assert handler.snapshots[IDS["n1"], b"header"] == chunks
    assert handler.resumes[0] == 0
    assert handler.resumes[-1] > 10


async def test_a_snapshot_for_a_dead_node_is_a_connection_error(world: World) -> None:
    await world.start("n1")
    await world.start("n3")
    await world.start("n2")
    await world.kill("n2")

    async def read(number: int) -> bytes | None:
        return None

    with pytest.raises(ConnectionError):
        await world.transport("n1").send_snapshot(IDS["n2"], b"header", read)
