"""One group's log as the loop sees it: positions, recent entries in memory, older ones through a reader of the disk.

Invariant: first <= last + 1; the entries in memory are contiguous and end at `last`.
Invariant: an entry leaves the memory only when no queued write touches it or anything before it, so what is read from
           the disk is durable and never about to be replaced.
Invariant: the commit index never rises above the last entry; a hard state that says so means that entries were lost.
Called by: log_store and memory_log (which share it), and the Raft core through LogReader.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from kvstore.base.limits import KIB, LOG_CACHE_BYTES
from kvstore.storage.protocol import LogWrite, ReplicaIdentity
from raft.errors import LogCompacted, LogUnavailable
from raft.types import ConfState, Entry, HardState, SnapshotMeta

ENTRY_OVERHEAD_BYTES = 150  # of an Entry object with its numbers and its bytes' head
_MARK_BYTES = 64 * KIB  # how fine `bytes_behind` knows sizes


class EntryReader(Protocol):
    """Durable entries of one group, by index. What is asked for exists unless it was damaged."""

    def read_term(self, group: int, index: int) -> int:
        """Raises DamagedRecord."""

    def read_entries(self, group: int, *, low: int, high: int, bytes_max: int) -> list[Entry]:
        """Entries of [low, high), at least one, cut after the one that reaches bytes_max. Raises DamagedRecord."""


class GroupLogView:
    """Fulfils `protocol.GroupLog`. Only the store changes it."""

    def __init__(self, group: int, reader: EntryReader, *, cache_bytes_max: int = LOG_CACHE_BYTES) -> None:
        self.group = group
        self.identity = ReplicaIdentity(0)
        self.conf_state = ConfState()
        self.hard_state = HardState()
        self._snapshot: SnapshotMeta | None = None
        self._reader = reader
        self._cache_bytes_max = cache_bytes_max
        self._start = 0  # index of the last entry no longer held
        self._start_term = 0
        self._last = 0
        self._last_term = 0
        self._cache: list[Entry] = []  # the last len(_cache) entries
        self._cache_bytes = 0
        self._queued: deque[int] = deque()  # the lowest index that each queued write touches
        # Sizes: bytes appended up to and with an index, kept every _MARK_BYTES; _base is what lies behind _start.
        self._marks: list[tuple[int, int]] = []
        self._total = 0
        self._base = 0

    # -- LogReader

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self.hard_state, self.conf_state

    def first_index(self) -> int:
        return self._start + 1

    def last_index(self) -> int:
        return self._last

    def term(self, index: int) -> int:
        if index == self._last:
            return self._last_term
        position = index - self._last + len(self._cache) - 1
        if 0 <= position < len(self._cache):
            return self._cache[position].term
        if index == self._start:
            return self._start_term
        if index < self._start:
            raise LogCompacted(f"group {self.group}: entry {index} is compacted, the log begins at {self._start + 1}")
        if index > self._last:
            raise LogUnavailable(f"group {self.group}: entry {index} lies behind the last one, {self._last}")
        return self._reader.read_term(self.group, index)

    def entries(self, *, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        if low <= self._start:
            raise LogCompacted(f"group {self.group}: entry {low} is compacted, the log begins at {self._start + 1}")
        if high > self._last + 1:
            raise LogUnavailable(f"group {self.group}: entry {high - 1} lies behind the last one, {self._last}")
        if low >= high:
            return []
        cache_first = self._last - len(self._cache) + 1
        if low >= cache_first:
            return _cut(self._cache[low - cache_first : high - cache_first], bytes_max)
        found = self._reader.read_entries(self.group, low=low, high=min(high, cache_first), bytes_max=bytes_max)
        bytes_left = bytes_max - sum(len(entry.data) for entry in found)
        if found[-1].index == cache_first - 1 and high > cache_first and bytes_left > 0:
            found += _cut(self._cache[: high - cache_first], bytes_left)
        return found

    def snapshot(self) -> SnapshotMeta | None:
        return self._snapshot

    def set_snapshot(self, snapshot: SnapshotMeta | None) -> None:
        self._snapshot = snapshot

    def bytes_behind(self, index: int) -> int:
        if index <= self._start:
            return 0
        if index >= self._last:
            return self._total - self._base
        at = bisect_right(self._marks, index, key=lambda mark: mark[0])
        return max(self._marks[at - 1][1] - self._base, 0) if at else 0

    # -- the store

    def load(self, *, start: int, start_term: int) -> None:
        """Begin empty behind `start`."""
        self._start = self._last = start
        self._start_term = self._last_term = start_term
        self._cache.clear()
        self._cache_bytes = 0
        self._marks.clear()
        self._total = self._base = 0

    def load_entry(self, *, index: int, term: int, data_bytes: int) -> None:
        """An entry found on the disk at the start, in the order of the indices."""
        assert index == self._last + 1
        self._count(index, data_bytes)
        self._last = index
        self._last_term = term

    def apply(self, write: LogWrite) -> tuple[int, int]:
        """Make a write visible. Gives the range [low, high) of entries that were there and are dropped behind the new
        end or by the reset; those at and below the start are not in it (they may be deleted at leisure)."""
        last_before = self._last
        touched = self._last + 1
        stale = (0, 0)
        if write.identity is not None:
            self.identity = write.identity
        if write.reset is not None:
            index, term = write.reset
            assert (index == 0) == (term == 0), f"group {self.group}: no entry {index} has term {term}"
            self.load(start=index, start_term=term)
            touched = 0
            stale = (index + 1, last_before + 1)
        if write.entries:
            touched = min(touched, write.entries[0].index)
            self._append(write.entries)
            stale = (max(self._last + 1, stale[0]), last_before + 1)
        if write.hard_state is not None:
            commit, known = write.hard_state.commit, self.hard_state.commit
            self.hard_state = write.hard_state
            # A log that was reset because its records were lost still knows how far it was committed once.
            assert commit <= max(self._last, known), (
                f"group {self.group}: commit {commit} would lie behind the last entry {self._last}"
            )
        if write.compact_to > self._start:
            self._compact(write.compact_to)
        if write.destroy:
            self.hard_state = HardState()
            self.conf_state = ConfState()
            self._snapshot = None
            self.load(start=0, start_term=0)
            touched = 0
            stale = (0, 0)
        self._queued.append(touched)
        return stale

    def durable(self) -> None:
        """The oldest write of `apply` is durable now."""
        self._queued.popleft()
        if self._cache_bytes > self._cache_bytes_max:
            self._trim()

    def _append(self, entries: Sequence[Entry]) -> None:
        first = entries[0].index
        assert first > self._start, (
            f"group {self.group}: entry {first} would overwrite what is compacted ({self._start})"
        )
        assert first <= self._last + 1, f"group {self.group}: entry {first} would leave a gap behind {self._last}"
        if first <= self._last:
            self._truncate(first)
        cache = self._cache
        index = first
        for entry in entries:
            assert entry.index == index
            index += 1
            size = len(entry.data)
            self._cache_bytes += size + ENTRY_OVERHEAD_BYTES
            self._count(entry.index, size)
        cache.extend(entries)
        self._last = entries[-1].index
        self._last_term = entries[-1].term

    def _truncate(self, first: int) -> None:
        """Drop the entries at and after `first`; others follow at once, so the last term need not be known."""
        keep = first - (self._last - len(self._cache) + 1)
        for entry in self._cache[max(keep, 0) :]:
            self._cache_bytes -= len(entry.data) + ENTRY_OVERHEAD_BYTES
            self._total -= len(entry.data) + ENTRY_OVERHEAD_BYTES
        del self._cache[max(keep, 0) :]
        while self._marks and self._marks[-1][0] >= first:
            self._marks.pop()
        if keep < 0:
            self._total = self._marks[-1][1] if self._marks else self._base
        self._last = first - 1

    def _compact(self, index: int) -> None:
        assert index <= self._last, f"group {self.group}: compaction to {index} behind the last entry {self._last}"
        self._start_term = self.term(index)
        self._base += self.bytes_behind(index)
        cache_first = self._last - len(self._cache) + 1
        if index >= cache_first:
            for entry in self._cache[: index + 1 - cache_first]:
                self._cache_bytes -= len(entry.data) + ENTRY_OVERHEAD_BYTES
            del self._cache[: index + 1 - cache_first]
        self._start = index
        del self._marks[: bisect_right(self._marks, index, key=lambda mark: mark[0])]
        if self._start == self._last:
            self._base = self._total

    def _count(self, index: int, data_bytes: int) -> None:
        self._total += data_bytes + ENTRY_OVERHEAD_BYTES
        if not self._marks or self._total - self._marks[-1][1] >= _MARK_BYTES:
            self._marks.append((index, self._total))

    def _trim(self) -> None:
        """Back to three quarters of the bound, so that the list's front is moved now and then, not each time."""
        limit = min(self._queued, default=self._last + 1)
        cache = self._cache
        first = self._last - len(cache) + 1
        count = 0
        target = self._cache_bytes_max * 3 // 4
        while count < len(cache) and self._cache_bytes > target and first + count < limit:
            self._cache_bytes -= len(cache[count].data) + ENTRY_OVERHEAD_BYTES
            count += 1
        del cache[:count]


def _cut(entries: list[Entry], bytes_max: int) -> list[Entry]:
    """Up to and with the entry that reaches bytes_max."""
    size = 0
    for position, entry in enumerate(entries):
        size += len(entry.data)
        if size >= bytes_max:
            return entries[: position + 1]
    return entries
