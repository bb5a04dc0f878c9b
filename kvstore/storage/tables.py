"""The in-memory tables before a base of flushed records, read as one: active over frozen over base.

Invariant: what a reader sees of (active, frozen, base) changes in one step of the loop: `freeze` moves active to
           frozen, `drop_frozen` happens in the same step in which the base moves on to the flushed state.
Invariant: a flush never writes over what an install or destruction, begun after its freeze, has put there:
           `forget_shard` takes the range out of both tables and remembers the shard until the next freeze.
Called by: state_store and memory_state, which add the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from kvstore.storage.memtable import MemTable
from kvstore.storage.protocol import Record, ShardChange

ABSENT = Record(b"", 0, 0, 0)  # compared by identity: "this table says nothing about the key"
_NOTHING: dict[bytes, Record | None] = {}

Raw = TypeVar("Raw")

Pairs = list[tuple[bytes, Record]]
Window = Callable[[bytes, bytes, int, int, bool], tuple[list[tuple[bytes, Raw]], bool]]
"""(start, end, count, bytes_max, reverse) -> pairs in the order asked for, and whether that is all of the range."""
Decode = Callable[[bytes, Raw], Record]


class Tables:
    def __init__(self) -> None:
        self.active = MemTable()
        self.frozen: MemTable | None = None
        self.frozen_queued = False  # the writer owns it from then on
        self._forgotten: set[int] = set()  # shards whose install or destruction began since the freeze

    @property
    def size_bytes(self) -> int:
        return self.active.bytes + (self.frozen.bytes if self.frozen is not None else 0)

    @property
    def commands(self) -> int:
        return self.active.commands + (self.frozen.commands if self.frozen is not None else 0)

    def freeze(self) -> None:
        assert self.frozen is None, "freeze while a flush is under way"
        self.active.seal()
        self.frozen = self.active
        self.active = MemTable()
        self._forgotten.clear()

    def take_frozen(self, changes: Mapping[int, ShardChange]) -> tuple[MemTable, dict[int, ShardChange]]:
        """What a flush may write: the frozen table, and the changes of shards not forgotten since the freeze."""
        assert self.frozen is not None, "write_frozen without freeze"
        assert not self.frozen_queued, "write_frozen twice"
        self.frozen_queued = True
        return self.frozen, {group: change for group, change in changes.items() if group not in self._forgotten}

    def drop_frozen(self) -> None:
        assert self.frozen_queued
        self.frozen = None
        self.frozen_queued = False

    def forget_shard(self, group: int, start: bytes, end: bytes) -> None:
        self.active.forget_range(start, end)
        if self.frozen is None:
            return
        if not self.frozen_queued:
            # Queued, it is written before what the caller is about to queue, which clears the range anyway.
            self.frozen.forget_range(start, end)
            self._forgotten.add(group)

    def scan(
        self,
        window: Window[Raw],
        decode: Decode[Raw],
        start: bytes,
        end: bytes,
        *,
        limit: int,
        bytes_max: int,
        reverse: bool,
    ) -> tuple[Pairs, bool]:
        """See StateStore.scan. Goes from window to window; a window ends where the first cut source ends."""
        assert limit > 0
        items: Pairs = []
        bytes_left = bytes_max
        while True:
            count = limit + 1 - len(items)
            base, base_done = window(start, end, count, max(bytes_left, 1), reverse)
            bounds = [] if base_done else [base[-1][0]]
            dirty: set[bytes] = set()
            for table in (self.active, self.frozen):
                if table is not None and table.data:
                    keys, complete = table.window(start, end, count=count, reverse=reverse)
                    dirty.update(keys)
                    if not complete:
                        bounds.append(keys[0] if reverse else keys[-1])
            bound = (max(bounds) if reverse else min(bounds)) if bounds else None
            for key, record in self._merge(base, decode, dirty, bound, reverse):
                bytes_left -= len(key) + len(record.value)
                if items and (bytes_left < 0 or len(items) == limit):
                    return items, True
                items.append((key, record))
            if bound is None:
                return items, False
            if reverse:
                end = bound
            else:
                start = bound + b"\0"

    def _merge(
        self,
        base: list[tuple[bytes, Raw]],
        decode: Decode[Raw],
        dirty: set[bytes],
        bound: bytes | None,
        reverse: bool,
    ) -> Pairs:
        """The live records up to and with `bound`, in the order asked for."""
        if bound is not None:
            if reverse:
                base = [pair for pair in base if pair[0] >= bound]
                dirty = {key for key in dirty if key >= bound}
            else:
                base = [pair for pair in base if pair[0] <= bound]
                dirty = {key for key in dirty if key <= bound}
        if not dirty:
            return [(key, decode(key, raw)) for key, raw in base]
        active = self.active.data
        frozen = self.frozen.data if self.frozen is not None else _NOTHING
        flushed = dict(base)
        merged: Pairs = []
        for key in sorted(dirty.union(flushed), reverse=reverse):
            record = active.get(key, ABSENT)
            if record is ABSENT:
                record = frozen.get(key, ABSENT)
                if record is ABSENT:
                    if key not in flushed:
                        continue  # forgotten by forget_range
                    record = decode(key, flushed[key])
            if record is not None:
                merged.append((key, record))
        return merged
