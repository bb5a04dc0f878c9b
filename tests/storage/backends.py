"""The two disks that the conformance suite runs on, with one face: open the stores, crash, open them again.

An LMDB crash is played by a copy: LMDB's own copy of the environments at the last committed transaction is what the
next stores open, whatever the threads still do to the old files.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvstore.base.limits import MIB
from kvstore.storage.log_store import EnvLogStore, LmdbLogStore
from kvstore.storage.memory import MemoryDisk, MemoryLogStore, MemoryStateStore
from kvstore.storage.protocol import LogStore, ShardImage, StateStore
from kvstore.storage.state_store import EnvStateStore, LmdbStateStore
from raft.types import Entry, EntryKind

MAP_BYTES = 64 * MIB


class Backend:
    """One disk. `fatal` collects what the stores gave up with."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.fatal: list[BaseException] = []

    def log(self, **options: Any) -> EnvLogStore:
        raise NotImplementedError

    def state(self) -> EnvStateStore:
        raise NotImplementedError

    def crash(self, rng: random.Random | None = None) -> None:
        """What is open is dead; what was synced stays. With `rng` some of what was under way may have got through."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open."""
        raise NotImplementedError


class MemoryBackend(Backend):
    def __init__(self, loop: asyncio.AbstractEventLoop, latency: float = 0.0) -> None:
        super().__init__(loop)
        self.disk = MemoryDisk(latency=lambda: latency)
        self._open: list[LogStore | StateStore] = []

    def log(self, **options: Any) -> EnvLogStore:
        store = MemoryLogStore(self.disk, loop=self.loop, on_fatal=self.fatal.append, **options)
        self._open.append(store)
        return store

    def state(self) -> EnvStateStore:
        store = MemoryStateStore(self.disk, loop=self.loop, on_fatal=self.fatal.append)
        self._open.append(store)
        return store

    def crash(self, rng: random.Random | None = None) -> None:
        self.disk.crash(rng)
        self._open.clear()

    def close(self) -> None:
        for store in self._open:
            store.close()
        self._open.clear()


class LmdbBackend(Backend):
    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        super().__init__(loop)
        self._folder = folder
        self._life = 0
        self._open: list[LmdbLogStore | LmdbStateStore] = []

    @property
    def folder(self) -> Path:
        return self._folder / str(self._life)

    def log(self, **options: Any) -> EnvLogStore:
        store = LmdbLogStore(
            self.folder / "log",
            loop=self.loop,
            on_fatal=self.fatal.append,
            map_bytes=MAP_BYTES,
            **options,
        )
        self._open.append(store)
        return store

    def state(self) -> EnvStateStore:
        store = LmdbStateStore(self.folder / "state", loop=self.loop, on_fatal=self.fatal.append, map_bytes=MAP_BYTES)
        self._open.append(store)
        return store

    def crash(self, rng: random.Random | None = None) -> None:
        following = self._folder / str(self._life + 1)
        for store in self._open:
            name = "log" if isinstance(store, LmdbLogStore) else "state"
            (following / name).mkdir(parents=True)
            # Compacting copies take no write lock; the thread may hold it while it waits for the loop's grant.
            store._env.copy(str(following / name), compact=True)
        self.close()
        self._life += 1

    def close(self) -> None:
        for store in self._open:
            store.close()
        self._open.clear()


async def durable(start: Callable[[Callable[[], None]], None]) -> None:
    """Wait until the store has called back."""
    done = asyncio.get_running_loop().create_future()
    start(lambda: done.set_result(None))
    await asyncio.wait_for(done, 20)


def entries(first: int, count: int, *, term: int = 1, size: int = 10) -> list[Entry]:
    return [
        Entry(term, index, EntryKind.NORMAL, b"%d-%d" % (term, index) + bytes(size))
        for index in range(first, first + count)
    ]


def image(index: int, *, term: int = 1, meta: bytes = b"") -> ShardImage:
    return ShardImage(index, term, ((1, 2, 3), (), (), (), False), meta)
