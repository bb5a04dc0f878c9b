"""What a nemesis is: it breaks something for a while, and mends it.

Invariant: after `mend` nothing of the fault is left; `mend` may be called again, and after a `strike` that failed.
Invariant: what to do, to whom and for how long is drawn from the generator alone; only who leads is asked.
Invariant: at most one node at a time has lost something that it had acknowledged (`lose`), or is removed with what it
    has (`lose_new`), and all are whole again before the next one may: the store promises to survive the loss of a
    minority, not of one after the other faster than it can copy.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from jepsen.cluster import Cluster, until
from jepsen.machine import Machine

VOTERS = 3
"""Of a shard, where there are so many nodes."""
WHOLE_SECONDS_MAX = 300.0


@dataclass(slots=True)
class Attack:
    """What nemeses share: the cluster, and which nodes are under a fault, so that they do not take turns at one."""

    cluster: Cluster
    machine: Machine
    rng: random.Random
    busy: set[str] = field(default_factory=set)
    losing: set[str] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)

    def of(self, rng: random.Random) -> Attack:
        """The same for a nemesis with a generator of its own."""
        return Attack(self.cluster, self.machine, rng, self.busy, self.losing, self.damaged)

    def pick(self, count: int = 1, among: list[str] | None = None) -> list[str]:
        """So many running nodes that nobody has struck, at most a minority of all in all; maybe none."""
        cluster = self.cluster
        room = (len(cluster.names) - 1) // 2 - len(self.busy)
        names = cluster.running if among is None else [name for name in cluster.running if name in among]
        free = [name for name in names if name not in self.busy]
        chosen = self.rng.sample(free, max(0, min(count, room, len(free))))
        self.busy.update(chosen)
        return chosen

    def damaged_node(self, names: list[str]) -> str:
        """The one whose files may be damaged in this run; the first that is asked for is drawn."""
        if not self.damaged:
            self.damaged.append(self.rng.choice(names))
        return self.damaged[0]

    def pick_all(self, names: list[str]) -> list[str]:
        """All of them, if nobody is under a fault."""
        if self.busy:
            return []
        self.busy.update(names)
        return names

    def lose(self, among: list[str] | None = None) -> list[str]:
        """One node that may lose what it has, if no other one has and is not whole yet."""
        if self.losing:
            return []
        chosen = self.pick(1, among)
        self.losing.update(chosen)
        return chosen

    def lose_new(self, name: str) -> bool:
        """Whether a node that is not there yet may be removed later, replicas and all."""
        if self.losing:
            return False
        self.losing.add(name)
        return True

    async def regain(self, names: list[str]) -> None:
        """Until these, which may have lost something, and all others are whole."""
        if names:
            floors: dict[int, int] = {}
            await until(lambda: self._whole(floors), seconds=WHOLE_SECONDS_MAX, what=f"{names} are whole again")
            self.losing.difference_update(names)
            self.release(names)

    async def _whole(self, floors: dict[int, int]) -> bool:
        """Each shard has all its voters, none of them damaged, and each has all that was applied when first asked."""
        rows = await self.cluster.shards()
        for row in rows:
            voters = [one for one in row["replicas"] if one["role"] == "voter"]
            if row["joint"] or row["leader"] is None or row["told_by"] != row["leader"]:
                return False
            if len(voters) < min(VOTERS, len(self.cluster.running)):
                return False
            floor = floors.setdefault(row["id"], row["applied"])
            if any((one["match"] or 0) < floor for one in voters):
                return False
        for name in self.cluster.running:
            status, answer = await self.cluster.ask(name, "/v1/status")
            if status != 200 or any(one["damaged"] or one["role"] == "failed" for one in answer["shards"]):
                return False
        return bool(rows)

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

    def lacking(self) -> str | None:
        """Why this machine or this store can't have this fault; None if it can."""
        return None

    def prepare(self) -> str | None:
        """What must be there before the nodes start; why it can't be."""
        return None

    async def strike(self) -> object:
        """Begin the fault; what it is, for the history. None: nothing was done this time."""
        raise NotImplementedError

    async def mend(self) -> None:
        """End it."""
