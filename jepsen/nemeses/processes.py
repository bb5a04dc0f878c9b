"""Faults of processes: killed, paused, stopped, their wall clock moved."""

from __future__ import annotations

import asyncio
import signal
import time

from jepsen import preload
from jepsen.cluster import ClusterError
from jepsen.nemeses.base import Attack, Nemesis

KILL_LOOPS_MAX = 3
STROBE_SECONDS = 2.0


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
        self._down = self.attack.pick_all(list(self.cluster.running))
        await self.cluster.kill(*self._down)
        return self._down or None

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


class Clock(Nemesis):
    """The wall clock of a node jumps by up to an hour either way, runs fast or slow, or jumps to and fro (strobe)."""

    name = "clock"
    seconds = (1.0, 6.0)

    def lacking(self) -> str | None:
        return preload.lacking()

    def prepare(self) -> str | None:
        return self.attack.machine.want_preload()

    async def strike(self) -> object:
        clocks = self.attack.machine.preload
        name = self.rng.choice(clocks.nodes)
        how = self.rng.choice(("jump", "jump", "drift", "strobe"))
        if how == "jump":
            offset = self.rng.choice((-3600.0, -60.0, -2.0, -0.1, 0.1, 2.0, 60.0, 3600.0))
            clocks.set(name, "clock_offset", offset)
            return [name, how, offset]
        if how == "drift":
            drift = self.rng.choice((-0.5, -0.05, 0.05, 0.5, 5.0))
            clocks.set(name, "drift_from", time.time())
            clocks.set(name, "clock_drift", drift)
            return [name, how, drift]
        until = time.monotonic() + STROBE_SECONDS
        while time.monotonic() < until:
            clocks.set(name, "clock_offset", self.rng.choice((-0.2, 0.2)))
            await asyncio.sleep(self.rng.uniform(0.001, 0.05))
        return [name, how]

    async def mend(self) -> None:
        """A jump sometimes stays: nothing promises that a clock is ever set right."""
        clocks = self.attack.machine.preload
        for name in clocks.nodes:
            clocks.set(name, "clock_drift", 0.0)
            if self.rng.random() < 0.7:
                clocks.set(name, "clock_offset", 0.0)
