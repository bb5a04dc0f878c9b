"""Registers with compare-and-set: the plainest question to a store that claims to be linearizable."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jepsen.recorder import Answer, Op, Refused
from jepsen.workloads.base import Workload
from kvstore.base.errors import Conflict
from kvstore.client import Client

KEYS_AT_ONCE = 6
OPERATIONS_PER_KEY = 150
"""Then another key takes its place: a search over one key's operations grows faster than their number."""
VALUES = 5


class Register(Workload):
    """read, write, delete and cas by value on a few keys at a time."""

    name = "register"
    model = "register"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._keys = list(range(KEYS_AT_ONCE))
        self._used = [0] * KEYS_AT_ONCE
        self._newest = KEYS_AT_ONCE

    def next(self) -> Op:
        place = self.rng.randrange(KEYS_AT_ONCE)
        self._used[place] += 1
        if self._used[place] > OPERATIONS_PER_KEY:
            self._keys[place], self._used[place] = self._newest, 0
            self._newest += 1
        key = self._keys[place]
        kind = self.rng.choices(("read", "write", "cas", "delete"), (45, 30, 20, 5))[0]
        if kind == "write":
            return Op("write", key, self.rng.randrange(VALUES))
        if kind == "cas":
            return Op("cas", key, [self.rng.randrange(VALUES), self.rng.randrange(VALUES)])
        return Op(kind, key)

    async def apply(self, client: Client, op: Op) -> Answer:
        key = name_of(op.key)
        if op.f == "read":
            return _number(await client.get(key))
        if op.f == "write":
            await client.put(key, str(op.value))
            return op.value
        if op.f == "delete":
            await client.delete(key)
            return None
        expected, new = op.value
        try:
            await client.cas(key, str(new), expected=str(expected))
        except Conflict as error:
            return Refused(None if error.detail is None else _number(error.detail.value))
        return op.value

    def final(self) -> Sequence[Op]:
        return [Op("read", key) for key in self._keys]


def name_of(key: int) -> str:
    """Spread over the key space, so that shards that were split share the load."""
    return f"register/{key * 2_654_435_761 % (1 << 32):08x}"


def _number(value: bytes | None) -> int | None:
    return None if value is None else int(value)
