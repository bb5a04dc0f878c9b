"""The least that ShardState needs of a store: a dict of records and what was flushed. Not a test of the real stores."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

import msgspec

from kvstore.storage.protocol import Record, ShardChange, ShardImage


class FakeStore:
    """Data is visible at once; images and sessions are what `flush` was given."""

    def __init__(self) -> None:
        self.records: dict[bytes, Record] = {}
        self.keys: list[bytes] = []
        self.images: dict[int, ShardImage] = {}
        self.stored_sessions: dict[int, dict[bytes, bytes]] = {}

    def get(self, key: bytes) -> Record | None:
        return self.records.get(key)

    def put(self, key: bytes, record: Record) -> None:
        if key not in self.records:
            insort(self.keys, key)
        self.records[key] = record

    def delete(self, key: bytes) -> None:
        del self.keys[bisect_left(self.keys, key)]
        del self.records[key]

    def scan(
        self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
    ) -> tuple[list[tuple[bytes, Record]], bool]:
        keys = self.keys[bisect_left(self.keys, start) : bisect_left(self.keys, end)]
        if reverse:
            keys.reverse()
        pairs: list[tuple[bytes, Record]] = []
        size = 0
        for key in keys:
            size += len(key) + len(self.records[key].value)
            if len(pairs) == limit or (pairs and size > bytes_max):
                return pairs, True
            pairs.append((key, self.records[key]))
        return pairs, False

    def shards(self) -> Mapping[int, ShardImage]:
        return self.images

    def sessions(self, group: int) -> Mapping[bytes, bytes]:
        return self.stored_sessions.get(group, {})

    def flush(self, group: int, change: ShardChange) -> None:
        """What write_frozen does with the change of one shard."""
        self.images[group] = change.image
        stored = self.stored_sessions.setdefault(group, {})
        for session, data in change.sessions.items():
            if data is None:
                stored.pop(session, None)
            else:
                stored[session] = data

    def copy(self) -> FakeStore:
        """As a snapshot carries it."""
        copy = FakeStore()
        copy.records = dict(self.records)
        copy.keys = list(self.keys)
        copy.images = dict(self.images)
        copy.stored_sessions = {group: dict(stored) for group, stored in self.stored_sessions.items()}
        return copy

    def dump(self, group: int) -> bytes:
        """Every byte of a shard's state, in an order of its own."""
        parts = (
            [(key, self.records[key]) for key in self.keys],
            self.images[group],
            sorted(self.stored_sessions[group].items()),
        )
        return msgspec.msgpack.encode(parts)
