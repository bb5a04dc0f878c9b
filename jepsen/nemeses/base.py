"""What a nemesis is: it breaks something for a while, and mends it.

Invariant: after `mend` nothing of the fault is left; `mend` may be called again, and after a `strike` that failed.
Invariant: what to do, to whom and for how long is drawn from the generator alone; only who leads is asked.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from jepsen.cluster import Cluster


@dataclass(slots=True)
class Attack:
    """What nemeses share: the cluster, and which nodes are under a fault, so that they do not take turns at one."""

    cluster: Cluster
    rng: random.Random
    busy: set[str] = field(default_factory=set)

    def pick(self, count: int = 1) -> list[str]:
        """So many running nodes that nobody has struck, at most a minority of all in all; maybe none."""
        cluster = self.cluster
        room = (len(cluster.names) - 1) // 2 - len(self.busy)
        free = [name for name in cluster.running if name not in self.busy]
        chosen = self.rng.sample(free, max(0, min(count, room, len(free))))
        self.busy.update(chosen)
        return chosen

    def release(self, names: list[str]) -> None:
        self.busy.difference_update(names)

    async def user_shard(self) -> int | None:
        """Some shard of the users, of those that exist now."""
        shards = [row["id"] for row in await self.cluster.shards() if row["keyspace"] != "_system"]
        return self.rng.choice(shards) if shards else None


class Nemesis:
    name = "?"
    seconds = (1.0, 6.0)
    """How long a fault lasts, at least and at most."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.cluster = attack.cluster
        self.rng = attack.rng

    async def lacking(self) -> str | None:
        """Why this machine or this store can't have this fault; None if it can."""
        return None

    async def strike(self) -> object:
        """Begin the fault; what it is, for the history. None: nothing was done this time."""
        raise NotImplementedError

    async def mend(self) -> None:
        """End it."""
