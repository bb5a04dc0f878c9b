"""What operators do while the cluster works: move leaderships, add and remove nodes, kill the placement driver."""

from __future__ import annotations

from jepsen.nemeses.base import Attack, Nemesis

META_SHARD = 1
NODES_MAX = 7
SHARDS_MAX = 24
NEWCOMER = "a newcomer"
"""Stands for the node that joins, whose name is not known before."""


class Transfer(Nemesis):
    """The leadership of a shard is handed to another replica."""

    name = "transfer"
    seconds = (0.0, 0.0)

    async def strike(self) -> object:
        rows = [row for row in await self.cluster.shards() if row["leader"] is not None]
        if not rows:
            return None
        row = self.rng.choice(rows)
        targets = [one["node"] for one in row["replicas"] if one["role"] == "voter" and one["node"] != row["leader"]]
        if not targets or not self.cluster.running:
            return None
        target = self.rng.choice(targets)
        through = self.rng.choice(self.cluster.running)
        status, _ = await self.cluster.ask(
            through, f"/v1/shards/{row['id']}/transfer", method="POST", body={"node": target}
        )
        return [row["id"], target, status]


class Membership(Nemesis):
    """A node joins, and later one that is not needed for a quorum is removed for good."""

    name = "membership"
    seconds = (4.0, 10.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._joined: str | None = None

    async def strike(self) -> object:
        """Its replicas are lost when it is removed, so nothing else may be lost as long as it is there."""
        if len(self.cluster.names) >= NODES_MAX or not self.attack.lose_new(NEWCOMER):
            return None
        self._joined = await self.cluster.join()
        return self._joined

    async def mend(self) -> None:
        """Away with it again, for good; its replicas are made anew elsewhere."""
        joined, self._joined = self._joined, None
        if joined is None:
            return
        self.cluster.nodes[joined].retired = True
        await self.cluster.kill(joined)
        await self.cluster.remove_member(joined)
        self.cluster.forget(joined)
        await self.attack.regain([NEWCOMER])


class Split(Nemesis):
    """A shard is cut in two, at a key that clients use or in the middle of its data."""

    name = "split"
    seconds = (0.0, 0.0)

    async def strike(self) -> object:
        shards = await self.cluster.shards()
        shard = await self.attack.user_shard()
        if shard is None or len(shards) >= SHARDS_MAX or not self.cluster.running:
            return None
        body = {} if self.rng.random() < 0.3 else {"at": self.rng.choice(self._keys())}
        through = self.rng.choice(self.cluster.running)
        status, _ = await self.cluster.ask(through, f"/v1/shards/{shard}/split", method="POST", body=body)
        return [shard, body.get("at"), status]

    def _keys(self) -> list[str]:
        """In the middle of what the workloads write; a key that is not the shard's is refused, which is fine, too."""
        number = self.rng.randrange(1 << 32)
        return [
            f"register/{number:08x}",
            f"scan/{number % 100_000:06d}",
            "counter/",
            "set/",
            "stale/2",
            "idempotence/3",
        ]


class Merge(Nemesis):
    """Two neighbouring shards become one."""

    name = "merge"

    def lacking(self) -> str | None:
        return "the store does not merge shards yet"


class Drain(Nemesis):
    """A node gives up its leaderships and replicas where others can take them, and is taken back."""

    name = "drain"
    seconds = (3.0, 10.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._drained: str | None = None

    async def strike(self) -> object:
        name = self.rng.choice(self.cluster.names)
        if await self._ask(name, "POST"):
            self._drained = name
        return self._drained

    async def mend(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and drained in self.cluster.names:
            await self._ask(drained, "DELETE")

    async def _ask(self, name: str, method: str) -> bool:
        """Whether it was done, by whichever node can."""
        for through in self.cluster.running * 5:
            status, _ = await self.cluster.ask(through, f"/v1/members/{name}/drain", method=method)
            if status in (200, 404):
                return status == 200
        return False


class KillPlacement(Nemesis):
    """SIGKILL of the node that leads the meta group."""

    name = "kill-placement"

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._down: str | None = None

    async def strike(self) -> object:
        leader = await self.cluster.leader(META_SHARD)
        if leader is None or self.attack.busy:
            return None
        self._down = leader
        self.attack.busy.add(leader)
        await self.cluster.kill(leader)
        return leader

    async def mend(self) -> None:
        down, self._down = self._down, None
        if down is not None:
            await self.cluster.start(down)
            self.attack.release([down])
