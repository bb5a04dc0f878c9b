"""Stale reads: any replica answers, but never with more than the asked age, and never from the future."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from jepsen.history import History, Operation
from jepsen.recorder import Answer, Op
from jepsen.workloads.base import Judgement, Workload
from kvstore.client import Client

KEYS = 4
STALENESS_SECONDS = (0.5, 1.0, 3.0)


class Stale(Workload):
    """Each write of a key is a larger number; a read says how old its answer may be."""

    name = "stale"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._count = 0

    def next(self) -> Op:
        key = self.rng.randrange(KEYS)
        if self.rng.random() < 0.3:
            self._count += 1
            return Op("write", key, self._count)
        return Op("read", key, self.rng.choice(STALENESS_SECONDS))

    async def apply(self, client: Client, op: Op) -> Answer:
        name = f"stale/{op.key}"
        if op.f == "write":
            await client.put(name, str(op.value))
            return op.value
        answer = await client.get_stale(name, max_staleness=op.value)
        value = 0 if answer.record is None else int(answer.record.value)
        revision = 0 if answer.record is None else answer.record.mod_revision
        return [value, revision, answer.age_seconds]

    def final(self) -> Sequence[Op]:
        return [Op("read", key, max(STALENESS_SECONDS)) for key in range(KEYS)]

    def judge(self, history: History) -> Judgement:
        """By the clock of this process, in which all clients run."""
        lines: list[str] = []
        reads = [one for one in history.operations if one.f == "read" and one.known]
        for key in range(KEYS):
            writes = [one for one in history.operations if one.f == "write" and one.key == key]
            lines += _judge_key([read for read in reads if read.key == key], writes)
        return Judgement(not lines, lines, {"reads": len(reads)})


def _judge_key(reads: Sequence[Operation], writes: Sequence[Operation]) -> list[str]:
    """Concurrent writes may be done in another order than they are numbered in, so only a write that began after
    another one had returned is newer for certain."""
    lines = []
    by_value = {write.input: write for write in writes}
    for read in reads:
        assert isinstance(read.output, tuple)
        assert isinstance(read.input, float | int)
        assert read.call_ns is not None
        value, _, age = read.output
        took = (read.ret_ns or read.call_ns) - read.call_ns
        if age > read.input + took / 1e9:  # a round that began after the call is fresh enough, however long it took
            lines.append(f"the read of line {read.line} says itself that it is {age} s old")
        seen = by_value.get(value)
        if value and seen is None:
            lines.append(f"the read of line {read.line} has a value that nobody wrote: {value}")
            continue
        oldest_ns = read.call_ns - int(read.input * 1e9)
        for write in writes:
            if not write.known or write.ret_ns is None or write.ret_ns > oldest_ns:
                continue
            if seen is None or (seen.known and seen.ret < write.call):
                lines.append(f"the read of line {read.line} is older than {read.input} s: it misses {write.input}")
                break
    lines += _backwards(reads)
    return lines


def _backwards(reads: Sequence[Operation]) -> list[str]:
    """A revision has one value."""
    values: dict[int, int] = {}
    lines = []
    for read in reads:
        assert isinstance(read.output, tuple)
        value, revision, _ = read.output
        if values.setdefault(revision, value) != value:
            lines.append(f"revision {revision} has the values {values[revision]} and {value}")
    for one, other in pairwise(sorted(values.items())):
        if one[1] == other[1] and one[1]:
            lines.append(f"the value {one[1]} was written at revisions {one[0]} and {other[0]}")
    return lines
