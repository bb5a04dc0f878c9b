"""The decoders of the stream against hostile bytes.

Goal: arbitrary bytes, valid frames with bytes changed, truncated, nested or with lying lengths never raise anything
but Invalid or TooLarge, in bounded memory; what is valid comes back as it was; what is decoded is within the limits.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvstore.base import operations as ops
from kvstore.base import stream
from kvstore.base.errors import Invalid, TooLarge
from kvstore.base.limits import KEY_BYTES_MAX, Limits
from kvstore.base.operations import Batch, Cas, Delete, DeleteRange, Get, Put, Scan

LIMITS = Limits(value_bytes_max=64)

SEQ = st.integers(0, (1 << 63) - 1)
KEY = st.binary(min_size=1, max_size=8) | st.just(b"k" * KEY_BYTES_MAX)
VALUE = st.binary(max_size=16) | st.just(b"v" * 64)
REVISION = st.integers(0, (1 << 63) - 1)

puts = st.builds(Put, SEQ, KEY, VALUE)
deletes = st.builds(Delete, SEQ, KEY)
gets = st.builds(Get, SEQ, KEY)
cas = st.builds(lambda s, k, v, r: Cas(s, k, v, r), SEQ, KEY, VALUE | st.none(), REVISION) | st.builds(
    lambda s, k, v, e: Cas(s, k, v, None, e), SEQ, KEY, VALUE | st.none(), VALUE
)
bounds = st.tuples(st.binary(max_size=4), st.binary(max_size=4)).map(
    lambda pair: (min(pair), max(pair)) if pair[1] else pair
)
delete_ranges = st.builds(lambda s, b, n: DeleteRange(s, b[0], b[1], n), SEQ, bounds, st.integers(1, 1_000))
scans = st.builds(
    lambda s, b, n, size, reverse: Scan(s, b[0], b[1], n, size, reverse),
    st.integers(),
    bounds,
    st.integers(1, 1_000),
    st.integers(1, 1 << 20),
    st.booleans(),
)
batches = st.builds(Batch, SEQ, st.lists(puts | deletes | cas | gets, min_size=1, max_size=4))
mutations = st.lists(puts | deletes | cas | batches | delete_ranges, min_size=1, max_size=5)
reads = st.lists(st.builds(Get, st.integers(0, 9), KEY) | scans.filter(lambda s: -(1 << 63) <= s.seq < 1 << 63),
                 min_size=1, max_size=5)  # fmt: skip

number = st.integers(-(1 << 63), (1 << 64) - 1)
raw = st.binary(max_size=20).map(lambda data: msgspec.Raw(ops.encode(data)))
requests = st.lists(
    st.builds(stream.Hello, number, st.text(max_size=5))
    | st.builds(stream.Mutate, number, number, number, number, st.sampled_from([b"", b"s" * 16]), number, number, raw)
    | st.builds(stream.Read, number, number, number, number, number, raw)
    | st.builds(stream.GetRoutes, number)
    | st.builds(stream.Ping, number),
    max_size=5,
)


def damage(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Replace some bytes at some places."""
    for position, length, junk in edits:
        at = position % (len(data) + 1)
        data = data[:at] + junk + data[at + length :]
    return data


EDITS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 8), st.binary(max_size=6)), max_size=4)


def check_mutation(operation: Any) -> None:
    if isinstance(operation, Batch):
        assert 0 < len(operation.operations) <= 1_000
        for one in operation.operations:
            assert isinstance(one, Put | Delete | Cas | Get)
            check_mutation(one)
    elif isinstance(operation, DeleteRange):
        assert len(operation.start) <= KEY_BYTES_MAX
        assert not operation.end or operation.start <= operation.end
        assert 0 < operation.limit <= 1_000
    else:
        assert 0 < len(operation.key) <= KEY_BYTES_MAX
        if isinstance(operation, Put | Cas):
            assert operation.value is None or len(operation.value) <= LIMITS.value_bytes_max
        if isinstance(operation, Cas):
            assert (operation.revision is None) != (operation.expected is None)


def try_mutations(data: bytes) -> None:
    try:
        operations = ops.decode_mutations(data, LIMITS)
    except (Invalid, TooLarge):
        return
    assert 0 < len(operations) <= 4_096
    for operation in operations:
        check_mutation(operation)


def try_reads(data: bytes) -> None:
    try:
        operations = ops.decode_reads(data, LIMITS)
    except (Invalid, TooLarge):
        return
    assert 0 < len(operations) <= 4_096
    for operation in operations:
        if isinstance(operation, Get):
            assert 0 < len(operation.key) <= KEY_BYTES_MAX
        else:
            assert 0 < operation.limit <= 1_000
            assert 0 < operation.bytes_max <= 1 << 20


def try_requests(data: bytes) -> None:
    try:
        frames = stream.decode_requests(data)
    except Invalid:
        return
    for frame in frames:
        if isinstance(frame, stream.Mutate):
            assert len(frame.session) in (0, 16)
            try_mutations(frame.operations)
        elif isinstance(frame, stream.Read):
            try_reads(frame.operations)


def try_replies(data: bytes) -> None:
    try:
        stream.decode_replies(data)
    except Invalid:
        return


DECODERS: list[Callable[[bytes], None]] = [try_mutations, try_reads, try_requests, try_replies]


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 5_000)
@example(b"\x91\x93\x01\x00\xa1\xff")  # a string that is not UTF-8: msgspec raises UnicodeDecodeError
def test_arbitrary_bytes(data: bytes) -> None:
    for decode in DECODERS:
        decode(data)


@settings(max_examples=500, deadline=None)
@given(frames=requests, operations=mutations, queries=reads, edits=EDITS)
def test_damaged_frames(frames: list[Any], operations: list[Any], queries: list[Any], edits: Any) -> None:
    try_requests(damage(stream.encode(frames), edits))
    try_mutations(damage(ops.encode(operations), edits))
    try_reads(damage(ops.encode(queries), edits))


@settings(max_examples=200, deadline=None)
@given(frames=requests, operations=mutations, queries=reads)
def test_what_is_valid_comes_back(frames: list[Any], operations: list[Any], queries: list[Any]) -> None:
    assert ops.decode_mutations(ops.encode(operations), LIMITS) == operations
    assert ops.decode_reads(ops.encode(queries), LIMITS) == queries
    back = stream.decode_requests(stream.encode(frames))
    assert [type(frame) for frame in back] == [type(frame) for frame in frames]
    for frame, other in zip(frames, back, strict=True):
        assert stream.encode(frame) == stream.encode(other)


LYING = [
    b"\xdd\xff\xff\xff\xff",
    b"\x91\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\x91\x93\x01\x00\xc6\xff\xff\xff\xff",
    b"\x91\x94\x01\x00\xc4\x01k\xc6\xff\xff\xff\xff",
    b"\x91\x93\x05\x00\xdd\xff\xff\xff\xff",
    b"\x91\x98\x02\x01\x02\x03\x04\xc4\x00\x00\x00\xdd\xff\xff\xff\xff",
    b"\x91\x93\x01\xa1x\xdb\xff\xff\xff\xff",
    b"\x91\xc9\xff\xff\xff\xff\x01",
]


@pytest.mark.parametrize("data", LYING)
def test_lengths_that_lie_allocate_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        for decode in DECODERS:
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("opener", [b"\x91", b"\x92\x01", b"\x81\x01", b"\x81", b"\x91\x93\x05\x00\x91"])
def test_nesting_is_bounded(opener: bytes) -> None:
    for decode in DECODERS:
        decode(opener * (1_000_000 // len(opener)))


def test_limits_are_exact() -> None:
    full = [Put(0, b"k" * 480, b"v" * 64)] * 4_096
    assert len(ops.decode_mutations(ops.encode(full), LIMITS)) == 4_096
    for operations, error in (
        ([*full, full[0]], Invalid),
        ([], Invalid),
        ([Put(0, b"", b"")], Invalid),
        ([Put(0, b"k" * 481, b"")], TooLarge),
        ([Put(0, b"k", b"v" * 65)], TooLarge),
        ([Cas(0, b"k", b"v" * 65, 0)], TooLarge),
        ([Cas(0, b"k", b"v", None, None)], Invalid),
        ([Cas(0, b"k", b"v", 1, b"x")], Invalid),
        ([Cas(0, b"k", b"v", -1)], Invalid),
        ([Batch(0, [])], Invalid),
        ([Batch(0, [Get(0, b"k")] * 1_001)], Invalid),
        ([DeleteRange(0, b"b", b"a")], Invalid),
        ([DeleteRange(0, b"", b"", 1_001)], Invalid),
        ([Delete(-1, b"k")], Invalid),
    ):
        with pytest.raises(error):
            ops.decode_mutations(ops.encode(operations), LIMITS)
