"""The bytes of a packet: [version, [kind, ...], [news of members ...], [cargo ...]] in MessagePack.

Every kind carries news and cargo as far as there is room. Node ids are 16 raw bytes here.

Invariant: `decode` raises BadPacket and nothing else, whatever the bytes are.
Invariant: what `decode` lets pass is within the bounds given here; `Told.member` still has to pass `member.check`.
Invariant: fields are only ever added at the end, with a default; anything else is another PACKET_VERSION.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from kvstore.gossip.member import (
    ADDRESS_LENGTH_MAX,
    INCARNATION_MAX,
    LABELS_MAX,
    NAME_LENGTH_MAX,
    VERSION_LENGTH_MAX,
    Member,
    MemberState,
)

PACKET_VERSION = 1
OVERHEAD_BYTES = 6
"""Of the two lists, at most: an array of up to 65,535 has a head of 3 bytes."""
BUCKETS_BYTES_MAX = 1_030

Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Ticket = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
_Accuser = Annotated[bytes, Meta(max_length=16)]
_Incarnation = Annotated[int, Meta(ge=0, le=INCARNATION_MAX)]
_Name = Annotated[str, Meta(max_length=NAME_LENGTH_MAX)]
_Address = Annotated[str, Meta(max_length=ADDRESS_LENGTH_MAX)]
_Labels = Annotated[dict[str, str], Meta(max_length=LABELS_MAX)]
_Version = Annotated[str, Meta(max_length=VERSION_LENGTH_MAX)]


class BadPacket(Exception):
    """The reason is one of a few words, for a counter."""


class Told(Struct, array_like=True, frozen=True):
    """A member's record as one node tells it to another."""

    node: Id
    name: _Name
    address: _Address
    incarnation: _Incarnation
    state: MemberState
    labels: _Labels = {}
    version: _Version = ""
    accuser: _Accuser = b""  # who suspects it, by its own probe; empty when nobody does

    def member(self) -> Member:
        return Member(self.node.hex(), self.name, self.address, self.incarnation, self.state, self.labels, self.version)


class Ping(Struct, array_like=True, frozen=True, tag=1):
    ticket: Ticket
    sender: Id
    target: Id  # another process may have got the address since
    digest: int  # of the sender's cargo
    members: int  # digest of who lives, as the sender believes


class PingRequest(Struct, array_like=True, frozen=True, tag=2):
    """Please ping the target for me. The relay uses the address that it knows itself: so nobody can make it send
    packets to a third party."""

    ticket: Ticket
    sender: Id
    target: Id


class Ack(Struct, array_like=True, frozen=True, tag=3):
    ticket: Ticket
    node: Id  # who lives
    digest: int | None  # of its cargo; None from a relay
    members: int  # digest of who lives; 0 from a relay


class Nack(Struct, array_like=True, frozen=True, tag=4):
    """The relay lives, and has no answer from the target yet."""

    ticket: Ticket
    sender: Id


class Gossip(Struct, array_like=True, frozen=True, tag=5):
    """News and cargo only."""


class Sync(Struct, array_like=True, frozen=True, tag=6):
    """My cargo is another one than yours; this is what I have."""

    sender: Id
    buckets: Annotated[bytes, Meta(max_length=BUCKETS_BYTES_MAX)]


Body = Ping | PingRequest | Ack | Nack | Gossip | Sync


class Packet(Struct, array_like=True, frozen=True):
    version: int
    body: Body
    news: list[Told]
    cargo: list[Raw]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Packet)


def encode_told(member: Member, accuser: str = "") -> Raw:
    told = Told(
        bytes.fromhex(member.node),
        member.name,
        member.address,
        member.incarnation,
        member.state,
        member.labels,
        member.version,
        bytes.fromhex(accuser),
    )
    return Raw(_encoder.encode(told))


def encode_body(body: Body) -> Raw:
    return Raw(_encoder.encode(body))


def room(body: Raw, budget: int) -> int:
    """Bytes left for news and cargo beside the body."""
    return budget - len(body) - 2 - OVERHEAD_BYTES


def encode(body: Raw, news: list[Raw], cargo: list[Raw]) -> bytes:
    return _encoder.encode((PACKET_VERSION, body, news, cargo))


def decode(payload: bytes) -> Packet:
    # The version comes first, so that a packet of another one is known for it though the rest cannot be read.
    if len(payload) < 2 or payload[0] & 0xF0 != 0x90:
        raise BadPacket("malformed")
    if payload[1] != PACKET_VERSION:
        raise BadPacket("version")
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: a text that is not UTF-8
        raise BadPacket("malformed") from None
