"""Objects that clients read, change and write back under the condition that nobody has changed them meanwhile.

A write-back that comes late fails without an effect; one that comes through twice, or without its condition having
held, loses or doubles somebody's change for ever: that is what these look for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from jepsen import set_check
from jepsen.history import History
from jepsen.recorder import Answer, Op
from jepsen.workloads.base import Judgement, NotDone, Workload
from kvstore.base.errors import Conflict
from kvstore.client import Client

KEYS_AT_ONCE = 4
CHANGES_PER_KEY = 120


class Growing(Workload):
    """One JSON value a key, changed by one function."""

    read = "read"
    change = "add"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._keys = list(range(KEYS_AT_ONCE))
        self._changes = [0] * KEYS_AT_ONCE
        self._newest = KEYS_AT_ONCE
        self._count = 0

    def next(self) -> Op:
        place = self.rng.randrange(KEYS_AT_ONCE)
        if self._changes[place] > CHANGES_PER_KEY:
            self._keys[place], self._changes[place] = self._newest, 0
            self._newest += 1
        if self.rng.random() < 0.4:
            return Op(self.read, self._keys[place])
        self._changes[place] += 1
        self._count += 1
        return Op(self.change, self._keys[place], self.argument(self._count))

    def argument(self, number: int) -> Any:
        """Of the change with this number."""
        return number

    def final(self) -> Sequence[Op]:
        return [Op(self.read, key) for key in range(self._newest)]

    async def update(self, client: Client, op: Op, change: Callable[[Any], Any]) -> Any:
        """The new value, once it is written on the value that it was made from. Raises KVError."""
        key = f"{self.name}/{op.key}"
        record = await client.get_record(key)
        new = change(None if record is None else orjson.loads(record.value))
        data = orjson.dumps(new)
        try:
            if record is None:
                await client.cas(key, data, absent=True)
            else:
                await client.cas(key, data, revision=record.mod_revision)
        except Conflict as error:
            raise NotDone(f"late: {error.message}") from None
        return new

    async def value(self, client: Client, op: Op) -> Any:
        data = await client.get(f"{self.name}/{op.key}")
        return None if data is None else orjson.loads(data)


class Set(Growing):
    """Elements are added and must all be there; one is never there twice."""

    name = "set"
    model = "set"

    async def apply(self, client: Client, op: Op) -> Answer:
        if op.f == self.read:
            return await self.value(client, op) or []
        await self.update(client, op, lambda elements: [*(elements or []), op.value])
        return op.value

    def judge(self, history: History) -> Judgement:
        """By an order of all operations, and by what became of each element: the counts say what went wrong."""
        judgement = super().judge(history)
        counts = set_check.count(history)
        if not counts.valid:
            judgement.valid = False  # even if the search ran out of time
            judgement.lines += list(counts.lines())[1:]
        judgement.numbers |= counts.numbers()
        return judgement


class Counter(Growing):
    """`incr` answers the sum after it."""

    name = "counter"
    model = "counter"
    change = "incr"

    def argument(self, number: int) -> Any:
        return number % 5 + 1

    async def apply(self, client: Client, op: Op) -> Answer:
        if op.f == self.read:
            return await self.value(client, op) or 0
        return await self.update(client, op, lambda total: (total or 0) + op.value)
