"""Goal: an entry's bytes come back as they went in, and nothing but DamagedRecord comes of any other bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.base.errors import DamagedRecord, Invalid, TooLarge
from kvstore.base.limits import Limits
from kvstore.base.operations import Batch, DeleteRange, Get, Mutation, Put, encode
from kvstore.state.command import DecodedWrite, Payload, Write, decode_payload, encode_payload
from kvstore.state.session import decode_session
from kvstore.state.shard_meta import decode_meta
from tests.state.machine import SESSION, STAMP, Machine, write

SOUND = encode_payload(
    STAMP, [write(Put(1, b"a", b"1"), Put(2, b"b", b"")), write(DeleteRange(0, b"", b""), session=b"", issued_at=0)]
)


def decode_all(data: bytes) -> list[DecodedWrite]:
    return [DecodedWrite.decode(command) for command in decode_payload(data).writes]


def test_round_trip_keeps_the_client_s_bytes() -> None:
    sent = encode([Put(1, b"a", b"1")])
    payload = decode_payload(encode_payload(STAMP, (Write(3, SESSION, 1, 2, msgspec.Raw(sent)),)))
    assert payload.stamp == STAMP
    (command,) = payload.writes
    assert (command.version, command.session, command.low, command.issued_at) == (3, SESSION, 1, 2)
    assert bytes(command.operations) == sent
    assert DecodedWrite.decode(command).operations == [Put(1, b"a", b"1")]
    assert decode_payload(encode_payload(0, ())) == Payload(0, [])


def test_a_leader_checks_its_own_limits_a_follower_only_the_hard_ones() -> None:
    large = write(Put(1, b"a", b"12345"))
    with pytest.raises(TooLarge):
        DecodedWrite.decode(large, Limits(value_bytes_max=4))
    assert DecodedWrite.decode(large).operations == [Put(1, b"a", b"12345")]
    many: list[Mutation] = [Put(0, b"a", b"")] * 5_000  # more than a frame may have here, less than somewhere else
    with pytest.raises(Invalid):
        DecodedWrite.decode(write(*many), Limits())
    assert len(DecodedWrite.decode(write(*many)).operations) == 5_000


@pytest.mark.parametrize(
    "operation",
    [
        Put(1, b"", b""),
        Put(1, b"k" * 481, b""),
        Batch(1, [Get(0, b"a"), Put(0, b"k" * 481, b"")]),
        Batch(1, [Get(0, b"")]),
        DeleteRange(1, b"k" * 481, b""),
        DeleteRange(1, b"", b"k" * 481),
    ],
)
def test_a_key_that_no_store_can_hold_is_damage(operation: Mutation) -> None:
    with pytest.raises(DamagedRecord):
        decode_all(encode_payload(STAMP, [write(operation)]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02" + SOUND[1:],
        SOUND + b"\0",
        SOUND[:-1],
        b"\x01" + encode([STAMP, [], 1]),
        b"\x01" + encode([-1, []]),
        b"\x01" + encode([STAMP, [[1, 1, SESSION, 0, 0, [], "a field of tomorrow"]]]),
        b"\x01" + encode([STAMP, [[9, 1, SESSION, 0, 0, []]]]),
        b"\x01" + encode([STAMP, [[1, 1, b"short", 0, 0, []]]]),
        b"\x01" + encode([STAMP, [[1, 1, SESSION, 0, 0, 5]]]),
        b"\x01" + b"\x91" * 100_000,
    ],
)
def test_what_cannot_be_understood_is_damage(data: bytes) -> None:
    """A command or field of a later version too: a replica that skipped it would drift away from the others."""
    with pytest.raises(DamagedRecord):
        decode_all(data)


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=200), head=st.sampled_from((b"", b"\x01")))
def test_any_bytes_are_decoded_or_damage(data: bytes, head: bytes) -> None:
    try:
        decode_all(head + data)
    except DamagedRecord:
        pass


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_an_entry_with_flipped_bytes_is_applied_or_damage(flips: list[tuple[int, int]]) -> None:
    """What does decode gets a result, whatever it says: applying asserts nothing about what a client may have sent."""
    data = bytearray(SOUND)
    for position, value in flips:
        data[position] = value
    machine = Machine()
    try:
        results = machine.entry_of(bytes(data))
    except DamagedRecord:
        assert machine.state.applied_index == 5
        return
    machine.reload()
    writes = decode_all(bytes(data))
    assert [len(one) for one in results] == [len(decoded.operations) for decoded in writes]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=80), head=st.sampled_from((b"", b"\x01")))
def test_any_bytes_as_meta_or_session_are_decoded_or_damage(data: bytes, head: bytes) -> None:
    for decode in (decode_meta, decode_session):
        try:
            decode(head + data)
        except DamagedRecord:
            pass
