"""A snapshot's bytes: chunks of stored records, each with its number and checksum.

A chunk is MessagePack `[group, number, last, [key, record, key, record, ...]]` followed by its crc32. Keys and records
are as stored (`keys`, `records`), so a record's own checksum travels along and still fits where it is put.

Invariant: whoever installs has put every chunk of one snapshot, 0 to the last, before it may finish.
Invariant: a chunk never holds a key outside its shard's range and sessions.
Called by: snapshot_reader, state_store, memory_state.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.base.limits import SNAPSHOT_CHUNK_BYTES
from kvstore.storage.keys import DATA, session_end, session_prefix

CRC_BYTES = 4
Pair = tuple[bytes, bytes]


class _Chunk(msgspec.Struct, array_like=True):
    group: int
    number: int
    last: bool
    flat: list[bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Chunk).decode


def encode_chunk(group: int, number: int, pairs: Iterable[Pair], *, last: bool) -> bytes:
    flat = [part for pair in pairs for part in pair]
    body = _encode(_Chunk(group, number, last, flat))
    return body + crc32(body).to_bytes(CRC_BYTES, "little")


def stored_ranges(group: int, start: bytes, end: bytes) -> tuple[Pair, Pair]:
    """The stored keys that belong to a shard, in order: [low, high) of its data, of its sessions."""
    return (DATA + start, DATA + end), (session_prefix(group), session_end(group))


class Cut:
    """Gathers pairs until they make a chunk."""

    __slots__ = ("_bytes", "pairs")

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self._bytes = 0

    def add(self, key: bytes, record: bytes) -> bool:
        """False when the chunk is full already; the pair then begins the next one."""
        if self._bytes >= SNAPSHOT_CHUNK_BYTES:
            return False
        self.pairs.append((key, record))
        self._bytes += len(key) + len(record)
        return True


class InstallProgress:
    """What has come of one snapshot so far; checks each chunk before anything of it is written."""

    def __init__(self, group: int, start: bytes, end: bytes) -> None:
        self._group = group
        self._ranges = stored_ranges(group, start, end)
        self._next = 0
        self._last_seen = False

    def accept(self, data: bytes) -> list[Pair]:
        """The chunk's pairs. Raises DamagedRecord; a chunk that came before is taken again (a repeated send)."""
        body = data[:-CRC_BYTES]
        if len(data) < CRC_BYTES or crc32(body).to_bytes(CRC_BYTES, "little") != data[-CRC_BYTES:]:
            raise DamagedRecord(f"a snapshot chunk of shard {self._group} does not match its checksum")
        try:
            chunk = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamagedRecord(f"a snapshot chunk of shard {self._group} is malformed: {error}") from error
        if chunk.group != self._group or len(chunk.flat) % 2:
            raise DamagedRecord(f"a snapshot chunk of shard {chunk.group} came for shard {self._group}")
        if chunk.number > self._next:
            raise DamagedRecord(f"snapshot chunk {chunk.number} of shard {self._group} came before chunk {self._next}")
        pairs = list(zip(chunk.flat[::2], chunk.flat[1::2], strict=True))
        self._check_keys(chunk.flat[::2])
        if chunk.number == self._next:
            self._next += 1
            self._last_seen = chunk.last
        return pairs

    def _check_keys(self, keys: list[bytes]) -> None:
        (data_low, data_high), (session_low, session_high) = self._ranges
        for key in keys:
            if not (data_low <= key < data_high or session_low <= key < session_high):
                raise DamagedRecord(f"a snapshot chunk of shard {self._group} holds the foreign key {key!r}")

    def assert_complete(self) -> None:
        assert self._last_seen, f"shard {self._group}: the install would end after chunk {self._next - 1}, not the last"
