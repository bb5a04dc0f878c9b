"""The members of the cluster, as records in the system keyspace: one key a name, so that a name is bound to one node.

Invariant: a name is bound to one node id until the record is deleted (`kvctl node remove`).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kvstore.base.limits import SCAN_BYTES_MAX, SCAN_KEYS_MAX
from kvstore.base.operations import Scan
from kvstore.state.shard import ShardState

PREFIX = b"members/"
PREFIX_END = b"members0"  # "0" is the character behind "/"


class MemberRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the meta group knows of a node."""

    name: str
    node: str  # node id
    address: str
    labels: dict[str, str] = {}
    version: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A record with the revision at which it was written, for compare-and-set."""

    record: MemberRecord
    revision: int


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(MemberRecord)


def member_key(name: str) -> bytes:
    return PREFIX + name.encode()


def encode_member(record: MemberRecord) -> bytes:
    return _encode(record)


def read_members(state: ShardState) -> list[Member]:
    """All members that the meta group's state holds here, by name."""
    members: list[Member] = []
    start: bytes | None = PREFIX
    while start is not None:
        page = state.scan(Scan(0, start, PREFIX_END, SCAN_KEYS_MAX, SCAN_BYTES_MAX))
        members += [Member(_decoder.decode(item.value), item.mod_revision) for item in page.items]
        start = page.cursor
    return members
