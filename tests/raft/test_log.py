"""Goal: the log is one list of entries, wherever its parts are. Method: random operations against a plain list that
knows what is durable, with a disk that is late; and the edges by hand. Paper, 5.3; thesis, 10.2.1."""

from __future__ import annotations

import random

import pytest

from raft.errors import LogCompacted, LogUnavailable
from raft.log import RaftLog
from raft.storage import MemoryLog
from raft.types import ConfState, Entry, EntryKind, SnapshotMeta
from raft.unstable import UnstableTail

from .lone import entries_of


class Model:
    """A log with a slow disk, and the same as a list."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.storage = MemoryLog()
        self.log = RaftLog(self.storage, commit=0, applied=0)
        self.terms: list[int] = [0]  # by index
        self.first = 1
        self.term = 1
        self.writes: list[tuple[list[Entry], int, int]] = []  # entries, last index and term of the tail then

    def append(self) -> None:
        """Like the appends of one leader after another: a newer one may replace what is not committed."""
        if self.rng.random() < 0.3:
            self.term += 1
            start = self.rng.randrange(self.log.commit + 1, len(self.terms) + 1)
        else:
            start = len(self.terms)
        entries = entries_of([self.term] * self.rng.randrange(1, 4), first=start)
        assert self.log.maybe_append(index=start - 1, log_term=self.terms[start - 1], entries=entries)
        self.terms[start:] = [entry.term for entry in entries]

    def repeat(self) -> None:
        """An old message with entries that are all there: nothing changes."""
        low = self.rng.randrange(self.log.commit, len(self.terms))
        high = self.rng.randrange(low, len(self.terms))
        entries = entries_of(self.terms[low + 1 : high + 1], first=low + 1)
        assert self.log.maybe_append(index=low, log_term=self.terms[low], entries=entries)

    def write(self) -> None:
        entries = self.log.unstable.take_entries()
        if entries:
            self.writes.append((entries, *self.log.unstable.handed_position()))

    def finish(self) -> None:
        if self.writes:
            entries, index, term = self.writes.pop(0)
            self.storage.append(entries)
            # The core drops acks of an older term, to be safe from A, B, A; here: unless it is the newest write.
            if not self.writes:
                self.log.unstable.stable_to(index=index, term=term)

    def commit(self) -> None:
        self.log.commit_to(self.rng.randrange(self.log.commit, len(self.terms)))

    def apply(self) -> None:
        entries = self.log.take_committed(1_000)
        if entries:
            self.log.applied_to(entries[-1].index)

    def compact(self) -> None:
        index = min(self.log.applied, self.log.stable_index)
        if index >= self.first and self.rng.random() < 0.5:
            self.storage.compact(index)
            self.first = index + 1

    def check(self) -> None:
        log = self.log
        assert log.last_index == len(self.terms) - 1
        assert log.first_index == self.first
        assert log.last_term == self.terms[-1]
        assert [log.term(index) for index in range(self.first - 1, len(self.terms))] == self.terms[self.first - 1 :]
        assert self.storage.last_index() >= log.stable_index
        if log.last_index >= self.first:
            low = self.rng.randrange(self.first, log.last_index + 1)
            high = self.rng.randrange(low + 1, log.last_index + 2)
            limit = self.rng.choice((1, 7, 1_000))
            expected, size = [], 0
            for entry in entries_of(self.terms[low:high], first=low):
                expected.append(entry)
                size += len(entry.data)
                if size >= limit:
                    break
            assert log.slice(low=low, high=high, bytes_max=limit) == expected
        term = self.rng.randrange(self.term + 2)
        index = self.rng.randrange(self.first - 1, len(self.terms))
        fitting = [at for at in range(self.first - 1, index + 1) if self.terms[at] <= term]
        found = (fitting[-1], self.terms[fitting[-1]]) if fitting else (self.first - 2, 0)
        assert log.last_at_or_before(index=index, term=term) == found


@pytest.mark.parametrize("seed", range(40))
def test_against_a_list(seed: int) -> None:
    model = Model(seed)
    operations = [model.append, model.repeat, model.write, model.finish, model.commit, model.apply, model.compact]
    for _ in range(80):
        model.rng.choice(operations)()
        model.check()


# -- the edges


def _log(terms: list[int], *, compacted: int = 0) -> RaftLog:
    storage = MemoryLog()
    storage.append(entries_of(terms))
    storage.compact(compacted)
    return RaftLog(storage, commit=compacted, applied=compacted)


def test_reading_outside_of_the_log() -> None:
    log = _log([1, 1, 2], compacted=2)
    assert log.term(2) == 1
    for index in (0, 1):
        with pytest.raises(LogCompacted):
            log.term(index)
    with pytest.raises(LogUnavailable):
        log.term(4)
    with pytest.raises(LogCompacted):
        log.slice(low=2, high=3, bytes_max=1)
    assert not log.matches(index=1, term=1)
    assert not log.matches(index=4, term=2)


def test_a_snapshot_is_the_start_before_it_is_durable() -> None:
    log = _log([1, 1])
    log.restore(SnapshotMeta(10, 3, ConfState(voters=(1,))))
    assert (log.first_index, log.last_index, log.last_term, log.commit) == (11, 10, 3, 10)
    log.append(entries_of([4, 4], first=11))
    assert log.term(10) == 3
    with pytest.raises(LogCompacted):
        log.term(2)
    with pytest.raises(LogCompacted):
        log.slice(low=2, high=12, bytes_max=1)
    assert log.stable_index == 0
    log.commit_to(12)
    assert log.take_committed(1_000) == []
    assert log.unstable.take_snapshot() is not None
    assert log.unstable.take_snapshot() is None
    assert log.stable_snapshot_to(9) is None
    assert log.stable_snapshot_to(10) is not None
    assert [entry.index for entry in log.take_committed(1_000)] == [11, 12]


def test_a_snapshot_takes_nothing_back() -> None:
    log = _log([1, 1])
    log.commit_to(2)
    with pytest.raises(AssertionError):
        log.restore(SnapshotMeta(2, 1, ConfState()))


def test_the_commit_index_stays_inside_the_log() -> None:
    log = _log([1, 1])
    with pytest.raises(AssertionError, match="acknowledged entries are lost"):
        log.commit_to(3)
    assert log.commit_to(2)
    assert not log.commit_to(1)
    assert log.commit == 2


def test_an_unapplied_change_is_found() -> None:
    """Also far back, and in the part that is not durable."""
    log = _log([1] * 5)
    log.append([Entry(1, 6, EntryKind.CONF_CHANGE, b"x" * 600_000), *entries_of([1] * 3, first=7)])
    assert not log.has_unapplied_conf_change()
    log.commit_to(5)
    assert not log.has_unapplied_conf_change()
    log.commit_to(9)
    assert log.has_unapplied_conf_change()
    log.take_committed(1_000_000)
    log.applied_to(6)
    assert not log.has_unapplied_conf_change()


def test_a_gap_is_a_bug() -> None:
    tail = UnstableTail(offset=5)
    with pytest.raises(AssertionError, match="gap"):
        tail.append(entries_of([1], first=6))


def test_replacing_what_was_handed_out_hands_it_out_again() -> None:
    tail = UnstableTail(offset=1)
    tail.append(entries_of([1, 1, 1]))
    assert [entry.index for entry in tail.take_entries()] == [1, 2, 3]
    assert tail.take_entries() == []
    tail.append(entries_of([2], first=2))
    assert [(entry.index, entry.term) for entry in tail.take_entries()] == [(2, 2)]
    assert tail.handed_position() == (2, 2)


def test_replacing_durable_entries() -> None:
    tail = UnstableTail(offset=4)
    tail.append(entries_of([2, 2], first=2))
    assert (tail.offset, tail.last_index) == (2, 3)
    assert [entry.index for entry in tail.take_entries()] == [2, 3]


def test_what_was_not_handed_out_cannot_be_durable() -> None:
    tail = UnstableTail(offset=1)
    tail.append(entries_of([1, 1]))
    tail.stable_to(index=2, term=1)
    assert tail.offset == 1
    tail.take_entries()
    tail.append(entries_of([1], first=3))
    tail.stable_to(index=3, term=1)
    assert tail.offset == 1
    tail.stable_to(index=2, term=1)
    assert (tail.offset, len(tail.entries)) == (3, 1)
