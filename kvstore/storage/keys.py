"""Every key's bytes, of both environments. Nothing else in the store builds or takes apart a stored key.

Log environment:    group (8) | kind (1) | index (8), big-endian, so that a group's entries lie together and in order.
State environment:  one letter, then
    d  full key (keyspace number and user key)     data; no shard in it, so that split and merge move nothing
    i  shard (8)                                   the shard's flushed image
    s  shard (8) | session                         answers of one session
    x  shard (8)                                   mark: this range's install or destruction has not ended
    m  name                                        about the environment itself

Invariant: these layouts are on disk; changing one needs another FORMAT_VERSION.
Invariant: the bytes order as the things do: data keys like full keys, entries like their indices.
"""

from __future__ import annotations

import struct
from enum import IntEnum

_LOG_KEY = struct.Struct(">QBQ")
_U64 = struct.Struct(">Q")

NODE = 0
"""The group number under which the node's own records lie; no Raft group has it."""


class LogKind(IntEnum):
    NODE_IDENTITY = 1
    STAMP = 2  # the same random bytes in both environments of a directory
    REPLICA_IDENTITY = 3
    HARD_STATE = 4
    START = 5  # (index, term) of the last entry that is no longer held
    ENTRY = 6


def log_key(group: int, kind: LogKind, index: int = 0) -> bytes:
    return _LOG_KEY.pack(group, kind, index)


def parse_log_key(key: bytes | memoryview) -> tuple[int, int, int]:
    """(group, kind, index); the kind may be one that this version does not know."""
    group, kind, index = _LOG_KEY.unpack(key)
    return group, kind, index


DATA = b"d"
IMAGE = b"i"
SESSION = b"s"
INCOMPLETE = b"x"
META = b"m"

STAMP = META + b"stamp"


def image_key(shard: int) -> bytes:
    return IMAGE + _U64.pack(shard)


def session_prefix(shard: int) -> bytes:
    return SESSION + _U64.pack(shard)


def incomplete_key(shard: int) -> bytes:
    return INCOMPLETE + _U64.pack(shard)


def shard_of(key: bytes) -> int:
    """The shard of an image, session or incomplete key."""
    (shard,) = _U64.unpack_from(key, 1)
    return int(shard)


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that start with `prefix`, whose last byte is not 0xff."""
    assert prefix[-1] < 0xFF
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def session_end(shard: int) -> bytes:
    """The first key behind all sessions of the shard."""
    return SESSION + _U64.pack(shard + 1)
