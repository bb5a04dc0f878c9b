"""Made-up histories of shards: splits, merges, moves, elections; what leaders told on the way, and what is true at the
end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from kvstore.base.shards import keyspace_range
from kvstore.gossip.hint import Hint

KEYSPACE = 1


def node_bytes(number: int) -> bytes:
    return number.to_bytes(16, "big")


@dataclass
class Shard:
    id: int
    start: bytes
    end: bytes
    version: int = 1
    conf: int = 1
    term: int = 1
    leader: int = 1  # number of the node
    replicas: tuple[int, ...] = (1, 2, 3)

    def hint(self) -> Hint:
        return Hint(
            id=self.id,
            keyspace=KEYSPACE,
            start=self.start,
            end=self.end,
            version=self.version,
            conf=self.conf,
            term=self.term,
            leader=node_bytes(self.leader),
            replicas=tuple((node_bytes(one), one, 1) for one in self.replicas),
        )


@dataclass
class History:
    """One keyspace, from a single shard that covers it."""

    rng: random.Random
    nodes: int = 5
    shards: list[Shard] = field(default_factory=list)  # in key order
    told: list[Hint] = field(default_factory=list)
    next_id: int = 2

    def __post_init__(self) -> None:
        if not self.shards:
            start, end = keyspace_range(KEYSPACE)
            self.shards = [Shard(self._new_id(), start, end)]
        self.told += self.newest()

    def newest(self) -> list[Hint]:
        return [shard.hint() for shard in self.shards]

    def step(self) -> None:
        """One change; the leaders that it concerns tell of it."""
        position = self.rng.randrange(len(self.shards))
        action = self.rng.choice((self.split, self.split, self.merge, self.move, self.elect, self.elect))
        action(position)

    def split(self, position: int) -> None:
        parent = self.shards[position]
        length = len(parent.start) + self.rng.randint(0, 2)
        key = parent.start + bytes(self.rng.randrange(256) for _ in range(length - len(parent.start))) + b"\x80"
        if not parent.start < key < parent.end:
            return
        child = replace(parent, id=self._new_id(), start=key, version=parent.version + 1, term=self.rng.randint(1, 3))
        child.leader = self.rng.choice(parent.replicas)
        self.shards[position] = replace(parent, end=key, version=parent.version + 1)
        self.shards.insert(position + 1, child)
        self._tell(self.shards[position], child)

    def merge(self, position: int) -> None:
        if position + 1 == len(self.shards):
            return
        left, right = self.shards[position : position + 2]
        keeper = self.rng.choice((left, right))
        merged = replace(keeper, start=left.start, end=right.end, version=max(left.version, right.version) + 1)
        self.shards[position : position + 2] = [merged]
        self._tell(merged)

    def move(self, position: int) -> None:
        shard = self.shards[position]
        others = [node for node in range(1, self.nodes + 1) if node not in shard.replicas]
        leaving = self.rng.choice([node for node in shard.replicas if node != shard.leader])
        replicas = tuple(self.rng.choice(others) if node == leaving else node for node in shard.replicas)
        self.shards[position] = replace(shard, conf=shard.conf + 1, replicas=replicas)
        self._tell(self.shards[position])

    def elect(self, position: int) -> None:
        shard = self.shards[position]
        term = shard.term + self.rng.randint(1, 3)
        self.shards[position] = replace(shard, term=term, leader=self.rng.choice(shard.replicas))
        self._tell(self.shards[position])

    def _tell(self, *shards: Shard) -> None:
        self.told += [shard.hint() for shard in shards]

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1


def even_shards(count: int, *, version: int = 5, nodes: int = 5) -> list[Shard]:
    """That many shards of one size, led by the nodes in turn."""
    start, end = keyspace_range(KEYSPACE)
    bounds = [start, *(start + f"user{number:08}".encode() for number in range(1, count)), end]
    return [
        Shard(number + 2, bounds[number], bounds[number + 1], version=version, leader=number % nodes + 1)
        for number in range(count)
    ]
