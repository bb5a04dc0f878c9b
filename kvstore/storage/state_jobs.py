"""What the state thread does: flush, install, destroy; each job in transactions of its own, in slices (`pace`).

Invariant: `run` may be started anew from its beginning after MapFullError: every step overwrites or deletes, and a step
           that has been committed does no harm when repeated.
Invariant: the mark of an unfinished range is durable before the first key of the range changes.
Called by: state_store, on its writer thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import lmdb

from kvstore.base.limits import KIB
from kvstore.storage import records
from kvstore.storage.chunks import Pair, stored_ranges
from kvstore.storage.keys import DATA, image_key, incomplete_key, session_end, session_prefix
from kvstore.storage.memtable import MemTable
from kvstore.storage.pace import Pace
from kvstore.storage.protocol import ShardChange, ShardImage

STEP_KEYS = 32  # between two looks at the clock: about 0.1 ms
LARGE_VALUE_BYTES = 16 * KIB  # values from this size on are looked after one by one
CLEAR_KEYS_PER_COMMIT = 10_000


class StateWork:
    """The thread's tools: transactions, paced."""

    def __init__(self, environment: lmdb.Environment, pacer: Pace) -> None:
        self._env = environment
        self.pacer = pacer
        self.committed_id = 0  # of the last transaction; the loop reads it once the job is told of

    @contextmanager
    def transaction(self, *, paced: bool) -> Iterator[lmdb.Transaction[bytes]]:
        """A durable transaction. `paced`: its body calls `pacer.checkpoint`; the commit runs beside the loop."""
        with self._env.begin(write=True) as txn:
            if paced:
                self.pacer.start()
            try:
                yield txn
            finally:
                if paced:
                    self.pacer.stop()
            transaction_id = txn.id()
        self.committed_id = transaction_id

    def clear(self, ranges: Sequence[Pair]) -> None:
        """Delete the stored keys of the ranges, in transactions of bounded size."""
        for low, high in ranges:
            more = True
            while more:
                with self.transaction(paced=True) as txn:
                    more = delete_some(txn, low, high, count=CLEAR_KEYS_PER_COMMIT, checkpoint=self.pacer.checkpoint)


class StateJob(Protocol):
    def run(self, work: StateWork) -> None: ...


def delete_some(
    txn: lmdb.Transaction[bytes], low: bytes, high: bytes, *, count: int, checkpoint: Callable[[], None]
) -> bool:
    """Delete up to `count` keys of [low, high); whether more are left."""
    cursor = txn.cursor()
    if not cursor.set_range(low):
        return False
    for number in range(count):
        key = cursor.key()
        if not key or key >= high:  # an empty key: the cursor stands behind the last one
            return False
        cursor.delete()
        if number % STEP_KEYS == 0:
            checkpoint()
    return bool(cursor.key()) and cursor.key() < high


def _delete_all(txn: lmdb.Transaction[bytes], low: bytes, high: bytes, checkpoint: Callable[[], None]) -> None:
    while delete_some(txn, low, high, count=CLEAR_KEYS_PER_COMMIT, checkpoint=checkpoint):
        pass


def _put_image(txn: lmdb.Transaction[bytes], group: int, image: ShardImage) -> None:
    key = image_key(group)
    txn.put(key, records.encode_struct(key, image))


def _drop_shard(txn: lmdb.Transaction[bytes], group: int, checkpoint: Callable[[], None]) -> None:
    txn.delete(image_key(group))
    _delete_all(txn, session_prefix(group), session_end(group), checkpoint)


@dataclass(frozen=True, slots=True)
class FlushJob:
    """The frozen table, images and sessions of all shards, in one transaction. `drop`: shards that a merge ended."""

    table: MemTable
    changes: Mapping[int, ShardChange]
    drop: Sequence[int]

    def run(self, work: StateWork) -> None:
        checkpoint = work.pacer.checkpoint
        with work.transaction(paced=bool(self.table.data) or any(c.sessions for c in self.changes.values())) as txn:
            self._write_table(txn, checkpoint)
            for group in self.drop:
                _drop_shard(txn, group, checkpoint)
            for group, change in self.changes.items():
                _put_image(txn, group, change.image)
                _write_sessions(txn, group, change.sessions, checkpoint)

    def _write_table(self, txn: lmdb.Transaction[bytes], checkpoint: Callable[[], None]) -> None:
        data = self.table.data
        put, delete, encode = txn.put, txn.delete, records.encode_data
        for keys in self.table.ordered_chunks(STEP_KEYS * 8):
            for at in range(0, len(keys), STEP_KEYS):
                for key in keys[at : at + STEP_KEYS]:
                    if key not in data:
                        continue  # forgotten
                    record = data[key]
                    stored = DATA + key
                    if record is None:
                        delete(stored)
                    else:
                        put(stored, encode(stored, record))
                        if len(record.value) >= LARGE_VALUE_BYTES:
                            checkpoint()
                checkpoint()


def _write_sessions(
    txn: lmdb.Transaction[bytes], group: int, sessions: Mapping[bytes, bytes | None], checkpoint: Callable[[], None]
) -> None:
    prefix = session_prefix(group)
    for number, (session, answers) in enumerate(sessions.items()):
        key = prefix + session
        if answers is None:
            txn.delete(key)
        else:
            txn.put(key, records.seal(key, answers))
        if number % STEP_KEYS == 0:
            checkpoint()


@dataclass(frozen=True, slots=True)
class InstallBegin:
    group: int
    start: bytes
    end: bytes

    def run(self, work: StateWork) -> None:
        key = incomplete_key(self.group)
        with work.transaction(paced=False) as txn:
            txn.put(key, records.encode_struct(key, (self.start, self.end)))
            txn.delete(image_key(self.group))
        work.clear(stored_ranges(self.group, self.start, self.end))


@dataclass(frozen=True, slots=True)
class InstallChunk:
    pairs: Sequence[Pair]

    def run(self, work: StateWork) -> None:
        with work.transaction(paced=True) as txn:
            for number, (key, raw) in enumerate(self.pairs):
                txn.put(key, raw)
                if number % STEP_KEYS == 0 or len(raw) >= LARGE_VALUE_BYTES:
                    work.pacer.checkpoint()


@dataclass(frozen=True, slots=True)
class InstallFinish:
    """`drop`: shards that the snapshot's shard has absorbed."""

    group: int
    image: ShardImage
    drop: Sequence[int]

    def run(self, work: StateWork) -> None:
        with work.transaction(paced=True) as txn:
            for group in self.drop:
                _drop_shard(txn, group, work.pacer.checkpoint)
            _put_image(txn, self.group, self.image)
            txn.delete(incomplete_key(self.group))


@dataclass(frozen=True, slots=True)
class DestroyJob:
    group: int
    start: bytes
    end: bytes

    def run(self, work: StateWork) -> None:
        InstallBegin(self.group, self.start, self.end).run(work)
        with work.transaction(paced=False) as txn:
            txn.delete(incomplete_key(self.group))


@dataclass(frozen=True, slots=True)
class DismantleJob:
    """Frees a flushed table's memory; the loop has let go of it."""

    table: MemTable

    def run(self, work: StateWork) -> None:
        work.pacer.start()
        try:
            for _ in self.table.dismantle():
                work.pacer.checkpoint()
        finally:
            work.pacer.stop()
