"""Goal: a commit that fails ends the store: on_fatal exactly once, no done any more, nothing told that is not durable.
A full map is no failure: it grows.

Method: commits that raise, a file system that loses power or room, a FUSE folder whose fsync fails, a tiny map.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvstore.base.errors import StorageFault
from kvstore.base.limits import KIB, MIB
from kvstore.storage.errors import SnapshotLost
from kvstore.storage.log_store import LmdbLogStore
from kvstore.storage.memory import MemoryDisk, MemoryLogStore, MemoryStateStore
from kvstore.storage.protocol import LogWrite, Record, ShardChange
from kvstore.storage.state_store import LmdbStateStore
from raft.types import Entry, EntryKind
from tests.storage.backends import durable, image
from tests.storage.small_fs import small_file_system


class Watch:
    """What a store has called back."""

    def __init__(self) -> None:
        self.fatal: list[BaseException] = []
        self.done = 0
        self._event = asyncio.Event()

    def on_fatal(self, error: BaseException) -> None:
        self.fatal.append(error)
        self._event.set()

    def on_done(self) -> None:
        assert not self.fatal, "told durable after the failure"
        self.done += 1

    async def failed(self) -> None:
        await asyncio.wait_for(self._event.wait(), 20)


class FailingEnvironment:
    """Passes everything on, but write transactions fail as they commit, once it is told to."""

    def __init__(self, real: lmdb.Environment) -> None:
        self._real = real
        self.fails = False
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def begin(self, *, write: bool = False, **options: Any) -> Any:
        return self._writing() if write else self._real.begin(**options)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        self.commits += 1
        if not self.fails:
            with self._real.begin(write=True) as txn:
                yield txn
            return
        txn = self._real.begin(write=True)
        try:
            yield txn
        finally:
            txn.abort()
        raise lmdb.DiskError("mdb_txn_commit", 5)


def entry(index: int, size: int = 100) -> Entry:
    return Entry(1, index, EntryKind.NORMAL, bytes(size))


def open_log(folder: Path, watch: Watch, **options: Any) -> LmdbLogStore:
    options.setdefault("map_bytes", 64 * MIB)
    return LmdbLogStore(folder, loop=asyncio.get_running_loop(), on_fatal=watch.on_fatal, **options)


def open_state(folder: Path, watch: Watch, **options: Any) -> LmdbStateStore:
    options.setdefault("map_bytes", 64 * MIB)
    return LmdbStateStore(folder, loop=asyncio.get_running_loop(), on_fatal=watch.on_fatal, **options)


# -- injected failures


async def test_a_failed_commit_of_the_log(tmp_path: Path) -> None:
    watch = Watch()
    store = open_log(tmp_path, watch)
    env = FailingEnvironment(store._env)
    store._env = env  # type: ignore[assignment]
    store.submit([LogWrite(1, entries=[entry(1)])], watch.on_done)
    await durable(lambda done: store.submit([], done))
    assert watch.done == 1
    env.fails = True
    commits = env.commits
    for index in range(2, 50):
        store.submit([LogWrite(1, entries=[entry(index)])], watch.on_done)
        if index == 10:
            await watch.failed()
    await asyncio.sleep(0.05)
    store.close()
    await asyncio.sleep(0.01)
    assert len(watch.fatal) == 1
    assert isinstance(watch.fatal[0], StorageFault)
    assert watch.done == 1
    assert env.commits == commits + 1  # no second try
    store = open_log(tmp_path, watch)
    assert store.open_group(1, verify_from=0).last_index() == 1
    store.close()


@pytest.mark.parametrize("job", ["flush", "install", "destroy", "create"])
async def test_a_failed_commit_of_the_state(tmp_path: Path, job: str) -> None:
    watch = Watch()
    store = open_state(tmp_path, watch)
    await durable(lambda done: store.create_shard(2, image(1), done))
    reader = store.open_snapshot(2, b"k", b"l")
    assert reader is not None
    env = FailingEnvironment(store._env)
    store._env = store._work._env = env  # type: ignore[assignment]
    env.fails = True
    for number in range(1_000):
        store.put(b"k%05d" % number, Record(b"v", 1, 1, 1))
    match job:
        case "flush":
            store.freeze()
            store.write_frozen({2: ShardChange(image(5))}, watch.on_done)
        case "install":
            store.install_begin(reader.header, watch.on_done)
        case "destroy":
            store.destroy_shard(2, b"k", b"l", watch.on_done)
        case "create":
            store.create_shard(3, image(1), watch.on_done)
    store.create_shard(4, image(1), watch.on_done)
    await watch.failed()
    store.create_shard(5, image(1), watch.on_done)
    await asyncio.sleep(0.02)
    assert len(watch.fatal) == 1
    assert isinstance(watch.fatal[0], StorageFault)
    assert watch.done == 0
    assert env.commits == 1
    store.close()
    store = open_state(tmp_path, watch)
    assert dict(store.shards()) == {2: image(1)}
    assert store.scan(b"k", b"l", limit=10, bytes_max=100) == ([], False)
    store.close()


async def test_a_programming_error_on_the_thread_is_fatal_too(tmp_path: Path) -> None:
    watch = Watch()
    store = open_log(tmp_path, watch)
    store.submit([LogWrite(1, entries=[Entry(1, 1, EntryKind.NORMAL, "no bytes")])], watch.on_done)  # type: ignore[arg-type]
    store.submit([LogWrite(1, entries=[entry(2)])], watch.on_done)
    await watch.failed()
    store.close()
    assert len(watch.fatal) == 1
    assert watch.done == 0


async def test_the_memory_stores_fail_in_the_same_way() -> None:
    disk, watch = MemoryDisk(latency=lambda: 0.0), Watch()
    log = MemoryLogStore(disk, loop=asyncio.get_running_loop(), on_fatal=watch.on_fatal)
    log.submit([LogWrite(1, entries=[entry(1)])], watch.on_done)
    await durable(lambda done: log.submit([], done))
    disk.failure = StorageFault("injected")
    log.submit([LogWrite(1, entries=[entry(2)])], watch.on_done)
    log.submit([LogWrite(1, entries=[entry(3)])], watch.on_done)
    await watch.failed()
    log.submit([LogWrite(1, entries=[entry(4)])], watch.on_done)
    await asyncio.sleep(0.01)
    log.close()
    assert (watch.done, len(watch.fatal)) == (1, 1)
    disk.failure = None
    log = MemoryLogStore(disk, loop=asyncio.get_running_loop(), on_fatal=watch.on_fatal)
    assert log.open_group(1, verify_from=0).last_index() == 1


def test_crashes_of_the_memory_disk_are_of_many_kinds() -> None:
    """With a seed, what was under way survives whole, in part, or not at all."""
    outcomes = set()

    async def one(seed: int) -> None:
        disk, watch = MemoryDisk(latency=lambda: 1.0), Watch()
        state = MemoryStateStore(disk, loop=asyncio.get_running_loop(), on_fatal=watch.on_fatal)
        state.destroy_shard(2, b"k", b"l", watch.on_done)
        disk.crash(random.Random(seed))
        state = MemoryStateStore(disk, loop=asyncio.get_running_loop(), on_fatal=watch.on_fatal)
        outcomes.add((disk.state_env.last_id > 0, bool(state.incomplete())))
        assert (watch.done, watch.fatal) == (0, [])

    for seed in range(30):
        asyncio.run(one(seed))
    assert outcomes == {(False, False), (True, True), (True, False)}


# -- the map grows


async def test_the_log_outgrows_its_map(tmp_path: Path) -> None:
    watch = Watch()
    store = open_log(tmp_path, watch, map_bytes=256 * KIB, cache_bytes_max=1)
    log = store.open_group(1, verify_from=0)
    for index in range(1, 201):
        store.submit([LogWrite(1, entries=[entry(index, 20_000)])], watch.on_done)
        if index % 10 == 0:
            await durable(lambda done: store.submit([], done))
            assert len(log.entries(low=1, high=index + 1, bytes_max=1 << 30)) == index
    assert watch.done == 200
    assert store.sizes()["used_bytes"] > 3 * MIB
    for index in range(201, 301):
        store.submit([LogWrite(1, entries=[entry(index, 50_000)])], watch.on_done)
    store.close()  # it must grow while it closes
    store = open_log(tmp_path, watch, map_bytes=256 * KIB)
    assert store.open_group(1, verify_from=0).last_index() == 300
    store.close()
    assert watch.fatal == []


async def test_the_state_outgrows_its_map(tmp_path: Path) -> None:
    watch = Watch()
    store = open_state(tmp_path, watch, map_bytes=512 * KIB)
    await durable(lambda done: store.create_shard(2, image(1), done))
    reader = store.open_snapshot(2, b"k", b"l")
    assert reader is not None
    assert reader.chunk(0) is not None
    for turn in range(4):
        for number in range(turn * 500, turn * 500 + 500):
            store.put(b"k%05d" % number, Record(bytes(2_000), 1, 1, 1))
        store.freeze()
        flushed = asyncio.Event()
        store.write_frozen({2: ShardChange(image(2 + turn))}, flushed.set)
        while not flushed.is_set():
            assert store.get(b"k%05d" % (turn * 500)) is not None
            pairs, _ = store.scan(b"k", b"l", limit=5, bytes_max=1 << 20)
            assert len(pairs) == 5
            await asyncio.sleep(0)
    with pytest.raises(SnapshotLost):
        reader.chunk(0)
    assert len(store.scan(b"k", b"l", limit=9_999, bytes_max=1 << 30)[0]) == 2_000
    for number in range(2_000, 5_000):
        store.put(b"k%05d" % number, Record(bytes(2_000), 1, 1, 1))
    store.freeze()
    store.write_frozen({2: ShardChange(image(99))}, watch.on_done)
    store.close()
    store = open_state(tmp_path, watch, map_bytes=512 * KIB)
    assert len(store.scan(b"k", b"l", limit=9_999, bytes_max=1 << 30)[0]) == 5_000
    store.close()
    assert watch.fatal == []


async def test_an_install_outgrows_the_map(tmp_path: Path) -> None:
    watch = Watch()
    source = open_state(tmp_path / "source", watch)
    await durable(lambda done: source.create_shard(2, image(1), done))
    for number in range(2_000):
        source.put(b"k%05d" % number, Record(bytes(1_000), 1, 1, 1))
    source.freeze()
    await durable(lambda done: source.write_frozen({2: ShardChange(image(5))}, done))
    reader = source.open_snapshot(2, b"k", b"l")
    assert reader is not None
    target = open_state(tmp_path / "target", watch, map_bytes=256 * KIB)
    await durable(lambda done: target.install_begin(reader.header, done))
    number = 0
    while (chunk := reader.chunk(number)) is not None:
        target.install_chunk(2, chunk, watch.on_done)
        number += 1
    await durable(lambda done: target.install_finish(reader.header, done))
    assert len(target.scan(b"k", b"l", limit=9_999, bytes_max=1 << 30)[0]) == 2_000
    assert watch.done == number
    source.close()
    target.close()
    assert watch.fatal == []


# -- the disk itself fails


async def write_until_failure(store: LmdbLogStore, watch: Watch, before_each: Callable[[int], None]) -> None:
    index = 0
    while not watch.fatal:
        index += 1
        assert index < 5_000, "the disk never failed"
        before_each(index)
        store.submit([LogWrite(1, entries=[entry(index, 30_000)])], watch.on_done)
        await asyncio.sleep(0.001)


async def test_a_full_disk(tmp_path: Path) -> None:
    """The commit fails and ends the store; with room again everything that was told is there."""
    with small_file_system(tmp_path / "fs", mebibytes=32) as disk:
        watch = Watch()
        store = open_log(disk.mount_point / "log", watch)
        ballast = disk.fill(leave_bytes=4 * MIB)
        await write_until_failure(store, watch, lambda _: None)
        await asyncio.sleep(0.02)
        told = watch.done
        store.close()
        assert len(watch.fatal) == 1
        # LMDB tells a write that was cut short as EIO; the error names what is left.
        free = re.search(r"\((\d+) bytes are free", str(watch.fatal[0]))
        assert free is not None
        assert int(free[1]) < MIB
        assert told >= 1
        ballast.unlink()
        watch = Watch()
        store = open_log(disk.mount_point / "log", watch)
        log = store.open_group(1, verify_from=0)
        assert log.last_index() >= told
        assert log.identity.damaged_at == 0
        await durable(lambda done: store.submit([LogWrite(1, entries=[entry(log.last_index() + 1)])], done))
        store.close()


async def test_an_fsync_that_fails(tmp_path: Path) -> None:
    """A file system that goes down: writes and fsync give EIO from one moment on."""
    with small_file_system(tmp_path / "fs", mebibytes=64) as disk:
        watch = Watch()
        store = open_log(disk.mount_point / "log", watch)
        await write_until_failure(store, watch, lambda index: disk.cut_power() if index == 50 else None)
        store.close()
        assert len(watch.fatal) == 1
        told = watch.done
        assert told >= 1
        disk.unmount()
        disk.mount()
        watch = Watch()
        store = open_log(disk.mount_point / "log", watch)
        assert store.open_group(1, verify_from=0).last_index() >= told
        store.close()


@contextmanager
def fuse_folder(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(folder, control file): a pass-through folder that fails as the control file says."""
    pytest.importorskip("mfusepy", reason="mfusepy is not installed")
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
        pytest.skip("FUSE needs root, /dev/fuse and fusermount3")
    root, mount, control = tmp_path / "root", tmp_path / "mount", tmp_path / "control"
    root.mkdir()
    mount.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.storage.fuse_process", str(root), str(mount), str(control)],
        cwd=Path(__file__).resolve().parents[2],
        stderr=subprocess.DEVNULL,  # it complains of its own end
    )
    try:
        until = time.monotonic() + 20
        while not os.path.ismount(mount):
            assert process.poll() is None, "the FUSE process ended"
            assert time.monotonic() < until, "the FUSE folder was not mounted in time"
            time.sleep(0.02)
        yield mount, control
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mount)], capture_output=True, check=False)
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("fault", ["fsync=EIO", "write=ENOSPC", "write=EIO"])
async def test_a_call_that_fails_once(tmp_path: Path, fault: str) -> None:
    """The disk works again at once after one failed call; the store must not go on as if nothing had been."""
    with fuse_folder(tmp_path) as (folder, control):
        watch = Watch()
        store = open_log(folder / "log", watch)

        def break_once(index: int) -> None:
            if index == 20:
                control.write_text(f"once {fault}")

        await write_until_failure(store, watch, break_once)
        told = watch.done
        store.submit([LogWrite(1, entries=[entry(store.open_group(1, verify_from=0).last_index() + 1)])], watch.on_done)
        await asyncio.sleep(0.05)
        store.close()
        assert (watch.done, len(watch.fatal)) == (told, 1)
        assert told >= 1
        watch = Watch()
        store = open_log(folder / "log", watch)
        assert store.open_group(1, verify_from=0).last_index() >= told
        store.close()
