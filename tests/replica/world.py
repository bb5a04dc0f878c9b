"""Hosts on memory stores and the memory transport, on a loop whose time jumps: seconds of a cluster in milliseconds.

Everything below the API is the production code; a crash loses what the memory disk had not synced.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from jepsen.sim.loop import simulated as simulated
from kvstore.base.clock import Clock
from kvstore.base.config import NodeConfig
from kvstore.base.metrics import Metrics
from kvstore.base.operations import Delete, Get, Mutation, Put, encode
from kvstore.base.shards import Replica as Place
from kvstore.base.shards import ShardDescriptor, keyspace_range
from kvstore.base.stream import LINEARIZABLE, Mutate, Read, Refused, Results
from kvstore.placement.founding import Founders, founding_shards
from kvstore.replica.environment import Environment, NodeAddress
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.replica import Replica
from kvstore.router.forward import Forwarder
from kvstore.router.router import ShardRouter
from kvstore.router.shard_map import ShardMap
from kvstore.storage.memory import MemoryDisk, MemoryLogStore, MemoryStateStore
from kvstore.transport.hello import Identity
from kvstore.transport.memory import MemoryNetwork, MemoryTransport
from kvstore.transport.settings import TransportSettings
from raft import ConfState, Role

SHARD = 2
FIRST_MORE = 10
Answer = Results | Refused


class LoopClock:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def boot_ms(self) -> int:
        return int(self._loop.time() * 1_000)

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.boot_ms()


class SimNode:
    """One node: its disk lives on, everything else from `boot` to `crash`."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.node = name * 16
        self.address = f"{name}:1"
        self.disk = MemoryDisk()
        self.fatal: list[BaseException] = []
        self.boots = 0
        self.running = False

    def open(self) -> None:
        """The stores and a host that does not run yet."""
        loop = asyncio.get_running_loop()
        self.boots += 1
        self.log = MemoryLogStore(self.disk, loop=loop, on_fatal=self.fatal.append)
        self.states = MemoryStateStore(self.disk, loop=loop, on_fatal=self.fatal.append)
        clock: Clock = LoopClock(loop)
        self.environment = Environment(
            config=NodeConfig(name=self.name, data=Path("/nowhere"), **self.world.settings),
            node=self.node,
            boot=f"{self.name}-{self.boots}",
            clock=clock,
            rng=random.Random(self.world.rng.getrandbits(64)),
            metrics=Metrics(node=self.name),
            log_store=self.log,
            state_store=self.states,
        )
        for other in self.world.nodes.values():
            self.environment.addresses[other.node] = NodeAddress(other.name, other.address)
        self.host = HostDriver(self.environment, on_fatal=self.fatal.append)
        self.shard_map = ShardMap(self.host.core)
        self.router = ShardRouter(self.host, self.environment, self.shard_map, Forwarder())

    async def boot(self) -> None:
        if not self.boots or self.running is False:
            self.open()
        identity = Identity(cluster="c", node=self.node, name=self.name, boot=self.environment.boot)
        self.transport: MemoryTransport = self.world.network.transport(identity, self.address)
        self.transport.set_peers({other.node: other.address for other in self.world.nodes.values()})
        self.host.attach(self.transport)
        self.host.start()
        await self.transport.start(self.host)
        self.host.campaign_if_alone()
        self.running = True

    async def crash(self) -> None:
        """SIGKILL: what is not synced is lost, and nobody is told."""
        self.running = False
        self.disk.crash()
        self.host.halt()
        self.transport.kill()
        await self.host.close()

    @property
    def replica(self) -> Replica:
        return self.host.core.replicas[SHARD]

    # -- requests

    def mutate(
        self,
        *operations: Mutation,
        timeout_ms: int = 10_000,
        version: int = 1,
        session: bytes = b"",
        shard: int = SHARD,
    ) -> asyncio.Future[Answer]:
        """Straight to this node's replica."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        raw = msgspec.Raw(encode(list(operations)))
        self.router.mutate(
            Mutate(1, shard, version, timeout_ms, session, 0, self.router.stamp_ms(), raw), future.set_result
        )  # twice raises
        return future

    def put(self, key: bytes, value: bytes, *, timeout_ms: int = 10_000, shard: int = SHARD) -> asyncio.Future[Answer]:
        return self.mutate(Put(0, key, value), timeout_ms=timeout_ms, shard=shard)

    def delete(self, key: bytes) -> asyncio.Future[Answer]:
        return self.mutate(Delete(0, key))

    def get(
        self,
        key: bytes,
        *,
        timeout_ms: int = 10_000,
        max_staleness_ms: int = LINEARIZABLE,
        shard: int = SHARD,
        version: int = 1,
    ) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        raw = msgspec.Raw(encode([Get(0, key)]))
        self.router.read(Read(1, shard, version, timeout_ms, max_staleness_ms, raw), future.set_result)
        return future


class World:
    """Nodes a, b, c found a cluster; `spare` ones have no replica. `more`: groups beside the two of every cluster, from
    FIRST_MORE on, each a keyspace of its own."""

    def __init__(self, *, nodes: int = 3, spare: int = 0, seed: int = 0, more: int = 0, **settings: Any) -> None:
        self.rng = random.Random(seed)
        self.settings: dict[str, Any] = {
            "tick_ms": 20,
            "heartbeat_ms": 40,
            "election_ms": 300,
            "flush_interval_ms": 3_600_000,
        } | settings
        self.more = more
        self.network = MemoryNetwork(
            random.Random(seed + 1), settings=TransportSettings.for_elections(self.settings["election_ms"])
        )
        self.nodes = {name: SimNode(self, name) for name in "abcdefg"[: nodes + spare]}
        self.founders = list(self.nodes.values())[:nodes]

    async def __aenter__(self) -> World:
        founders = tuple((node.name, node.node, node.address) for node in self.founders)
        loop = asyncio.get_running_loop()
        for node in self.nodes.values():
            node.open()
            shards = (*founding_shards(founders), *more_shards(founders, self.more)) if node in self.founders else ()
            for descriptor, conf_state in shards:
                written: asyncio.Future[None] = loop.create_future()
                node.host.lifecycle.found(descriptor, conf_state, done=functools.partial(written.set_result, None))
                await written
            node.log.close()
            node.states.close()
            await node.boot()
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            if node.running:
                await node.crash()
        await asyncio.sleep(5.0)  # what was under way in the network

    async def until(self, true: Callable[[], bool], *, seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():  # noqa: ASYNC110  (the condition may lie anywhere; time is virtual)
                await asyncio.sleep(0.005)

    def leaders(self, *, among: list[SimNode] | None = None) -> list[SimNode]:
        nodes = among if among is not None else list(self.nodes.values())
        return [node for node in nodes if node.running and node.host.leads(SHARD)]

    async def leader(self, *, among: list[SimNode] | None = None) -> SimNode:
        """The one that can commit: a read through it succeeds."""
        async with asyncio.timeout(30):
            while True:
                for node in self.leaders(among=among):
                    if isinstance(await node.get(b"?", timeout_ms=200), Results):
                        return node
                await asyncio.sleep(0.01)

    def others(self, node: SimNode) -> list[SimNode]:
        return [one for one in self.nodes.values() if one is not node]

    def isolate(self, node: SimNode) -> None:
        self.network.partition([node.node], [one.node for one in self.others(node)])


def more_shards(founders: Founders, count: int) -> Iterator[tuple[ShardDescriptor, ConfState]]:
    """Made-up ones, which found as any other."""
    ids = tuple(range(1, 1 + len(founders)))
    for group in range(FIRST_MORE, FIRST_MORE + count):
        start, end = keyspace_range(group)
        replicas = tuple(Place(node, place) for (_, node, _), place in zip(founders, ids, strict=True))
        shard = ShardDescriptor(id=group, keyspace=group, start=start, end=end, version=1, conf=1, replicas=replicas)
        yield shard, ConfState(voters=ids)


def role(node: SimNode) -> Role:
    return node.replica.raw.role
