"""The data of all shards: in-memory tables before one LMDB environment, written by one thread.

Invariant: readers see (active table, frozen table, one LMDB read transaction) as one unit: the loop's transaction is
           renewed in the very step that drops the frozen table, and nowhere is one of them newer than the others.
Invariant: a flush is one transaction: data of all shards, images, sessions. A crash shows all of it or nothing.
Invariant: while a range is being installed or destroyed, its mark is on the disk before the first key changes and goes
           in the transaction that ends the work.
Called by: the node, which opens it; the host; the state machine (`get`, `put`, `delete`, `scan`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import lmdb

from kvstore.base.errors import DamagedRecord
from kvstore.base.limits import LMDB_MAP_BYTES
from kvstore.storage import records
from kvstore.storage.chunks import InstallProgress
from kvstore.storage.errors import DirectoryLost
from kvstore.storage.keys import DATA, IMAGE, INCOMPLETE, prefix_end, session_end, session_prefix, shard_of
from kvstore.storage.lmdb_env import grow_map, open_environment, sizes, write_failure
from kvstore.storage.memtable import MemTable
from kvstore.storage.pace import Pace, Pacer
from kvstore.storage.protocol import Done, OnFatal, Record, ShardChange, ShardImage, SnapshotHeader
from kvstore.storage.snapshot_reader import LmdbSnapshot
from kvstore.storage.state_jobs import (
    DestroyJob,
    DismantleJob,
    FlushJob,
    InstallBegin,
    InstallChunk,
    InstallFinish,
    StateJob,
    StateWork,
)
from kvstore.storage.tables import ABSENT, Tables
from kvstore.storage.writer import OnCommit, Writer, WriterThread

_Submitted = tuple[StateJob, list[int]]
"""A job, and where the thread leaves the id of the job's last transaction."""
MakeWriter = Callable[[Callable[[Sequence[_Submitted]], None]], Writer[_Submitted]]


class EnvStateStore(ABC):
    """`protocol.StateStore` over an open environment; `where` names it in errors."""

    def __init__(self, env: lmdb.Environment, where: object, *, pacer: Pace, make_writer: MakeWriter) -> None:
        """Raises DirectoryLost."""
        self._env = env
        self._where = where
        self._tables = Tables()
        self._snapshots: set[LmdbSnapshot] = set()
        self._installs: dict[int, InstallProgress] = {}
        try:
            self._images, self._incomplete = self._load()
        except (lmdb.Error, DamagedRecord) as error:
            self._env.close()
            raise DirectoryLost(f"{where} can't be read: {error}") from error
        self._txn = self._env.begin()
        self._taken_over_id = self._txn.id()  # the last transaction whose effects the loop knows of
        self._pacer = pacer
        self._work = StateWork(self._env, pacer)
        self._writer = make_writer(self._commit)

    def _load(self) -> tuple[dict[int, ShardImage], dict[int, tuple[bytes, bytes]]]:
        images: dict[int, ShardImage] = {}
        incomplete: dict[int, tuple[bytes, bytes]] = {}
        with self._env.begin() as txn:
            for key, raw in _iterate(txn, IMAGE, prefix_end(IMAGE)):
                images[shard_of(key)] = records.decode_image(key, raw)
            for key, raw in _iterate(txn, INCOMPLETE, prefix_end(INCOMPLETE)):
                incomplete[shard_of(key)] = records.decode_struct(key, raw, tuple[bytes, bytes])
        for group in incomplete:
            images.pop(group, None)
        return images, incomplete

    # -- data

    def get(self, key: bytes) -> Record | None:
        """Raises DamagedRecord."""
        tables = self._tables
        record = tables.active.data.get(key, ABSENT)
        if record is not ABSENT:
            return record
        if tables.frozen is not None:
            record = tables.frozen.data.get(key, ABSENT)
            if record is not ABSENT:
                return record
        stored = DATA + key
        try:
            raw = self._txn.get(stored)
        except lmdb.Error as error:
            raise DamagedRecord(f"the data record {key!r} can't be read: {error}") from error
        return None if raw is None else records.decode_data(stored, raw)

    def put(self, key: bytes, record: Record) -> None:
        self._tables.active.put(key, record)

    def delete(self, key: bytes) -> None:
        self._tables.active.put(key, None)

    def scan(
        self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
    ) -> tuple[list[tuple[bytes, Record]], bool]:
        """Raises DamagedRecord."""
        try:
            return self._tables.scan(
                self._window, _decode, start, end, limit=limit, bytes_max=bytes_max, reverse=reverse
            )
        except lmdb.Error as error:
            raise DamagedRecord(f"the range from {start!r} to {end!r} can't be read: {error}") from error

    def _window(
        self, start: bytes, end: bytes, count: int, bytes_max: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Stored pairs of [start, end), up to `count` and about bytes_max, at least one; and whether that is all."""
        found: list[tuple[bytes, bytes]] = []
        if start >= end:
            return found, True
        low, high = DATA + start, DATA + end
        cursor = self._txn.cursor()
        size = 0
        if reverse:
            positioned = cursor.prev() if cursor.set_range(high) else cursor.last()
            pairs = cursor.iterprev() if positioned else iter(())
        else:
            pairs = cursor.iternext() if cursor.set_range(low) else iter(())
        for stored, raw in pairs:
            if stored < low if reverse else stored >= high:
                break
            found.append((stored[1:], raw))
            size += len(stored) + len(raw)
            if len(found) >= count or size > bytes_max:
                return found, False
        return found, True

    # -- shards

    def shards(self) -> Mapping[int, ShardImage]:
        return MappingProxyType(self._images)

    def sessions(self, group: int) -> Mapping[bytes, bytes]:
        """Raises DamagedRecord."""
        prefix = session_prefix(group)
        return {
            key[len(prefix) :]: records.unseal(key, raw) for key, raw in _iterate(self._txn, prefix, session_end(group))
        }

    def create_shard(self, group: int, image: ShardImage, done: Done) -> None:
        assert group not in self._incomplete, f"shard {group} is being installed or destroyed"

        def created() -> None:
            if group not in self._incomplete:
                self._images[group] = image

        self._submit(FlushJob(MemTable(), {group: ShardChange(image)}, ()), created, done)

    # -- flush

    @property
    def table_bytes(self) -> int:
        return self._tables.size_bytes

    @property
    def table_commands(self) -> int:
        return self._tables.commands

    @property
    def flushing(self) -> bool:
        return self._tables.frozen is not None

    def freeze(self) -> None:
        self._tables.freeze()

    def write_frozen(self, changes: Mapping[int, ShardChange], done: Done, *, drop: Sequence[int] = ()) -> None:
        table, kept = self._tables.take_frozen(changes)

        def flushed() -> None:
            self._tables.drop_frozen()
            for group in drop:
                self._images.pop(group, None)
            for group, change in kept.items():
                # A range that was given up meanwhile stays given up; its record is cleared by the job behind this one.
                if group not in self._incomplete:
                    self._images[group] = change.image
            self._writer.submit((DismantleJob(table), []), _nothing)

        self._submit(FlushJob(table, kept, tuple(drop)), flushed, done)

    # -- snapshots

    def open_snapshot(self, group: int, start: bytes, end: bytes) -> LmdbSnapshot | None:
        image = self._images.get(group)
        if image is None:
            return None
        txn = self._env.begin()
        if self._tables.frozen_queued and txn.id() != self._taken_over_id:
            # The thread may have committed the flush, and the loop's images are still the ones before it: in a moment
            # both are the same.
            txn.abort()
            return None
        snapshot = LmdbSnapshot(txn, SnapshotHeader(group, image, start, end), on_close=self._snapshots.discard)
        self._snapshots.add(snapshot)
        return snapshot

    def install_begin(self, header: SnapshotHeader, done: Done, *, clear_to: bytes = b"") -> None:
        group, start, end = header.group, header.start, max(header.end, clear_to)
        self._give_up(group, start, end)
        self._installs[group] = InstallProgress(group, start, header.end)
        self._submit(InstallBegin(group, start, end), _nothing, done)

    def install_chunk(self, group: int, data: bytes, done: Done) -> None:
        progress = self._installs.get(group)
        assert progress is not None, f"shard {group}: a chunk without install_begin"
        pairs = progress.accept(data)
        self._submit(InstallChunk(pairs), _nothing, done)

    def install_finish(self, header: SnapshotHeader, done: Done, *, drop: Sequence[int] = ()) -> None:
        group = header.group
        progress = self._installs.get(group)
        assert progress is not None, f"shard {group}: install_finish without install_begin"
        progress.assert_complete()
        del self._installs[group]
        mark = self._incomplete[group]

        def finished() -> None:
            for absorbed in drop:
                self._images.pop(absorbed, None)
            if self._incomplete.get(group) is mark:  # else the range was given up again meanwhile
                del self._incomplete[group]
                self._images[group] = header.image

        self._submit(InstallFinish(group, header.image, tuple(drop)), finished, done)

    def destroy_shard(self, group: int, start: bytes, end: bytes, done: Done) -> None:
        mark = self._give_up(group, start, end)
        self._installs.pop(group, None)

        def destroyed() -> None:
            if self._incomplete.get(group) is mark:  # else another snapshot began to be installed
                del self._incomplete[group]

        self._submit(DestroyJob(group, start, end), destroyed, done)

    def _give_up(self, group: int, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """The shard is none any more; gives the mark, which stays the same object as long as nobody begins anew."""
        assert start < end
        self._tables.forget_shard(group, start, end)
        self._images.pop(group, None)
        self._incomplete[group] = mark = (start, end)
        return mark

    def incomplete(self) -> Mapping[int, tuple[bytes, bytes]]:
        return MappingProxyType(self._incomplete)

    @abstractmethod
    def sizes(self) -> Mapping[str, int]: ...

    def close(self) -> None:
        self._pacer.release()
        self._close_readers()
        self._writer.close()
        self._env.close()

    # -- between loop and thread

    def _submit(self, job: StateJob, moved_on: Callable[[], None], done: Done) -> None:
        """`moved_on` runs in the step in which readers move on to what the job has written, `done` behind it."""

        committed_id: list[int] = []  # set by the thread before it tells the loop

        def finish() -> None:
            self._txn.abort()
            self._txn = self._env.begin()
            self._taken_over_id = committed_id[0]
            moved_on()
            done()

        self._writer.submit((job, committed_id), finish)

    def _commit(self, batch: Sequence[_Submitted]) -> None:
        for job, committed_id in batch:
            while True:
                try:
                    job.run(self._work)
                    committed_id.append(self._work.committed_id)
                    break
                except lmdb.MapFullError:
                    # Nothing of the transaction was written; jobs of several transactions may begin anew.
                    self._writer.on_loop(self._grow)
                except lmdb.Error as error:
                    raise write_failure(self._where, error) from error

    def _grow(self) -> None:
        """On the loop: no reader may be open while the map moves. Snapshots can't be resumed after it."""
        closing = self._pacer.released
        self._close_readers()
        grow_map(self._env)
        if not closing:
            self._txn = self._env.begin()

    def _close_readers(self) -> None:
        self._txn.abort()
        for snapshot in tuple(self._snapshots):
            snapshot.close()


class LmdbStateStore(EnvStateStore):
    """The state of a real node: LMDB, and a thread that writes in slices."""

    def __init__(
        self,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        on_fatal: OnFatal,
        map_bytes: int = LMDB_MAP_BYTES,
        on_commit: OnCommit | None = None,
    ) -> None:
        """Opens or creates `path`. Raises StartRefused, DirectoryLost."""
        self._path = Path(path)
        super().__init__(
            open_environment(self._path, map_bytes=map_bytes),
            self._path,
            pacer=Pacer(loop),
            make_writer=lambda commit: WriterThread(
                "kvstore-state", loop=loop, commit=commit, on_fatal=on_fatal, on_commit=on_commit
            ),
        )

    def sizes(self) -> Mapping[str, int]:
        return sizes(self._env, self._path)


def _nothing() -> None:
    return


def _decode(key: bytes, raw: bytes) -> Record:
    return records.decode_data(DATA + key, raw)


def _iterate(txn: lmdb.Transaction[bytes], start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    cursor = txn.cursor()
    found: list[tuple[bytes, bytes]] = []
    if cursor.set_range(start):
        for key, raw in cursor.iternext():
            if key >= end:
                break
            found.append((key, raw))
    return found
