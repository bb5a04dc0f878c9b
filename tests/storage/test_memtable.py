"""Goal: the in-memory table is a sorted dict with tombstones, cheap to fill and to walk.

Method: random puts against a dict, with enough keys that runs are sealed and merged.
"""

from __future__ import annotations

import random

import pytest

from kvstore.storage.memtable import RUN_KEYS_MAX, TAIL_KEYS_MAX, MemTable
from kvstore.storage.protocol import Record


def record(number: int) -> Record:
    return Record(b"%d" % number, number, number, 1)


def filled(count: int, seed: int) -> tuple[MemTable, dict[bytes, Record | None]]:
    rng = random.Random(seed)
    table, expected = MemTable(), dict[bytes, Record | None]()
    for number in range(count):
        key = b"%07d" % rng.randrange(count * 2)
        value = None if rng.random() < 0.2 else record(number)
        table.put(key, value)
        expected[key] = value
    return table, expected


@pytest.mark.parametrize("count", [0, 1, TAIL_KEYS_MAX - 1, TAIL_KEYS_MAX * 3, RUN_KEYS_MAX * 3])
def test_windows_are_slices_of_the_sorted_keys(count: int) -> None:
    table, expected = filled(count, seed=count)
    assert table.data == expected
    order = sorted(expected)
    rng = random.Random(1)
    for _ in range(100):
        start, end = sorted(b"%07d" % rng.randrange(count * 2 + 2) for _ in range(2))
        inside = [key for key in order if start <= key < end]
        size = rng.choice((1, 7, 100, 5_000))
        for reverse in (False, True):
            keys, complete = table.window(start, end, count=size, reverse=reverse)
            assert keys == (inside[-size:] if reverse else inside[:size])
            assert complete <= (len(inside) <= size)
            assert complete or len(keys) == size


@pytest.mark.parametrize("count", [0, 1, 700, RUN_KEYS_MAX * 3])
def test_ordered_chunks_are_all_keys_in_order(count: int) -> None:
    table, expected = filled(count, seed=2)
    table.seal()
    chunks = list(table.ordered_chunks(256))
    assert [key for chunk in chunks for key in chunk] == sorted(expected)
    assert all(0 < len(chunk) <= 256 + len(table.runs) for chunk in chunks)


def test_no_step_sorts_much() -> None:
    table, expected = filled(RUN_KEYS_MAX * 6, seed=3)
    assert max(map(len, table.runs)) <= RUN_KEYS_MAX
    assert sum(map(len, table.runs)) <= len(expected)
    assert len(table.runs) < 20


def test_windows_between_puts() -> None:
    """A scan sorts the tail; keys that come later are found all the same."""
    rng = random.Random(4)
    table, expected = MemTable(), dict[bytes, Record | None]()
    for number in range(3_000):
        key = b"%05d" % rng.randrange(5_000)
        table.put(key, record(number))
        expected[key] = record(number)
        if number % 10 == 0:
            assert table.window(b"", b"\xff", count=10_000, reverse=False) == (sorted(expected), True)


def test_forget_range() -> None:
    table, expected = filled(5_000, seed=5)
    table.forget_range(b"0002000", b"0008000")
    kept = {key: value for key, value in expected.items() if not b"0002000" <= key < b"0008000"}
    assert table.data == kept
    fresh = MemTable()
    for key, value in kept.items():
        fresh.put(key, value)
    assert table.bytes == fresh.bytes
    table.put(b"0005000", record(1))  # its place in the order is there twice now
    table.put(b"0005001", None)
    keys, _ = table.window(b"0002000", b"0008000", count=10_000, reverse=False)
    assert {key for key in keys if key in table.data} == {b"0005000", b"0005001"}
    table.seal()
    order = [key for chunk in table.ordered_chunks(100) for key in chunk if key in table.data]
    assert sorted(set(order)) == sorted(table.data)
    assert order == sorted(order)


def test_bytes_follow_the_values() -> None:
    table = MemTable()
    table.put(b"a", Record(bytes(1_000), 1, 1, 1))
    full = table.bytes
    table.put(b"a", None)
    assert table.bytes == full - 1_000
    table.put(b"a", Record(bytes(500), 1, 1, 1))
    assert table.bytes == full - 500
    assert table.commands == 3


def test_dismantle_goes_in_small_steps() -> None:
    table, _ = filled(10_000, seed=6)
    table.seal()
    before, steps = len(table.data), 0
    for _ in table.dismantle():
        assert before - len(table.data) <= 256
        before = len(table.data)
        steps += 1
    assert steps > 20
    assert not table.data
    assert not table.runs
