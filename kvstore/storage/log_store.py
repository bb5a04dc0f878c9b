"""The durable logs of all groups in one LMDB environment, written by one thread.

Invariant: one batch is one fsynced transaction for all groups; its order within a group is that of submission.
Invariant: what a group's view (`group_log`) shows as its log is what a reader of the disk finds once everything queued
           is durable. Entries at and below START are garbage whatever they hold, and are swept at leisure.
Invariant: a sweep never reaches an entry that may be part of a log: it is finished first wherever one may be written.
Called by: the node, which opens it, and the host, which submits.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import lmdb
import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.base.limits import LMDB_MAP_BYTES, LOG_CACHE_BYTES
from kvstore.storage import records
from kvstore.storage.errors import DirectoryLost
from kvstore.storage.group_log import GroupLogView
from kvstore.storage.keys import NODE, LogKind, log_key, parse_log_key
from kvstore.storage.lmdb_env import grow_map, open_environment, sizes, write_failure
from kvstore.storage.protocol import Done, LogWrite, NodeIdentity, OnFatal, ReplicaIdentity
from kvstore.storage.writer import OnCommit, Writer, WriterThread
from raft.types import Entry

SWEEP_PER_COMMIT = 64  # garbage entries that ride along with a batch: fewer than 0.1 ms
SWEEP_WHEN_IDLE = 512

_View = TypeVar("_View", bytes, memoryview)

_NODE_KEY = log_key(NODE, LogKind.NODE_IDENTITY)


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Entries [low, high) of a group that are to be deleted some time."""

    low: int
    high: int
    then_start: bool  # the group was destroyed: its START record goes last

    def joined(self, other: _Sweep | None) -> _Sweep:
        if other is None:
            return self
        return _Sweep(min(self.low, other.low), max(self.high, other.high), self.then_start or other.then_start)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One LogWrite with what only the loop knows."""

    group: int
    write: LogWrite | None  # None: nothing but a sweep
    stale: tuple[int, int] = (0, 0)  # entries that must be gone in the same transaction
    start: tuple[int, int] | None = None  # the new START record
    sweep: _Sweep | None = None


MakeWriter = Callable[
    [Callable[[Sequence[Sequence[_Prepared]]], None], Callable[[], bool]], Writer[Sequence[_Prepared]]
]
"""(commit, idle) -> the writer that calls them."""


class EnvLogStore(ABC):
    """`protocol.LogStore` over an open environment; `where` names it in errors."""

    def __init__(
        self,
        env: lmdb.Environment,
        where: object,
        *,
        make_writer: MakeWriter,
        cache_bytes_max: int,
    ) -> None:
        """Raises DirectoryLost."""
        self._env = env
        self._where = where
        self._cache_bytes_max = cache_bytes_max
        self._views: dict[int, GroupLogView] = {}
        self._queued_bytes = 0
        self._sweeps: dict[int, _Sweep] = {}  # the thread's
        try:
            self._identities = self._load_identities()
        except lmdb.Error as error:
            self._env.close()
            raise DirectoryLost(f"{where} can't be read: {error}") from error
        except DirectoryLost:
            self._env.close()
            raise
        self._writer = make_writer(self._commit, self._idle)

    # -- the node

    def node_identity(self) -> NodeIdentity | None:
        with self._env.begin() as txn:
            raw = txn.get(_NODE_KEY)
        if raw is None:
            return None
        try:
            return records.decode_struct(_NODE_KEY, raw, NodeIdentity)
        except DamagedRecord as error:
            raise DirectoryLost(f"{self._where}: the node's identity is damaged") from error

    def set_node_identity(self, identity: NodeIdentity) -> None:
        self._write_now([(_NODE_KEY, records.encode_struct(_NODE_KEY, identity))])

    def groups(self) -> Mapping[int, ReplicaIdentity]:
        return MappingProxyType(self._identities)

    # -- opening a group

    def open_group(self, group: int, *, verify_from: int) -> GroupLogView:
        """See `protocol.LogStore.open_group`. Raises DirectoryLost when the hard state or the start is damaged."""
        assert group != NODE
        view = self._views.get(group)
        if view is not None:
            return view
        view = GroupLogView(group, self, cache_bytes_max=self._cache_bytes_max)
        view.identity = self._identities.get(group, view.identity)
        with self._env.begin(buffers=True) as txn:
            start, start_term = self._load_fixed(txn, view)
            if _is_destroyed(start, start_term):
                view.load(start=0, start_term=0)  # its sweep, begun at the store's start, is still under way
                last_found = 0
            else:
                view.load(start=start, start_term=start_term)
                last_found = self._load_entries(txn, view, verify_from)
            garbage = self._garbage_below(txn, group, view.first_index() - 1)
        lost = max(last_found, view.hard_state.commit)
        # What is flushed needs no log: losing entries up to there, or a commit index up to there, is no damage.
        damaged_at = lost if lost > max(verify_from, view.last_index()) else 0
        if damaged_at or last_found > view.last_index():
            self._drop_tail(view, last_found, damaged_at)
        self._views[group] = view
        if garbage is not None:
            self._writer.submit([_Prepared(group, None, sweep=garbage)], _nothing)
        return view

    def _load_fixed(self, txn: lmdb.Transaction[memoryview], view: GroupLogView) -> tuple[int, int]:
        """Loads the hard state; (start, its term)."""
        group = view.group
        try:
            key = log_key(group, LogKind.HARD_STATE)
            raw = txn.get(key)
            if raw is not None:
                view.hard_state = records.decode_hard_state(key, bytes(raw))
            key = log_key(group, LogKind.START)
            raw = txn.get(key)
            start, term = records.decode_struct(key, bytes(raw), tuple[int, int]) if raw is not None else (0, 0)
        except DamagedRecord as error:
            raise DirectoryLost(
                f"{self._where}: the hard state of group {group} is damaged; its vote is lost: the node must join anew"
            ) from error
        return start, term

    def _load_entries(self, txn: lmdb.Transaction[memoryview], view: GroupLogView, verify_from: int) -> int:
        """Load positions up to the first bad record; the index of the last entry on the disk."""
        found = view.last_index()
        sound = True
        for key, raw in _iterate_entries(txn, view.group, found + 1):
            _, _, index = parse_log_key(key)
            found = index
            if not sound:
                continue
            sound = index == view.last_index() + 1 and len(raw) >= records.ENTRY_OVERHEAD_BYTES
            sound = sound and (index <= verify_from or records.is_sound(key, raw))
            if sound:
                term = int.from_bytes(raw[:8], "big")
                view.load_entry(index=index, term=term, data_bytes=len(raw) - records.ENTRY_OVERHEAD_BYTES)
        return found

    def _garbage_below(self, txn: lmdb.Transaction[memoryview], group: int, start: int) -> _Sweep | None:
        for key, _ in _iterate_entries(txn, group, 0):
            _, _, index = parse_log_key(key)
            return _Sweep(index, start + 1, then_start=False) if index <= start else None
        return None

    def _drop_tail(self, view: GroupLogView, last_found: int, damaged_at: int) -> None:
        """Delete what lies behind the last sound entry and persist the damage (0 = none), in one transaction."""
        puts = []
        if damaged_at:
            old = view.identity
            identity = msgspec.structs.replace(old, damaged_at=max(old.damaged_at, damaged_at))
            view.identity = self._identities[view.group] = identity
            key = log_key(view.group, LogKind.REPLICA_IDENTITY)
            puts.append((key, records.encode_struct(key, identity)))
        behind = range(view.last_index() + 1, last_found + 1)
        self._write_now(puts, [log_key(view.group, LogKind.ENTRY, index) for index in behind])

    # -- writing, loop thread

    def submit(self, writes: Sequence[LogWrite], done: Done) -> None:
        prepared: list[_Prepared] = []
        views: list[GroupLogView] = []
        size = 0
        for write in writes:
            view = self._views.get(write.group) or self.open_group(write.group, verify_from=0)
            prepared.append(self._prepare(view, write))
            views.append(view)
            for entry in write.entries:
                size += len(entry.data)
        self._queued_bytes += size

        def durable() -> None:
            self._queued_bytes -= size
            for view in views:
                view.durable()
            done()

        self._writer.submit(prepared, durable)

    def _prepare(self, view: GroupLogView, write: LogWrite) -> _Prepared:
        first, last, term_changed = view.first_index(), view.last_index(), None
        stale = view.apply(write)
        if write.identity is not None:
            self._identities[write.group] = write.identity
        elif write.group not in self._identities:
            self._identities[write.group] = view.identity
        sweep = None
        if write.destroy:
            term_changed = (last, 0)
            sweep = _Sweep(first, last + 1, then_start=True)
        elif view.first_index() != first or write.reset is not None:
            start = view.first_index() - 1
            term_changed = (start, view.term(start))
            if first <= min(start, last):
                sweep = _Sweep(first, min(start, last) + 1, then_start=False)
        return _Prepared(write.group, write, stale, term_changed, sweep)

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    @abstractmethod
    def sizes(self) -> Mapping[str, int]: ...

    def close(self) -> None:
        self._writer.close()
        self._env.close()

    # -- EntryReader, loop thread

    def read_term(self, group: int, index: int) -> int:
        key = log_key(group, LogKind.ENTRY, index)
        with self._env.begin(buffers=True) as txn:
            raw = txn.get(key)
            if raw is None:
                raise DamagedRecord(f"group {group}: entry {index} is missing from the log")
            return records.entry_term(key, raw)

    def read_entries(self, group: int, *, low: int, high: int, bytes_max: int) -> list[Entry]:
        found: list[Entry] = []
        size = 0
        with self._env.begin(buffers=True) as txn:
            for key, raw in _iterate_entries(txn, group, low):
                index = low + len(found)
                if index == high:
                    break
                stored = bytes(key)
                if parse_log_key(stored)[2] != index:
                    break
                entry = records.decode_entry(stored, raw, index)
                found.append(entry)
                size += len(entry.data)
                if size >= bytes_max:
                    return found
        if low + len(found) < high:
            raise DamagedRecord(f"group {group}: entry {low + len(found)} is missing from the log")
        return found

    # -- the thread

    def _commit(self, batch: Sequence[Sequence[_Prepared]]) -> None:
        self._transact(lambda txn, sweeps: self._write_batch(txn, batch, sweeps))

    def _idle(self) -> bool:
        if self._sweeps:
            self._transact(lambda txn, sweeps: _sweep_some(txn, sweeps, SWEEP_WHEN_IDLE))
        return bool(self._sweeps)

    def _transact(self, work: Callable[[lmdb.Transaction[bytes], dict[int, _Sweep]], None]) -> None:
        """Runs `work` in one durable transaction; anew, when the map had to grow (nothing was written then)."""
        while True:
            sweeps = dict(self._sweeps)
            try:
                with self._env.begin(write=True) as txn:
                    work(txn, sweeps)
            except lmdb.MapFullError:
                self._writer.on_loop(self._grow)
                continue
            except lmdb.Error as error:
                raise write_failure(self._where, error) from error
            self._sweeps = sweeps
            return

    def _write_batch(
        self, txn: lmdb.Transaction[bytes], batch: Sequence[Sequence[_Prepared]], sweeps: dict[int, _Sweep]
    ) -> None:
        written = 0
        for submission in batch:
            for prepared in submission:
                if prepared.write is not None:
                    _write_one(txn, prepared, prepared.write, sweeps)
                    written += len(prepared.write.entries)
                if prepared.sweep is not None:
                    sweeps[prepared.group] = prepared.sweep.joined(sweeps.get(prepared.group))
        if sweeps:
            # At least as many go as came, or the garbage would outgrow the log.
            _sweep_some(txn, sweeps, SWEEP_PER_COMMIT + 2 * written)

    def _grow(self) -> None:
        # The loop reads in transactions that end within one step, so none is open here.
        grow_map(self._env)

    # -- start and damage, loop thread

    def _load_identities(self) -> dict[int, ReplicaIdentity]:
        found: dict[int, ReplicaIdentity] = {}
        with self._env.begin() as txn:
            cursor = txn.cursor()
            more = cursor.set_range(log_key(NODE + 1, LogKind(1)))
            while more:
                group, _, _ = parse_log_key(cursor.key())
                key = log_key(group, LogKind.REPLICA_IDENTITY)
                raw = txn.get(key)
                try:
                    found[group] = records.decode_identity(key, raw) if raw is not None else ReplicaIdentity(0)
                except DamagedRecord as error:
                    raise DirectoryLost(f"{self._where}: the replica identity of group {group} is damaged") from error
                self._resume_destruction(txn, group)
                more = cursor.set_range(log_key(group + 1, LogKind(1)))
        return found

    def _resume_destruction(self, txn: lmdb.Transaction[bytes], group: int) -> None:
        key = log_key(group, LogKind.START)
        raw = txn.get(key)
        if raw is None or not records.is_sound(key, raw):
            return  # open_group tells of the damage
        start, term = records.decode_struct(key, raw, tuple[int, int])
        if _is_destroyed(start, term):
            first = next((parse_log_key(key)[2] for key, _ in _iterate_entries(txn, group, 0)), start + 1)
            self._sweeps[group] = _Sweep(first, start + 1, then_start=True)

    def _write_now(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        """One durable transaction on the loop's thread. Only at the start of the node or of a group."""
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in puts:
                        txn.put(key, value)
                    for key in deletes:
                        txn.delete(key)
                return
            except lmdb.MapFullError:
                self._grow()
            except lmdb.Error as error:
                raise write_failure(self._where, error) from error


class LmdbLogStore(EnvLogStore):
    """The log of a real node: LMDB, and a thread that writes."""

    def __init__(
        self,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        on_fatal: OnFatal,
        map_bytes: int = LMDB_MAP_BYTES,
        cache_bytes_max: int = LOG_CACHE_BYTES,
        on_commit: OnCommit | None = None,
    ) -> None:
        """Opens or creates `path`. Raises StartRefused, DirectoryLost."""
        self._path = Path(path)
        super().__init__(
            open_environment(self._path, map_bytes=map_bytes),
            self._path,
            make_writer=lambda commit, idle: WriterThread(
                "kvstore-log", loop=loop, commit=commit, on_fatal=on_fatal, idle=idle, on_commit=on_commit
            ),
            cache_bytes_max=cache_bytes_max,
        )

    def sizes(self) -> Mapping[str, int]:
        return sizes(self._env, self._path)


def _nothing() -> None:
    return


def _iterate_entries(txn: lmdb.Transaction[_View], group: int, index: int) -> Iterator[tuple[bytes, _View]]:
    """(key, record) of the group's entries from `index` on. The record is valid until the next step."""
    cursor = txn.cursor()
    if not cursor.set_range(log_key(group, LogKind.ENTRY, index)):
        return
    for key, raw in cursor.iternext():
        found_group, kind, _ = parse_log_key(key)
        if found_group != group or kind != LogKind.ENTRY:
            return
        yield bytes(key), raw


def _is_destroyed(start: int, term: int) -> bool:
    """The START record of a destroyed group whose entries are not all swept: no entry has term 0."""
    return start > 0 and term == 0


def _write_one(txn: lmdb.Transaction[bytes], prepared: _Prepared, write: LogWrite, sweeps: dict[int, _Sweep]) -> None:
    group = prepared.group
    pending = sweeps.get(group)
    if pending is not None and _must_finish(pending, write):
        _finish_sweep(txn, group, sweeps)
    if write.identity is not None:
        key = log_key(group, LogKind.REPLICA_IDENTITY)
        txn.put(key, records.encode_struct(key, write.identity))
    for index in range(*prepared.stale):
        txn.delete(log_key(group, LogKind.ENTRY, index))
    if prepared.start is not None:
        key = log_key(group, LogKind.START)
        txn.put(key, records.encode_struct(key, prepared.start))
    if write.destroy:
        txn.delete(log_key(group, LogKind.HARD_STATE))
        return
    for entry in write.entries:
        key = log_key(group, LogKind.ENTRY, entry.index)
        txn.put(key, records.encode_entry(key, entry))
    if write.hard_state is not None:
        key = log_key(group, LogKind.HARD_STATE)
        txn.put(key, records.encode_hard_state(key, write.hard_state))


def _must_finish(pending: _Sweep, write: LogWrite) -> bool:
    """May the write make the log begin inside what is still to be swept?"""
    if pending.then_start:
        return write.reset is not None or bool(write.entries) or write.hard_state is not None
    return write.reset is not None and write.reset[0] + 1 < pending.high


def _finish_sweep(txn: lmdb.Transaction[bytes], group: int, sweeps: dict[int, _Sweep]) -> None:
    sweep = sweeps.pop(group)
    for index in range(sweep.low, sweep.high):
        txn.delete(log_key(group, LogKind.ENTRY, index))
    if sweep.then_start:
        txn.delete(log_key(group, LogKind.START))


def _sweep_some(txn: lmdb.Transaction[bytes], sweeps: dict[int, _Sweep], count: int) -> None:
    """Delete up to `count` garbage entries."""
    for group in list(sweeps):
        sweep = sweeps[group]
        if sweep.high - sweep.low <= count:
            count -= sweep.high - sweep.low
            _finish_sweep(txn, group, sweeps)
        else:
            for index in range(sweep.low, sweep.low + count):
                txn.delete(log_key(group, LogKind.ENTRY, index))
            sweeps[group] = _Sweep(sweep.low + count, sweep.high, sweep.then_start)
            return
