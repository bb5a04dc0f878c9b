"""The log of one replica: the durable part, read through LogReader, and the tail that is not durable yet.

Invariant: applied <= applying <= commit <= last_index.
Invariant: an entry at or below `commit` is never overwritten.
Invariant: terms never fall along the log, which is why a position can be searched by bisection.
Called by: core and the role modules.   Paper: 5.3.   Thesis: 3.5, 10.2.1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from raft.errors import LogCompacted, LogUnavailable
from raft.storage import LogReader
from raft.types import Entry, EntryKind, SnapshotMeta
from raft.unstable import UnstableTail

SCAN_BYTES_MAX = 1024 * 1024
"""How much is read at a time when entries are looked through and not sent."""


def payload_bytes(entries: Sequence[Entry]) -> int:
    return sum([len(entry.data) for entry in entries])


class RaftLog:
    __slots__ = ("_applying_bytes", "_batches", "_reader", "applied", "applying", "commit", "unstable")

    def __init__(self, reader: LogReader, *, commit: int, applied: int) -> None:
        last_index = reader.last_index()
        assert reader.first_index() - 1 <= applied <= last_index, "the applied index lies outside the log"
        self._reader = reader
        self.unstable = UnstableTail(offset=last_index + 1)
        self.commit = min(max(commit, applied), last_index)
        self.applied = applied  # the driver said so
        self.applying = applied  # handed out
        self._batches: deque[tuple[int, int]] = deque()  # (last index, payload bytes) handed out and not applied
        self._applying_bytes = 0

    def snapshot(self) -> SnapshotMeta | None:
        """What the driver can send now."""
        return self._reader.snapshot()

    # -- positions

    @property
    def first_index(self) -> int:
        snapshot = self.unstable.snapshot
        return self._reader.first_index() if snapshot is None else snapshot.index + 1

    @property
    def last_index(self) -> int:
        unstable = self.unstable
        return unstable.offset + len(unstable.entries) - 1

    @property
    def last_term(self) -> int:
        return self.term(self.last_index)

    @property
    def stable_index(self) -> int:
        """Everything up to here is durable, unless a snapshot is being installed."""
        return self.unstable.offset - 1 if self.unstable.snapshot is None else 0

    def term(self, index: int) -> int:
        """Raises LogCompacted, LogUnavailable."""
        unstable = self.unstable
        position = index - unstable.offset
        if position >= 0:
            if position >= len(unstable.entries):
                raise LogUnavailable(f"index {index} lies behind the last one, {self.last_index}")
            return unstable.entries[position].term
        snapshot = unstable.snapshot
        if snapshot is None:
            return self._reader.term(index)
        if index == snapshot.index:
            return snapshot.term
        raise LogCompacted(f"index {index} lies before the snapshot at {snapshot.index}")

    def matches(self, *, index: int, term: int) -> bool:
        """The log has an entry with this index and term (or knows that it had: at first_index - 1)."""
        try:
            return self.term(index) == term
        except (LogCompacted, LogUnavailable):
            return False

    def is_up_to_date(self, *, index: int, term: int) -> bool:
        """A log that ends with (index, term) has at least what this one has (paper, 5.4.1)."""
        last_term = self.last_term
        return term > last_term or (term == last_term and index >= self.last_index)

    def last_at_or_before(self, *, index: int, term: int) -> tuple[int, int]:
        """The last position at or before `index` whose term is at most `term`, as (index, its term).

        The term is 0 when the answer lies in what is compacted: only the index may be used then.
        """
        lowest = self.first_index - 1
        if index < lowest:
            return index, 0
        index = min(index, self.last_index)
        found = bisect_right(range(lowest, index + 1), term, key=self.term) + lowest - 1
        if found < lowest:
            return found, 0
        return found, self.term(found)

    # -- reading

    def slice(self, *, low: int, high: int, bytes_max: int) -> list[Entry]:
        """Entries of [low, high), cut after the one that reaches bytes_max, but at least one.

        Raises LogCompacted, LogUnavailable.
        """
        assert low < high
        unstable = self.unstable
        offset = unstable.offset
        found: list[Entry] = []
        size = 0
        if low < offset:
            if unstable.snapshot is not None:
                raise LogCompacted(f"index {low} lies before the snapshot at {unstable.snapshot.index}")
            stop = min(high, offset)
            found = list(self._reader.entries(low=low, high=stop, bytes_max=bytes_max))
            assert found
            assert found[0].index == low
            if high <= offset or len(found) < stop - low:
                return found
            size = payload_bytes(found)
            if size >= bytes_max:
                return found
            low = offset
        tail = unstable.entries[low - offset : high - offset]
        for count, entry in enumerate(tail, 1):
            size += len(entry.data)
            if size >= bytes_max:
                del tail[count:]
                break
        return found + tail if found else tail

    def has_unapplied_conf_change(self) -> bool:
        """A committed change of the membership waits to be applied."""
        low = self.applied + 1
        while low <= self.commit:
            entries = self.slice(low=low, high=self.commit + 1, bytes_max=SCAN_BYTES_MAX)
            if any(entry.kind == EntryKind.CONF_CHANGE for entry in entries):
                return True
            low = entries[-1].index + 1
        return False

    # -- writing

    def append(self, entries: Sequence[Entry]) -> None:
        """Take entries as they are, replacing the ones from the first one's index on."""
        assert entries[0].index > self.commit, "a committed entry would be overwritten"
        self.unstable.append(entries)

    def maybe_append(self, *, index: int, log_term: int, entries: Sequence[Entry]) -> bool:
        """Take entries that follow (index, log_term). False when that is not in the log (paper, 5.3)."""
        if not self.matches(index=index, term=log_term):
            return False
        if entries:
            # Entries already here are left alone: this may be an old message, and what comes after may be newer.
            fresh = self._known_count(entries)
            if fresh < len(entries):
                self.append(entries[fresh:])
        return True

    def _known_count(self, entries: Sequence[Entry]) -> int:
        """How many of them, from the first on, are in the log already."""
        known = min(len(entries), self.last_index - entries[0].index + 1)
        if known == 0 or self.matches(index=entries[known - 1].index, term=entries[known - 1].term):
            return known  # logs that agree at one position agree before it (log matching)
        return next(
            position
            for position in range(known)
            if not self.matches(index=entries[position].index, term=entries[position].term)
        )

    def restore(self, meta: SnapshotMeta) -> None:
        assert meta.index > self.commit, "a snapshot would take back what is committed"
        self.unstable.restore(meta)
        self.commit = meta.index
        self.applying = meta.index

    def commit_to(self, index: int) -> bool:
        """True when that moved the commit index; it never falls."""
        if index <= self.commit:
            return False
        assert index <= self.last_index, "the log ends before what is committed: acknowledged entries are lost"
        self.commit = index
        return True

    # -- applying

    @property
    def has_committed(self) -> bool:
        """`take_committed` would return something, its byte limit apart."""
        return self.applying < self.commit and self.unstable.snapshot is None

    def can_take_committed(self, bytes_max: int) -> bool:
        return self.has_committed and self._applying_bytes < bytes_max

    def take_committed(self, bytes_max: int) -> list[Entry]:
        """The next entries to apply, so that at most about bytes_max are handed out and not applied."""
        if not self.can_take_committed(bytes_max):
            return []
        low = self.applying + 1
        entries = self.slice(low=low, high=self.commit + 1, bytes_max=bytes_max - self._applying_bytes)
        size = payload_bytes(entries)
        self.applying = entries[-1].index
        self._batches.append((self.applying, size))
        self._applying_bytes += size
        return entries

    def applied_to(self, index: int) -> None:
        if index <= self.applied:
            return
        assert index <= self.applying, "applied what was never handed out"
        self.applied = index
        batches = self._batches
        while batches and batches[0][0] <= index:
            self._applying_bytes -= batches.popleft()[1]

    def stable_snapshot_to(self, index: int) -> SnapshotMeta | None:
        """The snapshot at `index` is installed, which applies everything up to it. None when a newer one came."""
        meta = self.unstable.stable_snapshot_to(index)
        if meta is not None:
            self.applied_to(index)
        return meta
