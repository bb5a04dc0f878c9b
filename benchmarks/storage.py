"""Measures the storage layer: the in-memory table, reads, scans, commits of the log, and the loop's stall in a flush.

    python benchmarks/storage.py [--keys 1000000] [--commands 200000] [--folder DIR]

Prints one line a figure. The folder should lie on the disk that is meant; it is removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kvstore.storage.log_store import LmdbLogStore
from kvstore.storage.protocol import LogWrite, Record, ReplicaIdentity, ShardChange, ShardImage
from kvstore.storage.state_store import LmdbStateStore
from raft.types import Entry, EntryKind, HardState

VALUE = os.urandom(100)
IMAGE = ShardImage(1, 1, ((1,), (), (), (), False), b"meta")


def key_of(number: int) -> bytes:
    return b"\0\0\0\1key-%012d" % number


def fail(error: BaseException) -> None:
    raise SystemExit(f"the store failed: {error!r}")


def report(what: str, value: float, unit: str) -> None:
    print(f"{what:<66} {value:>12,.2f} {unit}")


def per_call(what: str, calls: int, action: Callable[[], object]) -> None:
    begun = time.perf_counter()
    action()
    report(what, (time.perf_counter() - begun) / calls * 1e6, "us")


async def until(start: Callable[[Callable[[], None]], None]) -> float:
    """Seconds until the store has called back."""
    done = asyncio.Event()
    begun = time.perf_counter()
    start(done.set)
    await done.wait()
    return time.perf_counter() - begun


class Stall:
    """A loop that ticks each millisecond, busy or not, and the longest gap between two ticks."""

    def __init__(self, *, busy_fraction: float) -> None:
        self.longest = 0.0
        self.ticks = 0
        self._busy_seconds = 0.001 * busy_fraction
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        last = time.perf_counter()
        while True:
            until_time = time.perf_counter() + self._busy_seconds
            while time.perf_counter() < until_time:
                pass
            await asyncio.sleep(0.001 - self._busy_seconds)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last - 0.001)
            self.ticks += 1
            last = now

    def stop(self) -> None:
        self._task.cancel()


async def measure_state(folder: Path, keys: int, commands: int) -> None:
    loop = asyncio.get_running_loop()
    store = LmdbStateStore(folder / "state", loop=loop, on_fatal=fail)
    begun = time.perf_counter()
    for start in range(0, keys, 200_000):
        for number in range(start, min(start + 200_000, keys)):
            store.put(key_of(number), Record(VALUE, 1, 1, 1))
        store.freeze()
        await until(lambda done: store.write_frozen({2: ShardChange(IMAGE)}, done))
    report(f"load {keys:,} keys in order", time.perf_counter() - begun, "s")

    rng = random.Random(1)
    some = [key_of(rng.randrange(keys)) for _ in range(100_000)]
    record = Record(VALUE, 2, 1, 2)

    def get_all() -> None:
        for key in some:
            store.get(key)

    def put_all() -> None:
        for key in some:
            store.put(key, record)

    def scan_all(bounds: list[tuple[bytes, bytes]], limit: int, reverse: bool) -> None:
        for start, end in bounds:
            store.scan(start, end, limit=limit, bytes_max=1 << 20, reverse=reverse)

    per_call("get, not in the tables", len(some), get_all)
    per_call("put, into the table", len(some), put_all)
    per_call("get, from the table", len(some), get_all)
    for reverse in (False, True):
        starts = [key_of(rng.randrange(keys)) for _ in range(500)]
        for limit in (1, 100):
            bounds = [(b"\0\0\0\1", one) if reverse else (one, b"\0\0\0\2") for one in starts]
            per_call(
                f"scan of {limit}{' in reverse' if reverse else ''}, with a table of {len(set(some)):,} dirty keys",
                len(bounds),
                partial(scan_all, bounds, limit, reverse),
            )
    store.freeze()
    await until(lambda done: store.write_frozen({2: ShardChange(IMAGE)}, done))
    starts = [key_of(rng.randrange(keys)) for _ in range(500)]
    per_call(
        "scan of 100, nothing dirty",
        len(starts),
        partial(scan_all, [(one, b"\0\0\0\2") for one in starts], 100, False),
    )
    for busy in (0.0, 0.5, 0.95):
        stall = Stall(busy_fraction=busy)
        seconds = await flush(store, commands, keys, stall)
        report(f"flush of {commands:,} commands, loop {busy:.0%} busy", seconds, "s")
        report("    longest stall of the loop meanwhile", stall.longest * 1e3, "ms")
        report("    ticks of the loop a second", stall.ticks / seconds, "")
        stall.stop()
    reader = store.open_snapshot(2, b"\0\0\0\1", b"\0\0\0\2")
    assert reader is not None
    per_call("snapshot chunk", 64, lambda: [reader.chunk(number) for number in range(64)])
    reader.close()
    print({name: f"{size:,}" for name, size in store.sizes().items()})
    store.close()


async def flush(store: LmdbStateStore, commands: int, keys: int, stall: Stall) -> float:
    """A flush of a table that was filled before the clock runs."""
    rng = random.Random(3)
    for number in range(commands):
        store.put(key_of(rng.randrange(keys)), Record(VALUE, 2, 1, 2))
        if number % 5_000 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    stall.longest, stall.ticks = 0.0, 0
    store.freeze()
    return await until(lambda done: store.write_frozen({2: ShardChange(IMAGE)}, done))


async def measure_log(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    log = LmdbLogStore(folder / "log", loop=loop, on_fatal=fail)
    log.submit([LogWrite(group, identity=ReplicaIdentity(1)) for group in range(1, 11)], lambda: None)
    await until(lambda done: log.submit([], done))
    indices = dict.fromkeys(range(1, 11), 0)

    def batch(groups: int, entries: int, data_bytes: int) -> list[LogWrite]:
        writes = []
        for group in range(1, groups + 1):
            first = indices[group] + 1
            indices[group] += entries
            new = [Entry(1, index, EntryKind.NORMAL, bytes(data_bytes)) for index in range(first, first + entries)]
            writes.append(LogWrite(group, entries=new, hard_state=HardState(1, 1, first - 1)))
        return writes

    for groups, entries, data_bytes in ((1, 1, 300), (1, 1, 30_000), (1, 100, 300), (10, 1, 300), (1, 1, 1_000_000)):
        batches = [batch(groups, entries, data_bytes) for _ in range(200)]
        begun = time.perf_counter()
        submitting = 0.0
        for writes in batches:
            waiting = asyncio.Event()
            at = time.perf_counter()
            log.submit(writes, waiting.set)
            submitting += time.perf_counter() - at
            await waiting.wait()
        seconds = time.perf_counter() - begun
        what = f"log: {groups} group(s) x {entries} entries of {data_bytes:,} bytes, one after the other"
        report(what, seconds / len(batches) * 1e3, "ms")
        report("    of it submit, on the loop", submitting / len(batches) * 1e6, "us")
    batches = [batch(1, 1, 300) for _ in range(5_000)]
    done = asyncio.Event()
    begun = time.perf_counter()
    for number, writes in enumerate(batches):
        log.submit(writes, done.set if number == len(batches) - 1 else lambda: None)
        if number % 20 == 0:
            await asyncio.sleep(0)
    await done.wait()
    report("log: entries a second, 5,000 submissions overlapping", len(batches) / (time.perf_counter() - begun), "/s")
    log.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--commands", type=int, default=200_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    sys.setswitchinterval(0.0002)  # as the node does
    folder = Path(tempfile.mkdtemp(prefix="kvstore-bench-", dir=options.folder))
    try:
        await measure_log(folder)
        await measure_state(folder, options.keys, options.commands)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    asyncio.run(main())
