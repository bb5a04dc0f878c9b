"""Goal: the simulated network does to its nodes what a seed and the test say, and nothing else.

Method: nodes on a virtual loop, so seconds of silence take no time; runs are compared by a digest of all they saw.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from jepsen.sim.loop import VirtualLoop, simulated
from kvstore.transport.hello import Identity
from kvstore.transport.memory import MemoryNetwork, MemoryTransport, Weather
from kvstore.transport.settings import TransportSettings
from tests.transport.rig import CLUSTER, IDS, Recorder, heartbeat

SETTINGS = TransportSettings()
N1, N2, N3 = IDS.values()


@dataclass
class World:
    seed: int = 1
    weather: Weather = field(default_factory=Weather)
    handlers: dict[str, Recorder] = field(default_factory=dict)
    nodes: dict[str, MemoryTransport] = field(default_factory=dict)

    async def start(self) -> None:
        self.network = MemoryNetwork(random.Random(self.seed), weather=self.weather, settings=SETTINGS)
        for name in IDS:
            await self.restart(name, "1")
        for node, handler in self.handlers.items():
            for other in self.handlers:
                if other != node:
                    await handler.until_event("up", other, "1")

    async def restart(self, name: str, boot: str) -> None:
        node = IDS[name]
        identity = Identity(cluster=CLUSTER, node=node, name=name, boot=boot)
        transport = self.nodes[node] = self.network.transport(identity, f"{name}:1")
        transport.set_peers({IDS[name]: f"{name}:1" for name in IDS})
        await transport.start(self.handlers.setdefault(node, Recorder()))

    async def close(self) -> None:
        for transport in self.nodes.values():
            await transport.close()


async def begin(seed: int = 1, **weather: float) -> World:
    world = World(seed, Weather(**weather))
    await world.start()
    return world


@simulated
async def test_latency_lies_within_its_bounds() -> None:
    world = await begin(latency_seconds_min=0.2, latency_seconds_max=0.3)
    loop = asyncio.get_running_loop()
    for index in range(20):
        began = loop.time()
        world.nodes[N1].send(N2, [heartbeat(index)])
        await world.handlers[N2].until(lambda count=index: len(world.handlers[N2].indexes(N1)) > count)  # type: ignore[misc]
        assert 0.2 <= loop.time() - began <= 0.3
    await world.close()


@simulated
async def test_a_partition_is_silence_and_no_evidence() -> None:
    world = await begin()
    loop = asyncio.get_running_loop()
    world.network.partition([N1], [N2, N3])
    began = loop.time()
    silent = SETTINGS.beat_seconds * SETTINGS.silent_beats_max
    assert world.nodes[N1].send(N2, [heartbeat(1)])  # nobody knows yet
    heard = world.nodes[N1].heard(N2)
    await asyncio.sleep(silent + 0.01)
    assert world.nodes[N1].heard(N2) == heard
    assert not world.nodes[N1].connected(N2)
    assert not world.nodes[N2].connected(N1)
    assert world.nodes[N2].connected(N3)
    assert not world.nodes[N1].send(N2, [heartbeat(2)])
    await asyncio.sleep(60)
    assert not [event for handler in world.handlers.values() for event in handler.events if event[0] == "gone"]
    world.network.heal()
    await world.handlers[N1].until_event("up", N2, "1", count=2)
    await world.handlers[N3].until_event("up", N1, "1", count=2)
    assert not world.handlers[N2].indexes(N1)
    assert loop.time() - began < silent + 63
    await world.close()


@simulated
async def test_what_a_short_cut_held_arrives_late_and_in_order() -> None:
    world = await begin()
    world.network.cut([N1], [N2])
    for index in range(5):
        assert world.nodes[N1].send(N2, [heartbeat(index)])
    assert world.nodes[N2].send(N1, [heartbeat(9)])
    await asyncio.sleep(1)
    assert not world.handlers[N2].indexes(N1)
    assert world.handlers[N1].indexes(N2) == [9]  # the other way is open
    world.network.heal()
    assert world.nodes[N1].send(N2, [heartbeat(5)])
    await asyncio.sleep(0.01)
    assert world.handlers[N2].indexes(N1) == list(range(6))
    assert world.handlers[N2].events.count(("up", N1, "1")) == 1
    await world.close()


@simulated
async def test_a_one_way_cut_ends_the_connection_at_both_ends() -> None:
    world = await begin()
    world.network.cut([N1], [N2])
    await asyncio.sleep(10)
    assert not world.nodes[N2].connected(N1)  # heard nothing, closed
    assert not world.nodes[N1].connected(N2)  # was told so
    await world.close()


@simulated
async def test_a_new_cut_does_not_count_the_silence_of_an_old_one() -> None:
    world = await begin()
    for _ in range(10):
        world.network.partition([N1], [N2])
        await asyncio.sleep(3)
        world.network.heal()
        await asyncio.sleep(0.1)
    assert world.handlers[N1].events.count(("up", N2, "1")) == 1
    await world.close()


@simulated
async def test_the_dead_are_heard_to_the_end_and_then_refuse() -> None:
    world = await begin(latency_seconds_min=0.01, latency_seconds_max=0.02)
    loop = asyncio.get_running_loop()
    world.nodes[N1].send(N2, [heartbeat(1)])
    world.nodes[N2].send(N1, [heartbeat(2)])
    world.nodes[N1].kill()
    killed = loop.time()
    gone = await world.handlers[N2].until_event("gone", N1)
    assert gone - killed <= 3 * 0.02
    assert world.handlers[N2].indexes(N1) == [1]
    assert not world.handlers[N1].indexes(N2)
    await world.restart("n1", "2")
    up = await world.handlers[N2].until_event("up", N1, "2")
    assert up - gone < SETTINGS.backoff_seconds_max + 0.1
    await world.close()


@simulated
async def test_a_dead_node_behind_a_cut_is_no_evidence() -> None:
    world = await begin()
    world.network.partition([N1], [N2])
    world.nodes[N1].kill()
    await asyncio.sleep(30)
    assert ("gone", N1) not in world.handlers[N2].events
    assert ("gone", N1) in world.handlers[N3].events
    world.network.heal()
    await world.handlers[N2].until_event("gone", N1)
    await world.close()


@simulated
async def test_loss_takes_its_share() -> None:
    world = await begin(loss=0.25)
    for index in range(2_000):
        assert world.nodes[N1].send(N2, [heartbeat(index)])
    await asyncio.sleep(1)
    received = world.handlers[N2].indexes(N1)
    assert 1_350 < len(received) < 1_650
    assert received == sorted(received)
    await world.close()


@simulated
async def test_another_node_at_the_address_is_not_taken_for_the_peer() -> None:
    world = await begin()
    await world.nodes[N1].close()
    identity = Identity(cluster=CLUSTER, node="0" * 32, name="other", boot="1")
    other = world.network.transport(identity, "n1:1")
    await other.start(Recorder())
    await asyncio.sleep(5)
    assert not world.nodes[N2].connected(N1)
    await other.close()
    await world.close()


async def eventful(seed: int) -> str:
    """A run with everything in it, as a digest of who heard what and when."""
    world = await begin(seed, loss=0.05, latency_seconds_min=0.001, latency_seconds_max=0.05)
    rng = random.Random(seed)
    for step in range(300):
        source, target = rng.sample(list(IDS.values()), 2)
        world.nodes[source].send(target, [heartbeat(step)])
        match rng.randrange(20):
            case 0:
                world.network.cut([source], [target])
            case 1:
                world.network.heal()
            case 2:
                name = rng.choice(list(IDS))
                world.nodes[IDS[name]].kill()
                await world.restart(name, f"boot {step}")
            case _:
                await asyncio.sleep(rng.random())
    await world.close()
    digest = hashlib.sha256()
    for node, handler in world.handlers.items():
        heard = {other: handler.indexes(other) for other in IDS.values()}
        digest.update(repr((node, handler.events, handler.when, heard)).encode())
    return digest.hexdigest()


def digest_of(seed: int) -> str:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(eventful(seed))
    finally:
        loop.close()


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    assert digest_of(seed) == digest_of(seed)
    assert digest_of(seed) != digest_of(seed + 100)


def test_the_run_does_not_depend_on_hashes() -> None:
    code = "from tests.transport.test_memory import digest_of; print(digest_of(7))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
