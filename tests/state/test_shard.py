"""Goal: each operation through apply_entry, on the cases a reader would think of. Method: short scripts by hand."""

from __future__ import annotations

import msgspec

from kvstore.base.operations import Cas, Delete, Mutation, Put, encode
from kvstore.base.shards import ShardDescriptor, keyspace_range
from kvstore.state.command import DecodedWrite, Write
from kvstore.state.shard import ShardState
from raft.types import ConfState
from tests.state.fake_store import FakeStore


def test_smoke() -> None:
    start, end = keyspace_range(1)
    d = ShardDescriptor(2, 1, start, end, 1, 1, ())
    s = ShardState.create(2, d, ConfState((1,)), applied_index=5, applied_term=1, stamp=1000_000, store=FakeStore())
    ops: list[Mutation] = [
        Put(1, b"a", b"x"),
        Put(2, b"a", b"y"),
        Cas(3, b"a", b"z", 2),
        Delete(4, b"b"),
        Cas(5, b"a", None, None, b"q"),
    ]
    w = DecodedWrite.decode(Write(1, b"s" * 16, 1, 999_000, msgspec.Raw(encode(ops))))
    r = s.apply_entry(6, 1, 1000_001, [w])
    print(r)
    assert s.apply_entry(7, 1, 1000_001, [w]) == r
    c = s.change()
    s2 = ShardState.load(2, c.image, {k: v for k, v in c.sessions.items() if v}, FakeStore())
    assert s2.image() == s.image()
