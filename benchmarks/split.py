"""What a split costs: the step in which a shard divides, with full session tables; and how long writes wait for it.

    python benchmarks/split.py

First the state machine alone, with 150,000 answers in few or in many sessions: the longest step that holds the loop at
the split, at the first write behind it, and in the preparation of the child's first flush. Then a cluster of three in
this process, on this machine's disk: writers by the client, and split after split; of the right half the longest time
in which none of its writes was acknowledged, beside that in the quiet time before.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import aiohttp
import msgspec
import uvloop

from kvstore.base.operations import Put, encode
from kvstore.base.shards import Replica, ShardDescriptor, keyspace_range
from kvstore.client import Client
from kvstore.replica.flush import PREPARED_PER_STEP
from kvstore.state.command import DecodedWrite, Split, Write
from kvstore.state.shard import ShardState
from kvstore.storage.protocol import Record
from kvstore.testing import LocalCluster
from raft.types import ConfState

STAMP = 1_700_000_000_000
ANSWERS = 150_000  # so many that nothing is evicted, which costs time of its own
PREFIX = b"\0\0\0\1"
SPLITS = 20


class Nowhere:
    """A store that keeps nothing: only the state machine is to be measured."""

    def get(self, key: bytes) -> Record | None:
        return None

    def put(self, key: bytes, record: Record) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(
        self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
    ) -> tuple[list[tuple[bytes, Record]], bool]:
        return [], False


def write(session: int, seqs: range, *, version: int = 1) -> DecodedWrite:
    operations = [Put(seq, b"k%d" % (seq % 1_000), b"") for seq in seqs]
    raw = msgspec.Raw(encode(operations))
    return DecodedWrite(Write(version, b"session-%08d" % session, 0, STAMP, raw), list(operations))


def full_state(sessions: int) -> ShardState:
    start, end = keyspace_range(1)
    descriptor = ShardDescriptor(2, 1, start, end, 1, 1, (Replica("n1", 1),))
    state = ShardState.create(
        2, descriptor, ConfState((1,)), applied_index=1, applied_term=1, stamp=STAMP, store=Nowhere()
    )
    each = ANSWERS // sessions
    for session in range(sessions):
        for first in range(0, each, 1_000):
            state.apply_entry(
                state.applied_index + 1, 1, STAMP, [write(session, range(first, min(first + 1_000, each)))]
            )
    state.change()
    return state


def timed(work: object) -> float:
    """ms."""
    assert callable(work)
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1_000


def measure_state(sessions: int) -> None:
    state = full_state(sessions)
    children: list[ShardState] = []

    def split() -> None:
        child = state.apply_split(state.applied_index + 1, 1, STAMP, Split(1, 1, PREFIX + b"k5", 40, 0))
        assert isinstance(child, ShardState)
        children.append(child)

    divided = timed(split)
    (child,) = children
    left = timed(
        lambda: state.apply_entry(state.applied_index + 1, 1, STAMP, [write(0, range(300_000, 300_010), version=2)])
    )
    right = timed(lambda: child.apply_entry(2, 2, STAMP, [write(1, range(300_000, 300_010), version=2)]))
    slices = []
    while True:
        began = time.perf_counter()
        done = child.prepare_change(PREPARED_PER_STEP)
        slices.append((time.perf_counter() - began) * 1_000)
        if done:
            break
    frozen = timed(child.change)
    print(
        f"{sessions:7,} sessions: split {divided:6.2f} ms, first write left {left:6.2f}, right {right:6.2f}, "
        f"{len(slices)} slices of at most {max(slices):6.2f}, freeze {frozen:6.2f}"
    )


async def measure_cluster(writers: int) -> None:
    async with LocalCluster(nodes=3) as cluster, cluster.client() as client, aiohttp.ClientSession() as http:
        acknowledged: list[tuple[float, bytes]] = []
        stopping = asyncio.Event()
        tasks = [asyncio.create_task(_write(client, number, acknowledged, stopping)) for number in range(writers)]
        await asyncio.sleep(1)
        quiet: list[float] = []
        around: list[float] = []
        for number in range(SPLITS):
            at = b"%02x" % (250 - 10 * number)
            await asyncio.sleep(0.4)
            now = time.perf_counter()
            quiet.append(_longest_gap(acknowledged, now - 0.3, now, at))
            shard = next(one.id for one in await client.routes() if one.start <= at and (not one.end or at < one.end))
            began = time.perf_counter()
            address = cluster.address("n1")
            async with http.post(f"http://{address}/v1/shards/{shard}/split", json={"at": at.decode()}) as response:
                assert response.status == 200, await response.text()
            await asyncio.sleep(0.2)
            around.append(_longest_gap(acknowledged, began, began + 0.3, at))
        stopping.set()
        await asyncio.gather(*tasks)
    for name, gaps in (("quiet", quiet), ("around a split", around)):
        gaps.sort()
        print(
            f"{writers} writers, longest gap between acknowledged writes to the right half, {name}: "
            f"median {gaps[len(gaps) // 2]:.1f} ms, highest {gaps[-1]:.1f}"
        )


async def _write(client: Client, number: int, acknowledged: list[tuple[float, bytes]], stop: asyncio.Event) -> None:
    """Half of the writes go to the last keys, where the splits are."""
    count = 0
    while not stop.is_set():
        count += 1
        key = b"%02x-%d-%d" % (255 if count % 2 else count % 256, number, count)
        await client.put(key, b"v" * 200)
        acknowledged.append((time.perf_counter(), key))


def _longest_gap(acknowledged: list[tuple[float, bytes]], start: float, end: float, at: bytes) -> float:
    moments = [moment for moment, key in acknowledged if start <= moment <= end and key >= at]
    return 1_000 * max((after - before for before, after in pairwise(moments)), default=float("nan"))


def main() -> None:
    for sessions in (1, 100, 10_000, 40_000):
        measure_state(sessions)
    for writers in (4, 32):
        uvloop.run(measure_cluster(writers))


if __name__ == "__main__":
    main()
