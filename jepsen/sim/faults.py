"""What goes wrong in a simulation, by the names that the nemeses of real processes have.

Invariant: after `mend` nothing of the fault is left; what to do, to whom and for how long is drawn from the generator.
Invariant: nodes are struck so that a majority is left alone, but by what strikes all of them; so there is work to see.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from itertools import permutations, product

from jepsen.sim.cluster import SimCluster
from jepsen.sim.network import CLIENTS, Pair
from kvstore.base.ids import META_SHARD

SHARDS_MAX = 8


class Fault:
    name = "?"
    seconds = (0.5, 6.0)
    """How long it lasts."""

    def __init__(self, cluster: SimCluster, rng: random.Random, busy: dict[str, None]) -> None:
        self.cluster = cluster
        self.rng = rng
        self._busy = busy  # nodes under some fault, shared by all
        self.struck: list[str] = []

    async def strike(self) -> object:
        """What was done, as JSON; None if nothing could be."""
        raise NotImplementedError

    async def mend(self) -> None:
        for name in self.struck:
            self._busy.pop(name, None)
        self.struck = []

    def pick(self, count: int = 1, among: Iterable[str] | None = None) -> list[str]:
        room = (len(self.cluster.names) - 1) // 2 - len(self._busy)
        free = [name for name in (self.cluster.running if among is None else among) if name not in self._busy]
        self.struck = self.rng.sample(free, max(0, min(count, room, len(free))))
        self._busy.update(dict.fromkeys(self.struck))
        return self.struck

    def some_leader(self) -> str | None:
        shard = self.rng.choice([META_SHARD, *self.cluster.shards()])
        return self.cluster.leader(shard)


class Kill(Fault):
    """SIGKILL; started again after a while, often at once."""

    name = "kill"

    async def strike(self) -> object:
        leader = self.some_leader() if self.rng.random() < 0.5 else None
        names = self.pick(1, None if leader is None else [leader])
        self.cluster.kill(*names)
        return list(names) or None

    async def mend(self) -> None:
        self.cluster.start(*self.struck)
        await super().mend()


class KillOften(Kill):
    """A minority goes again and again, back after no time."""

    name = "kill-often"
    seconds = (0.0, 0.1)

    async def strike(self) -> object:
        names = list(self.pick(2))
        for _ in range(self.rng.randint(2, 6)):
            self.cluster.kill(*names)
            await asyncio.sleep(self.rng.uniform(0.0, 0.1))
            self.cluster.start(*names)
            await asyncio.sleep(self.rng.uniform(0.05, 1.5))
        return names or None


class KillAll(Fault):
    """A power cut for everybody, and everybody back, not all at once."""

    name = "kill-all"
    seconds = (0.0, 1.0)

    async def strike(self) -> object:
        self.cluster.kill(*self.cluster.names)
        return self.cluster.names

    async def mend(self) -> None:
        names = self.rng.sample(self.cluster.names, len(self.cluster.names))
        for name in names:
            if name not in self._busy:
                self.cluster.start(name)
                await asyncio.sleep(self.rng.choice((0.0, 0.0, self.rng.uniform(0.0, 1.0))))


class Pause(Fault):
    """SIGSTOP, SIGCONT."""

    name = "pause"

    async def strike(self) -> object:
        leader = self.some_leader() if self.rng.random() < 0.7 else None
        names = self.pick(1, None if leader is None else [leader])
        for name in names:
            self.cluster.pause(name)
        return list(names) or None

    async def mend(self) -> None:
        for name in self.struck:
            self.cluster.resume(name)
        await super().mend()


class Restart(Fault):
    """Gracefully, with the leaderships handed over first."""

    name = "restart"
    seconds = (0.0, 2.0)

    async def strike(self) -> object:
        names = [name for name in self.pick(1) if self.cluster.machines[name].serves]
        for name in names:
            await self.cluster.stop(name)
        return names or None

    async def mend(self) -> None:
        self.cluster.start(*self.struck)
        await super().mend()


class Cut(Fault):
    """Some links carry nothing. Subclasses choose them."""

    def __init__(self, cluster: SimCluster, rng: random.Random, busy: dict[str, None]) -> None:
        super().__init__(cluster, rng, busy)
        self._cut: list[Pair] = []

    def choose(self, ends: list[str]) -> list[Pair]:
        """`ends`: of all that run, shuffled."""
        raise NotImplementedError

    async def strike(self) -> object:
        ends = self.cluster.ends()
        self._cut = self.choose(self.rng.sample(ends, len(ends))) if len(ends) > 1 else []
        self.cluster.network.cut(self._cut)
        names = {self.cluster.end_of(name): name for name in self.cluster.names} | {CLIENTS: CLIENTS}
        return [f"{names[source]}>{names[target]}" for source, target in self._cut] or None

    async def mend(self) -> None:
        cut, self._cut = self._cut, []
        self.cluster.network.mend(cut)


def both_ways(ones: Iterable[str], others: Iterable[str]) -> list[Pair]:
    pairs = [(one, other) for one, other in product(list(ones), list(others)) if one != other]
    return [*pairs, *((other, one) for one, other in pairs)]


class PartitionOne(Cut):
    name = "partition-one"

    def choose(self, ends: list[str]) -> list[Pair]:
        return both_ways(ends[:1], ends[1:])


class PartitionHalves(Cut):
    """The clients are on either side, or on both."""

    name = "partition-halves"

    def choose(self, ends: list[str]) -> list[Pair]:
        middle = (len(ends) - 1) // 2 or 1
        clients = self.rng.choice(([], ends[:middle], ends[middle:]))
        return both_ways(ends[:middle], ends[middle:]) + both_ways([CLIENTS], clients)


class PartitionLeader(Cut):
    """Its clients reach it or do not."""

    name = "partition-leader"

    def choose(self, ends: list[str]) -> list[Pair]:
        leader = self.some_leader()
        end = None if leader is None else self.cluster.end_of(leader)
        if end is None:
            return []
        return both_ways([end], [one for one in ends if one != end]) + (
            both_ways([CLIENTS], [end]) if self.rng.random() < 0.3 else []
        )


class PartitionRing(Cut):
    """Each sees a majority, and no two the same one."""

    name = "partition-ring"

    def choose(self, ends: list[str]) -> list[Pair]:
        count = len(ends)
        if count < 5:
            return both_ways(ends[:1], ends[1:2])
        near = {(place, (place + step) % count) for place in range(count) for step in (-1, 1)}
        return [(ends[i], ends[j]) for i, j in permutations(range(count), 2) if (i, j) not in near]


class PartitionOneWay(Cut):
    """One is not heard, or does not hear."""

    name = "partition-one-way"

    def choose(self, ends: list[str]) -> list[Pair]:
        one, *others = ends
        heard = self.rng.random() < 0.5
        return [(one, other) if heard else (other, one) for other in others]


class PartitionBridge(Cut):
    """Two sides that both see one node."""

    name = "partition-bridge"

    def choose(self, ends: list[str]) -> list[Pair]:
        _, *rest = ends
        middle = len(rest) // 2
        return both_ways(rest[:middle], rest[middle:])


class PartitionClients(Cut):
    name = "partition-clients"

    def choose(self, ends: list[str]) -> list[Pair]:
        return both_ways([CLIENTS], ends[: self.rng.randint(1, len(ends))])


class Flapping(PartitionOne):
    name = "flapping"
    seconds = (0.0, 0.0)

    async def strike(self) -> object:
        said = await super().strike()
        period = self.rng.choice((0.05, 0.3, 1.2))
        for _ in range(self.rng.randint(3, 8)):
            await asyncio.sleep(period)
            self.cluster.network.mend(self._cut)
            await asyncio.sleep(period)
            self.cluster.network.cut(self._cut)
        return said


class Slow(Fault):
    name = "slow"

    async def strike(self) -> object:
        weather = self.cluster.weather
        weather.latency_seconds_max = self.rng.choice((0.02, 0.1, 0.3))
        return weather.latency_seconds_max

    async def mend(self) -> None:
        self.cluster.weather.latency_seconds_max = self.cluster.swarm.latency_seconds[1]


class Lossy(Fault):
    name = "lossy"

    async def strike(self) -> object:
        self.cluster.weather.loss = self.rng.choice((0.02, 0.1, 0.3))
        return self.cluster.weather.loss

    async def mend(self) -> None:
        self.cluster.weather.loss = self.cluster.swarm.loss


class SlowDisk(Fault):
    name = "slow-disk"

    async def strike(self) -> object:
        names = self.rng.sample(self.cluster.names, self.rng.randint(1, len(self.cluster.names)))
        seconds = self.rng.choice((0.05, 0.2, 0.5))
        for name in names:
            self.cluster.machines[name].disk_seconds = (seconds / 10, seconds)
        return [names, seconds]

    async def mend(self) -> None:
        for machine in self.cluster.machines.values():
            machine.disk_seconds = self.cluster.swarm.disk_seconds


class Clock(Fault):
    """A wall clock jumps; sometimes it is never set right."""

    name = "clock"

    async def strike(self) -> object:
        machine = self.cluster.machines[self.rng.choice(self.cluster.names)]
        machine.clock.offset_ms += self.rng.choice((-3_600_000, -2_000, -100, 100, 2_000, 3_600_000))
        return [machine.name, machine.clock.offset_ms]

    async def mend(self) -> None:
        for machine in self.cluster.machines.values():
            if self.rng.random() < 0.7:
                machine.clock.offset_ms = 0


class Transfer(Fault):
    name = "transfer"
    seconds = (0.0, 0.0)

    async def strike(self) -> object:
        shards = {META_SHARD: self.cluster.leader(META_SHARD), **self.cluster.shards()}
        shard = self.rng.choice(list(shards))
        through = self.cluster.machines[self.rng.choice(self.cluster.names)]
        target = self.rng.choice(self.cluster.names)
        if not through.serves or through.node is None:
            return None
        said = await self.cluster.administer(through.name, through.node.admin.transfer(shard, target))
        return [shard, target, said]


class Split(Fault):
    """In the middle, or at a key that clients use."""

    name = "split"
    seconds = (0.0, 0.0)

    async def strike(self) -> object:
        shards = list(self.cluster.shards())
        through = self.cluster.machines[self.rng.choice(self.cluster.names)]
        if not shards or len(shards) >= SHARDS_MAX or not through.serves or through.node is None:
            return None
        shard = self.rng.choice(shards)
        number = self.rng.randrange(1 << 32)
        keys = (f"register/{number:08x}", f"scan/{number % 100_000:06d}", "counter/2", "set/2", "stale/2")
        key = None if self.rng.random() < 0.3 else self.rng.choice(keys)
        at = None if key is None else key.encode()
        said = await self.cluster.administer(through.name, through.node.admin.split(shard, at))
        return [shard, key, said]


class Drain(Fault):
    name = "drain"

    async def strike(self) -> object:
        name = self.rng.choice(self.cluster.names)
        said = await self._ask("drain", name)
        self.struck = [name]
        return None if said is None else [name, said]

    async def mend(self) -> None:
        struck, self.struck = self.struck, []
        for name in struck:
            for _ in range(20):
                if await self._ask("undrain", name) == "done":
                    break

    async def _ask(self, what: str, name: str) -> str | None:
        through = self.cluster.machines[self.rng.choice(self.cluster.names)]
        if not through.serves or through.node is None:
            await asyncio.sleep(0.5)
            return None
        placement = through.node.admin.placement
        return await self.cluster.administer(
            through.name, placement.drain(name) if what == "drain" else placement.undrain(name)
        )


FAULTS: dict[str, type[Fault]] = {
    one.name: one
    for one in (
        Kill,
        KillOften,
        KillAll,
        Pause,
        Restart,
        PartitionOne,
        PartitionHalves,
        PartitionLeader,
        PartitionRing,
        PartitionOneWay,
        PartitionBridge,
        PartitionClients,
        Flapping,
        Slow,
        Lossy,
        SlowDisk,
        Clock,
        Transfer,
        Split,
        Drain,
    )
}
GROUPS = {
    "none": (),
    "partition": tuple(name for name in FAULTS if name.startswith("partition")),
    "all": tuple(FAULTS),
}
"""Names that stand for several."""
