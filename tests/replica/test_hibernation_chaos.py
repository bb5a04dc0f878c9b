"""Goal: groups that sleep most of the time lose nothing, and wake up when it matters. Method: many seeds of faults.

Every few seconds somebody writes to a group, which has gone to sleep meanwhile; nodes crash, are cut off (also one
way, also from one other only), come back, hand over, stop a single replica. At the end all is healed: every group must
take a write within the time of an election, hold all that was acknowledged, and go to sleep again.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from kvstore.base.operations import Found
from kvstore.base.stream import Results
from kvstore.replica.replica import Replica
from tests.replica.world import FIRST_MORE, SimNode, World, simulated

GROUPS = range(FIRST_MORE, FIRST_MORE + 6)
STEPS = 25
PROGRESS_SECONDS = 3.0
"""Five election timeouts of this world, the connections' four seconds of silence aside."""


class Chaos:
    """One run."""

    def __init__(self, world: World, *, read_mode: str) -> None:
        self.world = world
        self.read_mode = read_mode
        self.acknowledged: dict[int, dict[bytes, bytes]] = {group: {} for group in GROUPS}
        self.stopped = False
        self.slept = 0  # looks at a group that found it asleep everywhere

    @property
    def nodes(self) -> list[SimNode]:
        return list(self.world.nodes.values())

    def leaders(self, group: int) -> list[SimNode]:
        return [node for node in self.nodes if node.running and node.host.leads(group)]

    async def write(self, group: int) -> None:
        """Now and then, to whoever leads; and each write must be seen by the next read that is told to be newest."""
        rng = self.world.rng
        number = 0
        while not self.stopped:
            number += 1
            for node in self.leaders(group):
                key = b"%d-%d" % (number % 5, rng.randrange(3))
                value = b"%d" % number
                answer = await node.put(key, value, timeout_ms=400, shard=group)
                if isinstance(answer, Results):
                    self.acknowledged[group][key] = value
                else:
                    self.acknowledged[group].pop(key, None)  # it may be done or not
                await self.read(node, group)
            await asyncio.sleep(rng.choice((0.1, 2.0, 4.0)))

    async def read(self, node: SimNode, group: int) -> None:
        known = self.acknowledged[group]
        if not known:
            return
        key = self.world.rng.choice(sorted(known))
        value = known[key]
        answer = await node.get(key, timeout_ms=400, shard=group)
        if isinstance(answer, Results):
            (found,) = answer.results
            assert isinstance(found, Found), (group, key)
            assert found.value == value, (group, key, found.value, value)

    @staticmethod
    def replica(node: SimNode, group: int) -> Replica:
        return node.host.core.replicas[group]

    async def step(self) -> None:
        world, rng = self.world, self.world.rng
        down = [node for node in self.nodes if not node.running]
        failed = [node for node in self.nodes if node.running and any(map(_failed, node.host.core.replicas.values()))]
        faults = ("crash", "replace", "isolate", "cut", "pair", "transfer", "stop")
        action = rng.choice((*faults, "boot", "heal", "heal", "heal"))
        node = rng.choice(self.nodes)
        if action == "crash" and not down and not failed:
            await node.crash()
        elif action == "boot" and (down or failed):
            await _restart((down or failed)[0])
        elif action == "replace" and not down:
            await _restart((failed or [node])[0])
        elif action == "isolate":
            world.isolate(node)
        elif action == "cut":
            world.network.cut([node.node], [one.node for one in world.others(node)])
        elif action == "pair":
            world.network.partition([node.node], [rng.choice(world.others(node)).node])
        elif action == "heal":
            world.network.heal()
        elif action == "stop" and node.running and not down and not failed:
            self.replica(node, rng.choice(GROUPS)).fail("a test")
        elif action == "transfer":
            for leader in self.leaders(rng.choice(GROUPS)):
                for group in GROUPS:
                    self.replica(leader, group).transfer_away()
                    leader.host.mark(self.replica(leader, group))

    def check(self) -> None:
        running = [node for node in self.nodes if node.running]
        self.slept += sum(all(self.replica(node, group).raw.asleep for node in running) for group in GROUPS)
        for node in self.nodes:
            assert not node.fatal, (node.name, node.fatal)
            if not node.running:
                continue
            core = node.host.core
            for group, replica in core.replicas.items():
                if group in core.dirty or group in core.hibernation.awake or replica.failed or replica.installing:
                    continue
                assert not replica.needs_ticks, (node.name, group)
                assert core.hibernation._is_watched(replica), (node.name, group)

    async def finish(self) -> None:
        """Heal everything, and demand progress."""
        world = self.world
        world.network.heal()
        for node in self.nodes:
            if not node.running or any(map(_failed, node.host.core.replicas.values())):
                await _restart(node)
        self.stopped = True
        for group in GROUPS:
            async with asyncio.timeout(PROGRESS_SECONDS):
                while not await self.commits(group):  # noqa: ASYNC110  (time is virtual)
                    await asyncio.sleep(0.02)
        for group in GROUPS:
            (leader,) = self.leaders(group)
            for key, value in self.acknowledged[group].items():
                answer = await leader.get(key, shard=group)
                assert isinstance(answer, Results)
                (found,) = answer.results
                assert isinstance(found, Found), (group, key)
                assert found.value == value, (group, key)
        await world.until(lambda: not any(node.host.core.hibernation.awake for node in self.nodes))
        for group in GROUPS:
            ends = {(self.replica(node, group).raw.term, self.replica(node, group).raw.applied) for node in self.nodes}
            assert len(ends) == 1, (group, ends)

    async def commits(self, group: int) -> bool:
        for node in self.leaders(group):
            if isinstance(await node.put(b"last", b"1", timeout_ms=200, shard=group), Results):
                return True
        return False


def _failed(replica: Replica) -> bool:
    return bool(replica.failed)


async def _restart(node: SimNode) -> None:
    if node.running:
        await node.crash()
    await node.boot()


@pytest.mark.parametrize("seed", range(12))
def test_chaos(seed: int) -> None:
    @simulated
    async def body() -> None:
        read_mode = "lease" if seed % 3 == 2 else "index"
        async with World(nodes=3, more=len(GROUPS), seed=seed, read_mode=read_mode) as world:
            chaos = Chaos(world, read_mode=read_mode)
            if seed % 4 == 3:
                world.network.weather.loss = 0.02
            writers = [asyncio.ensure_future(chaos.write(group)) for group in GROUPS]
            with contextlib.ExitStack() as ends:
                for writer in writers:
                    ends.callback(writer.cancel)
                for _ in range(STEPS):
                    await chaos.step()
                    for _ in range(4):
                        chaos.check()
                        await asyncio.sleep(world.rng.uniform(0.0, 1.0))
                world.network.weather.loss = 0.0
                await chaos.finish()
                await asyncio.gather(*writers)
            assert chaos.slept > 10
            assert sum(map(len, chaos.acknowledged.values())) > 20

    body()
