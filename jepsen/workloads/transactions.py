"""Transactions on lists: reads of some, appends to others, all at one moment. Judged by cycles (jepsen.list_append).

A transaction is an atomic batch: an append writes the whole list under the condition that it still has the revision at
which it was read before, a read is part of the batch. So it is done as a whole in one moment, or late and not at all.
Each group of lists is a key group, which stays in one shard for ever; different groups may lie in different shards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import orjson

from jepsen import list_append
from jepsen.history import History
from jepsen.recorder import Answer, Op
from jepsen.workloads.base import Judgement, NotDone, Workload
from kvstore.base.errors import Conflict
from kvstore.base.operations import Found
from kvstore.client import Client

GROUPS = ("append", "append-too")
LISTS_AT_ONCE = 3
"""Of each group: few, so that transactions meet."""
APPENDS_PER_LIST = 60
"""Then another list takes its place: each append writes the list as a whole."""
STEPS_MAX = 4

Step = list[Any]  # ["r", key, null or list] or ["append", key, value]


class Append(Workload):
    """A list's name is `{group}/number`; values are unique over all lists."""

    name = "append"
    model = list_append.NAME

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._lists = {group: list(range(LISTS_AT_ONCE)) for group in GROUPS}
        self._appends: dict[str, int] = {}
        self._value = 0

    def next(self) -> Op:
        group = self.rng.choice(GROUPS)
        steps = [self._step(group) for _ in range(self.rng.randint(1, STEPS_MAX))]
        return Op("txn", None, steps)

    def _step(self, group: str) -> Step:
        place = self.rng.randrange(LISTS_AT_ONCE)
        key = list_name(group, self._lists[group][place])
        if self.rng.random() < 0.5:
            return ["r", key, None]
        self._value += 1
        self._appends[key] = self._appends.get(key, 0) + 1
        if self._appends[key] >= APPENDS_PER_LIST:
            self._lists[group][place] = max(self._lists[group]) + 1
        return ["append", key, self._value]

    async def apply(self, client: Client, op: Op) -> Answer:
        """Raises KVError."""
        added: dict[str, list[Any]] = {}
        for f, key, value in op.value:
            if f == "append":
                added.setdefault(key, []).append(value)
        before = await _read(client, list(added))
        batch = client.batch()
        for key, values in added.items():
            found = before[key]
            data = orjson.dumps([*_elements(found), *values])
            if found is None:
                batch.cas(key, data, absent=True)
            else:
                batch.cas(key, data, revision=found.mod_revision)
        for key in (reads := [key for f, key, _ in op.value if f == "r"]):
            batch.get(key)
        try:
            done = await batch.commit()
        except Conflict as error:
            raise NotDone(f"late: {error.message}") from None
        seen = dict(zip(reads, map(_elements, done.results[len(added) :]), strict=True))
        return _answer(op.value, seen)

    def final(self) -> Sequence[Op]:
        """Each list that was appended to is read once more."""
        return [Op("txn", None, [["r", key, None]]) for key in sorted(self._appends)]

    def judge(self, history: History) -> Judgement:
        verdict = list_append.check(history)
        whole, examples = list_append.shown(history, verdict)
        found = [f"{anomaly.name}: {line}" for anomaly in verdict.anomalies for line in anomaly.lines]
        numbers: dict[str, object] = {
            "transactions": sum(one.known for one in history.operations),
            "lists": len(self._appends),
            "check_seconds": round(verdict.seconds, 3),
        }
        return Judgement(verdict.valid, found, numbers, whole, examples)


def _answer(steps: list[Step], seen: dict[str, list[Any]]) -> list[Step]:
    """A batch first reads, then writes: what the transaction has appended before it reads is added here."""
    own: dict[str, list[Any]] = {}
    answer: list[Step] = []
    for f, key, value in steps:
        if f == "append":
            own.setdefault(key, []).append(value)
            answer.append([f, key, value])
        else:
            answer.append([f, key, [*seen[key], *own.get(key, [])]])
    return answer


async def _read(client: Client, keys: Sequence[str]) -> dict[str, Found | None]:
    """In one step."""
    if not keys:
        return {}
    batch = client.batch()
    for key in keys:
        batch.get(key)
    done = await batch.commit()
    return {key: result if isinstance(result, Found) else None for key, result in zip(keys, done.results, strict=True)}


def _elements(found: object) -> list[Any]:
    return list(orjson.loads(found.value)) if isinstance(found, Found) else []


def list_name(group: str, number: int) -> str:
    return f"{{{group}}}/{number}"
