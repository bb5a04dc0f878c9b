"""Writers that remember what was acknowledged, refused and left unknown, and check it against what the store has.

Three kinds, each a different promise:
- counters: one writer a key puts 1, 2, 3, ...: what is there is not older than the last acknowledged one;
- unique keys, written once with a short deadline: acknowledged ones are there, definitely refused ones are not;
- increments: several tasks count one key up by compare-and-set: its value is at least the acknowledged and at most the
  acknowledged and unknown increments, so none was lost and none was done twice.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Self

from kvstore.base.errors import Conflict, KVError
from kvstore.client import Client

PUT_WRITERS = 4
UNIQUE_WRITERS = 4
INCREMENTERS = 3  # of each of the two keys
INCREMENT_KEYS = 2
UNIQUE_SECONDS = 0.6  # shorter than an election: some writes are refused, some stay unknown
PATIENT_SECONDS = 20.0  # longer than any outage here: these writes are retried until they are done


@dataclass(slots=True)
class Increments:
    acknowledged: int = 0
    unknown: int = 0
    under_way: int = 0


@dataclass(slots=True)
class Told:
    """What the writers were told."""

    counters: dict[bytes, int] = field(default_factory=dict)
    acknowledged: dict[bytes, bytes] = field(default_factory=dict)  # unique keys
    refused: set[bytes] = field(default_factory=set)
    unknown: set[bytes] = field(default_factory=set)
    increments: dict[bytes, Increments] = field(default_factory=dict)
    errors: list[KVError] = field(default_factory=list)  # of the patient writers


class Load:
    """Runs from its making until `stop`, or the end of its context."""

    def __init__(self, client: Client, *, pause: float = 0.0) -> None:
        """`pause`: seconds between two writes of a writer, for a machine that does other things as well."""
        self._client = client
        self._pause = pause
        self._stopping = False
        self.told = Told()
        self.writes: list[tuple[float, float]] = []  # (begun, acknowledged), of the counters, by time.monotonic
        self._counted = asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._count(b"count-%d" % n)) for n in range(PUT_WRITERS)]
        self._tasks += [asyncio.ensure_future(self._write_unique(n)) for n in range(UNIQUE_WRITERS)]
        for n in range(INCREMENT_KEYS):
            key = b"increments-%d" % n
            self.told.increments[key] = Increments()
            self._tasks += [asyncio.ensure_future(self._increment(key)) for _ in range(INCREMENTERS)]

    async def _count(self, key: bytes) -> None:
        number = 0
        while not self._stopping:
            number += 1
            began = time.monotonic()
            try:
                await self._client.put(key, b"%d" % number, timeout=PATIENT_SECONDS)
                self.told.counters[key] = number
                self.writes.append((began, time.monotonic()))
                self._counted.set()
            except KVError as error:
                self.told.errors.append(error)
            await asyncio.sleep(self._pause)

    async def _write_unique(self, writer: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            key = b"unique-%d-%06d" % (writer, number)
            try:
                await self._client.put(key, key * 4, timeout=UNIQUE_SECONDS)
                self.told.acknowledged[key] = key * 4
            except KVError as error:
                (self.told.refused if error.definite else self.told.unknown).add(key)
            await asyncio.sleep(self._pause)

    async def _increment(self, key: bytes) -> None:
        told = self.told.increments[key]
        while not self._stopping:
            try:
                known = await self._client.get(key, timeout=PATIENT_SECONDS)
            except KVError as error:
                self.told.errors.append(error)
                continue
            told.under_way += 1
            try:
                following = b"%d" % (int(known or b"0") + 1)
                if known is None:
                    await self._client.cas(key, following, absent=True, timeout=PATIENT_SECONDS)
                else:
                    await self._client.cas(key, following, expected=known, timeout=PATIENT_SECONDS)
                told.acknowledged += 1
            except Conflict:
                pass  # another task was quicker
            except KVError as error:
                self.told.errors.append(error)
                told.unknown += not error.definite
            finally:
                told.under_way -= 1
            await asyncio.sleep(self._pause)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The writers end in any case: by themselves where all is well."""
        if kind is None:
            await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def accepted_after(self, moment: float) -> float | None:
        """Seconds from `moment` (time.monotonic) to the acknowledgement of a write begun after it."""
        ends = [ended for began, ended in reversed(self.writes) if began >= moment]
        return min(ends) - moment if ends else None

    async def accepted(self, moment: float, *, seconds: float) -> float:
        """Waits for that. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while (found := self.accepted_after(moment)) is None:
                self._counted.clear()
                await self._counted.wait()
        return found

    async def check(self) -> None:
        """Against linearizable reads; the writers may run meanwhile."""
        kv = self._client
        for key, least in list(self.told.counters.items()):
            value = await kv.get(key, timeout=PATIENT_SECONDS)
            assert value is not None, key
            assert int(value) >= least, (key, value, least)
        for key, told in self.told.increments.items():
            before = told.acknowledged
            count = int(await kv.get(key, timeout=PATIENT_SECONDS) or b"0")
            assert before <= count, (key, count, told)
            assert count <= told.acknowledged + told.unknown + told.under_way, (key, count, told)
        acknowledged = dict(self.told.acknowledged)
        refused = sorted(self.told.refused)
        found = {item.key: item.value async for item in kv.scan(prefix=b"unique-", timeout=PATIENT_SECONDS)}
        lost = [key for key, value in acknowledged.items() if found.get(key) != value]
        assert not lost, f"{len(lost)} acknowledged writes are lost: {lost[:5]}"
        risen = [key for key in refused if key in found]
        assert not risen, f"{len(risen)} refused writes are there: {risen[:5]}"

    def summary(self) -> str:
        told = self.told
        counted = sum(told.counters.values())
        added = sum(one.acknowledged for one in told.increments.values())
        unknown = len(told.unknown) + sum(one.unknown for one in told.increments.values())
        return (
            f"acknowledged {counted} puts, {len(told.acknowledged)} unique keys, {added} increments; "
            f"refused {len(told.refused)}, unknown {unknown}"
        )
