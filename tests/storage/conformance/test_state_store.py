"""Goal: both state stores keep every promise of `protocol.StateStore`, also over flushes, restarts and crashes.

Method: the same steps on LMDB and on memory, looked at while they run and after a reopening.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from kvstore.base.errors import DamagedRecord
from kvstore.storage.chunks import encode_chunk
from kvstore.storage.errors import SnapshotLost
from kvstore.storage.protocol import Record, ShardChange, SnapshotHeader, StateStore
from kvstore.storage.state_store import EnvStateStore
from tests.storage.backends import Backend, durable, image

START, END = b"k", b"l"
ALL = (b"\0", b"\xff")


def key(number: int) -> bytes:
    return b"k%05d" % number


def record(revision: int, size: int = 5) -> Record:
    return Record(b"%05d" % revision + bytes(size - 5), revision, 1, revision)


def scan_all(store: StateStore, *, reverse: bool = False) -> list[tuple[bytes, Record]]:
    found, more = store.scan(*ALL, limit=100_000, bytes_max=1 << 30, reverse=reverse)
    assert not more
    return found


async def flush(store: StateStore, changes: dict[int, ShardChange] | None = None, drop: Sequence[int] = ()) -> None:
    store.freeze()
    await durable(lambda done: store.write_frozen(changes or {}, done, drop=drop))


def header(group: int, index: int) -> SnapshotHeader:
    return SnapshotHeader(group, image(index), START, END)


async def snapshot_of(store: StateStore, group: int) -> tuple[SnapshotHeader, list[bytes]]:
    reader = store.open_snapshot(group, START, END)
    assert reader is not None
    chunks: list[bytes] = []
    while (chunk := reader.chunk(len(chunks))) is not None:
        chunks.append(chunk)
    reader.close()
    return reader.header, chunks


async def install(store: StateStore, head: SnapshotHeader, chunks: list[bytes], drop: Sequence[int] = ()) -> None:
    await durable(lambda done: store.install_begin(head, done))
    for chunk in chunks:
        store.install_chunk(head.group, chunk, _no)
    await durable(lambda done: store.install_finish(head, done, drop=drop))


# -- data


async def test_put_get_delete(backend: Backend) -> None:
    store = backend.state()
    assert store.get(key(1)) is None
    store.put(key(1), record(1))
    assert store.get(key(1)) == record(1)
    await flush(store)
    assert store.get(key(1)) == record(1)
    store.delete(key(1))
    assert store.get(key(1)) is None
    await flush(store)
    assert store.get(key(1)) is None
    store.delete(key(2))  # of what never was
    assert store.get(key(2)) is None


async def test_the_layers_cover_each_other(backend: Backend) -> None:
    """Every combination of what disk, frozen and active table say about a key."""
    store = backend.state()
    said: tuple[str | None, ...] = (None, "put", "delete")
    combinations = [(a, b, c) for a in said for b in said for c in said]
    expected: dict[bytes, Record] = {}

    def say(layer: int) -> None:
        for number, combination in enumerate(combinations):
            match combination[layer]:
                case "put":
                    expected[key(number)] = record(100 * layer + number)
                    store.put(key(number), expected[key(number)])
                case "delete":
                    expected.pop(key(number), None)
                    store.delete(key(number))

    def check() -> None:
        assert scan_all(store) == sorted(expected.items())
        assert scan_all(store, reverse=True) == sorted(expected.items(), reverse=True)
        for number in range(len(combinations)):
            assert store.get(key(number)) == expected.get(key(number))

    say(0)
    await flush(store)
    check()
    say(1)
    store.freeze()
    assert store.flushing
    say(2)
    check()
    await durable(lambda done: store.write_frozen({}, done))
    assert not store.flushing
    check()
    await flush(store)
    check()


@pytest.mark.parametrize("seed", range(3))
async def test_scan_against_a_dict(backend: Backend, seed: int) -> None:
    rng = random.Random(seed)
    store = backend.state()
    expected: dict[bytes, Record] = {}

    def change(count: int) -> None:
        for _ in range(count):
            one = key(rng.randrange(2_000))
            if rng.random() < 0.3:
                store.delete(one)
                expected.pop(one, None)
            else:
                expected[one] = record(rng.randrange(1, 9_999), rng.choice((5, 5, 5, 3_000)))
                store.put(one, expected[one])

    change(1_500)
    await flush(store)
    change(800)
    store.freeze()
    change(600)
    for _ in range(150):
        bounds = sorted((key(rng.randrange(2_100)), key(rng.randrange(2_100))))
        limit = rng.choice((1, 2, 10, 100, 1_000))
        bytes_max = rng.choice((1, 500, 10_000, 1 << 20))
        reverse = rng.random() < 0.5
        got, more = store.scan(bounds[0], bounds[1], limit=limit, bytes_max=bytes_max, reverse=reverse)
        wanted = sorted((p for p in expected.items() if bounds[0] <= p[0] < bounds[1]), reverse=reverse)
        assert got == wanted[: len(got)]
        size = sum(len(k) + len(r.value) for k, r in got)
        assert len(got) <= limit
        assert size <= bytes_max or len(got) == 1
        assert more == (len(got) < len(wanted))
        if more:
            following = wanted[len(got)]
            assert len(got) == limit or size + len(following[0]) + len(following[1].value) > bytes_max


async def test_scan_of_an_empty_or_inverted_range(backend: Backend) -> None:
    store = backend.state()
    store.put(key(1), record(1))
    for start, end in ((key(1), key(1)), (key(2), key(1)), (b"a", b"b")):
        for reverse in (False, True):
            assert store.scan(start, end, limit=5, bytes_max=100, reverse=reverse) == ([], False)


async def test_scan_passes_many_tombstones(backend: Backend) -> None:
    store = backend.state()
    for number in range(3_000):
        store.put(key(number), record(1))
    await flush(store)
    for number in range(1, 2_999):
        store.delete(key(number))
    assert [k for k, _ in store.scan(*ALL, limit=2, bytes_max=1 << 20)[0]] == [key(0), key(2_999)]
    assert [k for k, _ in store.scan(*ALL, limit=2, bytes_max=1 << 20, reverse=True)[0]] == [key(2_999), key(0)]


async def test_data_keys_do_not_mix_with_other_records(backend: Backend) -> None:
    """The widest data keys lie next to images and sessions; a scan must not see those."""
    store = backend.state()
    await durable(lambda done: store.create_shard(2, image(1), done))
    store.put(b"\xff" * 484, record(1))
    store.put(b"\0", record(2))
    await flush(store, {2: ShardChange(image(2), {b"s" * 16: b"answers"})})
    assert [k for k, _ in store.scan(b"\0", b"\xff" * 485, limit=9, bytes_max=1 << 20)[0]] == [b"\0", b"\xff" * 484]
    found = store.scan(b"", b"\xff" * 485, limit=9, bytes_max=1 << 20, reverse=True)[0]
    assert [k for k, _ in found] == [b"\xff" * 484, b"\0"]


# -- accounting


async def test_accounting(backend: Backend) -> None:
    store = backend.state()
    assert (store.table_bytes, store.table_commands) == (0, 0)
    store.put(key(1), record(1, 1_000))
    one = store.table_bytes
    assert one > 1_000 + len(key(1))
    store.put(key(1), record(2, 400))
    assert store.table_bytes == one - 600
    store.delete(key(1))
    assert store.table_bytes == one - 1_000
    assert store.table_commands == 3
    store.freeze()
    store.put(key(2), record(1, 1_000))
    assert store.table_bytes == one - 1_000 + one
    assert store.table_commands == 4
    await durable(lambda done: store.write_frozen({}, done))
    assert (store.table_bytes, store.table_commands) == (one, 1)


async def test_freeze_and_write_frozen_are_a_pair(backend: Backend) -> None:
    store = backend.state()
    with pytest.raises(AssertionError):
        store.write_frozen({}, _no)
    store.freeze()
    with pytest.raises(AssertionError):
        store.freeze()
    await durable(lambda done: store.write_frozen({}, done))
    store.freeze()


# -- flush


async def test_a_flush_is_durable_with_image_and_sessions(backend: Backend) -> None:
    store = backend.state()
    assert dict(store.shards()) == {}
    await durable(lambda done: store.create_shard(2, image(1), done))
    assert dict(store.shards()) == {2: image(1)}
    store.put(key(1), record(1))
    await flush(store, {2: ShardChange(image(5, term=2, meta=b"m"), {b"a" * 16: b"1", b"b" * 16: b"2"})})
    await flush(store, {2: ShardChange(image(6, term=2, meta=b"n"), {b"a" * 16: None, b"c" * 16: b"3"})})
    for _ in range(2):
        assert dict(store.shards()) == {2: image(6, term=2, meta=b"n")}
        assert dict(store.sessions(2)) == {b"b" * 16: b"2", b"c" * 16: b"3"}
        assert dict(store.sessions(3)) == {}
        assert scan_all(store) == [(key(1), record(1))]
        assert dict(store.incomplete()) == {}
        backend.crash()
        store = backend.state()


async def test_unflushed_changes_are_lost_with_the_process(backend: Backend) -> None:
    store = backend.state()
    await durable(lambda done: store.create_shard(2, image(1), done))
    store.put(key(1), record(1))
    store.freeze()
    store.put(key(2), record(1))
    backend.crash()
    store = backend.state()
    assert scan_all(store) == []
    assert dict(store.shards()) == {2: image(1)}


@pytest.mark.parametrize("seed", range(6))
async def test_a_crash_in_a_flush_leaves_all_of_it_or_nothing(backend: Backend, seed: int) -> None:
    rng = random.Random(seed)
    store = backend.state()
    await durable(lambda done: store.create_shard(2, image(1), done))
    for number in range(200):
        store.put(key(number), record(1))
    store.freeze()
    store.write_frozen({2: ShardChange(image(9), {b"a" * 16: b"1"})}, _no)
    for _ in range(rng.randrange(4)):
        await asyncio.sleep(0.0005)
    backend.crash(rng)
    store = backend.state()
    found = (len(scan_all(store)), store.shards()[2].applied_index, len(store.sessions(2)))
    assert found in ((0, 1, 0), (200, 9, 1))


async def test_a_flush_can_end_shards(backend: Backend) -> None:
    store = backend.state()
    for group in (2, 3):
        await durable(lambda done, group=group: store.create_shard(group, image(1), done))  # type: ignore[misc]
    await flush(store, {3: ShardChange(image(2), {b"a" * 16: b"1"})})
    await flush(store, {2: ShardChange(image(8))}, drop=[3])
    for _ in range(2):
        assert dict(store.shards()) == {2: image(8)}
        assert dict(store.sessions(3)) == {}
        backend.crash()
        store = backend.state()


async def test_flushes_of_two_tables_in_a_row(backend: Backend) -> None:
    store = backend.state()
    for turn in range(5):
        for number in range(turn, 1_000, 5):
            store.put(key(number), record(turn + 1))
        await flush(store)
    assert [r.mod_revision for _, r in scan_all(store)] == [1, 2, 3, 4, 5] * 200


# -- snapshots


async def filled(backend: Backend, count: int = 3_000) -> EnvStateStore:
    store = backend.state()
    await durable(lambda done: store.create_shard(2, image(1), done))
    store.put(b"j", record(1))
    store.put(b"l", record(1))
    for number in range(count):
        store.put(key(number), record(1, 300))
    sessions: dict[bytes, bytes | None] = {bytes([number]) * 16: bytes(100) for number in range(5)}
    await flush(store, {2: ShardChange(image(7, meta=b"old"), sessions)})
    return store


async def test_a_snapshot_is_of_one_moment(backend: Backend) -> None:
    store = await filled(backend)
    reader = store.open_snapshot(2, START, END)
    assert reader is not None
    first = reader.chunk(0)
    store.put(key(0), record(2))
    store.put(key(2_999), record(2))
    store.delete(key(1_500))
    await flush(store, {2: ShardChange(image(8))})
    chunks = [reader.chunk(0)]
    assert chunks[0] == first
    while (chunk := reader.chunk(len(chunks))) is not None:
        chunks.append(chunk)
    assert 3 < len(chunks) < 6
    assert reader.chunk(1) == chunks[1]  # readable again
    assert reader.chunk(50) is None
    assert reader.header == SnapshotHeader(2, image(7, meta=b"old"), START, END)
    reader.close()
    reader.close()
    with pytest.raises(SnapshotLost):
        reader.chunk(0)
    # The chunks, installed in a range of its own, give what was there at index 7.
    await durable(lambda done: store.destroy_shard(2, START, END, done))
    await install(store, reader.header, [chunk for chunk in chunks if chunk is not None])
    assert len(store.scan(START, END, limit=9_999, bytes_max=1 << 30)[0]) == 3_000
    assert store.get(key(1_500)) == record(1, 300)
    assert len(store.sessions(2)) == 5


async def test_a_later_chunk_first(backend: Backend) -> None:
    """A sender that resumes on a new reader may ask for any number first."""
    store = await filled(backend)
    head, chunks = await snapshot_of(store, 2)
    reader = store.open_snapshot(2, START, END)
    assert reader is not None
    assert reader.chunk(2) == chunks[2]
    assert reader.chunk(len(chunks)) is None
    assert reader.header == head
    reader.close()


async def test_no_snapshot_without_an_image(backend: Backend) -> None:
    store = backend.state()
    assert store.open_snapshot(2, START, END) is None


async def test_an_empty_shard_has_a_snapshot(backend: Backend) -> None:
    store = backend.state()
    await durable(lambda done: store.create_shard(2, image(1), done))
    head, chunks = await snapshot_of(store, 2)
    assert len(chunks) == 1
    store.put(key(1), record(1))
    await install(store, head, chunks)
    assert scan_all(store) == []
    assert dict(store.shards()) == {2: image(1)}


async def test_header_and_data_fit_while_a_flush_ends(backend: Backend) -> None:
    """A snapshot opened at any moment of a flush has the data of the index that its header names, or is refused."""
    store = backend.state()
    await durable(lambda done: store.create_shard(2, image(0, term=0), done))
    seen = set()
    for index in range(1, 31):
        store.put(key(0), record(index))
        store.freeze()
        finished: list[int] = []
        store.write_frozen({2: ShardChange(image(index))}, lambda finished=finished: finished.append(1))  # type: ignore[misc]
        while not finished:
            reader = store.open_snapshot(2, START, END)
            if reader is not None:
                at = reader.header.image.applied_index
                chunk = reader.chunk(0)
                reader.close()
                assert chunk is not None
                assert (b"%05d" % at in chunk) == (at > 0)
                seen.add(at)
            await asyncio.sleep(0)
    assert seen


# -- install


async def test_install_replaces_the_range(backend: Backend) -> None:
    store = await filled(backend)
    head, chunks = await snapshot_of(store, 2)
    await flush(store, {2: ShardChange(image(20), {b"z" * 16: b"new"})})
    store.put(key(70_000), record(1))
    store.delete(key(0))
    store.put(b"m", record(1))
    await durable(lambda done: store.install_begin(head, done))
    assert dict(store.shards()) == {}
    assert dict(store.incomplete()) == {2: (START, END)}
    assert store.open_snapshot(2, START, END) is None
    assert [k for k, _ in scan_all(store)] == [b"j", b"l", b"m"]  # neighbours are untouched
    for chunk in chunks:
        await durable(lambda done, chunk=chunk: store.install_chunk(2, chunk, done))  # type: ignore[misc]
    await durable(lambda done: store.install_chunk(2, chunks[-1], done))  # sent twice
    await durable(lambda done: store.install_finish(head, done))
    await flush(store)
    for _ in range(2):
        assert dict(store.shards()) == {2: head.image}
        assert dict(store.incomplete()) == {}
        assert [k for k, _ in store.scan(START, END, limit=9_999, bytes_max=1 << 30)[0]] == list(map(key, range(3_000)))
        assert set(store.sessions(2)) == {bytes([number]) * 16 for number in range(5)}
        assert store.get(b"m") == record(1)
        backend.crash()
        store = backend.state()


async def test_bad_chunks_are_refused(backend: Backend) -> None:
    store = await filled(backend)
    head, chunks = await snapshot_of(store, 2)
    with pytest.raises(AssertionError):
        store.install_chunk(2, chunks[0], _no)
    await durable(lambda done: store.install_begin(head, done))
    rng = random.Random(1)
    for _ in range(50):
        position = rng.randrange(len(chunks[0]))
        flipped = bytearray(chunks[0])
        flipped[position] ^= 1 << rng.randrange(8)
        with pytest.raises(DamagedRecord):
            store.install_chunk(2, bytes(flipped), _no)
    for bad in (
        b"",
        b"abc",
        chunks[0][:-1],
        chunks[1],  # before chunk 0
        encode_chunk(3, 0, [], last=True),  # of another shard
        encode_chunk(2, 0, [(b"d" + b"j", b"x")], last=True),  # outside the range
        encode_chunk(2, 0, [(b"i" + bytes(8), b"x")], last=True),  # no data
    ):
        with pytest.raises(DamagedRecord):
            store.install_chunk(2, bad, _no)
    store.install_chunk(2, chunks[0], _no)
    with pytest.raises(AssertionError):
        store.install_finish(head, _no)  # the last chunk has not come
    await durable(lambda done: store.destroy_shard(2, START, END, done))
    assert [k for k, _ in scan_all(store)] == [b"j", b"l"]


@pytest.mark.parametrize("finished", [False, True])
async def test_a_flush_frozen_before_an_install_does_not_undo_it(backend: Backend, finished: bool) -> None:
    """The flush waits for the log while the install runs; its old data must not be written over the new."""
    store = await filled(backend, 10)
    head, chunks = await snapshot_of(store, 2)
    store.put(key(3), record(9))
    store.put(key(500), record(9))
    store.delete(key(4))
    store.put(b"m", record(9))
    store.freeze()
    await durable(lambda done: store.install_begin(head, done))
    for chunk in chunks:
        store.install_chunk(2, chunk, _no)
    if finished:
        await durable(lambda done: store.install_finish(head, done))
    await durable(
        lambda done: store.write_frozen(
            {2: ShardChange(image(99), {b"z" * 16: b"old"}), 5: ShardChange(image(1))}, done
        )
    )
    if not finished:
        assert 2 not in store.shards()
        await durable(lambda done: store.install_finish(head, done))
    for _ in range(2):
        assert [k for k, _ in store.scan(START, END, limit=99, bytes_max=1 << 20)[0]] == list(map(key, range(10)))
        assert store.get(key(3)) == record(1, 300)
        assert store.get(b"m") == record(9)
        assert dict(store.shards()) == {2: head.image, 5: image(1)}
        assert b"z" * 16 not in store.sessions(2)
        backend.crash()
        store = backend.state()


async def test_an_install_behind_a_queued_flush(backend: Backend) -> None:
    store = await filled(backend, 10)
    head, chunks = await snapshot_of(store, 2)
    store.put(key(3), record(9))
    store.put(key(500), record(9))
    store.freeze()
    store.write_frozen({2: ShardChange(image(99), {b"z" * 16: b"old"})}, _no)
    await install(store, head, chunks)
    assert [k for k, _ in store.scan(START, END, limit=99, bytes_max=1 << 20)[0]] == list(map(key, range(10)))
    assert dict(store.shards()) == {2: head.image}
    assert b"z" * 16 not in store.sessions(2)


@pytest.mark.parametrize("chunks_sent", [0, 1, 99])
async def test_a_crash_in_an_install_leaves_the_mark(backend: Backend, chunks_sent: int) -> None:
    store = await filled(backend)
    head, chunks = await snapshot_of(store, 2)
    await durable(lambda done: store.install_begin(head, done))
    for chunk in chunks[:chunks_sent]:
        await durable(lambda done, chunk=chunk: store.install_chunk(2, chunk, done))  # type: ignore[misc]
    backend.crash()
    store = backend.state()
    assert dict(store.incomplete()) == {2: (START, END)}
    assert dict(store.shards()) == {}
    await install(store, head, chunks)  # begun anew
    assert dict(store.incomplete()) == {}
    assert len(scan_all(store)) == 3_002


@pytest.mark.parametrize("seed", range(6))
async def test_a_crash_at_any_moment_of_a_destruction(backend: Backend, seed: int) -> None:
    """Either the shard is whole, or it is marked, or it is gone."""
    rng = random.Random(seed)
    store = await filled(backend)
    store.destroy_shard(2, START, END, _no)
    assert dict(store.shards()) == {}
    for _ in range(rng.randrange(5)):
        await asyncio.sleep(0.001)
    backend.crash(rng)
    store = backend.state()
    left = len(store.scan(START, END, limit=9_999, bytes_max=1 << 30)[0])
    if 2 in store.shards():
        assert left == 3_000
        assert not store.incomplete()
    elif 2 in store.incomplete():
        await durable(lambda done: store.destroy_shard(2, *store.incomplete()[2], done))
        assert not store.incomplete()
    else:
        assert left == 0
    if 2 not in store.shards():
        assert [k for k, _ in scan_all(store)] == [b"j", b"l"]
        assert dict(store.sessions(2)) == {}


async def test_destroy_then_create_again(backend: Backend) -> None:
    store = await filled(backend, 100)
    store.put(key(1), record(2))
    await durable(lambda done: store.destroy_shard(2, START, END, done))
    assert [k for k, _ in scan_all(store)] == [b"j", b"l"]
    await durable(lambda done: store.create_shard(2, image(1), done))
    store.put(key(1), record(3))
    await flush(store, {2: ShardChange(image(2))})
    backend.crash()
    store = backend.state()
    assert [k for k, _ in scan_all(store)] == [b"j", key(1), b"l"]
    assert dict(store.shards()) == {2: image(2)}


async def test_an_install_can_end_absorbed_shards(backend: Backend) -> None:
    store = await filled(backend, 10)
    head, chunks = await snapshot_of(store, 2)
    await durable(lambda done: store.create_shard(3, image(1), done))
    await flush(store, {3: ShardChange(image(2), {b"q" * 16: b"1"})})
    await install(store, head, chunks, drop=[3])
    for _ in range(2):
        assert dict(store.shards()) == {2: head.image}
        assert dict(store.sessions(3)) == {}
        backend.crash()
        store = backend.state()


async def test_close_finishes_what_is_queued(backend: Backend) -> None:
    store = backend.state()
    for number in range(500):
        store.put(key(number), record(1))
    store.freeze()
    called: list[int] = []
    store.write_frozen({2: ShardChange(image(5))}, lambda: called.append(1))
    backend.close()
    store = backend.state()
    assert len(scan_all(store)) == 500
    assert dict(store.shards()) == {2: image(5)}
    assert called == []
    assert backend.fatal == []


async def test_sizes(backend: Backend) -> None:
    store = await filled(backend)
    found = store.sizes()
    assert found["used_bytes"] > 900_000
    assert found["file_bytes"] >= found["used_bytes"]
    assert found["free_bytes"] > 0


def _no() -> None:
    """Nobody waits for it."""
