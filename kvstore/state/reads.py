"""Reads of one shard: a key, a page. And the arithmetic of cursors.

Invariant: following cursors from page to page visits every key of the range once, as far as none is written meanwhile.
Called by: shard.py. The caller has checked range and epoch in the same synchronous step.
"""

from __future__ import annotations

from kvstore.base.limits import KEY_BYTES_MAX, KEYSPACE_PREFIX_BYTES
from kvstore.base.operations import Found, Item, Page, Scan
from kvstore.state.data import ShardData
from kvstore.storage.protocol import Record


def found(record: Record | None) -> Found | None:
    if record is None:
        return None
    return Found(record.value, record.mod_revision, record.create_revision, record.version)


def read_page(store: ShardData, operation: Scan, *, start: bytes, end: bytes, revision: int) -> Page:
    """start and end are full keys inside the shard; revision is the shard's."""
    pairs, more = store.scan(
        start, end, limit=operation.limit, bytes_max=operation.bytes_max, reverse=operation.reverse
    )
    items = [
        Item(key[KEYSPACE_PREFIX_BYTES:], record.value, record.mod_revision, record.create_revision, record.version)
        for key, record in pairs
    ]
    cursor = None
    if more:
        assert items, "a page holds at least one key when there is one"
        cursor = items[-1].key if operation.reverse else next_key(items[-1].key)
    return Page(items, cursor, revision)


def next_key(key: bytes) -> bytes | None:
    """The least key that can follow `key`; None when none can. Itself a valid key, however long `key` is."""
    if len(key) < KEY_BYTES_MAX:
        return key + b"\0"
    # A key of full length has no extension: the next one differs in the last byte that can still grow.
    head = key.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None
