"""Key groups: keys that stay together in one shard for ever, and where a keyspace may be cut.

The group of a key is named by what it begins with, from its start through the first `}` after the first `{`:
`{order-17}/items/3` and `{order-17}/total` are in the group `{order-17}`. A key without such a part is in no group.

Invariant: a group is exactly the keys that begin with its name: the name holds the key's first `{` and the first `}`
           behind it, so whatever follows cannot change it. Therefore a group is the range [name, group_end(name)).
Invariant: a cut at `key` (what is below it left, it and the rest right) parts a group only if the key itself is in one
           and is not that group's name.
All keys here are the user's, without the keyspace's number.
"""

from __future__ import annotations

from kvstore.base.limits import KEY_BYTES_MAX


def group_of(key: bytes) -> bytes | None:
    """The name of the key's group; None: it is in none."""
    opening = key.find(b"{")
    if opening < 0:
        return None
    closing = key.find(b"}", opening + 1)
    return None if closing < 0 else key[: closing + 1]


def group_end(group: bytes) -> bytes:
    """The least key behind the group; itself in no group."""
    assert group.endswith(b"}")
    return group[:-1] + b"~"  # the byte behind `}`


def is_legal_cut(key: bytes) -> bool:
    """Whether a shard may be split so that `key` is the first one of its right half."""
    if not 0 < len(key) <= KEY_BYTES_MAX:
        return False
    group = group_of(key)
    return group is None or group == key


def nearest_cuts(key: bytes) -> tuple[bytes, bytes]:
    """The legal cuts below and above an illegal one: both ends of the group that it parts."""
    group = group_of(key)
    assert group is not None
    return group, group_end(group)
