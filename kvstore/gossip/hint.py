"""That a node leads a shard: what is told of it, its bytes, and which of two such tales stands.

Invariant: `overrides` is a strict total order on different hints: by version, then term, then conf. A leader has
    applied all that earlier leaders of the shard did before it announces itself, so along a shard's true history all
    three only rise; what is compared behind them differs only where somebody forges.
Invariant: at each key, `version` rises with every change of the range that holds it. So a hint of before a split or a
    merge is overridden, wherever its range lies, by those of after it.
Invariant: what `encode` gives is at most HINT_BYTES_MAX, which fits an empty packet; `decode` raises BadHint and
    nothing else.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from kvstore.base.limits import KEY_BYTES_MAX, KEYSPACE_PREFIX_BYTES
from kvstore.base.shards import Replica, ReplicaRole, ShardDescriptor, keyspace_prefix, keyspace_range

FULL_KEY_BYTES_MAX = KEYSPACE_PREFIX_BYTES + KEY_BYTES_MAX
HINT_BYTES_MAX = 1_200
"""Two keys of the greatest length and the numbers take 1,040; an empty packet has room for 1,300 with a signature."""
REPLICAS_MAX = 64

_Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Shard = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
_Keyspace = Annotated[int, Meta(ge=0, lt=(1 << 32) - 1)]
_Key = Annotated[bytes, Meta(max_length=FULL_KEY_BYTES_MAX)]
_Role = Annotated[int, Meta(ge=1, le=255)]


class BadHint(Exception):
    """An item that no node of this version would have sent."""


class Hint(Struct, array_like=True, frozen=True):
    """One shard and its leader, as the leader tells it. Node ids are 16 raw bytes."""

    id: _Shard
    keyspace: _Keyspace
    start: _Key  # full key
    end: _Key  # full key, exclusive
    version: _Number
    conf: _Number
    term: _Number
    leader: _Id
    replicas: Annotated[tuple[tuple[_Id, _Number, _Role], ...], Meta(max_length=REPLICAS_MAX)] = ()
    """(node, replica id, role); empty where they would make the hint too long."""

    @property
    def rank(self) -> tuple[int, int, int]:
        """What decides which of two tales stands."""
        return self.version, self.term, self.conf

    @property
    def descriptor(self) -> ShardDescriptor:
        """Made anew at each call; without replicas where they were left out."""
        return ShardDescriptor(
            id=self.id,
            keyspace=self.keyspace,
            start=self.start,
            end=self.end,
            version=self.version,
            conf=self.conf,
            replicas=tuple(Replica(node.hex(), replica_id, _role(role)) for node, replica_id, role in self.replicas),
        )

    def covers(self, key: bytes) -> bool:
        return self.start <= key < self.end


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Hint).decode


def make_hint(descriptor: ShardDescriptor, *, term: int, leader: str) -> Hint:
    """What the node `leader` (its id) tells of a shard that it leads in `term`."""
    replicas = tuple((bytes.fromhex(one.node), one.replica_id, int(one.role)) for one in descriptor.replicas)
    hint = Hint(
        id=descriptor.id,
        keyspace=descriptor.keyspace,
        start=descriptor.start,
        end=descriptor.end,
        version=descriptor.version,
        conf=descriptor.conf,
        term=term,
        leader=bytes.fromhex(leader),
        replicas=replicas,
    )
    # The numbers beside the keys and the replicas take 60 bytes at most, a replica 29.
    if len(hint.start) + len(hint.end) + 29 * len(replicas) + 70 <= HINT_BYTES_MAX and len(replicas) <= REPLICAS_MAX:
        return hint
    return msgspec.structs.replace(hint, replicas=())


def overrides(new: Hint, old: Hint) -> bool:
    """Whether `new` stands where the two are about the same shard, or about ranges that overlap."""
    if new.rank != old.rank:
        return new.rank > old.rank
    return new != old and _content(new) > _content(old)


def encode(hint: Hint) -> Raw:
    """The bytes are the same whoever encodes it."""
    encoded = Raw(_encode(hint))
    assert len(encoded) <= HINT_BYTES_MAX
    return encoded


def decode(item: Raw) -> Hint:
    """Raises BadHint."""
    if len(item) > HINT_BYTES_MAX:
        raise BadHint("too long")
    try:
        hint = _decode(item)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: a text that is not UTF-8
        raise BadHint("malformed") from None
    if not is_sound(hint):
        raise BadHint("its range is not one of its keyspace")
    return hint


def is_sound(hint: Hint) -> bool:
    """Whether the range is one, and of one keyspace. The bounds of the fields are the decoder's business."""
    prefix = keyspace_prefix(hint.keyspace)
    if hint.start >= hint.end or not hint.start.startswith(prefix):
        return False
    return hint.end.startswith(prefix) or hint.end == keyspace_range(hint.keyspace)[1]


def _role(number: int) -> ReplicaRole:
    """One of a later version is no voter, as far as this one can tell."""
    return ReplicaRole.VOTER if number == ReplicaRole.VOTER else ReplicaRole.LEARNER


def _content(hint: Hint) -> tuple[object, ...]:
    return msgspec.structs.astuple(hint)
