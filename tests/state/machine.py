"""A shard under test: ShardState on a FakeStore, with the bookkeeping that a replica would do around it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kvstore.base.operations import Failure, Mutation, Result, encode
from kvstore.base.shards import Replica, ShardDescriptor
from kvstore.state.command import DecodedWrite, Write, decode_payload, encode_payload
from kvstore.state.shard import ShardState
from kvstore.state.shard_meta import StateLimits
from raft.types import ConfState
from tests.state.fake_store import FakeStore

GROUP = 2
STAMP = 1_000_000  # ms; where the tests' time begins
SESSION = b"session-00000001"
OTHER = b"session-00000002"
PREFIX = b"\0\0\0\1"


def descriptor(start: bytes = b"", end: bytes = b"", *, version: int = 1) -> ShardDescriptor:
    """Of a shard of keyspace 1; start and end are user keys."""
    full_end = PREFIX + end if end else b"\0\0\0\2"
    return ShardDescriptor(GROUP, 1, PREFIX + start, full_end, version, 1, (Replica("n1", 1),))


def write(
    *operations: Mutation,
    session: bytes = SESSION,
    low: int = 0,
    issued_at: int = STAMP,
    version: int = 1,
) -> Write:
    return Write(version, session, low, issued_at, msgspec.Raw(encode(list(operations))))


class Machine:
    """`store` holds what is applied, and, after `flush`, what a restart would find."""

    def __init__(
        self,
        limits: StateLimits | None = None,
        *,
        store: FakeStore | None = None,
        shard: ShardDescriptor | None = None,
        stamp: int = STAMP,
    ) -> None:
        self.store = store or FakeStore()
        self.state = ShardState.create(
            GROUP,
            shard or descriptor(),
            ConfState((1, 2, 3)),
            applied_index=5,
            applied_term=1,
            stamp=stamp,
            store=self.store,
            limits=limits,
        )
        self.flush()

    def entry(self, *writes: Write, stamp: int = STAMP) -> list[list[Result]]:
        """As a follower applies it: through the bytes."""
        return self.entry_of(encode_payload(stamp, writes))

    def entry_of(self, data: bytes) -> list[list[Result]]:
        payload = decode_payload(data)
        decoded = [DecodedWrite.decode(command) for command in payload.writes]
        return self.state.apply_entry(self.state.applied_index + 1, 1, payload.stamp, decoded)

    def do(
        self, *operations: Mutation, low: int = 0, issued_at: int = STAMP, stamp: int = STAMP, version: int = 1
    ) -> list[Result]:
        """One entry with one write of SESSION."""
        (results,) = self.entry(write(*operations, low=low, issued_at=issued_at, version=version), stamp=stamp)
        return results

    def plain(self, *operations: Mutation) -> list[Result]:
        """One entry with one write that has no session."""
        (results,) = self.entry(write(*operations, session=b"", issued_at=0), stamp=self.state.stamp)
        return results

    def flush(self) -> None:
        self.store.flush(GROUP, self.state.change())

    def reload(self) -> None:
        """Flush, and start anew from what was flushed."""
        self.flush()
        self.state = ShardState.load(GROUP, self.store.images[GROUP], self.store.sessions(GROUP), self.store)

    def dump(self) -> bytes:
        self.flush()
        return self.store.dump(GROUP)


def codes(results: Sequence[Result]) -> list[int | None]:
    """The code of each Failure, None for everything else."""
    return [result.code if isinstance(result, Failure) else None for result in results]
