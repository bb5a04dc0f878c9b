"""One run: a cluster, clients, nemeses, healing, a last look, verdicts.

Phases: start, set up, attack for the time given, mend everything and demand that the cluster recovers, read everything
a last time, judge. Each workload has clients and a history of its own; the faults are written into all of them.

Invariant: a run is good only if every history is judged valid, the cluster recovered, no node ended by itself, and
    every workload had operations that were answered: a run in which nothing happened shows nothing.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from jepsen import formats, outages, run_report
from jepsen.cluster import Cluster, ClusterError
from jepsen.machine import Machine
from jepsen.nemeses import NEMESES
from jepsen.nemeses.base import Attack, Nemesis
from jepsen.outcome import Options, Outcome
from jepsen.recorder import Recorder
from jepsen.workloads import WORKLOADS
from jepsen.workloads.base import Workload
from jepsen.workloads.idempotence import Idempotence

CALL_SECONDS_MAX = 3.0
RECOVERY_SECONDS_MAX = 60.0
MEND_SECONDS_MAX = 90.0
FINAL_ATTEMPTS = 20
PROGRESS_SECONDS = 5.0
PAUSE_SECONDS = (0.2, 4.0)
"""Between one fault and the next that takes its place."""


class Run:
    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._cluster = Cluster(
            options.out, options.nodes, rng=random.Random(f"{options.seed} network"), flags=options.flags
        )
        self._machine = Machine(self._cluster)
        self._attack = Attack(self._cluster, self._machine, random.Random(f"{options.seed} attack"))
        self._workloads = {name: WORKLOADS[name](random.Random(f"{options.seed} {name}")) for name in options.workloads}
        self._recorders = {name: self._recorder(name, one) for name, one in self._workloads.items()}
        self._stopped = asyncio.Event()
        self._at_work: list[Nemesis] = []
        self._outcome = Outcome(None, {})

    def _recorder(self, name: str, workload: Workload) -> Recorder:
        header: dict[str, Any] = {"workload": name, "seed": self._options.seed, "nodes": self._options.nodes}
        if workload.model is not None:
            header["model"] = workload.model
        return Recorder(self.history_of(name), **header)

    def history_of(self, name: str) -> Path:
        return self._options.out / f"{name}.jsonl"

    async def run(self) -> Outcome:
        """Raises nothing that the cluster does: that is in the outcome."""
        try:
            nemeses = await asyncio.to_thread(self._nemeses)
            async with self._cluster:
                await self._attacked(nemeses)
        except ClusterError as error:
            self._outcome.problems.append(str(error))
        except ExceptionGroup as group:
            failed, rest = group.split(ClusterError)
            if failed is None or rest is not None:
                raise
            self._outcome.problems.append("; ".join(map(str, leaves(failed))))
        finally:
            for recorder in self._recorders.values():
                recorder.close()
            self._machine.close()
        self._judge()
        if self._outcome.valid:
            self._clean()
        return self._outcome

    def _nemeses(self) -> list[Nemesis]:
        """Those that this machine can have, prepared."""
        chosen = []
        for name in self._options.nemeses:
            nemesis = NEMESES[name](self._attack.of(random.Random(f"{self._options.seed} {name}")))
            lacking = nemesis.lacking() or nemesis.prepare()
            if lacking is not None:
                self._outcome.skipped[name] = lacking
                self._say(f"nemesis {name} is skipped: {lacking}")
            else:
                chosen.append(nemesis)
        return chosen

    # -- the phases ------------------------------------------------------------------------------------------------

    async def _attacked(self, nemeses: Sequence[Nemesis]) -> None:
        async with AsyncExitStack() as stack:
            for name, workload in self._workloads.items():
                if isinstance(workload, Idempotence):
                    workload.endpoints = self._cluster.endpoints
                    stack.push_async_callback(workload.close)
                async with self._cluster.client(timeout=30.0) as client:
                    await workload.setup(client)
                self._say(f"workload {name} begins with {self._options.clients} clients")
            async with asyncio.TaskGroup() as group:
                for name, workload in self._workloads.items():
                    for _ in range(self._options.clients):
                        group.create_task(self._client(workload, self._recorders[name]))
                slots = min(self._options.faults_at_once, len(nemeses))
                strikes = [group.create_task(self._slot(number, nemeses)) for number in range(slots)]
                progress = group.create_task(self._progress())
                await asyncio.sleep(self._options.seconds)
                self._stopped.set()
                await self._wait_mended(strikes)
                progress.cancel()
            await self._recover()
            for name, workload in self._workloads.items():
                await self._final(workload, self._recorders[name])

    async def _client(self, workload: Workload, recorder: Recorder) -> None:
        """One operation after the other, until the attack is over."""
        options = self._options
        process = recorder.process()
        pause = options.clients / options.rate
        rng = random.Random(f"{options.seed} {workload.name} {process}")
        async with self._cluster.client(timeout=CALL_SECONDS_MAX, rng=rng) as client:
            while not self._stopped.is_set():
                process = await recorder.run(process, workload.next(), lambda op: workload.apply(client, op))
                await asyncio.sleep(pause * rng.uniform(0.0, 2.0))

    async def _slot(self, number: int, nemeses: Sequence[Nemesis]) -> None:
        """One fault after the other, of one nemesis or another that is not at work; each is mended, the last, too."""
        rng = random.Random(f"{self._options.seed} slot {number}")
        while not self._stopped.is_set():
            nemesis = rng.choice([one for one in nemeses if one not in self._at_work] or [None])
            await self._pause(rng.uniform(*PAUSE_SECONDS))
            if self._stopped.is_set():
                return
            if nemesis is not None and nemesis not in self._at_work:
                self._at_work.append(nemesis)
                try:
                    await self._strike(nemesis)
                finally:
                    self._at_work.remove(nemesis)

    async def _strike(self, nemesis: Nemesis) -> None:
        what = None
        try:
            what = await nemesis.strike()
            if what is not None:
                self._tell(nemesis.name, begin=True, value=what)
                await self._pause(nemesis.rng.uniform(*nemesis.seconds))
        finally:
            await nemesis.mend()
        if what is not None:
            self._tell(nemesis.name, begin=False)

    def _tell(self, name: str, *, begin: bool, value: object = None) -> None:
        for recorder in self._recorders.values():
            recorder.fault("nemesis", name, begin=begin, value=value)
        if begin:
            self._outcome.faults[name] = self._outcome.faults.get(name, 0) + 1

    async def _pause(self, seconds: float) -> None:
        """Shorter when the attack ends."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            pass

    async def _wait_mended(self, strikes: Sequence[asyncio.Task[None]]) -> None:
        if strikes:
            _, late = await asyncio.wait(strikes, timeout=MEND_SECONDS_MAX)
            if late:
                names = ", ".join(nemesis.name for nemesis in self._at_work)
                raise ClusterError(f"not mended within {MEND_SECONDS_MAX:.0f} s: {names}")

    async def _recover(self) -> None:
        self._cluster.switch.heal()
        crashed = self._cluster.crashed()
        if crashed:
            raise ClusterError("a node has ended by itself: " + "; ".join(crashed))
        self._outcome.recovery_seconds = await self._cluster.wait_ready(seconds=RECOVERY_SECONDS_MAX)
        self._say(f"all faults are mended; every node is ready after {self._outcome.recovery_seconds:.1f} s")

    async def _final(self, workload: Workload, recorder: Recorder) -> None:
        """Each last read must be answered: the cluster is whole."""
        process = recorder.process()
        async with self._cluster.client(timeout=CALL_SECONDS_MAX) as client:
            for op in workload.final():
                for _ in range(FINAL_ATTEMPTS):
                    before = recorder.counts[op.f, "ok"]
                    process = await recorder.run(process, op, lambda op: workload.apply(client, op))
                    if recorder.counts[op.f, "ok"] > before:
                        break
                else:
                    raise ClusterError(f"the last {op.f} of {workload.name} is not answered in a whole cluster")

    # -- telling and judging ---------------------------------------------------------------------------------------

    async def _progress(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            counts = {kind: self._count(kind) for kind in ("ok", "fail", "info")}
            faults = sum(self._outcome.faults.values())
            self._say(
                f"{time.monotonic() - began:5.0f} s  {counts['ok']} answered, {counts['fail']} refused, "
                f"{counts['info']} unknown, {faults} faults"
            )

    def _count(self, kind: str) -> int:
        return sum(
            count
            for recorder in self._recorders.values()
            for (_, outcome), count in recorder.counts.items()
            if outcome == kind
        )

    def _clean(self) -> None:
        """What nobody will look at: the nodes' data."""
        for folder in ("data", "disks", "preload"):
            shutil.rmtree(self._options.out / folder, ignore_errors=True)

    def _judge(self) -> None:
        outcome = self._outcome
        outcome.operations = sum(sum(recorder.counts.values()) for recorder in self._recorders.values())
        outcome.errors = self._cluster.errors()
        broken = bool(outcome.problems)
        histories = {name: formats.read(self.history_of(name), "jsonl") for name in self._workloads}
        outcome.outages = outages.find(histories.values())
        for name, workload in self._workloads.items():
            counts = self._recorders[name].counts
            outcome.counts[name] = {f"{f} {kind}": count for (f, kind), count in sorted(counts.items())}
            outcome.judgements[name] = workload.judge(histories[name])
            if not broken and not any(kind == "ok" and count for (_, kind), count in counts.items()):
                outcome.problems.append(f"no operation of {name} was answered")
        outcome.settle()
        run_report.write(self._options, outcome, histories)


def leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    """The exceptions themselves, however they are nested."""
    return [leaf for one in group.exceptions for leaf in (leaves(one) if isinstance(one, ExceptionGroup) else [one])]
