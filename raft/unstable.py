"""The tail of the log that is not yet known to be on disk.

Invariant: entries are contiguous and entries[0].index == offset; offset - 1 is the last durable index.
Invariant: nothing leaves the tail until an ack covers it by position *and* term: an older ack may describe bytes
           that a later append has replaced (tests/raft/data/append_aba.txt).
Invariant: what was handed out is a prefix of the tail; an append that replaces a part of it is handed out again.
Called by: raft/log.py only.   Thesis: 3.8, 10.2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.types import Entry, SnapshotMeta


class UnstableTail:
    __slots__ = ("entries", "handed_index", "offset", "snapshot", "snapshot_handed")

    def __init__(self, *, offset: int) -> None:
        self.offset = offset  # index of entries[0]; also when there are none
        self.entries: list[Entry] = []  # owned here, handed out as slices
        self.handed_index = offset - 1  # up to here a Ready has asked for persistence
        self.snapshot: SnapshotMeta | None = None  # accepted and not yet durable; lies just before the entries
        self.snapshot_handed = False

    @property
    def last_index(self) -> int:
        return self.offset + len(self.entries) - 1

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries, replacing whatever is held at and after the first one's index."""
        first = entries[0].index
        end = self.offset + len(self.entries)
        assert first <= end, "a gap in the log"
        if first == end:
            self.entries.extend(entries)
            return
        if first <= self.offset:
            # Replaces durable entries as well; the storage truncates when it writes these.
            self.offset = first
            self.entries = list(entries)
        else:
            self.entries[first - self.offset :] = entries
        self.handed_index = min(self.handed_index, first - 1)

    def restore(self, meta: SnapshotMeta) -> None:
        """A snapshot takes the place of the whole log."""
        self.snapshot = meta
        self.snapshot_handed = False
        self.entries = []
        self.offset = meta.index + 1
        self.handed_index = meta.index

    def take_entries(self) -> list[Entry]:
        """What is to be persisted and was not handed out yet."""
        fresh = self.entries[self.handed_index + 1 - self.offset :]
        if fresh:
            self.handed_index = fresh[-1].index
        return fresh

    def take_snapshot(self) -> SnapshotMeta | None:
        if self.snapshot is None or self.snapshot_handed:
            return None
        self.snapshot_handed = True
        return self.snapshot

    @property
    def has_fresh(self) -> bool:
        """Something is to be handed out."""
        return self.handed_index < self.last_index or (self.snapshot is not None and not self.snapshot_handed)

    def handed_position(self) -> tuple[int, int]:
        """(index, term) of the last entry that is handed out and not durable yet; (0, 0) when there is none."""
        position = self.handed_index - self.offset
        if position < 0:
            return 0, 0
        return self.handed_index, self.entries[position].term

    def stable_to(self, *, index: int, term: int) -> None:
        """Drop what is durable. A stale ack is normal (the leader changed meanwhile), not an error."""
        position = index - self.offset
        if position < 0 or index > self.handed_index or self.entries[position].term != term:
            return
        del self.entries[: position + 1]
        self.offset = index + 1
        assert not self.entries or self.entries[0].index == self.offset

    def stable_snapshot_to(self, index: int) -> SnapshotMeta | None:
        """Forget the snapshot, now that it is installed; None when it is not (only) that one that is awaited."""
        meta = self.snapshot
        if meta is None or not self.snapshot_handed or meta.index != index:
            return None
        self.snapshot = None
        self.snapshot_handed = False
        return meta
