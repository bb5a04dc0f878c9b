"""Faults of disks: wiped, damaged, cut off, full, slow, and without what was written and not synced.

An old copy of a disk that is put back is none of them: a node that has forgotten an entry or a vote that it had
acknowledged, and does not know it, can undo what was decided. No store of this kind survives that, none promises to.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

from jepsen import disk, preload
from jepsen.cluster import Cluster, ClusterError, until
from jepsen.nemeses.base import Attack, Nemesis

DAMAGED_EXIT_CODE = 2
"""Of a node that finds that its directory has lost what it can't be without: it has set it aside."""
FILES = ("log", "state")
FLIPS_MAX = 8
VALUE = re.compile(rb"\[\d{1,9}(?:,\d{1,9}){2,}\]")
"""What the workloads write that is found neither in a key nor in a page's own structure: a list of numbers. LMDB has no
checksums of its pages, the store has them of its records; only damage inside of a record is told and healed."""
MIB = 1 << 20
FULL_BYTES = (600 * MIB, 100 * MIB, 0)
"""Left over: less than what a node wants to keep free, less than its reserve, nothing: then it ends."""


class Loss(Nemesis):
    """One node ends and loses something; if it can't go on with what is left, it begins anew under the same name."""

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._down: list[str] = []

    def lose(self, name: str) -> object:
        """Of a node that does not run; what, for the history."""
        raise NotImplementedError

    def among(self) -> list[str] | None:
        """Who may lose it; None: everybody."""
        return None

    async def strike(self) -> object:
        self._down = self.attack.lose(self.among())
        lost = None
        for name in self._down:
            await self.cluster.kill(name)
            lost = [name, self.lose(name)]
        return lost

    async def mend(self) -> None:
        down, self._down = self._down, []
        for name in down:
            await start_or_replace(self.cluster, name)
        await self.attack.regain(down)


class Wipe(Loss):
    """The disk is empty: the node comes back as another one under the same name."""

    name = "wipe"
    seconds = (0.5, 3.0)

    def lose(self, name: str) -> object:
        shutil.rmtree(self.cluster.nodes[name].data)
        return "all"


class Damage(Loss):
    """Damage may be found long after it was done, so a run damages the files of one node only: else two nodes could
    come to lack the same record before anybody has looked at it."""

    def among(self) -> list[str] | None:
        return [self.attack.damaged_node(self.cluster.names)]

    def file(self, name: str) -> Path:
        return self.cluster.nodes[name].data / self.rng.choice(FILES) / "data.mdb"


class BitFlip(Damage):
    """Bits flip inside of records of the log or the state."""

    name = "bit-flip"
    seconds = (0.0, 2.0)

    def lose(self, name: str) -> object:
        path, places = self._places(name)
        chosen = self.rng.sample(places, min(len(places), self.rng.randint(1, FLIPS_MAX)))
        with path.open("r+b") as file:
            for begin, end in chosen:
                at = self.rng.randrange(begin, end)
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes((byte ^ (1 << self.rng.randrange(8)),)))
        return [path.parent.name, len(chosen)]

    def _places(self, name: str) -> tuple[Path, list[tuple[int, int]]]:
        """A file, and where values lie in it. The log has some at any time, the state only once it was flushed."""
        path = self.file(name)
        for chosen in (path, self.cluster.nodes[name].data / "log" / "data.mdb"):
            places = [(found.start(), found.end()) for found in VALUE.finditer(chosen.read_bytes())]
            if places:
                return chosen, places
        return path, []


class Truncate(Damage):
    """A file loses its end."""

    name = "truncate"
    seconds = (0.0, 2.0)

    def lose(self, name: str) -> object:
        path = self.file(name)
        size = int(path.stat().st_size * self.rng.uniform(0.1, 0.95))
        with path.open("r+b") as file:
            file.truncate(size)
        return [path.parent.name, size]


class OnDisk(Nemesis):
    """Needs a disk of its own for each node."""

    def lacking(self) -> str | None:
        return disk.lacking()

    def prepare(self) -> str | None:
        return self.attack.machine.want_disks()

    def disk(self, name: str) -> disk.Disk:
        return self.attack.machine.disks[name]

    def with_disks(self) -> list[str]:
        return [name for name in self.cluster.running if name in self.attack.machine.disks]


class DiskFull(OnDisk):
    """A node's disk fills up, to several degrees; then there is room again."""

    name = "disk-full"
    seconds = (3.0, 8.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._full: list[str] = []

    async def strike(self) -> object:
        self._full = self.attack.pick(1, self.with_disks())
        leave = self.rng.choice(FULL_BYTES)
        for name in self._full:
            self.cluster.nodes[name].wanted = leave > 0  # a commit that finds no room ends the process
            try:
                self.disk(name).fill(leave)
            except OSError:
                pass  # the last blocks were taken by the file's own description: it is full all the same
        return [*self._full, leave // MIB] if self._full else None

    async def mend(self) -> None:
        full, self._full = self._full, []
        for name in full:
            self.disk(name).empty()
            if not self.cluster.nodes[name].wanted:
                await self.cluster.kill(name)
                await self.cluster.start(name)
        self.attack.release(full)


class LostWrites(OnDisk):
    """The power fails, for one node or for all: what was written and not synced is gone."""

    name = "lost-writes"
    seconds = (0.0, 3.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._down: list[str] = []

    async def strike(self) -> object:
        everybody = self.with_disks()
        if self.rng.random() < 0.3 and len(everybody) == len(self.cluster.running):
            self._down = self.attack.pick_all(everybody)
        else:
            self._down = self.attack.pick(1, everybody)
        for name in self._down:
            self.cluster.nodes[name].wanted = False  # whoever notices ends by itself
            self.disk(name).cut_power()
        await self.cluster.kill(*self._down)
        return self._down or None

    async def mend(self) -> None:
        down, self._down = self._down, []
        for name in down:
            await asyncio.to_thread(self._remount, name)
        await self.cluster.start(*down)
        self.attack.release(down)

    def _remount(self, name: str) -> None:
        self.disk(name).unmount()
        self.disk(name).mount()


class Sync(Nemesis):
    """Needs a library in the nodes' processes."""

    def lacking(self) -> str | None:
        return preload.lacking()

    def prepare(self) -> str | None:
        return self.attack.machine.want_preload()


class FailedFsync(Sync):
    """A node's syncs fail: it must end, since it can't know what is on the disk, and is started anew."""

    name = "failed-fsync"
    seconds = (0.5, 3.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._failing: list[str] = []

    async def strike(self) -> object:
        self._failing = self.attack.pick(1, self.attack.machine.preload.nodes)
        for name in self._failing:
            self.cluster.nodes[name].wanted = False
            self.attack.machine.preload.set(name, "sync_fails", 1.0)
        return self._failing or None

    async def mend(self) -> None:
        failing, self._failing = self._failing, []
        await self.cluster.kill(*failing)
        for name in failing:
            self.attack.machine.preload.set(name, "sync_fails", 0.0)
        await self.cluster.start(*failing)
        self.attack.release(failing)


class SlowFsync(Sync):
    """A node's syncs take longer, one's or all nodes'."""

    name = "slow-fsync"
    seconds = (2.0, 8.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._slow: list[str] = []

    async def strike(self) -> object:
        names = self.attack.machine.preload.nodes
        self._slow = names if self.rng.random() < 0.3 else [self.rng.choice(names)]
        seconds = self.rng.choice((0.01, 0.05, 0.3, 1.0))
        for name in self._slow:
            self.attack.machine.preload.set(name, "sync_seconds", seconds)
        return [self._slow, seconds]

    async def mend(self) -> None:
        slow, self._slow = self._slow, []
        for name in slow:
            self.attack.machine.preload.set(name, "sync_seconds", 0.0)


async def start_or_replace(cluster: Cluster, name: str) -> None:
    """A node that lost what it can't be without says so and ends; an operator removes it, and starts it anew."""
    node = cluster.nodes[name]
    if not node.data.exists():
        await cluster.remove_member(name)
    await cluster.start(name)
    node.wanted = False  # it may end by itself now

    async def up_or_ended() -> bool:
        return not node.running or (await cluster.ask(name, "/readyz"))[0] == 200

    await until(up_or_ended, seconds=120.0, what=f"{name} is up, or has ended")
    if not node.running:
        code = await node.ended()
        if code != DAMAGED_EXIT_CODE:
            raise ClusterError(f"{name} ended with {code} after it had lost something: {node.last_words()}")
        await cluster.kill(name)
        await cluster.remove_member(name)
        await cluster.start(name)
    node.wanted = True
