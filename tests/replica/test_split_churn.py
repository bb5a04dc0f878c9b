"""Shards split at random places and moments, while nodes crash, are cut off, lag, come back and get snapshots.

Method: clients with sessions write keys of their own and repeat each mutation, unchanged, until it is answered, however
often its shard has split meanwhile. A record counts its changes, so a mutation that was lost or done twice shows in
`version`. Crashes come within a few ms of a split, at every step of it: proposed, applied here and not there, the
child's identity on its way to the disk, its vote, before and after a flush. After the storm all nodes must have the
same shards, without gap or overlap, holding exactly what was acknowledged.

Every seed is a run of its own; a failing one is repeated by its number.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from kvstore.base.errors import Code, KVError
from kvstore.base.operations import Failure, Put, Result
from kvstore.base.stream import Results
from kvstore.placement.replica_change import ReplicaChange
from kvstore.replica import flush as flush_module
from kvstore.replica.replica import Replica
from tests.replica.splits import CHILD, PREFIX, check_ranges, leader_of, mutate_shard, replica_of, split_at
from tests.replica.world import SimNode, World, simulated

STEPS = 22
CLIENTS = 4
KEYS_EACH = 12


class Storm:
    """One run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged: dict[bytes, tuple[int, bytes]] = {}  # key -> (mutations done, last value)
        self.repeated = 0
        self.next_child = CHILD
        self.stopped = False

    # -- clients

    def find(self, key: bytes) -> tuple[SimNode, Replica] | None:
        """Whoever leads the shard of the key, as far as anybody knows."""
        found = [
            (node, replica)
            for node in self.world.nodes.values()
            if node.running
            for replica in node.host.core.replicas.values()
            if (descriptor := replica.leads) is not None and descriptor.covers(PREFIX + key)
        ]
        return self.world.rng.choice(found) if found else None

    async def client(self, number: int) -> None:
        rng = self.world.rng
        session = b"session-%08d" % number
        keys = [b"%c%d-%d" % (rng.randrange(97, 123), number, place) for place in range(KEYS_EACH)]
        seq = 0
        while not self.stopped:
            seq += 1
            key, value = rng.choice(keys), b"%d" % seq + b"v" * rng.choice((1, 300))
            issued_at, result = await self.put(session, seq, key, value)
            if rng.random() < 0.2:  # as if the answer had been lost, and the question stayed away for a while
                await asyncio.sleep(rng.choice((0.0, 0.1, 1.0)) * rng.random())
                again = await self.put(session, seq, key, value, issued_at)
                assert again == (issued_at, result), "a mutation was done twice"
            done, _ = self.acknowledged.get(key, (0, b""))
            self.acknowledged[key] = (done + 1, value)
            await asyncio.sleep(rng.uniform(0.0, 0.02))

    async def put(self, session: bytes, seq: int, key: bytes, value: bytes, issued_at: int = 0) -> tuple[int, Result]:
        """(issued_at, the answer), wherever the key is by then."""
        while True:
            place = self.find(key)
            if place is not None:
                node, replica = place
                assert replica.state is not None
                issued_at = issued_at or node.router.stamp_ms()
                version = replica.state.descriptor.version
                answer = await mutate_shard(
                    node,
                    Put(seq, key, value),
                    shard=replica.group,
                    version=version,
                    session=session,
                    issued_at=issued_at,
                    timeout_ms=self.world.rng.choice((100, 1_000)),
                )
                if isinstance(answer, Results):
                    result = answer.results[0]
                    if not isinstance(result, Failure):
                        return issued_at, result
                    assert result.code != Code.SESSION_EXPIRED
                self.repeated += 1
            await asyncio.sleep(0.02)

    # -- what happens to them

    def led(self) -> list[tuple[SimNode, Replica]]:
        return [
            (node, replica)
            for node in self.world.nodes.values()
            if node.running
            for group, replica in sorted(node.host.core.replicas.items())
            if group != 1 and replica.leads is not None
        ]

    async def step(self) -> None:
        rng = self.world.rng
        nodes = list(self.world.nodes.values())
        down = [node for node in nodes if not node.running]
        action = rng.choice(
            ("split", "split", "split", "crash", "crash all", "boot", "isolate", "heal", "flush", "transfer", "change")
        )
        if action == "crash all" and not down:
            await asyncio.gather(*(node.crash() for node in nodes))
            await asyncio.gather(*(node.boot() for node in nodes))
        elif action == "crash" and not down:
            await rng.choice(nodes).crash()
        elif action == "boot" and down:
            await down[0].boot()
        elif action == "isolate" and not down:
            self.world.isolate(rng.choice(nodes))
        elif action == "heal":
            self.world.network.heal()
        elif action == "flush":
            rng.choice([node for node in nodes if node.running]).host.flusher.begin()
        elif led := self.led():
            await self.change(*rng.choice(led), action, rng.choice(nodes))

    async def change(self, node: SimNode, replica: Replica, action: str, other: SimNode) -> None:
        rng = self.world.rng
        if action == "transfer":
            replica.transfer_away()
            node.host.mark(replica)
        elif action == "change":
            change = ReplicaChange(node.host, replica.group, timeout_seconds=1)
            assert replica.state is not None
            with contextlib.suppress(KVError, TimeoutError):
                if replica.state.descriptor.replica_on(other.node) is None:
                    await change.add(other.node)
                elif len(replica.raw.conf_state.voters) > 2 and self.is_whole(replica):
                    await change.remove(other.node)
        elif action == "split":
            split_at(node, b"%c" % rng.randrange(97, 123), self.next_child, shard=replica.group)
            self.next_child += 1
            await asyncio.sleep(rng.choice((0.0, 0.002, 0.005, 0.01, 0.03)) * rng.random())
            if rng.random() < 0.5:
                victim = rng.choice([one for one in self.world.nodes.values() if one.running])
                await victim.crash()
                await asyncio.sleep(rng.uniform(0, 0.5))
                await victim.boot()

    def is_whole(self, replica: Replica) -> bool:
        """Every member is up and has its state: who takes one away then leaves a majority that can vote. (While a child
        that lost its state in a crash is not healed by its leader, it has no vote.)"""
        assert replica.state is not None
        members = [
            replica_of(node, replica.group)
            for node in self.world.nodes.values()
            if replica.state.descriptor.replica_on(node.node) is not None
        ]
        return all(one is not None and one.state is not None and not one.healing.damaged for one in members)

    # -- afterwards

    def newest(self) -> dict[int, Replica]:
        """By group, the live replica that has applied most."""
        found: dict[int, Replica] = {}
        for node in self.world.nodes.values():
            for group, replica in node.host.core.replicas.items():
                if group == 1 or replica.state is None:
                    continue
                known = found.get(group)
                if known is None or known.state is None or known.state.applied_index < replica.state.applied_index:
                    found[group] = replica
        return found

    def settled(self) -> bool:
        """Every shard is led, every member has its replica at the same index, and the shards are the whole keyspace."""
        newest = self.newest()
        bound = PREFIX
        for replica in sorted(newest.values(), key=lambda one: one.state.descriptor.start if one.state else b""):
            state = replica.state
            assert state is not None
            if state.descriptor.start != bound:
                return False
            bound = state.descriptor.end
            leader = leader_of(self.world, replica.group)
            if leader is None or leader.host.core.replicas[replica.group].raw.applied != state.applied_index:
                return False  # after a restart of all it is only known once there is a leader what is committed
            for place in state.descriptor.replicas:
                node = next(one for one in self.world.nodes.values() if one.node == place.node)
                other = replica_of(node, replica.group)
                if other is None or other.state is None or other.state.applied_index != state.applied_index:
                    return False
        return bound == b"\0\0\0\2"

    def check(self) -> None:
        """Every replica holds what was acknowledged, each mutation once, and nothing else."""
        for group, newest in self.newest().items():
            assert newest.state is not None
            meta = newest.state.image().meta
            for node in self.world.nodes.values():
                replica = replica_of(node, group)
                if replica is not None and replica.state is not None and newest.state.descriptor.replica_on(node.node):
                    assert replica.state.image().meta == meta, (group, node.name)
                    self.check_data(node, replica)

    def check_data(self, node: SimNode, replica: Replica) -> None:
        assert replica.state is not None
        descriptor = replica.state.descriptor
        found, more = node.states.scan(descriptor.start, descriptor.end, limit=10_000, bytes_max=1 << 30)
        assert not more
        stored = {key[4:]: (record.version, record.value) for key, record in found}
        wanted = {key: told for key, told in self.acknowledged.items() if descriptor.covers(PREFIX + key)}
        assert stored == wanted, (node.name, replica.group)


@pytest.mark.parametrize("seed", range(8))
def test_storm(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(seed, monkeypatch)


def run(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_module, "LOG_KEEP_BYTES", 2_000)

    @simulated
    async def body() -> None:
        flush_ms = (100, 400, 2_000)[seed % 3]
        async with World(nodes=3, spare=seed % 2, seed=seed, flush_interval_ms=flush_ms) as world:
            await world.leader()
            storm = Storm(world)
            clients = [asyncio.ensure_future(storm.client(number)) for number in range(CLIENTS)]
            for _ in range(STEPS):
                await storm.step()
                check_ranges(world)
                await asyncio.sleep(world.rng.choice((0.0, 0.05, 0.5)) * world.rng.random())
            world.network.heal()
            for node in world.nodes.values():
                if not node.running:
                    await node.boot()
            storm.stopped = True
            async with asyncio.timeout(120):
                await asyncio.gather(*clients)
            await world.until(storm.settled, seconds=120)
            check_ranges(world)
            storm.check()
            assert storm.acknowledged

    body()
