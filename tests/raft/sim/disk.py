"""One replica's simulated disk: what is durable, what is on its way, and what a crash leaves of it.

Model: a log thread takes everything that is queued, makes it durable in one sync and reports back; meanwhile more is
queued. A crash loses the queue; the sync under way is durable as a whole (only its report is lost), not at all, or
torn: some of its Readys are, in order. A Ready itself is atomic, which is what a storage transaction gives.

Invariant: what was reported durable is never lost, except by `damage`, of which the owner learns.
Invariant: Readys become durable in the order in which they were submitted.
Invariant: the flushed state never lies beyond the durable log, nor the compacted part of the log beyond the flushed
           state.
The log that the core reads is the durable one: the core itself holds what is not yet durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from raft.errors import LogCompacted, LogUnavailable
from raft.types import ConfState, Entry, HardState, Ready, SnapshotMeta

from .machine import MachineState


@dataclass(slots=True)
class LogImage:
    """Entries after `offset`, a position of which only the term is known."""

    offset: int = 0
    offset_term: int = 0
    entries: list[Entry] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.offset + len(self.entries)

    def term(self, index: int) -> int:
        """Term at index; 0 where this image has none."""
        position = index - self.offset
        if position == 0:
            return self.offset_term
        if 0 < position <= len(self.entries):
            return self.entries[position - 1].term
        return 0

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry is here; what is compacted was committed, so it counts as held."""
        return index < self.offset or self.term(index) == term

    def write(self, entries: Sequence[Entry]) -> None:
        """Replace everything at and after the first entry's index."""
        position = entries[0].index - self.offset - 1
        assert 0 <= position <= len(self.entries), "a write that leaves a gap or reaches into what is compacted"
        del self.entries[position:]
        self.entries.extend(entries)

    def truncate(self, last: int) -> None:
        del self.entries[last - self.offset :]

    def restart_at(self, index: int, term: int) -> None:
        self.offset = index
        self.offset_term = term
        self.entries = []

    def compact_to(self, index: int) -> None:
        if index <= self.offset:
            return
        term = self.term(index)
        del self.entries[: index - self.offset]
        self.offset = index
        self.offset_term = term

    def copy(self) -> LogImage:
        return LogImage(self.offset, self.offset_term, list(self.entries))


@dataclass(slots=True)
class Write:
    ready: Ready
    state: MachineState | None  # content of the snapshot to install


class Disk:
    """Implements `raft.storage.LogReader` over what is durable."""

    __slots__ = ("flushed", "hard_state", "log", "queue", "snapshot_hidden", "syncing")

    def __init__(self, flushed: MachineState, hard_state: HardState) -> None:
        self.log = LogImage(flushed.index, flushed.term)
        self.hard_state = hard_state
        self.flushed = flushed
        self.queue: deque[Write] = deque()
        self.syncing: list[Write] = []
        self.snapshot_hidden = False  # a snapshot cannot be made just now

    # -- writing

    def begin_sync(self) -> None:
        """The log thread takes the whole queue."""
        assert not self.syncing
        self.syncing = list(self.queue)
        self.queue.clear()

    def make_durable(self, write: Write) -> None:
        ready = write.ready
        if ready.snapshot is not None:
            assert write.state is not None
            self.log.restart_at(ready.snapshot.index, ready.snapshot.term)
            self.flushed = write.state
        if ready.entries:
            self.log.write(ready.entries)
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state

    def flush(self, state: MachineState) -> bool:
        """Make the applied state durable; refused (False) where the durable log does not reach it yet."""
        if state.index <= self.flushed.index or not self.log.holds(state.index, state.term):
            return False
        if state.index > self.log.last:
            return False
        self.flushed = state
        return True

    def compact(self, index: int) -> None:
        self.log.compact_to(min(index, self.flushed.index))

    def damage(self, count: int) -> bool:
        """Lose the last records of the log, above the flushed state; False when there are none."""
        count = min(count, self.log.last - max(self.log.offset, self.flushed.index))
        if count <= 0:
            return False
        self.log.truncate(self.log.last - count)
        return True

    # -- LogReader

    def initial_state(self) -> tuple[HardState, ConfState]:
        hard_state = self.hard_state
        commit = max(hard_state.commit, self.flushed.index)  # what was applied was committed
        return HardState(hard_state.term, hard_state.vote, commit), self.flushed.conf_state

    def first_index(self) -> int:
        return self.log.offset + 1

    def last_index(self) -> int:
        return self.log.last

    def term(self, index: int) -> int:
        if index < self.log.offset:
            raise LogCompacted(index)
        if index > self.log.last:
            raise LogUnavailable(index)
        return self.log.term(index)

    def entries(self, *, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        if low <= self.log.offset:
            raise LogCompacted(low)
        if high > self.log.last + 1:
            raise LogUnavailable(high)
        start = low - self.log.offset - 1
        taken = self.log.entries[start : start + high - low]
        size = 0
        for count, entry in enumerate(taken, 1):
            size += len(entry.data)
            if size >= bytes_max:
                return taken[:count]
        return taken

    def snapshot(self) -> SnapshotMeta | None:
        state = self.flushed
        if self.snapshot_hidden or state.index == 0:
            return None
        return SnapshotMeta(state.index, state.term, state.conf_state)
