"""Identifiers. None is ever reused."""

from __future__ import annotations

import random
from typing import NewType

NodeId = NewType("NodeId", str)
"""128 random bits in hex, made with the node's directory; a wiped directory is a new node."""
ClusterId = NewType("ClusterId", str)
BootId = NewType("BootId", str)
"""A new one for every start of a process."""
ShardId = NewType("ShardId", int)
"""Of a shard and of its Raft group."""
ReplicaId = NewType("ReplicaId", int)
KeyspaceId = NewType("KeyspaceId", int)

META_SHARD = ShardId(1)
DEFAULT_SHARD = ShardId(2)
SYSTEM_KEYSPACE = KeyspaceId(0)
DEFAULT_KEYSPACE = KeyspaceId(1)
DEFAULT_KEYSPACE_NAME = "default"


def random_id(rng: random.Random) -> str:
    """128 random bits as 32 hex digits. Give a `random.SystemRandom` outside simulation."""
    return f"{rng.getrandbits(128):032x}"
