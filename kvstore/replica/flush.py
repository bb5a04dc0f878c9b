"""When applied state goes to disk, and when the log behind it may go.

A flush is a consistent cut: the tables of all shards are frozen in one step, with every changed shard's image at its
applied index. It is written only once the local log holds all that it contains, which a barrier in the log thread's
queue tells (applying runs ahead of the local disk).

The first flush of a split's child writes its whole table of sessions, up to 200,000 answers. They are encoded in slices
before the tables are frozen; what changes meanwhile is encoded again, as at every flush.

Invariant: one flush at a time.
Invariant: both halves of a split are in the same flush, the first one after it.
Invariant: the log is compacted only up to a flushed index, and never past an index that a snapshot under way needs.
Called by: host_driver.
"""

from __future__ import annotations

import asyncio
import logging

from kvstore.base.limits import (
    LOG_KEEP_BYTES,
    MEMTABLE_BYTES_MAX,
    MEMTABLE_COMMANDS_MAX,
    SNAPSHOT_LOG_KEEP_BYTES,
)
from kvstore.replica.environment import Environment
from kvstore.replica.host_core import HostCore
from kvstore.replica.membership import image_conf_state
from kvstore.replica.replica import Replica
from kvstore.storage.protocol import LogWrite, ShardChange
from raft import SnapshotMeta

logger = logging.getLogger(__name__)

PREPARED_PER_STEP = 1_000  # answers, about 1 ms
PREPARE_PAUSE_SECONDS = 0.002
FLUSH_BYTES = MEMTABLE_BYTES_MAX // 4
FLUSH_COMMANDS = MEMTABLE_COMMANDS_MAX // 10
"""LMDB keeps the pages that a transaction touches in memory, 4 KiB each, and never gives that memory back: a flush of
20,000 random keys into a large environment touches up to 80 MiB."""


class Flusher:
    """Flushes and compacts for one host."""

    def __init__(self, core: HostCore, environment: Environment) -> None:
        self.core = core
        self.environment = environment
        self.under_way = False
        self._preparing: asyncio.TimerHandle | None = None
        self.pins: dict[int, list[int]] = {}  # group -> indexes behind which snapshots under way need the log
        self._next_ms = environment.clock.boot_ms() + environment.config.flush_interval_ms

    def tick(self, now_ms: int) -> None:
        """Flush when the tables are large, or now and then when there is anything."""
        if self.under_way:
            return
        environment = self.environment
        store = environment.state_store
        large = store.table_bytes > FLUSH_BYTES or store.table_commands > FLUSH_COMMANDS
        if large or now_ms >= self._next_ms or environment.flush_wanted:
            self._next_ms = now_ms + environment.config.flush_interval_ms
            environment.flush_wanted = False  # who has to wait all the same will say so again
            self.begin()

    def begin(self) -> bool:
        """Start a flush of everything that changed; False when there is nothing or one is under way."""
        environment = self.environment
        store = environment.state_store
        changed = [
            replica
            for replica in self.core.replicas.values()
            if replica.state is not None and not replica.installing and replica.state.dirty
        ]
        if self.under_way or store.flushing or self._preparing is not None or not changed:
            return False
        if not self._prepare(changed):
            return True
        self.under_way = True
        began = environment.perf()
        store.freeze()
        changes: dict[int, ShardChange] = {}
        for replica in changed:
            assert replica.state is not None
            changes[replica.group] = replica.state.change()

        def written() -> None:
            environment.metrics.flush_seconds.observe(environment.perf() - began)
            self.under_way = False
            self._on_flushed(changed, changes)

        # The barrier: what was applied was submitted to the log before, so it is durable when this runs.
        environment.log_store.submit([], lambda: store.write_frozen(changes, written))
        return True

    def _prepare(self, changed: list[Replica]) -> bool:
        """Do a slice of what would make the freeze long; False: there is more, and the flush begins by itself later."""
        left = [
            replica
            for replica in changed
            if replica.state is not None and not replica.state.prepare_change(PREPARED_PER_STEP)
        ]
        if left:
            loop = asyncio.get_running_loop()
            self._preparing = loop.call_later(PREPARE_PAUSE_SECONDS, self._go_on)
        return not left

    def _go_on(self) -> None:
        self._preparing = None
        self.begin()

    def close(self) -> None:
        """Begin nothing any more."""
        if self._preparing is not None:
            self._preparing.cancel()

    def _on_flushed(self, replicas: list[Replica], changes: dict[int, ShardChange]) -> None:
        writes = []
        for replica in replicas:
            if self.core.replicas.get(replica.group) is not replica or replica.state is None:
                continue
            image = changes[replica.group].image
            known = replica.log.snapshot()
            if known is not None and known.index >= image.applied_index:
                continue  # a snapshot was installed meanwhile; the store has left this image out
            replica.log.set_snapshot(SnapshotMeta(image.applied_index, image.applied_term, image_conf_state(image)))
            compact_to = self._compact_to(replica, image.applied_index)
            if compact_to >= replica.log.first_index():
                writes.append(LogWrite(group=replica.group, compact_to=compact_to))
        if writes:
            self.environment.log_store.submit(writes, lambda: None)

    def _compact_to(self, replica: Replica, flushed: int) -> int:
        """Keep a tail for followers that are a little behind; beyond it they get a snapshot."""
        log = replica.log
        behind = log.bytes_behind(flushed)
        if behind <= LOG_KEEP_BYTES:
            return 0
        entries = flushed - log.first_index() + 1
        kept = entries * (LOG_KEEP_BYTES // 2) // behind
        compact_to = flushed - kept
        pins = self.pins.get(replica.group)
        if pins and behind <= SNAPSHOT_LOG_KEEP_BYTES:
            compact_to = min(compact_to, min(pins))
        return compact_to

    def pin(self, group: int, index: int) -> None:
        """A snapshot at `index` is under way: its receiver will need what comes behind it."""
        self.pins.setdefault(group, []).append(index)

    def unpin(self, group: int, index: int) -> None:
        pins = self.pins[group]
        pins.remove(index)
        if not pins:
            del self.pins[group]
