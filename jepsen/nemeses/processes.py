"""Faults of processes: killed, paused, stopped, their disk wiped, their clock moved."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from pathlib import Path

from jepsen.cluster import ClusterError
from jepsen.nemeses.base import Attack, Nemesis

FAKETIME = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
KILL_LOOPS_MAX = 3


class Kill(Nemesis):
    """SIGKILL of a minority; started again after the fault, sometimes killed again while it starts."""

    name = "kill"

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._down: list[str] = []

    async def strike(self) -> object:
        self._down = self.attack.pick(self.rng.randint(1, 2))
        await self.cluster.kill(*self._down)
        return self._down or None

    async def mend(self) -> None:
        down, self._down = self._down, []
        for name in down:
            for _ in range(self.rng.choice((0, 0, 0, KILL_LOOPS_MAX))):
                await self.cluster.start(name)
                await asyncio.sleep(self.rng.uniform(0.05, 0.8))
                await self.cluster.kill(name)
            await self.cluster.start(name)
        self.attack.release(down)


class KillAll(Nemesis):
    """All nodes at the same moment."""

    name = "kill-all"
    seconds = (0.0, 2.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._down: list[str] = []

    async def strike(self) -> object:
        if self.attack.busy:
            return None
        self._down = list(self.cluster.running)
        self.attack.busy.update(self._down)
        await self.cluster.kill(*self._down)
        return self._down

    async def mend(self) -> None:
        down, self._down = self._down, []
        await self.cluster.start(*down)
        self.attack.release(down)
        if down:
            await self.cluster.wait_ready()


class Pause(Nemesis):
    """SIGSTOP of a minority: half to ten times an election's time-out."""

    name = "pause"
    seconds = (0.5, 10.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._paused: list[str] = []

    async def strike(self) -> object:
        self._paused = self.attack.pick(1)
        self.cluster.pause(*self._paused)
        return self._paused or None

    async def mend(self) -> None:
        paused, self._paused = self._paused, []
        self.cluster.resume(*paused)
        self.attack.release(paused)


class Restart(Nemesis):
    """A graceful rolling restart of all nodes."""

    name = "restart"
    seconds = (0.0, 0.0)

    async def strike(self) -> object:
        done = []
        for name in list(self.cluster.running):
            if self.attack.busy:
                break
            self.attack.busy.add(name)
            try:
                code = await self.cluster.stop(name)
                if code not in (0, -signal.SIGTERM):  # the signal itself ends one that has only just begun to start
                    raise ClusterError(f"{name} ended with {code} at a graceful stop")
                await self.cluster.start(name)
                await self.cluster.wait_ready()
            finally:
                self.attack.release([name])
            done.append(name)
        return done or None


class Wipe(Nemesis):
    """A node of the minority loses its disk, and comes back with an empty one, as another node under the same name."""

    name = "wipe"
    seconds = (0.5, 3.0)

    def __init__(self, attack: Attack) -> None:
        super().__init__(attack)
        self._down: list[str] = []

    async def strike(self) -> object:
        self._down = self.attack.pick(1)
        for name in self._down:
            await self.cluster.kill(name)
            shutil.rmtree(self.cluster.nodes[name].data)
        return self._down or None

    async def mend(self) -> None:
        down, self._down = self._down, []
        for name in down:
            await self._replace(name)
        self.attack.release(down)

    async def _replace(self, name: str) -> None:
        """An operator says that the old node is gone for good; then the name is free."""
        others = [other for other in self.cluster.running if other != name]
        for other in others * 10:
            status, _ = await self.cluster.ask(other, f"/v1/members/{name}", method="DELETE")
            if status in (200, 404):
                break
        await self.cluster.start(name)


class Clock(Nemesis):
    """The wall clock of a node jumps, by up to an hour either way, or ten times a second a little (strobe)."""

    name = "clock"
    seconds = (1.0, 5.0)

    async def lacking(self) -> str | None:
        return None if FAKETIME else "libfaketime is not installed (Debian: faketime)"

    def prepare(self) -> None:
        """Before the nodes are started."""
        for node in self.cluster.nodes.values():
            file = self._file(node.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("+0s")
            node.environment |= {
                "LD_PRELOAD": str(FAKETIME[0]),
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }

    def _file(self, name: str) -> Path:
        return self.cluster.folder / "clocks" / name

    async def strike(self) -> object:
        name = self.rng.choice(self.cluster.names)
        offset = self.rng.choice((-3600.0, -60.0, -2.0, -0.1, 0.1, 2.0, 60.0, 3600.0))
        if self.rng.random() < 0.3:
            until = time.monotonic() + 2.0
            while time.monotonic() < until:
                self._file(name).write_text(f"{self.rng.choice((-0.2, 0.2)):+f}s")
                await asyncio.sleep(0.1)
            return [name, "strobe"]
        self._file(name).write_text(f"{offset:+f}s")
        return [name, offset]

    async def mend(self) -> None:
        """Sometimes the clock stays wrong: nothing promises that it is ever set right."""
        for name in self.cluster.names:
            if self.rng.random() < 0.7:
                self._file(name).write_text("+0s")
