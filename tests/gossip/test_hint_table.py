"""Which hints stand: the newest ones, whatever came before, between or after them, and never two for one key.

Method: made-up histories of a keyspace, told in any order, with gaps and repetitions, against what is true at their
end; then hints without sense, against the invariants; a few cases by name.
"""

from __future__ import annotations

import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from kvstore.base.ids import KeyspaceId
from kvstore.base.shards import Replica, ShardDescriptor, keyspace_prefix, keyspace_range
from kvstore.gossip.hint import (
    FULL_KEY_BYTES_MAX,
    HINT_BYTES_MAX,
    BadHint,
    Hint,
    decode,
    encode,
    is_sound,
    make_hint,
    overrides,
)
from kvstore.gossip.hint_table import HintTable
from tests.gossip.histories import History, Shard, node_bytes

PREFIX = keyspace_prefix(1)
seeds = st.integers(0, 2**32)


def check_invariants(table: HintTable[Hint]) -> None:
    hints = list(table)
    assert len({one.id for one in hints}) == len(hints) == len(table)
    for left, right in pairwise(hints):
        assert left.start < left.end <= right.start
    for one in hints:
        assert table.get(one.id) is one
        assert table.find(one.start) is one


def tell(rng: random.Random, history: History) -> list[Hint]:
    """A part of what was told, some twice, in any order; the newest are among it."""
    share = rng.random()
    told = [one for one in history.told if rng.random() < share] + history.newest()
    told += rng.sample(told, rng.randint(0, len(told)))
    rng.shuffle(told)
    return told


@settings(max_examples=150)
@given(seeds)
def test_true_histories_end_in_the_truth_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    history = History(rng)
    for _ in range(rng.randint(0, 60)):
        history.step()
    for _ in range(3):
        table = HintTable(overrides)
        for hint in tell(rng, history):
            table.merge(hint)
        check_invariants(table)
        assert list(table) == history.newest()


def test_the_generator_makes_every_kind_of_history() -> None:
    """The test above is worth what the histories are worth."""
    rng = random.Random(3)
    history = History(rng)
    for _ in range(400):
        history.step()
    assert len(history.shards) > 10
    gone = {one.id for one in history.told} - {one.id for one in history.newest()}
    assert len(gone) > 10
    assert max(one.conf for one in history.shards) > 5
    assert max(one.term for one in history.shards) > 5


shards = st.builds(
    Shard,
    id=st.integers(1, 4),
    start=st.sampled_from([PREFIX, PREFIX + b"b", PREFIX + b"d"]),
    end=st.sampled_from([PREFIX + b"c", PREFIX + b"e", keyspace_range(1)[1]]),
    version=st.integers(1, 3),
    conf=st.integers(1, 2),
    term=st.integers(1, 3),
    leader=st.integers(1, 3),
)
hints = st.lists(shards.filter(lambda one: one.start < one.end).map(Shard.hint), max_size=20)


@given(hints)
def test_hints_without_sense_keep_the_invariants(told: list[Hint]) -> None:
    table = HintTable(overrides)
    held: dict[int, Hint] = {}
    for hint in told:
        out = table.merge(hint)
        check_invariants(table)
        if out is not None:
            assert all(overrides(hint, one) for one in out)
            for one in out:
                assert held.pop(one.id) == one
            held[hint.id] = hint
        assert {one.id: one for one in table} == held


@given(hints)
def test_two_tables_that_tell_each_other_what_they_hold_come_to_agree(told: list[Hint]) -> None:
    """Even where hints have no sense, so that which of them a table drops on the way depends on their order."""
    one, other = HintTable(overrides), HintTable(overrides)
    for number, hint in enumerate(told):
        (one if number % 2 else other).merge(hint)
    for _ in range(len(told) + 1):
        for hint in list(one):
            other.merge(hint)
        for hint in list(other):
            one.merge(hint)
    assert list(one) == list(other)


@given(hints)
def test_overrides_is_a_strict_total_order(told: list[Hint]) -> None:
    for one in told:
        for other in told:
            assert (one == other) + overrides(one, other) + overrides(other, one) == 1
            for third in told:
                if overrides(one, other) and overrides(other, third):
                    assert overrides(one, third)


def shard(start: bytes = b"", end: bytes = b"", **fields: int) -> Hint:
    one = Shard(2, PREFIX + start, PREFIX + end if end else keyspace_range(1)[1])
    for name, value in fields.items():
        setattr(one, name, value)
    return one.hint()


def test_version_goes_before_term_and_term_before_conf() -> None:
    ranked = [shard(conf=9), shard(term=2, conf=1), shard(version=2)]
    assert overrides(ranked[1], ranked[0])
    assert overrides(ranked[2], ranked[1])


def test_the_parent_of_before_a_split_never_comes_back() -> None:
    table = HintTable(overrides)
    table.merge(shard(b"m", id=3, version=2))
    assert table.merge(shard(version=1, term=100)) is None
    assert table.find(PREFIX + b"a") is None, "the left half has not been heard of yet"
    table.merge(shard(b"", b"m", version=2))
    assert [one.id for one in table] == [2, 3]


def test_a_merged_neighbour_never_comes_back() -> None:
    table = HintTable(overrides)
    table.merge(shard(b"", b"m", version=2))
    table.merge(shard(b"m", id=3, version=2))
    assert [one.id for one in table.merge(shard(version=3)) or []] == [2, 3]
    assert table.merge(shard(b"m", id=3, version=2, term=50)) is None
    assert [one.id for one in table] == [2]


def test_a_shard_whose_ranges_do_not_touch_is_held_once() -> None:
    """By a merge and a split a shard can leave the place where an old hint saw it."""
    for first, second in ((b"a", b"m"), (b"m", b"a")):
        table = HintTable(overrides)
        table.merge(shard(first, first + b"z", version=1))
        assert [one.version for one in table.merge(shard(second, second + b"z", version=4)) or []] == [1]
        check_invariants(table)
        assert [one.start for one in table] == [PREFIX + second]


def test_find_and_drop() -> None:
    table = HintTable(overrides)
    table.merge(shard(b"b", b"d"))
    found = [table.find(PREFIX + key) is not None for key in (b"", b"b", b"c", b"d")]
    assert found == [False, True, True, False]
    assert table.drop(2) == shard(b"b", b"d")
    assert table.drop(2) is None
    assert len(table) == 0
    assert table.find(PREFIX + b"c") is None


# -- bytes


def descriptor(key_bytes: int, replicas: int) -> ShardDescriptor:
    return ShardDescriptor(
        id=2**62,
        keyspace=KeyspaceId(1),
        start=PREFIX.ljust(key_bytes, b"a"),
        end=PREFIX.ljust(key_bytes, b"b"),
        version=2**62,
        conf=2**62,
        replicas=tuple(Replica(node_bytes(one).hex(), 2**40 + one) for one in range(replicas)),
    )


@pytest.mark.parametrize(("key_bytes", "replicas", "told"), [(20, 7, 7), (FULL_KEY_BYTES_MAX, 3, 3), (480, 7, 0)])
def test_a_hint_fits_a_packet_and_leaves_out_replicas_if_it_must(key_bytes: int, replicas: int, told: int) -> None:
    hint = make_hint(descriptor(key_bytes, replicas), term=2**62, leader=node_bytes(1).hex())
    assert len(encode(hint)) <= HINT_BYTES_MAX
    assert len(hint.replicas) == told
    assert decode(encode(hint)) == hint


def test_no_length_of_keys_makes_it_too_long() -> None:
    for key_bytes in range(400, FULL_KEY_BYTES_MAX + 1):
        for replicas in range(9):
            encode(make_hint(descriptor(key_bytes, replicas), term=2**62, leader=node_bytes(1).hex()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0},
        {"version": -1},
        {"version": 2**63},
        {"leader": b"short"},
        {"start": b""},
        {"start": PREFIX + b"z", "end": PREFIX + b"a"},
        {"start": PREFIX + b"a", "end": PREFIX + b"a"},
        {"start": keyspace_prefix(2), "end": keyspace_prefix(3)},
        {"end": keyspace_prefix(3)},
        {"end": PREFIX.ljust(FULL_KEY_BYTES_MAX + 1, b"z")},
        {"keyspace": 2**32 - 1, "start": b"\xff" * 4, "end": b"\xff" * 5},
        {"replicas": ((b"short", 1, 1),)},
        {"replicas": tuple((node_bytes(one), 1, 1) for one in range(65))},
    ],
)
def test_a_hint_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    hint = msgspec.structs.replace(shard(b"b", b"d"), **wrong)
    with pytest.raises(BadHint):
        decode(Raw(msgspec.msgpack.encode(hint)))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_sound_hint_or_bad(data: bytes) -> None:
    try:
        hint = decode(Raw(data))
    except BadHint:
        return
    assert is_sound(hint)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_hint_is_a_sound_hint_or_bad(position: int, value: int) -> None:
    data = bytearray(encode(shard(b"b", b"d")))
    data[position % len(data)] = value
    for damaged in (data, data[:position]):
        try:
            hint = decode(Raw(bytes(damaged)))
        except BadHint:
            continue
        assert is_sound(hint)
        assert decode(encode(hint)) == hint
