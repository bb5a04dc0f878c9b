"""What the state machine costs for each operation.

    python benchmarks/state.py [--store dict|lmdb] [--frame 64] [--profile]

Prints microseconds of this thread's processor time for one operation, the best of several rounds. `dict` is the state
machine alone; `lmdb` is the store of a node, its in-memory tables before LMDB, on a temporary directory.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kvstore.base.operations import Cas, Mutation, Put, Scan, encode
from kvstore.base.shards import ShardDescriptor, keyspace_range
from kvstore.state.command import DecodedWrite, Write, decode_payload, encode_payload
from kvstore.state.data import ShardData
from kvstore.state.shard import ShardState
from kvstore.storage.protocol import Record
from raft.types import ConfState

STAMP = 1_700_000_000_000
SESSION = bytes(16)
ROUNDS = 5


class DictData:
    """Records in a dict, sorted when scanned: as little as possible beside the state machine."""

    def __init__(self) -> None:
        self.records: dict[bytes, Record] = {}
        self.get = self.records.get
        self.put = self.records.__setitem__
        self.delete = self.records.__delitem__
        self._sorted: list[bytes] = []

    def scan(
        self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
    ) -> tuple[list[tuple[bytes, Record]], bool]:
        if len(self._sorted) != len(self.records):
            self._sorted = sorted(self.records)
        low, high = bisect_left(self._sorted, start), bisect_left(self._sorted, end)
        keys = self._sorted[low : min(low + limit, high)]
        return [(key, self.records[key]) for key in keys], low + limit < high


class Bench:
    """One shard, and the numbers that a client would count."""

    def __init__(self, data: ShardData, frame: int, value_bytes: int) -> None:
        start, end = keyspace_range(1)
        descriptor = ShardDescriptor(2, 1, start, end, 1, 1, ())
        self.state = ShardState.create(
            2, descriptor, ConfState((1, 2, 3)), applied_index=5, applied_term=1, stamp=STAMP, store=data
        )
        self.frame = frame
        self.value = bytes(value_bytes)
        self.seq = 0

    def frames(self, keys: Sequence[bytes], make: Callable[[int, bytes], Mutation]) -> list[DecodedWrite]:
        """The operations as they reach apply: in frames, with a client that waits for about two frames."""
        writes = []
        for begin in range(0, len(keys), self.frame):
            operations = []
            for key in keys[begin : begin + self.frame]:
                self.seq += 1
                operations.append(make(self.seq, key))
            low = max(0, self.seq - 2 * self.frame)
            write = Write(1, SESSION, low, STAMP + self.seq // 50, msgspec.Raw(encode(operations)))
            writes.append(DecodedWrite(write, operations))
        return writes

    def apply(self, writes: Sequence[DecodedWrite]) -> float:
        """Seconds of processor time; one entry a frame."""
        state = self.state
        began = time.thread_time()
        for decoded in writes:
            state.apply_entry(state.applied_index + 1, 1, decoded.write.issued_at, [decoded])
        return time.thread_time() - began


def best(rounds: Iterator[float], operations: int) -> float:
    """us for one operation."""
    return min(rounds) / operations * 1e6


def run(data: ShardData, *, frame: int, keys: int, value_bytes: int) -> None:
    bench = Bench(data, frame, value_bytes)
    key_rounds = [[f"user{round_:02}{number:09}".encode() for number in range(keys)] for round_ in range(ROUNDS)]
    existing = key_rounds[0]

    def put(seq: int, key: bytes) -> Mutation:
        return Put(seq, key, bench.value)

    def failing_cas(seq: int, key: bytes) -> Mutation:
        return Cas(seq, key, b"x", 0)

    print(f"{type(data).__name__}, frames of {frame}, values of {value_bytes} bytes, {keys} keys a round; us each:")
    new = [bench.frames(keys_new, put) for keys_new in key_rounds]
    report("put, new key", best((bench.apply(writes) for writes in new), keys))
    again = [bench.frames(existing, put) for _ in range(ROUNDS)]
    report("put, overwrite", best((bench.apply(writes) for writes in again), keys))
    repeated = again[-1][-2:]
    report("put, repeated (answer known)", best((bench.apply(repeated) for _ in range(ROUNDS)), 2 * frame))
    cas = [bench.frames(existing, failing_cas) for _ in range(ROUNDS)]
    report("cas that fails", best((bench.apply(writes) for writes in cas), keys))
    report("range check (staging)", best((check_seconds(bench.state, writes) for writes in again), keys))
    report("decode of a put (follower)", best((decode_seconds(writes) for writes in again), keys))
    report("get", best((get_seconds(bench.state, existing) for _ in range(ROUNDS)), keys))
    starts = existing[:: max(1, keys // 200)]
    report("scan of 100", best((scan_seconds(bench.state, starts) for _ in range(ROUNDS)), len(starts)))


def check_seconds(state: ShardState, writes: Sequence[DecodedWrite]) -> float:
    began = time.thread_time()
    for decoded in writes:
        assert state.check_keys(1, decoded.operations) is None
    return time.thread_time() - began


def decode_seconds(writes: Sequence[DecodedWrite]) -> float:
    entries = [encode_payload(STAMP, [decoded.write]) for decoded in writes]
    began = time.thread_time()
    for entry in entries:
        for write in decode_payload(entry).commands:
            DecodedWrite.decode(write)
    return time.thread_time() - began


def get_seconds(state: ShardState, keys: Sequence[bytes]) -> float:
    began = time.thread_time()
    for key in keys:
        state.get(key)
    return time.thread_time() - began


def scan_seconds(state: ShardState, starts: Sequence[bytes]) -> float:
    began = time.thread_time()
    for start in starts:
        state.scan(Scan(0, start, b"", limit=100))
    return time.thread_time() - began


def report(what: str, microseconds: float) -> None:
    print(f"  {what:<32}{microseconds:9.2f}")


@contextmanager
def opened(store: str, loop: asyncio.AbstractEventLoop) -> Iterator[ShardData]:
    if store == "dict":
        yield DictData()
        return
    from kvstore.storage.state_store import LmdbStateStore

    def on_fatal(error: BaseException) -> None:
        raise error

    with tempfile.TemporaryDirectory() as directory:
        lmdb = LmdbStateStore(Path(directory) / "state", loop=loop, on_fatal=on_fatal, map_bytes=1 << 30)
        yield lmdb
        lmdb.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("dict", "lmdb"), default="dict")
    parser.add_argument("--frame", type=int, default=64, help="operations of one frame")
    parser.add_argument("--keys", type=int, default=20_000, help="operations of one round")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    loop = asyncio.new_event_loop()
    profile = cProfile.Profile()
    with opened(options.store, loop) as data:
        gc.freeze()
        if options.profile:
            profile.enable()
        run(data, frame=options.frame, keys=options.keys, value_bytes=options.value_bytes)
        if options.profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(15)
    loop.close()


if __name__ == "__main__":
    main()
