"""Faults of the network: cuts of every shape, slow links, lossy links."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from jepsen.nemeses.base import Attack, Nemesis
from jepsen.switch import CLIENT


class Cut(Nemesis):
    """Some links carry nothing. What a subclass chooses are (from, to) pairs."""

    seconds = (1.0, 8.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._cut: list[tuple[str, str]] = []

    async def choose(self) -> Iterable[tuple[str, str]]:
        raise NotImplementedError

    async def strike(self) -> object:
        self._cut = list(await self.choose())
        self._set(True)
        return [f"{source}>{target}" for source, target in self._cut] or None

    async def mend(self) -> None:
        self._set(False)
        self._cut = []

    def _set(self, cut: bool) -> None:
        for source, target in self._cut:
            self.cluster.switch.link(source, target).cut = cut
        self.cluster.switch.changed()

    def shuffled(self) -> list[str]:
        return self.rng.sample(self.cluster.names, len(self.cluster.names))


def both_ways(ones: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    second = list(others)
    pairs = [(one, other) for one in ones for other in second if one != other]
    return [*pairs, *((other, one) for one, other in pairs)]


class PartitionOne(Cut):
    """One node from all the others."""

    name = "partition-one"

    async def choose(self) -> Iterable[tuple[str, str]]:
        one, *others = self.shuffled()
        return both_ways([one], others)


class PartitionLeader(Cut):
    """A shard's leader from all the others."""

    name = "partition-leader"

    async def choose(self) -> Iterable[tuple[str, str]]:
        shard = await self.attack.user_shard()
        leader = await self.cluster.leader(shard) if shard is not None else None
        return both_ways([leader], self.cluster.names) if leader is not None else []


class PartitionHalves(Cut):
    """A minority from the majority."""

    name = "partition-halves"

    async def choose(self) -> Iterable[tuple[str, str]]:
        names = self.shuffled()
        middle = (len(names) - 1) // 2
        return both_ways(names[:middle], names[middle:])


class PartitionRing(Cut):
    """Each node sees a majority, and no two the same one. Of three: one link is cut."""

    name = "partition-ring"

    async def choose(self) -> Iterable[tuple[str, str]]:
        names = self.shuffled()
        count = len(names)
        if count < 5:
            return both_ways(names[:1], names[1:2])
        near = {(place, (place + step) % count) for place in range(count) for step in (-1, 0, 1)}
        return [(names[i], names[j]) for i in range(count) for j in range(count) if (i, j) not in near]


class PartitionOneWay(Cut):
    """One node hears the others and is not heard, or the other way round."""

    name = "partition-one-way"

    async def choose(self) -> Iterable[tuple[str, str]]:
        one, *others = self.shuffled()
        if self.rng.random() < 0.5:
            return [(one, other) for other in others]
        return [(other, one) for other in others]


class PartitionBridge(Cut):
    """Two groups that see each other only through one node: A-B and B-C are well, A-C is cut."""

    name = "partition-bridge"

    async def choose(self) -> Iterable[tuple[str, str]]:
        _, *rest = self.shuffled()
        middle = len(rest) // 2
        return both_ways(rest[:middle], rest[middle:])


class PartitionClients(Cut):
    """The clients from a shard's leader; the nodes are well."""

    name = "partition-clients"

    async def choose(self) -> Iterable[tuple[str, str]]:
        shard = await self.attack.user_shard()
        leader = await self.cluster.leader(shard) if shard is not None else None
        return [(CLIENT, leader), (leader, CLIENT)] if leader is not None else []


class Flapping(Cut):
    """One node is cut off and healed again, many times a second to once in a while."""

    name = "flapping"
    seconds = (0.0, 0.0)

    async def choose(self) -> Iterable[tuple[str, str]]:
        one, *others = self.shuffled()
        return both_ways([one], others)

    async def strike(self) -> object:
        said = await super().strike()
        period = self.rng.choice((0.05, 0.3, 1.2))
        for _ in range(self.rng.randint(3, 8)):
            self._set(True)
            await asyncio.sleep(period)
            self._set(False)
            await asyncio.sleep(period)
        return said


class Slow(Nemesis):
    """All links, or those of one node, take longer."""

    name = "slow"
    seconds = (2.0, 8.0)

    async def strike(self) -> object:
        delay = self.rng.choice((0.01, 0.05, 0.2))
        names = self.cluster.names
        victims = names if self.rng.random() < 0.5 else [self.rng.choice(names)]
        for source, target in both_ways(victims, names):
            link = self.cluster.switch.link(source, target)
            link.delay, link.jitter = delay, delay / 2
        return [victims, delay]

    async def mend(self) -> None:
        for source, target in both_ways(self.cluster.names, self.cluster.names):
            link = self.cluster.switch.link(source, target)
            link.delay = link.jitter = 0.0


class Lossy(Nemesis):
    """Some of what is sent between nodes is lost: gone (UDP), or sent again later (TCP)."""

    name = "lossy"
    seconds = (2.0, 8.0)

    async def strike(self) -> object:
        loss = self.rng.choice((0.02, 0.1, 0.3))
        for source, target in both_ways(self.cluster.names, self.cluster.names):
            self.cluster.switch.link(source, target).loss = loss
        return loss

    async def mend(self) -> None:
        for source, target in both_ways(self.cluster.names, self.cluster.names):
            self.cluster.switch.link(source, target).loss = 0.0
