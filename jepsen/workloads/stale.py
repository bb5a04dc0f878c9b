"""Stale reads: any replica answers, but never with more than the asked age, and never from the future."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from jepsen.history import History, Operation
from jepsen.recorder import Answer, Op
from jepsen.workloads.base import Complaint, Judgement, Workload
from kvstore.client import Client

KEYS = 4
STALENESS_SECONDS = (0.5, 1.0, 3.0)


class Stale(Workload):
    """Each write of a key is a larger number; a read says how old its answer may be."""

    name = "stale"
    promise = "no older than was asked for"

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
        complaints: list[Complaint] = []
        reads = [one for one in history.operations if one.f == "read" and one.known]
        for key in range(KEYS):
            writes = [one for one in history.operations if one.f == "write" and one.key == key]
            complaints += _judge_key([read for read in reads if read.key == key], writes)
        return self.told(history, complaints, {"reads": len(reads)})


def _judge_key(reads: Sequence[Operation], writes: Sequence[Operation]) -> list[Complaint]:
    """Concurrent writes may be done in another order than they are numbered in, so only a write that began after
    another one had returned is newer for certain."""
    complaints = []
    by_value = {write.input: write for write in writes}
    for read in reads:
        assert isinstance(read.output, tuple)
        assert isinstance(read.input, float | int)
        assert read.call_ns is not None
        value, _, age = read.output
        took = (read.ret_ns or read.call_ns) - read.call_ns
        if age > read.input + took / 1e9:  # a round that began after the call is fresh enough, however long it took
            complaints.append(Complaint(f"the read of line {read.line} says itself that it is {age} s old", [read]))
        seen = by_value.get(value)
        if value and seen is None:
            complaints.append(Complaint(f"the read of line {read.line} has a value that nobody wrote: {value}", [read]))
            continue
        oldest_ns = read.call_ns - int(read.input * 1e9)
        for write in writes:
            if not write.known or write.ret_ns is None or write.ret_ns > oldest_ns:
                continue
            if seen is None or (seen.known and seen.ret < write.call):
                text = f"the read of line {read.line} is older than {read.input} s: it misses {write.input}"
                complaints.append(Complaint(text, [write, read]))
                break
    complaints += _backwards(reads)
    return complaints


def _backwards(reads: Sequence[Operation]) -> list[Complaint]:
    """A revision has one value."""
    first: dict[int, Operation] = {}  # by revision
    complaints = []
    for read in reads:
        value, revision = _answer(read)
        other = _answer(first.setdefault(revision, read))[0]
        if other != value:
            text = f"revision {revision} has the values {other} and {value}"
            complaints.append(Complaint(text, [first[revision], read]))
    by_revision = [(_answer(read)[0], revision, read) for revision, read in sorted(first.items())]
    for (value, revision, read), (later, after, reread) in pairwise(by_revision):
        if value == later and value:
            text = f"the value {value} was written at revisions {revision} and {after}"
            complaints.append(Complaint(text, [read, reread]))
    return complaints


def _answer(read: Operation) -> tuple[int, int]:
    """(value, revision)"""
    assert isinstance(read.output, tuple)
    return read.output[0], read.output[1]
