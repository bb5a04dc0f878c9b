"""Shard descriptors, epochs and routes: what a shard is, where its replicas are, who leads it.

Invariant: `start < end`, both full keys (keyspace number, 4 bytes big-endian, then the user's key).
Invariant: `version` rises with each split and merge, `conf` with each membership change.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from kvstore.base.ids import KeyspaceId


def keyspace_prefix(keyspace: int) -> bytes:
    """What every full key of the keyspace starts with."""
    return keyspace.to_bytes(4, "big")


def keyspace_range(keyspace: int) -> tuple[bytes, bytes]:
    """[start, end) of all full keys of the keyspace."""
    return keyspace_prefix(keyspace), keyspace_prefix(keyspace + 1)


class ReplicaRole(IntEnum):
    VOTER = 1
    LEARNER = 2


class Replica(msgspec.Struct, array_like=True, frozen=True, gc=False):
    node: str  # NodeId
    replica_id: int
    role: ReplicaRole = ReplicaRole.VOTER


class ShardDescriptor(msgspec.Struct, array_like=True, frozen=True):
    """Replicated with the shard's data, changed only by applied entries."""

    id: int
    keyspace: int
    start: bytes  # full key
    end: bytes  # full key, exclusive
    version: int
    conf: int
    replicas: tuple[Replica, ...]

    def covers(self, key: bytes) -> bool:
        return self.start <= key < self.end

    def replica_on(self, node: str) -> Replica | None:
        return next((replica for replica in self.replicas if replica.node == node), None)


class Route(msgspec.Struct, array_like=True, frozen=True):
    """A descriptor as a client needs it. start and end are the *user's* keys; end b"" = no upper bound."""

    id: int
    keyspace: int
    start: bytes
    end: bytes
    version: int
    conf: int
    term: int  # of the leader named; 0 = none known
    leader: str | None  # node name
    address: str | None  # HOST:PORT of the leader
    replicas: tuple[tuple[str, str, int], ...] = ()  # (node name, HOST:PORT, role)


def user_bounds(descriptor: ShardDescriptor) -> tuple[bytes, bytes]:
    """The descriptor's range in user keys; an end of b"" means no upper bound."""
    prefix = keyspace_prefix(KeyspaceId(descriptor.keyspace))
    start = descriptor.start[len(prefix) :]
    end = descriptor.end[len(prefix) :] if descriptor.end.startswith(prefix) else b""
    return start, end
