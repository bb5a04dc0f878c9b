"""The applied and not yet flushed part of the state: the latest record of each key, or a tombstone (None).

A dict answers reads; order is kept beside it and cheaply: new keys go to an unsorted tail, a full tail becomes a sorted
run, runs of like size are merged up to RUN_KEYS_MAX. So a put costs a dict's put and a little, no single step sorts
more than RUN_KEYS_MAX keys, and a page of a scan looks into a few runs (about 17 at 200,000 keys).

Invariant: every key of `data` is in exactly one run, or in the tail, or in more than one after `forget_range` and a
           new put: whoever walks the order skips keys that `data` lacks and repeats.
Invariant: after `seal` nothing here changes any more but by `forget_range` (loop) or `dismantle` (writer thread).
Called by: tables, flush jobs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from kvstore.storage.protocol import Record

TAIL_KEYS_MAX = 512
RUN_KEYS_MAX = 16_384  # merging two halves of it takes about 0.5 ms
ENTRY_OVERHEAD_BYTES = 250  # of Python's objects and the dict's slot for one key; measured, rounded up
DISMANTLE_STEP = 256


class MemTable:
    __slots__ = ("_tail", "_tail_sorted", "bytes", "commands", "data", "runs")

    def __init__(self) -> None:
        self.data: dict[bytes, Record | None] = {}
        self.runs: list[list[bytes]] = []
        self.bytes = 0  # keys, values and overhead
        self.commands = 0  # puts and deletes taken since the table is new
        self._tail: list[bytes] = []
        self._tail_sorted = True

    def put(self, key: bytes, record: Record | None) -> None:
        """`record` None is a tombstone: it hides what lies below."""
        data = self.data
        keys_before = len(data)
        old = data.get(key)
        data[key] = record
        self.commands += 1
        if len(data) != keys_before:
            self.bytes += len(key) + ENTRY_OVERHEAD_BYTES
            tail = self._tail
            tail.append(key)
            self._tail_sorted = False
            if len(tail) >= TAIL_KEYS_MAX:
                self._seal_tail()
        elif old is not None:
            self.bytes -= len(old.value)
        if record is not None:
            self.bytes += len(record.value)

    def seal(self) -> None:
        """No put follows: sort what is left."""
        if self._tail:
            self._seal_tail()

    def _seal_tail(self) -> None:
        run, self._tail = self._tail, []
        if not self._tail_sorted:
            run.sort()
            self._tail_sorted = True
        runs = self.runs
        # Like a binary counter: equal sizes merge, so a key is merged about log2(RUN_KEYS_MAX / TAIL_KEYS_MAX) times.
        while runs and len(runs[-1]) <= len(run) and len(runs[-1]) + len(run) <= RUN_KEYS_MAX:
            run = runs.pop() + run
            run.sort()  # timsort finds the two runs and merges them
        runs.append(run)

    def _ordered_runs(self) -> list[list[bytes]]:
        if not self._tail:
            return self.runs
        if not self._tail_sorted:
            self._tail.sort()
            self._tail_sorted = True
        return [*self.runs, self._tail]

    def window(self, start: bytes, end: bytes, *, count: int, reverse: bool) -> tuple[list[bytes], bool]:
        """The first (in reverse: last) `count` keys of [start, end), ascending; and whether that is all of them."""
        found: list[bytes] = []
        for run in self._ordered_runs():
            low = bisect_left(run, start)
            high = bisect_left(run, end, low)
            if high - low > count:
                if reverse:
                    low = high - count
                else:
                    high = low + count
            found += run[low:high]
        found.sort()
        if len(found) < count:
            return found, True
        # A run that was cut has given `count` keys, so what it still holds lies behind the `count` nearest of all.
        return (found[-count:] if reverse else found[:count]), False

    def forget_range(self, start: bytes, end: bytes) -> None:
        """Drop what was put into [start, end), as if it had never been: not even tombstones stay."""
        data = self.data
        for run in self._ordered_runs():
            for key in run[bisect_left(run, start) : bisect_left(run, end)]:
                if key in data:
                    record = data.pop(key)
                    self.bytes -= len(key) + ENTRY_OVERHEAD_BYTES + (len(record.value) if record is not None else 0)

    def ordered_chunks(self, count: int) -> Iterator[list[bytes]]:
        """All keys ascending in lists of about `count` (never more than count + number of runs); sealed tables only.

        Each step merges a slice of every run up to a pivot, so no step holds the GIL for the whole table.
        """
        assert not self._tail
        runs = [run for run in self.runs if run]
        places = [0] * len(runs)
        while runs:
            step = max(1, count // len(runs))
            heads = [run[at + step - 1] for run, at in zip(runs, places, strict=True) if at + step <= len(run)]
            pivot = min(heads) if heads else max(run[-1] for run in runs)
            chunk: list[bytes] = []
            for number, run in enumerate(runs):
                upto = bisect_right(run, pivot, places[number])
                chunk += run[places[number] : upto]
                places[number] = upto
            chunk.sort()
            yield chunk
            left = [number for number, run in enumerate(runs) if places[number] < len(run)]
            runs, places = [runs[number] for number in left], [places[number] for number in left]

    def dismantle(self) -> Iterator[None]:
        """Give the memory back in small steps; freeing 200,000 records at once would stall the loop for 20 ms."""
        data = self.data
        while data:
            for _ in range(min(DISMANTLE_STEP, len(data))):
                data.popitem()
            yield
        while self.runs:
            self.runs.pop()
            yield
