"""Goal: both log stores keep every promise of `protocol.LogStore`, also over restarts and crashes.

Method: the same steps on LMDB and on memory, looked at while they run and after a reopening.
"""

from __future__ import annotations

import asyncio

import pytest

from kvstore.storage.log_store import SWEEP_PER_COMMIT, EnvLogStore
from kvstore.storage.protocol import LogWrite, NodeIdentity, ReplicaIdentity
from raft.errors import LogCompacted, LogUnavailable
from raft.types import ConfState, Entry, EntryKind, HardState, SnapshotMeta
from tests.storage.backends import Backend, durable, entries

GROUP = 7


async def put(store: EnvLogStore, **fields: object) -> None:
    await durable(lambda done: store.submit([LogWrite(GROUP, **fields)], done))  # type: ignore[arg-type]


def all_entries(store: EnvLogStore, group: int = GROUP) -> list[Entry]:
    log = store.open_group(group, verify_from=0)
    low, high = log.first_index(), log.last_index() + 1
    return list(log.entries(low=low, high=high, bytes_max=1 << 30)) if low < high else []


def reopen(backend: Backend, **options: int) -> EnvLogStore:
    backend.close()
    return backend.log(**options)


async def test_an_unknown_group_is_empty(backend: Backend) -> None:
    log = backend.log().open_group(GROUP, verify_from=0)
    assert (log.first_index(), log.last_index(), log.term(0)) == (1, 0, 0)
    assert log.initial_state() == (HardState(), ConfState())
    assert log.identity == ReplicaIdentity(0)
    assert log.snapshot() is None
    assert log.entries(low=1, high=1, bytes_max=100) == []
    assert log.bytes_behind(100) == 0


async def test_node_identity(backend: Backend) -> None:
    store = backend.log()
    assert store.node_identity() is None
    identity = NodeIdentity(1, "ab" * 16, "n1", "cluster", (("n1", "ab" * 16, "127.0.0.1:1"),))
    store.set_node_identity(identity)
    assert store.node_identity() == identity
    backend.crash()
    store = backend.log()
    assert store.node_identity() == identity
    assert not store.groups()


async def test_entries_are_readable_at_once_and_after_a_restart(backend: Backend) -> None:
    store = backend.log()
    log = store.open_group(GROUP, verify_from=0)
    written = entries(1, 5)
    store.submit([LogWrite(GROUP, identity=ReplicaIdentity(3), entries=written, hard_state=HardState(1, 3, 4))], _no)
    assert log.last_index() == 5
    assert list(log.entries(low=1, high=6, bytes_max=1 << 20)) == written
    assert log.initial_state()[0] == HardState(1, 3, 4)
    await durable(lambda done: store.submit([], done))

    store = reopen(backend)
    log = store.open_group(GROUP, verify_from=0)
    assert list(log.entries(low=1, high=6, bytes_max=1 << 20)) == written
    assert [log.term(index) for index in range(6)] == [0, 1, 1, 1, 1, 1]
    assert log.initial_state()[0] == HardState(1, 3, 4)
    assert log.identity == ReplicaIdentity(3)
    assert dict(store.groups()) == {GROUP: ReplicaIdentity(3)}
    assert store.open_group(GROUP, verify_from=0) is log


@pytest.mark.parametrize("cache_bytes_max", [1, 1 << 24])
async def test_entries_are_cut_by_bytes_but_at_least_one(backend: Backend, cache_bytes_max: int) -> None:
    store = backend.log(cache_bytes_max=cache_bytes_max)
    log = store.open_group(GROUP, verify_from=0)
    await put(store, entries=[Entry(1, index, EntryKind.NORMAL, bytes(100)) for index in range(1, 11)])

    def got(low: int, high: int, bytes_max: int) -> list[int]:
        return [entry.index for entry in log.entries(low=low, high=high, bytes_max=bytes_max)]

    assert got(2, 9, 1) == [2]
    assert got(2, 9, 100) == [2]
    assert got(2, 9, 101) == [2, 3]
    assert got(2, 9, 250) == [2, 3, 4]
    assert got(2, 9, 1 << 20) == [2, 3, 4, 5, 6, 7, 8]
    assert got(2, 2, 100) == []


async def test_positions_outside_are_refused(backend: Backend) -> None:
    store = backend.log()
    log = store.open_group(GROUP, verify_from=0)
    await put(store, entries=entries(1, 10), compact_to=4)
    assert log.term(4) == 1
    with pytest.raises(LogCompacted):
        log.term(3)
    with pytest.raises(LogCompacted):
        log.entries(low=4, high=6, bytes_max=100)
    with pytest.raises(LogUnavailable):
        log.term(11)
    with pytest.raises(LogUnavailable):
        log.entries(low=8, high=12, bytes_max=100)


async def test_a_conflict_replaces_the_tail_for_good(backend: Backend) -> None:
    store = backend.log()
    log = store.open_group(GROUP, verify_from=0)
    await put(store, entries=entries(1, 10))
    await put(store, entries=entries(4, 2, term=2))
    assert log.last_index() == 5
    assert log.term(5) == 2
    store = reopen(backend)
    assert [(one.index, one.term) for one in all_entries(store)] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    # The dropped ones do not come back when the log grows over their indices.
    await put(store, entries=entries(6, 1, term=3))
    assert [(one.index, one.term) for one in all_entries(reopen(backend))][-2:] == [(5, 2), (6, 3)]


async def test_reset_begins_behind_a_snapshot(backend: Backend) -> None:
    store = backend.log()
    log = store.open_group(GROUP, verify_from=0)
    await put(store, entries=entries(1, 10))
    await put(store, reset=(6, 4))  # in the middle: what lay behind conflicts with the snapshot
    assert (log.first_index(), log.last_index(), log.term(6)) == (7, 6, 4)
    log = (store := reopen(backend)).open_group(GROUP, verify_from=0)
    assert (log.first_index(), log.last_index(), log.term(6)) == (7, 6, 4)
    await put(store, reset=(100, 5), entries=entries(101, 2, term=5), hard_state=HardState(5, 0, 101))
    log = (store := reopen(backend)).open_group(GROUP, verify_from=0)
    assert (log.first_index(), log.last_index(), log.term(100)) == (101, 102, 5)
    await put(store, reset=(0, 0))
    log = reopen(backend).open_group(GROUP, verify_from=102)
    assert (log.first_index(), log.last_index()) == (1, 0)


async def test_compaction_keeps_the_term(backend: Backend) -> None:
    store = backend.log()
    await put(store, entries=entries(1, 300), hard_state=HardState(1, 0, 300))
    await put(store, compact_to=250)
    await put(store, compact_to=100)  # an older wish changes nothing
    for _ in range(2):
        log = store.open_group(GROUP, verify_from=0)
        assert (log.first_index(), log.last_index(), log.term(250)) == (251, 300, 1)
        assert [one.index for one in all_entries(store)] == list(range(251, 301))
        store = reopen(backend)
    await put(store, compact_to=300)
    log = reopen(backend).open_group(GROUP, verify_from=0)
    assert (log.first_index(), log.last_index(), log.term(300)) == (301, 300, 1)


async def test_what_is_compacted_is_swept_from_the_disk(backend: Backend) -> None:
    store = backend.log()
    count = 20 * SWEEP_PER_COMMIT
    await put(store, entries=entries(1, count))
    await put(store, compact_to=count - 1)
    while store._env.stat()["entries"] > 3:  # START, one entry, the identity is not written
        await durable(lambda done: store.submit([], done))
        await asyncio.sleep(0)
    assert [one.index for one in all_entries(reopen(backend))] == [count]


async def test_a_sweep_goes_on_after_a_restart(backend: Backend) -> None:
    store = backend.log()
    await put(store, entries=entries(1, 2_000))
    store.submit([LogWrite(GROUP, compact_to=1_999)], _no)
    backend.crash()
    store = backend.log()
    assert all_entries(store)[-1].index == 2_000
    await put(store, compact_to=1_999)
    while store._env.stat()["entries"] > 3:
        await durable(lambda done: store.submit([], done))


async def test_destroy_leaves_the_tombstone_only(backend: Backend) -> None:
    store = backend.log()
    log = store.open_group(GROUP, verify_from=0)
    log.conf_state = ConfState((1,))
    log.set_snapshot(SnapshotMeta(3, 1))
    await put(store, identity=ReplicaIdentity(3), entries=entries(1, 1_000), hard_state=HardState(4, 1, 500))
    await put(store, identity=ReplicaIdentity(3, tombstone=True), destroy=True)
    for _ in range(2):
        log = store.open_group(GROUP, verify_from=0)
        assert (log.first_index(), log.last_index()) == (1, 0)
        assert log.initial_state() == (HardState(), ConfState())
        assert log.snapshot() is None
        assert log.identity == ReplicaIdentity(3, tombstone=True)
        assert dict(store.groups()) == {GROUP: ReplicaIdentity(3, tombstone=True)}
        store = reopen(backend)


async def test_a_new_replica_after_a_destroyed_one(backend: Backend) -> None:
    """Its log begins at 1 and holds nothing of the old one, however far the sweep has come."""
    store = backend.log()
    await put(store, identity=ReplicaIdentity(3), entries=entries(1, 2_000, term=9))
    store.submit([LogWrite(GROUP, identity=ReplicaIdentity(3, tombstone=True), destroy=True)], _no)
    await put(store, identity=ReplicaIdentity(8), reset=(0, 0))
    await put(store, entries=entries(1, 3))
    store = reopen(backend)
    assert [(one.index, one.term) for one in all_entries(store)] == [(1, 1), (2, 1), (3, 1)]
    assert store.groups()[GROUP] == ReplicaIdentity(8)


async def test_a_destruction_that_a_crash_cut_off(backend: Backend) -> None:
    store = backend.log()
    await put(store, identity=ReplicaIdentity(3), entries=entries(1, 3_000, term=9), hard_state=HardState(9, 1, 5))
    await put(store, identity=ReplicaIdentity(3, tombstone=True), destroy=True)
    backend.crash()
    store = backend.log()
    assert all_entries(store) == []
    await put(store, identity=ReplicaIdentity(4), entries=entries(1, 1))
    assert [(one.index, one.term) for one in all_entries(reopen(backend))] == [(1, 1)]


async def test_dones_come_in_order_and_a_barrier_waits_for_all(backend: Backend) -> None:
    store = backend.log()
    order: list[str] = []
    store.submit([LogWrite(GROUP, entries=entries(1, 1))], lambda: order.append("a"))
    store.submit([], lambda: order.append("barrier"))
    store.submit([LogWrite(GROUP + 1, entries=entries(1, 1))], lambda: order.append("b"))
    assert order == []
    await durable(lambda done: store.submit([], done))
    assert order == ["a", "barrier", "b"]


async def test_what_is_told_durable_survives_a_crash(backend: Backend) -> None:
    store = backend.log()
    told = 0

    def done() -> None:
        nonlocal told
        told += 1

    for index in range(1, 201):
        store.submit([LogWrite(GROUP, entries=entries(index, 1))], done)
        if index % 10 == 0:
            await asyncio.sleep(0.0005)
    survived = told
    backend.crash()
    found = all_entries(backend.log())
    assert len(found) >= survived
    assert [one.index for one in found] == list(range(1, len(found) + 1))


async def test_queued_bytes(backend: Backend) -> None:
    store = backend.log()
    assert store.queued_bytes == 0
    store.submit([LogWrite(GROUP, entries=[Entry(1, 1, EntryKind.NORMAL, bytes(1_000))])], _no)
    assert store.queued_bytes == 1_000
    await durable(lambda done: store.submit([], done))
    assert store.queued_bytes == 0


async def test_old_entries_come_from_the_disk(backend: Backend) -> None:
    store = backend.log(cache_bytes_max=5_000)
    log = store.open_group(GROUP, verify_from=0)
    written = entries(1, 200, size=100)
    for at in range(0, 200, 10):
        await put(store, entries=written[at : at + 10])
    assert len(log._cache) < 100
    assert log._cache_bytes <= 5_000
    assert list(log.entries(low=1, high=201, bytes_max=1 << 20)) == written
    assert log.term(1) == 1
    await put(store, entries=entries(50, 5, term=2))  # a conflict that begins before the cache
    assert [log.term(index) for index in (49, 50, 54)] == [1, 2, 2]
    assert log.last_index() == 54


async def test_the_cache_holds_what_is_not_durable(backend: Backend) -> None:
    store = backend.log(cache_bytes_max=1)
    log = store.open_group(GROUP, verify_from=0)
    for index in range(1, 50):
        store.submit([LogWrite(GROUP, entries=entries(index, 1))], _no)
        assert list(log.entries(low=index, high=index + 1, bytes_max=1)) == entries(index, 1)
    assert len(log.entries(low=1, high=50, bytes_max=1 << 20)) == 49


async def test_bytes_behind(backend: Backend) -> None:
    store = backend.log()
    await put(store, entries=entries(1, 500, size=1_000))
    for _ in range(2):
        log = store.open_group(GROUP, verify_from=0)
        sizes = [log.bytes_behind(index) for index in range(501)]
        assert sizes == sorted(sizes)
        assert sizes[0] == 0
        assert 500_000 < sizes[500] < 700_000
        assert abs(sizes[250] - sizes[500] / 2) < 70_000
        assert log.bytes_behind(10_000) == sizes[500]
        store = reopen(backend)
    log = store.open_group(GROUP, verify_from=0)
    await put(store, compact_to=250)
    assert log.bytes_behind(250) == 0
    assert abs(log.bytes_behind(500) - sizes[500] / 2) < 70_000


async def test_broken_writes_are_asserted(backend: Backend) -> None:
    store = backend.log()
    await put(store, entries=entries(1, 5), compact_to=3)
    for broken in (
        LogWrite(GROUP, entries=entries(7, 1)),  # a gap
        LogWrite(GROUP, entries=entries(3, 1)),  # compacted
        LogWrite(GROUP, hard_state=HardState(1, 0, 6)),  # committed behind the end
        LogWrite(GROUP, compact_to=6),
        LogWrite(GROUP, reset=(3, 0)),
    ):
        with pytest.raises(AssertionError):
            store.submit([broken], _no)


async def test_a_commit_index_behind_the_log_means_lost_entries(backend: Backend) -> None:
    store = backend.log()
    await put(store, identity=ReplicaIdentity(2), entries=entries(1, 5), hard_state=HardState(1, 0, 5))
    await put(store, reset=(3, 1))
    # Flushed up to 5: nothing that was committed is missing.
    assert reopen(backend).open_group(GROUP, verify_from=5).identity.damaged_at == 0
    assert reopen(backend).open_group(GROUP, verify_from=3).identity.damaged_at == 5
    assert reopen(backend).groups()[GROUP].damaged_at == 5  # persisted


async def test_close_finishes_what_is_queued(backend: Backend) -> None:
    store = backend.log()
    called: list[int] = []
    store.submit([LogWrite(GROUP, entries=entries(1, 100))], lambda: called.append(1))
    store = reopen(backend)
    assert len(all_entries(store)) == 100
    await durable(lambda done: store.submit([], done))
    assert called == []  # nobody is called back by a closed store
    assert backend.fatal == []


async def test_sizes(backend: Backend) -> None:
    store = backend.log()
    await put(store, entries=entries(1, 100, size=1_000))
    found = store.sizes()
    assert found["used_bytes"] >= 100_000
    assert found["file_bytes"] >= found["used_bytes"]
    assert found["free_bytes"] > 0


def _no() -> None:
    """Nobody waits for it."""
