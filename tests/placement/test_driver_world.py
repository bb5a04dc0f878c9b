"""The placement driver over simulated nodes: real Raft groups, reports and changes, on a clock that jumps.

Method: one driver, made anew wherever the meta group is led next, so its death in the middle of an operator is part of
every run. Writers go on all the time; what is acknowledged must be there at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest

from kvstore.base.errors import KVError, NotFound, Unavailable
from kvstore.base.ids import META_SHARD
from kvstore.base.operations import Found
from kvstore.base.stream import Results
from kvstore.placement.driver import PlacementDriver
from kvstore.placement.members import MemberRecord
from kvstore.placement.replica_change import ReplicaChange
from kvstore.placement.reports import Reporter, ShardReport, look_at
from kvstore.placement.thresholds import Thresholds
from kvstore.placement.wishes import Wishes
from kvstore.replica.replica import Replica
from tests.replica.world import FIRST_MORE, SHARD, SimNode, World, simulated

MORE = 6
SHARDS = (SHARD, *range(FIRST_MORE, FIRST_MORE + MORE))
ROUND_SECONDS = 0.5
RULES = Thresholds(dead_after_seconds=5, rest_seconds=2, receiving_max=4, sending_max=4)


class Cluster:
    """Fulfils `driver.Actions` at the shards' leaders, and does for the driver what nodes do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wishes = Wishes(thresholds=RULES)
        self.removed: list[str] = []
        self.reporters: dict[str, Reporter] = {}
        self.driver: PlacementDriver | None = None
        self.office: tuple[str, int] = ("", 0)  # node and term
        self.offices = 0
        self.acknowledged: dict[tuple[int, bytes], bytes] = {}
        self.writing = True

    def led(self, shard: int) -> tuple[SimNode, Replica]:
        for node in self.world.nodes.values():
            if node.running and node.host.leads(shard):
                return node, node.host.core.replicas[shard]
        raise Unavailable("no leader")

    # -- actions

    def _change(self, shard: int, conf: int) -> tuple[ReplicaChange, Replica]:
        node, replica = self.led(shard)
        return ReplicaChange(node.host, shard, timeout_seconds=5, conf=conf), replica

    async def add_learner(self, shard: int, node: str, conf: int) -> ShardReport | None:
        change, replica = self._change(shard, conf)
        with self._timeouts():
            await change.add_learner(node)
        return look_at(replica)

    async def promote(self, shard: int, node: str, conf: int, *, other: str) -> ShardReport | None:
        change, replica = self._change(shard, conf)
        with self._timeouts():
            await change.promote(node, other=other or None)
        return look_at(replica)

    async def remove(self, shard: int, node: str, conf: int) -> ShardReport | None:
        change, replica = self._change(shard, conf)
        with self._timeouts():
            await change.remove(node)
        return look_at(replica)

    async def transfer(self, shard: int, node: str) -> ShardReport | None:
        at, replica = self.led(shard)
        place = replica.state.descriptor.replica_on(node) if replica.state is not None else None
        if place is None:
            raise NotFound("no replica there")
        if place.replica_id != replica.replica_id:
            replica.raw.transfer_leader(place.replica_id)
            at.host.mark(replica)
        return None

    async def split(self, shard: int, version: int) -> ShardReport | None:
        raise AssertionError("nothing is large here")

    @contextlib.contextmanager
    def _timeouts(self):  # type: ignore[no-untyped-def]
        try:
            yield
        except TimeoutError:
            raise Unavailable("not in time") from None

    # -- what nodes do all the time

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._take_office(loop.time())
            for node in self.world.nodes.values():
                if node.running:
                    self._report(node, loop.time())
            if self.driver is not None:
                members = [MemberRecord(one.name, one.node, one.address) for one in self.world.nodes.values()]
                self.driver.round(
                    loop.time(),
                    members=[one for one in members if one.node not in self.removed],
                    removed=self.removed,
                    wishes=self.wishes,
                    down=lambda node: None if self.is_running(node) else 0.0,
                )
            await asyncio.sleep(ROUND_SECONDS)

    def is_running(self, node: str) -> bool:
        return any(one.running for one in self.world.nodes.values() if one.node == node)

    async def _take_office(self, now: float) -> None:
        try:
            node, replica = self.led(META_SHARD)
            office = node.name, replica.raw.term
        except Unavailable:
            office = ("", 0)
        if office != self.office:
            if self.driver is not None:
                await self.driver.close()
            self.office = office
            self.driver = PlacementDriver(self, now=now) if office[1] else None
            self.offices += 1

    def _report(self, node: SimNode, now: float) -> None:
        if self.driver is None:
            return
        reporter = self.reporters.get(node.name)
        if reporter is None:
            reporter = Reporter(node.node, node.host.core.replicas, lambda: (90 << 30, 100 << 30))
            self.reporters[node.name] = reporter
        if self.driver.hear(reporter.collect(now)):
            reporter.forget()
            self.driver.hear(reporter.collect(now))

    async def write(self) -> None:
        """What is acknowledged is kept in mind; refusals and time-outs are the writers' lot."""
        number = 0
        while self.writing:
            for shard in SHARDS:
                number += 1
                with contextlib.suppress(KVError):
                    node, _ = self.led(shard)
                    key = b"%d" % number
                    if isinstance(await node.put(key, key, timeout_ms=2_000, shard=shard), Results):
                        self.acknowledged[shard, key] = key
            await asyncio.sleep(0.1)

    # -- what is to be seen

    def voters(self, shard: int) -> set[str]:
        """By name; empty where it is not settled."""
        try:
            _, replica = self.led(shard)
        except Unavailable:
            return set()
        state = replica.state
        if state is None or replica.raw.conf_state.voters_outgoing or replica.raw.conf_state.learners:
            return set()
        return {place.node[0] for place in state.descriptor.replicas}

    def spread(self) -> tuple[Counter[str], Counter[str]]:
        replicas = Counter(node for shard in SHARDS for node in self.voters(shard))
        leaders: Counter[str] = Counter()
        for shard in SHARDS:
            with contextlib.suppress(Unavailable):
                leaders[self.led(shard)[0].name] += 1
        return replicas, leaders

    async def check_acknowledged(self) -> None:
        for (shard, key), value in self.acknowledged.items():
            found = await self._read(shard, key)
            assert isinstance(found, Found), (shard, key, found)
            assert found.value == value

    async def _read(self, shard: int, key: bytes) -> object:
        """From whoever leads; it may be about to hand over."""
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(Unavailable):
                    answer = await self.led(shard)[0].get(key, shard=shard)
                    if isinstance(answer, Results):
                        return answer.results[0]
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(world: World):  # type: ignore[no-untyped-def]
    cluster = Cluster(world)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(cluster.run()), loop.create_task(cluster.write())]
    try:
        await world.leader()
        yield cluster
        cluster.writing = False
        await tasks[1]
        await cluster.check_acknowledged()
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        if cluster.driver is not None:
            await cluster.driver.close()
    for error in done:
        if isinstance(error, Exception):
            raise error
    for node in world.nodes.values():
        assert not node.fatal, node.fatal


@simulated
async def test_a_node_that_joins_gets_its_share() -> None:
    async with World(nodes=3, spare=1, more=MORE) as world, running(world) as cluster:

        def balanced() -> bool:
            replicas, leaders = cluster.spread()
            if cluster.driver is None or cluster.driver.board.running:
                return False
            spread = max(leaders.values()) - min(leaders[node] for node in "abcd")
            return sum(replicas.values()) == 3 * len(SHARDS) and min(replicas[n] for n in "abcd") >= 5 and spread <= 1

        await world.until(balanced, seconds=60)
        moved = cluster.driver.counts()["done"] if cluster.driver else 0
        await asyncio.sleep(20.0)
        assert cluster.driver is not None
        assert cluster.driver.counts()["done"] == moved, "it came to rest"


@simulated
async def test_a_drained_node_is_empty_and_a_dead_one_replaced() -> None:
    async with World(nodes=3, spare=2, more=MORE) as world, running(world) as cluster:
        cluster.wishes = Wishes(thresholds=RULES, draining={"a": world.nodes["a"].node})

        def empty() -> bool:
            settled = [cluster.voters(shard) for shard in (META_SHARD, *SHARDS)]
            return all(one and "a" not in one for one in settled)

        await world.until(empty, seconds=60)
        assert cluster.driver is not None
        await asyncio.sleep(1.0)
        assert cluster.driver.drain_progress(world.nodes["a"].node)["done"]
        await world.nodes["b"].crash()

        def replaced() -> bool:
            return all(cluster.voters(shard) == set("cde") for shard in SHARDS)

        await world.until(replaced, seconds=60)
        assert cluster.voters(META_SHARD) == set("cde")


@pytest.mark.parametrize("seed", range(6))
def test_the_driver_dies_in_the_middle_again_and_again(seed: int) -> None:
    """While a node is drained, the node that leads the meta group crashes and comes back, some times, at random
    moments. In the end the drain is done and every shard has three voters."""

    @simulated
    async def run() -> None:
        async with World(nodes=3, spare=2, more=MORE, seed=seed) as world, running(world) as cluster:
            await asyncio.sleep(1.0)
            cluster.wishes = Wishes(thresholds=RULES, draining={"c": world.nodes["c"].node})
            for _ in range(3):
                await asyncio.sleep(world.rng.uniform(0.2, 3.0))
                with contextlib.suppress(Unavailable):
                    node, _ = cluster.led(META_SHARD)
                    await node.crash()
                    cluster.reporters.pop(node.name, None)
                    await asyncio.sleep(world.rng.uniform(0.1, 2.0))
                    await node.boot()

            def empty() -> bool:
                settled = [cluster.voters(shard) for shard in (META_SHARD, *SHARDS)]
                return all(len(one) == 3 and "c" not in one for one in settled)

            await world.until(empty, seconds=120)
            assert cluster.offices >= 3

    run()
