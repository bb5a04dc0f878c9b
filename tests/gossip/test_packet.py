"""The bytes of packets: every kind goes there and back, and nothing else gets in.

Method: round trips, one golden packet, and random or damaged bytes by hypothesis.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from kvstore.gossip import packet
from kvstore.gossip.packet import (
    BUCKETS_BYTES_MAX,
    Ack,
    BadPacket,
    Body,
    Gossip,
    Nack,
    Ping,
    PingRequest,
    Sync,
    decode,
    encode,
)
from tests.gossip.cores import SUSPECT, member, node_id, raw_id
from tests.gossip.cores import packet as packet_of

BODIES: list[Body] = [
    Ping(7, raw_id(1), raw_id(2), 2**64 - 1, 2**64 - 1),
    PingRequest(0xFFFF_FFFF, raw_id(1), raw_id(2)),
    Ack(7, raw_id(2), 0, 1),
    Ack(7, raw_id(2), None, 0),
    Nack(7, raw_id(3)),
    Gossip(),
    Sync(raw_id(1), b"b" * BUCKETS_BYTES_MAX),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_there_and_back(body: Body) -> None:
    suspect = member(3, 9, SUSPECT, labels={"zone": "a"})
    payload = packet_of(suspect, body=body, accuser=4, cargo=[Raw(msgspec.msgpack.encode([1, "x"]))])
    found = decode(payload)
    assert found.version == packet.PACKET_VERSION
    assert found.body == body
    assert found.news[0].member() == suspect
    assert found.news[0].accuser == raw_id(4)
    assert [msgspec.msgpack.decode(item) for item in found.cargo] == [[1, "x"]]


def test_golden_bytes() -> None:
    """Other versions of the program read exactly this: a change of it is a new PACKET_VERSION."""
    body = Ping(7, raw_id(1), raw_id(2), 5, 6)
    payload = packet_of(member(3, 9, SUSPECT, labels={"z": "a"}), body=body, accuser=4)
    assert payload.hex() == (
        "94" "01"
        "96" "01" "07" "c410" f"{node_id(1)}" "c410" f"{node_id(2)}" "05" "06"
        "91" "98" "c410" f"{node_id(3)}" "a26e33" "ad" f"{b'10.0.0.3:7001'.hex()}" "09" "01" "81a17aa161" "a131"
        "c410" f"{node_id(4)}"
        "90"
    )  # fmt: skip


def test_room_is_what_is_left() -> None:
    head = packet.encode_body(BODIES[0])
    room = packet.room(head, 1_000)
    assert 990 <= len(encode(head, [Raw(b"\xc4\x10" + b"x" * 16)], [Raw(b"\xda" + b"x" * (room - 19))])) <= 1_000


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"\x94", "malformed"),
        (b"GET / HTTP/1.1\r\n", "malformed"),
        (b"\x94\x02", "version"),
        (b"\x94\x02 whatever comes then", "version"),
        (b"\x94\x01\x91\x05\x90", "malformed"),  # no cargo
        (b"\x94\x01\x91\x05\x90\x90more", "malformed"),
        (b"\x94\x01\x91\x09\x90\x90", "malformed"),  # no such kind
        (b"\x94\x01\x91\x05\xdd\xff\xff\xff\xff\x90", "malformed"),  # a list of four thousand million
        (b"\x94\x01\x91\x05\x90\x91" + b"\x91" * 1_300, "malformed"),  # deep
        (b"\x94\x01\x91\x05\x90\x91\xc1", "malformed"),  # no such type
        (encode(packet.encode_body(Sync(raw_id(1), b"b" * (BUCKETS_BYTES_MAX + 1))), [], []), "malformed"),
        (encode(packet.encode_body(Nack(7, b"short")), [], []), "malformed"),
        (encode(packet.encode_body(Nack(-1, raw_id(1))), [], []), "malformed"),
        (packet_of(member(3, 2**53)), "malformed"),
        (packet_of(member(3, name="n" * 65)), "malformed"),
        (packet_of(member(3, name="n3")).replace(b"\xa2n3", b"\xa2\xff\xfe"), "malformed"),  # not UTF-8
        (packet_of(member(3)).replace(b":7001\x05\x00", b":7001\x05\x07"), "malformed"),  # no such state
    ],
)
def test_bad_packets_have_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        decode(payload)


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"\x94\x01")
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    for candidate in (payload, b"\x94\x01" + payload, b"\x94\x01\x91\x05" + payload):
        try:
            decode(candidate)
        except BadPacket:
            pass


@settings(deadline=None)
@given(st.sampled_from(BODIES), st.data())
def test_no_damage_raises_anything_else(body: Body, data: st.DataObject) -> None:
    payload = bytearray(packet_of(member(3, labels={"zone": "a"}), body=body, accuser=4))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(payload[: data.draw(st.integers(0, len(payload)))]))
    except BadPacket:
        pass
