"""The bytes of every stored record, each with its checksum.

A record is its body followed by crc32(key || body), little-endian. The key is part of the sum, so a sound record
that turns up under another key counts as damaged. A CRC that stands at the end needs no slicing to be checked: the
sum over body and CRC is a constant.

    entry      term (8) | kind (1) | data                      big-endian
    data       mod (8) | create (8) | version (8) | value      revisions, big-endian
    others     MessagePack

Invariant: a record that does not match its checksum is never returned; it raises DamagedRecord.
"""

from __future__ import annotations

import struct
from typing import TypeVar
from zlib import crc32

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.storage.protocol import Record, ReplicaIdentity, ShardImage
from raft.types import Entry, EntryKind, HardState

CRC_BYTES = 4
_RESIDUE = 0x2144DF1C  # crc32 of anything followed by its own crc32
_ENTRY_HEAD = struct.Struct(">QB")
_DATA_HEAD = struct.Struct(">QQQ")
ENTRY_OVERHEAD_BYTES = _ENTRY_HEAD.size + CRC_BYTES
_DATA_HEAD_BYTES = _DATA_HEAD.size
_DATA_BYTES_MIN = _DATA_HEAD_BYTES + CRC_BYTES
_KINDS = tuple(EntryKind)
assert all(kind == position for position, kind in enumerate(_KINDS))

_pack_entry = _ENTRY_HEAD.pack
_unpack_entry = _ENTRY_HEAD.unpack_from
_pack_data = _DATA_HEAD.pack
_unpack_data = _DATA_HEAD.unpack_from

T = TypeVar("T")


def seal(key: bytes, body: bytes) -> bytes:
    return body + crc32(body, crc32(key)).to_bytes(CRC_BYTES, "little")


def unseal(key: bytes, record: bytes) -> bytes:
    """The body. Raises DamagedRecord."""
    check(key, record)
    return record[:-CRC_BYTES]


def is_sound(key: bytes, record: bytes | memoryview) -> bool:
    return len(record) >= CRC_BYTES and crc32(record, crc32(key)) == _RESIDUE


def check(key: bytes, record: bytes | memoryview) -> None:
    if not is_sound(key, record):
        raise DamagedRecord(f"the record {key!r} ({len(record)} bytes) does not match its checksum")


def encode_entry(key: bytes, entry: Entry) -> bytes:
    head = _pack_entry(entry.term, entry.kind)
    data = entry.data
    total = crc32(data, crc32(head, crc32(key)))
    return b"".join((head, data, total.to_bytes(CRC_BYTES, "little")))


def decode_entry(key: bytes, record: bytes | memoryview, index: int) -> Entry:
    """Raises DamagedRecord."""
    check(key, record)
    if len(record) < ENTRY_OVERHEAD_BYTES:
        raise DamagedRecord(f"the log record {key!r} is too short")
    term, kind = _unpack_entry(record)
    if kind >= len(_KINDS):
        raise DamagedRecord(f"the log record {key!r} has the unknown kind {kind}")
    return Entry(term, index, _KINDS[kind], bytes(record[_ENTRY_HEAD.size : -CRC_BYTES]))


def entry_term(key: bytes, record: bytes | memoryview) -> int:
    """The term alone, without copying the data. Raises DamagedRecord."""
    check(key, record)
    return int(_unpack_entry(record)[0])


def encode_data(key: bytes, record: Record) -> bytes:
    body = _pack_data(record.mod_revision, record.create_revision, record.version) + record.value
    return body + crc32(body, crc32(key)).to_bytes(CRC_BYTES, "little")


def decode_data(key: bytes, raw: bytes) -> Record:
    """`key` is the stored key. Raises DamagedRecord."""
    if crc32(raw, crc32(key)) != _RESIDUE or len(raw) < _DATA_BYTES_MIN:
        raise DamagedRecord(f"the data record {key!r} ({len(raw)} bytes) does not match its checksum")
    mod, create, version = _unpack_data(raw)
    return Record(raw[_DATA_HEAD_BYTES:-CRC_BYTES], mod, create, version)


_encode = msgspec.msgpack.Encoder().encode


def encode_struct(key: bytes, value: object) -> bytes:
    return seal(key, _encode(value))


def decode_struct(key: bytes, raw: bytes, kind: type[T]) -> T:
    """Raises DamagedRecord."""
    try:
        return msgspec.msgpack.decode(unseal(key, raw), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"the record {key!r} is not a {kind.__name__}: {error}") from error


def encode_hard_state(key: bytes, state: HardState) -> bytes:
    return encode_struct(key, (state.term, state.vote, state.commit))


def decode_hard_state(key: bytes, raw: bytes) -> HardState:
    """Raises DamagedRecord."""
    return HardState(*decode_struct(key, raw, tuple[int, int, int]))


def decode_identity(key: bytes, raw: bytes) -> ReplicaIdentity:
    """Raises DamagedRecord."""
    return decode_struct(key, raw, ReplicaIdentity)


def decode_image(key: bytes, raw: bytes) -> ShardImage:
    """Raises DamagedRecord."""
    return decode_struct(key, raw, ShardImage)
