"""One seed: a cluster is founded, attacked while clients work, healed; it must go on; what clients saw is judged.

Invariant: a run is good only if the history is valid, no node ended by itself, nothing raised where nobody listens, and
    the healed cluster answers everything that is asked last within PROGRESS_SECONDS_MAX.
"""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from jepsen.formats import jsonl
from jepsen.history import History, pair
from jepsen.recorder import Recorder
from jepsen.sim.cluster import SimCluster, SimulationError
from jepsen.sim.faults import FAULTS, Fault
from jepsen.sim.loop import NothingToWaitFor, VirtualLoop
from jepsen.sim.swarm import Swarm
from jepsen.workloads import WORKLOADS
from jepsen.workloads.base import Workload

CALL_SECONDS_MAX = 3.0
SETUP_SECONDS_MAX = 60.0
PROGRESS_SECONDS_MAX = 60.0
MEND_SECONDS_MAX = 120.0
COMPLAINTS_SHOWN_MAX = 5


@dataclass(slots=True)
class Result:
    """`valid` None: not known. `problems` tell a person what is wrong."""

    seed: int
    valid: bool | None
    operations: int
    faults: int
    seconds: float  # of the simulated time
    wall_seconds: float
    problems: list[str] = field(default_factory=list)
    histories: dict[str, bytes] = field(default_factory=dict)


class Simulation:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._loop = VirtualLoop()
        self._workloads = {name: WORKLOADS[name](self._rng(f"workload {name}")) for name in swarm.workloads}
        self._files = {name: io.BytesIO() for name in swarm.workloads}
        self._recorders = {name: self._recorder(name, one) for name, one in self._workloads.items()}
        self._problems: list[str] = []
        self._stop = asyncio.Event()
        self._at_work: list[Fault] = []
        self._faults = 0

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self._swarm.seed} {what}")

    def _recorder(self, name: str, workload: Workload) -> Recorder:
        header: dict[str, object] = {"workload": name, "seed": self._swarm.seed, "nodes": self._swarm.nodes}
        if workload.model is not None:
            header["model"] = workload.model
        return Recorder(self._files[name], clock=lambda: round(self._loop.time() * 1e9), **header)

    def run(self) -> Result:
        """Raises nothing that the store does: that is in the result."""
        began, wall = self._loop.time(), time.perf_counter()
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # what nodes have to say would be most of the work
        gc.disable()  # a collection would run `finally` clauses at a moment of its own choice
        try:
            self._loop.run_until_complete(self._phases())
        except SimulationError as error:
            self._problems.append(str(error))
        except NothingToWaitFor:
            self._problems.append("everybody waits for ever")
        finally:
            seconds = self._loop.time() - began
            self._problems += [_told(one) for one in self._loop.complaints[:COMPLAINTS_SHOWN_MAX]]
            histories = {name: file.getvalue() for name, file in self._files.items()}
            self._loop.end()
            gc.enable()
            logging.disable(level)
        valid = self._judge(histories)
        operations = sum(sum(recorder.counts.values()) for recorder in self._recorders.values())
        spent = time.perf_counter() - wall
        return Result(self._swarm.seed, valid, operations, self._faults, seconds, spent, self._problems, histories)

    # -- the phases ------------------------------------------------------------------------------------------------

    async def _phases(self) -> None:
        cluster = SimCluster(self._loop, self._swarm, self._rng("cluster"))
        await cluster.begin()
        for name, workload in self._workloads.items():
            async with cluster.client(self._rng(f"setup {name}"), timeout=SETUP_SECONDS_MAX) as client:
                await workload.setup(client)
        loop = asyncio.get_running_loop()
        clients = [
            loop.create_task(self._client(cluster, name, number))
            for name in self._swarm.workloads
            for number in range(self._swarm.clients)
        ]
        strikes = [loop.create_task(one) for one in self._slots(cluster)]
        try:
            await asyncio.sleep(self._swarm.fault_seconds)
            self._stop.set()
            await self._until_done([*strikes, *clients])
        finally:
            for task in (*strikes, *clients):
                task.cancel()
            await asyncio.gather(*strikes, *clients, return_exceptions=True)
        assert cluster.network.whole, "a cut is left"
        cluster.start(*cluster.names)
        await cluster.wait_started()
        for name, workload in self._workloads.items():
            await self._final(cluster, workload, self._recorders[name])
        cluster.check()

    async def _until_done(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        done, late = await asyncio.wait(tasks, timeout=MEND_SECONDS_MAX)
        for task in tasks:
            if task in done:
                task.result()
        if late:
            raise SimulationError(f"{len(late)} clients or faults do not come to their end")

    async def _client(self, cluster: SimCluster, name: str, number: int) -> None:
        """One operation after the other, until the attack is over."""
        workload, recorder, swarm = self._workloads[name], self._recorders[name], self._swarm
        process = recorder.process()
        rng = self._rng(f"client {name} {number}")
        pause = swarm.clients / swarm.rate
        async with cluster.client(rng, timeout=CALL_SECONDS_MAX) as client:
            while not self._stop.is_set():
                process = await recorder.run(process, workload.next(), lambda op: workload.apply(client, op))
                await asyncio.sleep(pause * rng.uniform(0.0, 2.0))

    def _slots(self, cluster: SimCluster) -> list[Coroutine[Any, Any, None]]:
        busy: dict[str, None] = {}
        faults = [FAULTS[name](cluster, self._rng(f"fault {name}"), busy) for name in self._swarm.nemeses]
        return [self._slot(number, faults) for number in range(min(self._swarm.faults_at_once, len(faults)))]

    async def _slot(self, number: int, faults: Sequence[Fault]) -> None:
        """One fault after the other; each is mended, the last, too."""
        rng = self._rng(f"slot {number}")
        while True:
            await self._pause(rng.uniform(*self._swarm.pause_seconds))
            if self._stop.is_set():
                return
            free = [one for one in faults if one not in self._at_work]
            if not free:
                continue
            fault = rng.choice(free)
            self._at_work.append(fault)
            what = await fault.strike()
            if what is not None:
                self._tell(fault.name, begin=True, value=what)
                await self._pause(fault.rng.uniform(*fault.seconds))
            await fault.mend()
            if what is not None:
                self._tell(fault.name, begin=False)
            self._at_work.remove(fault)

    def _tell(self, name: str, *, begin: bool, value: object = None) -> None:
        self._faults += begin
        for recorder in self._recorders.values():
            recorder.fault("nemesis", name, begin=begin, value=value)

    async def _pause(self, seconds: float) -> None:
        """Shorter when the attack ends."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _final(self, cluster: SimCluster, workload: Workload, recorder: Recorder) -> None:
        """Whatever is asked last is answered: the cluster is whole."""
        loop = asyncio.get_running_loop()
        process = recorder.process()
        ops = workload.final()
        deadline = loop.time() + PROGRESS_SECONDS_MAX
        async with cluster.client(self._rng(f"final {workload.name}"), timeout=CALL_SECONDS_MAX) as client:
            for op in ops:
                before = recorder.counts[op.f, "ok"]
                while recorder.counts[op.f, "ok"] == before:
                    if loop.time() > deadline:
                        raise SimulationError(f"no answer in a whole cluster: the last {op.f} of {workload.name}")
                    process = await recorder.run(process, op, lambda op: workload.apply(client, op))

    def _judge(self, histories: dict[str, bytes]) -> bool | None:
        valid: bool | None = not self._problems
        for name, workload in self._workloads.items():
            history = _history(histories[name])
            judgement = workload.judge(history)
            if judgement.valid is not True:
                self._problems += [f"{name}: {line}" for line in judgement.lines or ["the history is not valid"]]
                valid = None if valid and judgement.valid is None else False
            elif not any(kind == "ok" for _, kind in self._recorders[name].counts):
                self._problems.append(f"no operation of {name} was answered")
                valid = False
        return valid


def _history(data: bytes) -> History:
    reader = jsonl.Reader()
    history = pair(reader.events(data.splitlines(keepends=True)))
    history.meta = {"format": "jsonl", **reader.meta}
    return history


def _told(complaint: dict[str, object]) -> str:
    return f"{complaint.get('message')}: {complaint.get('exception')!r}"
