"""The members of the cluster, as records in the system keyspace: one key a name, so that a name is bound to one node.

Invariant: a name is bound to one node id until the record is deleted (`kvctl node remove`).
Invariant: the id of a removed node stays on record: it never takes part again (its disk may hold old votes).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kvstore.base.limits import SCAN_BYTES_MAX, SCAN_KEYS_MAX
from kvstore.base.operations import Item, Scan
from kvstore.base.shards import Route, ShardDescriptor
from kvstore.state.shard import ShardState

REMOVED_PREFIX = b"removed/"
REMOVED_PREFIX_END = b"removed0"
PREFIX = b"members/"
PREFIX_END = b"members0"  # "0" is the character behind "/"


class MemberRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the meta group knows of a node."""

    name: str
    node: str  # node id
    address: str
    labels: dict[str, str] = {}
    version: str = ""


class Picture(msgspec.Struct, frozen=True, array_like=True):
    """What one node tells another about the cluster, when asked; only hints."""

    members: list[MemberRecord]
    routes: list[Route]  # of the users' shards
    led: list[ShardDescriptor]  # of the shards that this very node leads


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


def removed_key(node: str) -> bytes:
    return REMOVED_PREFIX + node.encode()


def read_members(state: ShardState) -> list[Member]:
    """All members that the meta group's state holds here, by name."""
    return [Member(_decoder.decode(item.value), item.mod_revision) for item in _all_items(state, PREFIX, PREFIX_END)]


def read_removed(state: ShardState) -> list[str]:
    """Ids of the nodes that were removed for good."""
    items = _all_items(state, REMOVED_PREFIX, REMOVED_PREFIX_END)
    return [item.key[len(REMOVED_PREFIX) :].decode() for item in items]


def _all_items(state: ShardState, first: bytes, end: bytes) -> list[Item]:
    items: list[Item] = []
    start: bytes | None = first
    while start is not None:
        page = state.scan(Scan(0, start, end, SCAN_KEYS_MAX, SCAN_BYTES_MAX))
        items += page.items
        start = page.cursor
    return items
