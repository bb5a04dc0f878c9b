"""Goal: the operations on the cases that a reader of docs/state.md would try. Method: short scripts by hand."""

from __future__ import annotations

import pytest

from kvstore.base.errors import Code
from kvstore.base.operations import (
    Batch,
    BatchDone,
    Cas,
    Delete,
    DeleteRange,
    Found,
    Get,
    Item,
    Mismatch,
    Page,
    Put,
    RangeDeleted,
    Scan,
)
from kvstore.state.reads import next_key
from kvstore.state.shard_meta import StateLimits
from kvstore.storage.protocol import Record
from raft.types import ConfState
from tests.state.fake_store import FakeStore
from tests.state.machine import PREFIX, Machine, codes, descriptor, write


def test_a_put_counts_revision_and_version() -> None:
    machine = Machine()
    assert machine.plain(Put(0, b"a", b"1"), Put(0, b"b", b"1"), Put(0, b"a", b"1")) == [1, 2, 3]
    assert machine.state.get(b"a") == Found(b"1", mod_revision=3, create_revision=1, version=2)
    assert machine.state.get(b"c") is None
    assert machine.state.revision == 3


def test_a_deleted_key_begins_anew() -> None:
    machine = Machine()
    assert machine.plain(Put(0, b"a", b"1"), Delete(0, b"a"), Put(0, b"a", b"2")) == [1, 2, 3]
    assert machine.state.get(b"a") == Found(b"2", mod_revision=3, create_revision=3, version=1)


def test_deleting_what_is_not_there_changes_nothing() -> None:
    machine = Machine()
    assert machine.plain(Delete(0, b"a"), Cas(0, b"a", None, revision=0)) == [0, 0]
    assert machine.state.revision == 0


def test_compare_and_set_by_revision_value_and_absence() -> None:
    machine = Machine()
    assert machine.plain(
        Cas(0, b"a", b"1", revision=0),
        Cas(0, b"a", b"2", revision=1),
        Cas(0, b"a", b"3", revision=None, expected=b"2"),
        Cas(0, b"a", None, revision=3),
    ) == [1, 2, 3, 4]
    assert machine.state.get(b"a") is None


def test_a_failed_compare_and_set_carries_the_current_value() -> None:
    machine = Machine()
    current = Found(b"1", mod_revision=1, create_revision=1, version=1)
    assert machine.plain(
        Put(0, b"a", b"1"),
        Cas(0, b"a", b"2", revision=0),
        Cas(0, b"a", b"2", revision=7),
        Cas(0, b"a", b"2", revision=None, expected=b"x"),
        Cas(0, b"b", b"2", revision=1),
        Cas(0, b"b", b"2", revision=None, expected=b""),
    ) == [1, Mismatch(0, current), Mismatch(0, current), Mismatch(0, current), Mismatch(0, None), Mismatch(0, None)]
    assert machine.state.revision == 1


def test_a_condition_without_anything_to_compare_never_holds() -> None:
    """Staging refuses it; if it is in the log all the same, it gets a result like any other."""
    assert Machine().plain(Cas(0, b"a", b"1", revision=None)) == [Mismatch(0, None)]


def test_a_batch_has_one_revision() -> None:
    machine = Machine()
    machine.plain(Put(0, b"a", b"1"))
    batch = Batch(0, [Put(0, b"b", b"2"), Delete(0, b"a"), Delete(0, b"x"), Cas(0, b"c", b"3", revision=0)])
    assert machine.plain(batch) == [BatchDone(2, [2, 2, 0, 2])]
    assert machine.state.revision == 2
    assert machine.plain(Batch(0, [Delete(0, b"x"), Get(0, b"b")])) == [BatchDone(0, [0, Found(b"2", 2, 2, 1)])]
    assert machine.state.revision == 2


def test_a_batch_first_reads_then_writes() -> None:
    """Conditions and Gets see the state before the batch; of two changes of a key the later wins."""
    machine = Machine()
    machine.plain(Put(0, b"a", b"1"))
    before = Found(b"1", 1, 1, 1)
    batch = Batch(
        0,
        [
            Put(0, b"a", b"2"),
            Get(0, b"a"),
            Cas(0, b"a", b"3", revision=1),
            Cas(0, b"n", b"x", revision=0),
            Cas(0, b"n", b"y", revision=0),
            Get(0, b"n"),
        ],
    )
    assert machine.plain(batch) == [BatchDone(2, [2, before, 2, 2, 2, None])]
    assert machine.state.get(b"a") == Found(b"3", 2, 1, 3)
    assert machine.state.get(b"n") == Found(b"y", 2, 2, 2)
    assert machine.plain(Batch(0, [Put(0, b"z", b"1"), Delete(0, b"z")])) == [BatchDone(3, [3, 3])]
    assert machine.state.get(b"z") is None


def test_a_batch_whose_condition_fails_does_nothing() -> None:
    """The first failing condition is told, with its place and a value that was really there."""
    machine = Machine()
    machine.plain(Put(0, b"a", b"1"))
    batch = Batch(
        0, [Put(0, b"a", b"2"), Delete(0, b"a"), Cas(0, b"a", b"3", revision=9), Cas(0, b"b", b"", revision=4)]
    )
    assert machine.plain(batch) == [Mismatch(2, Found(b"1", 1, 1, 1))]
    assert machine.state.revision == 1
    assert list(machine.store.records) == [PREFIX + b"a"]


def test_delete_range_with_limit_and_cursor() -> None:
    machine = Machine()
    machine.plain(*[Put(0, b"k%d" % number, b"") for number in range(5)])
    assert machine.plain(DeleteRange(0, b"k", b"l", limit=2)) == [RangeDeleted(2, 6, b"k1\0")]
    assert machine.plain(DeleteRange(0, b"k1\0", b"l", limit=2)) == [RangeDeleted(2, 7, b"k3\0")]
    assert machine.plain(DeleteRange(0, b"k3\0", b"l", limit=2)) == [RangeDeleted(1, 8, None)]
    assert machine.plain(DeleteRange(0, b"", b"", limit=2)) == [RangeDeleted(0, 0, None)]
    assert machine.state.revision == 8


def test_delete_range_ends_early_when_it_has_read_enough() -> None:
    machine = Machine(StateLimits(delete_range_bytes_max=60))
    machine.plain(*[Put(0, b"k%d" % number, b"v" * 20) for number in range(5)])  # 26 bytes each
    assert machine.plain(DeleteRange(0, b"", b"")) == [RangeDeleted(3, 6, b"k2\0")]
    assert machine.plain(DeleteRange(0, b"k2\0", b"")) == [RangeDeleted(2, 7, None)]


def test_a_store_that_counts_otherwise_does_not_change_where_delete_range_ends() -> None:
    """The place is part of the replicated result; how a store cuts its pages is its own business."""

    class Generous(FakeStore):
        def scan(
            self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
        ) -> tuple[list[tuple[bytes, Record]], bool]:
            return super().scan(start, end, limit=limit, bytes_max=bytes_max * 9, reverse=reverse)

    class Sparing(FakeStore):
        def scan(
            self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
        ) -> tuple[list[tuple[bytes, Record]], bool]:
            return super().scan(start, end, limit=1, bytes_max=bytes_max, reverse=reverse)

    dumps = set()
    for store in (FakeStore(), Generous(), Sparing()):
        machine = Machine(StateLimits(delete_range_bytes_max=60), store=store)
        machine.plain(*[Put(0, b"k%d" % number, b"v" * 20) for number in range(5)])
        assert machine.plain(DeleteRange(0, b"", b"")) == [RangeDeleted(3, 6, b"k2\0")]
        assert machine.plain(DeleteRange(0, b"", b"", limit=1)) == [RangeDeleted(1, 7, b"k3\0")]
        dumps.add(machine.dump())
    assert len(dumps) == 1


def test_scan_by_prefix_range_limit_bytes_and_in_reverse() -> None:
    machine = Machine()
    machine.plain(*[Put(0, key, b"0123456789") for key in (b"a", b"b", b"ba", b"bb", b"c")])
    scan = machine.state.scan

    def keys(page: Page) -> list[bytes]:
        return [item.key for item in page.items]

    assert scan(Scan(0, b"a", b"b")) == Page([Item(b"a", b"0123456789", 1, 1, 1)], None, 5)
    assert keys(scan(Scan(0, b"b", b"c"))) == [b"b", b"ba", b"bb"]
    assert keys(scan(Scan(0, b"", b"", reverse=True))) == [b"c", b"bb", b"ba", b"b", b"a"]
    page = scan(Scan(0, b"b", b"c", limit=2))
    assert (keys(page), page.cursor) == ([b"b", b"ba"], b"ba\0")
    page = scan(Scan(0, b"b", b"c", limit=2, reverse=True))
    assert (keys(page), page.cursor) == ([b"bb", b"ba"], b"ba")
    page = scan(Scan(0, b"b", b"c", bytes_max=1))
    assert (keys(page), page.cursor) == ([b"b"], b"b\0")
    assert scan(Scan(0, b"x", b"x")) == Page([], None, 5)


@pytest.mark.parametrize(
    ("key", "following"),
    [
        (b"a", b"a\0"),
        (b"a" * 479, b"a" * 479 + b"\0"),
        (b"a" * 480, b"a" * 479 + b"b"),
        (b"a" * 478 + b"\xff\xff", b"a" * 477 + b"b"),
        (b"\xff" * 480, None),
    ],
)
def test_a_cursor_is_itself_a_key(key: bytes, following: bytes | None) -> None:
    assert next_key(key) == following
    assert following is None or (key < following and len(following) <= 480)


def test_the_greatest_possible_key_ends_a_range() -> None:
    machine = Machine()
    machine.plain(Put(0, b"a", b""), Put(0, b"\xff" * 480, b""))
    assert machine.state.scan(Scan(0, b"b", b"", limit=1)).cursor is None
    assert machine.plain(DeleteRange(0, b"a", b"", limit=2)) == [RangeDeleted(2, 3, None)]


@pytest.mark.parametrize(
    "operation",
    [
        Put(1, b"a", b""),
        Put(1, b"m", b""),
        Delete(1, b"zz"),
        Cas(1, b"a", b"", revision=0),
        Batch(1, [Put(0, b"c", b""), Get(0, b"a")]),
        DeleteRange(1, b"a", b"c"),
        DeleteRange(1, b"c", b"n"),
        DeleteRange(1, b"d", b"c"),
    ],
)
def test_outside_of_the_range_nothing_is_done(operation: Put | Delete | Cas | Batch | DeleteRange) -> None:
    """For the operation, not for its neighbours: each is a command of its own."""
    machine = Machine(shard=descriptor(b"b", b"m"))
    assert machine.state.check_keys(1, [operation]) == Code.STALE_ROUTE
    assert codes(machine.plain(Put(0, b"b", b""), operation, Put(0, b"l", b""))) == [None, Code.STALE_ROUTE, None]
    assert codes(machine.do(operation, Put(2, b"e", b""))) == [Code.STALE_ROUTE, None]
    assert sorted(machine.store.records) == [PREFIX + b"b", PREFIX + b"e", PREFIX + b"l"]


def test_an_open_end_means_the_end_of_the_shard() -> None:
    machine = Machine(shard=descriptor(b"b", b"m"))
    machine.plain(Put(0, b"b", b""), Put(0, b"l", b""))
    machine.store.put(PREFIX + b"n", machine.store.records[PREFIX + b"b"])  # a neighbour's
    assert [item.key for item in machine.state.scan(Scan(0, b"b", b"")).items] == [b"b", b"l"]
    assert machine.plain(DeleteRange(0, b"b", b"")) == [RangeDeleted(2, 3, None)]
    assert list(machine.store.records) == [PREFIX + b"n"]


def test_another_epoch_is_refused_before_and_when_applying() -> None:
    machine = Machine(shard=descriptor(version=4))
    assert machine.state.check_keys(4, [Get(0, b"a"), Scan(0, b"", b"")]) is None
    assert machine.state.check_keys(3, [Get(0, b"a")]) == Code.STALE_ROUTE
    (plain, known) = machine.entry(
        write(Put(0, b"a", b""), session=b"", version=3), write(Put(1, b"a", b""), version=5)
    )
    assert codes(plain) + codes(known) == [Code.STALE_ROUTE, Code.STALE_ROUTE]
    assert machine.state.revision == 0


def test_results_of_an_entry_carry_a_bounded_number_of_bytes() -> None:
    """1,000 failing conditions on a value of 1 MiB must not become an answer of 1 GiB."""
    machine = Machine(StateLimits(result_bytes_max=100))
    machine.plain(Put(0, b"a", b"v" * 60))
    fail = Cas(0, b"a", b"", revision=99)
    assert codes(machine.plain(fail, fail, fail, Put(0, b"b", b""), Batch(0, [Put(0, b"c", b"")]))) == [
        None,
        None,
        Code.OVERLOADED,
        None,
        Code.OVERLOADED,
    ]
    get = Get(0, b"a")
    assert codes(machine.plain(Batch(0, [get, Put(0, b"d", b""), get]))) == [Code.TOO_LARGE]
    assert codes(machine.plain(fail, Batch(0, [get]), Batch(0, [Put(0, b"e", b"")]))) == [None, Code.OVERLOADED, None]
    assert machine.state.get(b"d") is None


def test_what_batches_read_counts_too() -> None:
    machine = Machine(StateLimits(result_bytes_max=100))
    machine.plain(Put(0, b"a", b"v" * 60))
    batch = Batch(0, [Get(0, b"a"), Put(0, b"b", b"")])
    assert codes(machine.plain(batch, batch)) == [None, Code.OVERLOADED]


def test_only_membership_changes_with_a_conf_change() -> None:
    machine = Machine()
    state = machine.state
    state.apply_empty(6, 2)
    assert (state.applied_index, state.applied_term, state.dirty) == (6, 2, True)
    changed = descriptor()
    conf = ConfState((1, 2), learners=(3,))
    state.apply_conf_change(7, 2, conf, changed)
    assert state.conf_state == conf
    with pytest.raises(AssertionError):
        state.apply_conf_change(8, 2, conf, descriptor(version=2))
    with pytest.raises(AssertionError):
        state.apply_empty(9, 2)
    with pytest.raises(AssertionError):
        state.apply_empty(8, 1)
    assert state.applied_index == 7
    machine.reload()
    assert machine.state.conf_state == conf
    assert not machine.state.dirty
