"""The load of `kvctl bench`: N concurrent callers in one event loop, each with one operation under way at a time.

It is a closed loop: a caller asks again when it has its answer, so a stall of the store shows as few long latencies
and a dip in the rate, not as a queue (docs/benchmarks.md says how to read that).

Invariant: an operation is counted in the interval in which it ended; its latency runs from just before the call to just
           after the answer, and is recorded only for operations that succeeded.
Invariant: callers share one client, so that their operations travel in shared frames, as those of a real service do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.base.errors import KVError
from kvstore.cli.histogram import Histogram
from kvstore.cli.workloads import Kind, Operation, Plan

if TYPE_CHECKING:
    from kvstore.client import Client

VALUES = 64  # different values in rotation: the store can't profit from equal ones
ERROR_PAUSE_SECONDS = 0.01  # a caller that is refused at once must not spin


@dataclass(slots=True)
class Tally:
    """What happened in one interval. `begun` and `ended` are of time.perf_counter, seconds."""

    latencies: dict[Kind, Histogram] = field(default_factory=lambda: {kind: Histogram() for kind in Kind})
    errors: Counter[str] = field(default_factory=Counter)
    begun: float = 0.0
    ended: float = 0.0

    @property
    def operations(self) -> int:
        return sum(histogram.count for histogram in self.latencies.values())

    @property
    def seconds(self) -> float:
        return max(self.ended - self.begun, 1e-9)

    def together(self) -> Histogram:
        """All kinds in one histogram."""
        whole = Histogram()
        for histogram in self.latencies.values():
            if histogram.count:
                whole.add(histogram)
        return whole


class Load:
    """Runs a plan with `clients` callers until `stop` is called."""

    def __init__(self, client: Client, plan: Plan, *, clients: int, value_size: int, rng: random.Random) -> None:
        self._client = client
        self._operations = plan.operations()
        self._clients = clients
        self._values = [rng.randbytes(value_size) for _ in range(VALUES)]
        self._running = True
        self.tally = Tally()

    def begin_interval(self) -> Tally:
        """Count anew from here; gives what was counted until now."""
        old, now = self.tally, time.perf_counter()
        old.ended = now
        self.tally = Tally(begun=now)
        return old

    def stop(self) -> None:
        self._running = False

    async def run(self) -> None:
        """Ends when every caller has its last answer. An error that is not the store's ends it at once."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._caller(number))

    async def _caller(self, number: int) -> None:
        clock, following, act = time.perf_counter_ns, self._operations.__next__, self._actions()
        while self._running:
            operation = following()
            kind = operation[0]
            begun = clock()
            try:
                await act[kind](operation)
            except KVError as error:
                self.tally.errors[error.code.name] += 1
                await asyncio.sleep(ERROR_PAUSE_SECONDS)
            else:
                self.tally.latencies[kind].record(clock() - begun)

    def _actions(self) -> tuple[Callable[[Operation], Awaitable[object]], ...]:
        """By kind, in the order of `Kind`."""
        client, values = self._client, self._values

        def read(operation: Operation) -> Awaitable[object]:
            return client.get(operation[1])

        def write(operation: Operation) -> Awaitable[object]:
            key = operation[1]
            return client.put(key, values[key[-1] % VALUES])

        async def scan(operation: Operation) -> None:
            async for _ in client.scan(start=operation[1], limit=operation[2]):
                pass

        async def read_modify_write(operation: Operation) -> None:
            await client.get(operation[1])
            await write(operation)

        actions = {
            Kind.READ: read,
            Kind.UPDATE: write,
            Kind.INSERT: write,
            Kind.SCAN: scan,
            Kind.READ_MODIFY_WRITE: read_modify_write,
        }
        return tuple(actions[kind] for kind in Kind)
