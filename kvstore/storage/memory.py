"""The stores without a disk, for simulation: the code of the LMDB stores over memory, on any asyncio loop.

A `MemoryDisk` outlives the stores that use it, as a disk outlives a process. What a store has submitted is *unsynced*
until the disk's latency has passed on the loop's clock; then it is committed and `done` runs. `crash` is a power cut
or SIGKILL: the stores are dead from then on, and the next ones, opened on the same disk, find what was synced.

Invariant: one batch of a store is under way at a time; what comes meanwhile is the next batch (as with the thread).
Invariant: a dead store changes nothing and calls nobody back.
Called by: the simulation, and tests of everything above.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar, cast

import lmdb

from kvstore.base.limits import LOG_CACHE_BYTES
from kvstore.storage.log_store import EnvLogStore
from kvstore.storage.memory_env import MemoryEnvironment, PowerCut
from kvstore.storage.protocol import Done, OnFatal
from kvstore.storage.state_store import EnvStateStore
from kvstore.storage.writer import OnCommit

Job = TypeVar("Job")


class MemoryDisk:
    """Two environments and their faults. `latency` gives the seconds of the next commit."""

    def __init__(self, *, latency: Callable[[], float] = lambda: 0.001) -> None:
        self.latency = latency
        self.log_env = MemoryEnvironment()
        self.state_env = MemoryEnvironment()
        self.failure: BaseException | None = None  # set: the next commit of each store fails with it
        self._writers: list[MemoryWriter[object]] = []

    def crash(self, rng: random.Random | None = None) -> None:
        """Lose what is unsynced. With `rng`, some of what was under way has become durable though nobody was told."""
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.die(0 if rng is None else rng.choice((0, 0, 1, 2, 1_000)))

    def attach(self, writer: MemoryWriter[object]) -> None:
        self._writers.append(writer)

    def detach(self, writer: MemoryWriter[object]) -> None:
        if writer in self._writers:
            self._writers.remove(writer)


class MemoryWriter(Generic[Job]):
    """What `writer.WriterThread` is to a real disk."""

    def __init__(
        self,
        disk: MemoryDisk,
        env: MemoryEnvironment,
        *,
        loop: asyncio.AbstractEventLoop,
        commit: Callable[[Sequence[Job]], None],
        on_fatal: OnFatal,
        idle: Callable[[], bool] | None = None,
        on_commit: OnCommit | None = None,
    ) -> None:
        self._disk = disk
        self._env = env
        self._loop = loop
        self._commit = commit
        self._on_fatal = on_fatal
        self._idle = idle
        self._on_commit = on_commit
        self._queue: list[tuple[Job, Done]] = []
        self._under_way: list[tuple[Job, Done]] = []
        self._dead = False
        self._closed = False
        self.failed = False
        env.commits_left = None
        disk.attach(cast("MemoryWriter[object]", self))

    def submit(self, job: Job, done: Done) -> None:
        assert not self._closed, "work was submitted to a closed store"
        if self._dead or self.failed:
            return
        self._queue.append((job, done))
        if not self._under_way:
            self._begin()

    def on_loop(self, action: Callable[[], None]) -> None:
        action()

    def close(self) -> None:
        if not (self._closed or self._dead or self.failed):
            for batch in (self._under_way, self._queue):
                if batch:
                    self._commit([job for job, _ in batch])
        self._closed = True
        self._disk.detach(cast("MemoryWriter[object]", self))

    def die(self, transactions: int) -> None:
        """The process is gone; up to `transactions` of what was under way are durable."""
        if self._closed or self._dead:
            return
        self._dead = True
        self._env.commits_left = transactions
        try:
            if self._under_way and not self.failed:
                self._commit([job for job, _ in self._under_way])
        except PowerCut:
            pass

    def _begin(self) -> None:
        self._under_way, self._queue = self._queue, []
        seconds = self._disk.latency()
        self._loop.call_later(seconds, self._finish, seconds)

    def _finish(self, seconds: float) -> None:
        if self._dead or self._closed or self.failed:
            return
        batch, self._under_way = self._under_way, []
        try:
            if self._disk.failure is not None:
                raise self._disk.failure
            self._commit([job for job, _ in batch])
        except Exception as error:
            self.failed = True
            self._on_fatal(error)
            return
        if self._queue:
            self._begin()
        elif self._idle is not None:
            while self._idle():
                pass
        if self._on_commit is not None:
            self._on_commit(seconds, len(batch))
        for _, done in batch:
            if not (self._dead or self._closed):
                done()


class FreePacer:
    """Nobody shares the time here."""

    released = True

    def start(self) -> None: ...
    def checkpoint(self) -> None: ...
    def stop(self) -> None: ...
    def release(self) -> None: ...


class MemoryLogStore(EnvLogStore):
    """`protocol.LogStore` on a MemoryDisk."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        loop: asyncio.AbstractEventLoop,
        on_fatal: OnFatal,
        cache_bytes_max: int = LOG_CACHE_BYTES,
        on_commit: OnCommit | None = None,
    ) -> None:
        self._memory = disk.log_env
        super().__init__(
            cast(lmdb.Environment, disk.log_env),
            "the log in memory",
            make_writer=lambda commit, idle: MemoryWriter(
                disk, disk.log_env, loop=loop, commit=commit, on_fatal=on_fatal, idle=idle, on_commit=on_commit
            ),
            cache_bytes_max=cache_bytes_max,
        )

    def sizes(self) -> Mapping[str, int]:
        return _sizes(self._memory)


class MemoryStateStore(EnvStateStore):
    """`protocol.StateStore` on a MemoryDisk."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        loop: asyncio.AbstractEventLoop,
        on_fatal: OnFatal,
        on_commit: OnCommit | None = None,
    ) -> None:
        self._memory = disk.state_env
        super().__init__(
            cast(lmdb.Environment, disk.state_env),
            "the state in memory",
            pacer=FreePacer(),
            make_writer=lambda commit: MemoryWriter(
                disk, disk.state_env, loop=loop, commit=commit, on_fatal=on_fatal, on_commit=on_commit
            ),
        )

    def sizes(self) -> Mapping[str, int]:
        return _sizes(self._memory)


def _sizes(env: MemoryEnvironment) -> Mapping[str, int]:
    used = env.used_bytes
    return {"file_bytes": used, "used_bytes": used, "free_bytes": 1 << 40}
