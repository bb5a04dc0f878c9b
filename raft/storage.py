"""What the core reads of the durable log: the protocol, and an in-memory log that fulfils it.

Only reads. Writes are asked for by `Ready` and done by the driver; what the driver has not yet made durable
is held by the core itself (`raft/unstable.py`), so a storage need not show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from raft.errors import LogCompacted, LogUnavailable
from raft.types import ConfState, Entry, HardState, SnapshotMeta


class LogReader(Protocol):
    """Invariant: first_index <= last_index + 1, and term(first_index - 1) is known."""

    def initial_state(self) -> tuple[HardState, ConfState]:
        """What was durable when the replica was started; a new replica has empty ones."""

    def first_index(self) -> int:
        """Index of the first entry held; the ones before are compacted."""

    def last_index(self) -> int:
        """Index of the last entry held; first_index - 1 when there is none."""

    def term(self, index: int) -> int:
        """Term at `index`, first_index - 1 included. Raises LogCompacted, LogUnavailable."""

    def entries(self, *, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        """Entries of [low, high), cut after the one that reaches bytes_max, but at least one.

        Raises LogCompacted, LogUnavailable.
        """

    def snapshot(self) -> SnapshotMeta | None:
        """Position of a snapshot that the driver can send *now*, or None: ask again later."""


class MemoryLog:
    """A LogReader in memory with the writes that a driver does for it. For tests, simulations and examples.

    Invariant: _entries are contiguous; the first one has index _start + 1, and the term at _start is known.
    """

    def __init__(self, *, conf_state: ConfState | None = None) -> None:
        self._hard_state = HardState()
        self._conf_state = conf_state or ConfState()
        self._start = 0
        self._start_term = 0
        self._entries: list[Entry] = []
        self.offered: SnapshotMeta | None = None  # what `snapshot` answers; set by whoever drives this

    # -- LogReader

    def initial_state(self) -> tuple[HardState, ConfState]:
        return replace(self._hard_state), replace(self._conf_state)

    def first_index(self) -> int:
        return self._start + 1

    def last_index(self) -> int:
        return self._start + len(self._entries)

    def term(self, index: int) -> int:
        if index == self._start:
            return self._start_term
        if index < self._start:
            raise LogCompacted(f"index {index} is compacted")
        if index > self.last_index():
            raise LogUnavailable(f"index {index} lies behind the last one, {self.last_index()}")
        return self._entries[index - self._start - 1].term

    def entries(self, *, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        if low <= self._start:
            raise LogCompacted(f"index {low} is compacted")
        if high > self.last_index() + 1:
            raise LogUnavailable(f"index {high - 1} lies behind the last one, {self.last_index()}")
        found = self._entries[low - self._start - 1 : high - self._start - 1]
        size = 0
        for count, entry in enumerate(found, 1):
            size += len(entry.data)
            if size >= bytes_max:
                return found[:count]
        return found

    def snapshot(self) -> SnapshotMeta | None:
        return self.offered

    # -- what the driver does

    def set_hard_state(self, hard_state: HardState) -> None:
        self._hard_state = replace(hard_state)

    def set_conf_state(self, conf_state: ConfState) -> None:
        """The membership as of what is applied."""
        self._conf_state = replace(conf_state)

    def append(self, entries: Sequence[Entry]) -> None:
        """Store entries, replacing whatever is held at and after the first one's index."""
        if not entries:
            return
        first = entries[0].index
        assert self._start < first <= self.last_index() + 1, "a gap in the log, or compacted entries overwritten"
        self._entries[first - self._start - 1 :] = entries

    def compact(self, index: int) -> None:
        """Drop everything up to `index`, whose term stays known. Raises LogUnavailable."""
        if index <= self._start:
            return
        term = self.term(index)
        del self._entries[: index - self._start]
        self._start, self._start_term = index, term

    def apply_snapshot(self, meta: SnapshotMeta) -> None:
        """The log starts anew after the snapshot."""
        assert meta.index > self._start
        self._entries = []
        self._start, self._start_term = meta.index, meta.term
        self._conf_state = replace(meta.conf_state)
