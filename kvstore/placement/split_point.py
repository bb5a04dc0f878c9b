"""Where a shard is to be cut: in the middle of its data, at a key that parts no group; and how much is left of a cut.

The keys are walked in slices, about a millisecond each, between which everybody else has their turn: that costs a
fraction of what it took to write them, and no counter has to be kept for it. What changes under the walk makes the
result a little wrong, which does no harm: it is an estimate by nature.

Invariant: a cut that is given lies inside the shard and is legal, and both halves held a key when it was looked at.
Called by: shard_split.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from kvstore.base.errors import Invalid
from kvstore.base.key_groups import group_end, group_of
from kvstore.base.limits import KEYSPACE_PREFIX_BYTES, KIB, MIB
from kvstore.base.shards import ShardDescriptor
from kvstore.storage.protocol import StateStore

MEASURED_BYTES_MAX = 512 * MIB
SLICE_KEYS = 200
SLICE_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True)
class Cut:
    """`key` (full) begins the right half; `left_bytes` of keys and values lie before it."""

    key: bytes
    left_bytes: int


async def measure_left(store: StateStore, descriptor: ShardDescriptor, key: bytes, data_bytes: int) -> int:
    """Bytes of keys and values in front of a cut; half of all where that would take too long to find out."""
    total = 0
    async for _, size in _sizes(store, descriptor.start, key):
        total += size
        if total > MEASURED_BYTES_MAX:
            return max(total, data_bytes // 2)
    return total


async def find_middle(store: StateStore, descriptor: ShardDescriptor, data_bytes: int) -> Cut:
    """`data_bytes`: of the shard, about. Raises Invalid when there is no cut with keys on both sides."""
    total, cut = await _walk(store, descriptor, data_bytes // 2)
    if cut is None:  # there was less than believed
        _, cut = await _walk(store, descriptor, total // 2)
    if cut is None:
        raise Invalid("no key divides the shard in two: all that it holds is one key, or one key group")
    return cut


async def _walk(store: StateStore, descriptor: ShardDescriptor, half: int) -> tuple[int, Cut | None]:
    """(bytes seen, the legal cut that is nearest to `half` bytes); as far as needed to know."""
    total = 0
    below: Cut | None = None  # the last legal one before `half`
    group: bytes | None = None  # that of the key before
    async for key, size in _sizes(store, descriptor.start, descriptor.end):
        own = group_of(key[KEYSPACE_PREFIX_BYTES:])
        if total and (own is None or own != group):
            cut = Cut(_begin(key, own, group), total)
            if total >= half:
                nearer = below is not None and half - below.left_bytes < total - half
                return total, below if nearer else cut
            below = cut
        group = own
        total += size
    # The end came first: all the rest is one group, or there was less than believed.
    return total, below if total >= half else None


def _begin(key: bytes, own: bytes | None, before: bytes | None) -> bytes:
    """The legal cut that has this key as the first of its right half: the group's name where the key is in one."""
    prefix = key[:KEYSPACE_PREFIX_BYTES]
    if own is None:
        return key
    # The name is not below the end of the group before: groups do not overlap, and this one's keys come behind.
    assert before is None or own >= group_end(before)
    return prefix + own


async def _sizes(store: StateStore, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, int]]:
    """(full key, bytes of key and value) in order, giving way now and then."""
    more = True
    while more:
        pairs, more = store.scan(start, end, limit=SLICE_KEYS, bytes_max=SLICE_BYTES)
        for key, record in pairs:
            yield key, len(key) + len(record.value)
        if more:
            start = pairs[-1][0] + b"\0"
            await asyncio.sleep(0)
