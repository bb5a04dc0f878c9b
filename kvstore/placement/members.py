"""The members of the cluster, as records in the system keyspace: one key a name, so that a name is bound to one node.

Invariant: a name is bound to one node id until the record is deleted (`kvctl node remove`).
Invariant: the id of a removed node stays on record: it never takes part again (its disk may hold old votes).
"""

from __future__ import annotations

import msgspec

from kvstore.base.limits import SCAN_BYTES_MAX, SCAN_KEYS_MAX
from kvstore.base.operations import Item, Scan
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


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A record with the revision at which it was written, for compare-and-set."""

    record: MemberRecord
    revision: int


class Records(msgspec.Struct, frozen=True, array_like=True):
    """All that the meta group says about members, at one moment."""

    members: list[Member]  # by name
    removed: dict[str, str]  # nodes that were removed for good: id -> the name that it had last

    def named(self, name: str) -> Member | None:
        return next((member for member in self.members if member.record.name == name), None)


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(MemberRecord)


def member_key(name: str) -> bytes:
    return PREFIX + name.encode()


def encode_member(record: MemberRecord) -> bytes:
    return _encode(record)


def removed_key(node: str) -> bytes:
    return REMOVED_PREFIX + node.encode()


def read_records(state: ShardState) -> Records:
    """What the meta group's state holds here."""
    members = [Member(_decoder.decode(item.value), item.mod_revision) for item in _all_items(state, PREFIX, PREFIX_END)]
    removed = {
        item.key[len(REMOVED_PREFIX) :].decode(): item.value.decode()
        for item in _all_items(state, REMOVED_PREFIX, REMOVED_PREFIX_END)
    }
    return Records(members, removed)


class RecordReader:
    """Reads them again only when the state is another one than at the last look: they are looked at all the time."""

    def __init__(self) -> None:
        self._state: ShardState | None = None
        self._revision = -1
        self._records = Records([], {})

    def read(self, state: ShardState) -> Records:
        if state is not self._state or state.revision != self._revision:
            self._state, self._revision = state, state.revision
            self._records = read_records(state)
        return self._records


def _all_items(state: ShardState, first: bytes, end: bytes) -> list[Item]:
    items: list[Item] = []
    start: bytes | None = first
    while start is not None:
        page = state.scan(Scan(0, start, end, SCAN_KEYS_MAX, SCAN_BYTES_MAX))
        items += page.items
        start = page.cursor
    return items
