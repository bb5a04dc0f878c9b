"""Replicas come, go, crash and get snapshots under load, at random: nothing acknowledged is lost, no replica fails.

Every seed is a run of its own; a failing one is repeated by its number.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from kvstore.base.errors import KVError
from kvstore.base.operations import Found
from kvstore.base.stream import Results
from kvstore.placement.replica_change import ReplicaChange
from kvstore.replica import flush as flush_module
from tests.replica.world import SHARD, SimNode, World, simulated

STEPS = 25


class Churn:
    """One run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged: dict[bytes, bytes] = {}
        self.stopped = False

    async def write(self) -> None:
        """One key after the other at whoever leads; what is not acknowledged is not counted."""
        number = 0
        while not self.stopped:
            number += 1
            for node in self.world.leaders():
                key = b"%s-%d" % (node.name.encode(), number)
                answer = await node.put(key, b"v" * self.world.rng.choice((10, 400)), timeout_ms=1_000)
                if isinstance(answer, Results):
                    self.acknowledged[key] = key
            await asyncio.sleep(0.01)

    async def step(self) -> None:
        rng = self.world.rng
        nodes = list(self.world.nodes.values())
        down = [node for node in nodes if not node.running]
        action = rng.choice(("add", "remove", "crash", "boot", "isolate", "heal", "transfer"))
        if action == "crash" and not down:
            await rng.choice(nodes).crash()
        elif action == "boot" and down:
            await down[0].boot()
        elif action == "isolate" and not down:
            self.world.isolate(rng.choice(nodes))
        elif action == "heal":
            self.world.network.heal()
        elif leaders := self.world.leaders():
            await self.change(leaders[0], action, rng.choice(nodes))

    async def change(self, leader: SimNode, action: str, node: SimNode) -> None:
        """As the placement driver would: it fails now and then, and what it leaves behind must work."""
        change = ReplicaChange(leader.host, SHARD, timeout_seconds=3)
        with contextlib.suppress(KVError, TimeoutError):
            if action == "add":
                await change.add(node.node)
            elif action == "remove" and len(leader.replica.raw.conf_state.voters) > 2:
                await change.remove(node.node)
            elif action == "transfer":
                leader.replica.transfer_away()
                leader.host.mark(leader.replica)

    def check_sound(self) -> None:
        for node in self.world.nodes.values():
            assert not node.fatal, (node.name, node.fatal)
            for replica in node.host.core.replicas.values():
                assert not replica.failed or not node.running, (node.name, replica.failed)


@pytest.mark.parametrize("seed", range(6))
def test_churn(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_module, "LOG_KEEP_BYTES", 2_000)

    @simulated
    async def body() -> None:
        async with World(nodes=3, spare=2, seed=seed, flush_interval_ms=150) as world:
            churn = Churn(world)
            writer = asyncio.ensure_future(churn.write())
            for _ in range(STEPS):
                await churn.step()
                churn.check_sound()
                await asyncio.sleep(world.rng.uniform(0.0, 1.0))
            world.network.heal()
            for node in world.nodes.values():
                if not node.running:
                    await node.boot()
            leader = await world.leader()
            churn.stopped = True
            await writer
            leader = await world.leader()
            for key in churn.acknowledged:
                answer = await leader.get(key)
                assert isinstance(answer, Results)
                assert isinstance(answer.results[0], Found), key
            assert len(churn.acknowledged) > 50
            await world.until(lambda: _all_agree(world, leader), seconds=60)
            churn.check_sound()

    body()


def _all_agree(world: World, leader: SimNode) -> bool:
    """Every member has applied all, and holds the same state; nobody else has a replica with a vote."""
    state = leader.replica.state
    assert state is not None
    members = {place.node for place in state.descriptor.replicas}
    for node in world.nodes.values():
        if node.node not in members:
            continue
        replica = node.host.core.replicas.get(SHARD)
        if replica is None or replica.state is None or replica.state.applied_index != state.applied_index:
            return False
        if replica.state.image().meta != state.image().meta:
            return False
    return True
