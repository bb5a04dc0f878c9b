"""Goal: MemoryLog keeps the LogReader contract, and its writes do what a driver's would. Method: against a list."""

from __future__ import annotations

import random

import pytest

from raft.errors import LogCompacted, LogUnavailable
from raft.storage import MemoryLog
from raft.types import ConfState, HardState, SnapshotMeta

from .lone import entries_of


def test_an_empty_log() -> None:
    log = MemoryLog(conf_state=ConfState(voters=(1,)))
    assert log.initial_state() == (HardState(), ConfState(voters=(1,)))
    assert (log.first_index(), log.last_index(), log.term(0)) == (1, 0, 0)
    assert log.snapshot() is None
    log.append([])
    assert log.last_index() == 0


@pytest.mark.parametrize("seed", range(20))
def test_against_a_list(seed: int) -> None:
    rng = random.Random(seed)
    log = MemoryLog()
    terms, first, term = [0], 1, 1
    for _ in range(60):
        what = rng.random()
        if what < 0.6:
            term += rng.random() < 0.3
            start = rng.randrange(first, len(terms) + 1)
            count = rng.randrange(1, 5)
            log.append(entries_of([term] * count, first=start))
            terms[start:] = [term] * count
        elif what < 0.8 and len(terms) > first:
            index = rng.randrange(first, len(terms))
            log.compact(index)
            first = index + 1
        elif what < 0.85:
            index = len(terms) + rng.randrange(5)
            log.apply_snapshot(SnapshotMeta(index, term, ConfState(voters=(seed + 1,))))
            terms += [0] * (index + 1 - len(terms))
            terms[index], first = term, index + 1
            assert log.initial_state()[1].voters == (seed + 1,)
        assert (log.first_index(), log.last_index()) == (first, len(terms) - 1)
        assert [log.term(index) for index in range(first - 1, len(terms))] == terms[first - 1 :]
        if len(terms) > first:
            low = rng.randrange(first, len(terms))
            assert log.entries(low=low, high=len(terms), bytes_max=1_000_000) == entries_of(terms[low:], first=low)
            assert len(log.entries(low=low, high=len(terms), bytes_max=1)) == 1
    with pytest.raises(LogUnavailable):
        log.term(len(terms))
    with pytest.raises(LogUnavailable):
        log.entries(low=first, high=len(terms) + 1, bytes_max=1)
    if first > 1:
        with pytest.raises(LogCompacted):
            log.term(first - 2)
        with pytest.raises(LogCompacted):
            log.entries(low=first - 1, high=first, bytes_max=1)


def test_state_is_copied() -> None:
    log = MemoryLog()
    state = HardState(term=1)
    log.set_hard_state(state)
    state.term = 9
    assert log.initial_state()[0].term == 1
    log.set_conf_state(ConfState(voters=(1, 2)))
    assert log.initial_state()[1].voters == (1, 2)


def test_impossible_writes() -> None:
    log = MemoryLog()
    log.append(entries_of([1, 1, 1]))
    log.compact(2)
    log.compact(1)
    assert log.first_index() == 3
    for first in (2, 5):
        with pytest.raises(AssertionError):
            log.append(entries_of([1], first=first))
    with pytest.raises(LogUnavailable):
        log.compact(9)
    with pytest.raises(AssertionError):
        log.apply_snapshot(SnapshotMeta(1, 1, ConfState()))
