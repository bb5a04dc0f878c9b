"""Raft messages as bytes: what one WebSocket message between two nodes contains.

A frame is the MessagePack array [version, messages, removed] with the traffic of many groups. An APPEND's entries
are written as columns (first index, runs of equal terms, places of configuration changes, payloads), so that a
payload is copied once when it is encoded and once when it is decoded, and costs no map of field names.

A frame above `PART_BYTES_MAX` is cut into parts, so that nobody can make the receiver buffer more than a part
before it has said who it is. A part begins with 0xC1, the one byte that MessagePack never uses.

Invariant: `decode` gives a Frame or raises FrameError, whatever the bytes; it takes at most about 20 times the
    frame's size of memory while it works.
Invariant: fields are only added at the end of an array, with a default; older nodes skip them.
Invariant: entries of a message have contiguous indexes and terms that never fall (raft/log.py keeps them so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from typing import Annotated, Any

import msgspec

from kvstore.base.limits import KIB, PEER_MESSAGE_BYTES_MAX
from kvstore.transport.protocol import GroupMessage
from raft.types import ConfState, Entry, EntryKind, Message, MessageType, SnapshotMeta

FRAME_VERSION = 1
PART_BYTES_MAX = 256 * KIB  # of one WebSocket message: what a stranger can make a node buffer, and, as a peer's silence
# is measured between messages, small enough to pass a slow link within a second or two
WEBSOCKET_BYTES_MAX = PART_BYTES_MAX + KIB  # the limit given to the WebSocket library, with room for a part's head
FRAME_MESSAGES_MAX = 65_536
REMOVED_MAX = 65_536
ENTRIES_MAX = 1 << 18  # of one frame: an APPEND of 1 MiB has that many only if its payloads have 4 bytes each
CONTEXT_BYTES_MAX = 4 * KIB  # of a read or a heartbeat
REPLICAS_MAX = 1_024  # in one half of a configuration

_INT_MAX = (1 << 63) - 1
_PART = 0xC1
_PART_MORE = b"\xc1\x00"
_PART_LAST = b"\xc1\x01"

_REJECT = 1
_TRANSFER = 2
_LEASE = 4

_Int = Annotated[int, msgspec.Meta(ge=0, le=_INT_MAX)]
_Replicas = Annotated[tuple[_Int, ...], msgspec.Meta(max_length=REPLICAS_MAX)]


class FrameError(Exception):
    """The bytes are not a frame of this protocol. The text says what is wrong."""


class Removed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The sender's tombstone: replicas of the group up to this id are gone for good."""

    group: _Int
    replica_id: _Int


@dataclass(slots=True)
class Frame:
    messages: list[GroupMessage] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)


class _WireConf(msgspec.Struct, array_like=True):
    voters: _Replicas
    learners: _Replicas = ()
    voters_outgoing: _Replicas = ()
    learners_next: _Replicas = ()
    auto_leave: bool = False


class _WireSnapshot(msgspec.Struct, array_like=True):
    index: _Int
    term: _Int
    conf: _WireConf


class _WireMessage(msgspec.Struct, array_like=True, gc=False):
    """Common fields first: a heartbeat ends after `reject_hint` or `context`."""

    group: _Int
    type: MessageType
    to_id: _Int
    from_id: _Int
    term: _Int
    log_term: _Int
    index: _Int
    commit: _Int
    flags: _Int
    reject_hint: _Int
    context: Annotated[bytes, msgspec.Meta(max_length=CONTEXT_BYTES_MAX)] = b""
    first_index: _Int = 0
    terms: Annotated[tuple[_Int, ...], msgspec.Meta(max_length=2 * ENTRIES_MAX)] = ()  # term, how often, term, ...
    conf_changes: Annotated[tuple[_Int, ...], msgspec.Meta(max_length=ENTRIES_MAX)] = ()  # offsets in `payloads`
    payloads: Annotated[list[bytes], msgspec.Meta(max_length=ENTRIES_MAX)] = []
    snapshot: _WireSnapshot | None = None
    lost: _Int = 0


class _WireVersion(msgspec.Struct, array_like=True):
    version: int


class _WireFrame(msgspec.Struct, array_like=True):
    version: int
    messages: Annotated[list[_WireMessage], msgspec.Meta(max_length=FRAME_MESSAGES_MAX)]
    removed: Annotated[list[Removed], msgspec.Meta(max_length=REMOVED_MAX)] = []


_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(_WireFrame).decode
_decode_version = msgspec.msgpack.Decoder(_WireVersion).decode


def message_bytes_max(message: Message) -> int:
    """An upper bound of the message's encoded size, cheap enough for every send; above PEER_MESSAGE_BYTES_MAX = it
    can't be sent."""
    if len(message.entries) > ENTRIES_MAX:
        return PEER_MESSAGE_BYTES_MAX + 1
    size = 160 + len(message.context)
    for entry in message.entries:
        size += len(entry.data) + 30
    if message.snapshot is not None:
        conf = message.snapshot.conf_state
        size += 64 + 9 * (len(conf.voters) + len(conf.learners) + len(conf.voters_outgoing) + len(conf.learners_next))
    return size


def encode(messages: Sequence[GroupMessage], removed: Sequence[Removed] = ()) -> bytes:
    """One frame. The caller keeps the counts and sizes below the limits."""
    return _encode((FRAME_VERSION, [_encodable(one.group, one.message) for one in messages], removed))


def decode(data: bytes) -> Frame:
    """The frame of the bytes. Raises FrameError."""
    if len(data) > PEER_MESSAGE_BYTES_MAX:
        raise FrameError(f"a frame of {len(data)} bytes; at most {PEER_MESSAGE_BYTES_MAX} are allowed")
    try:
        frame = _decode_frame(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(_why_undecodable(data, error)) from None
    if frame.version != FRAME_VERSION:
        raise FrameError(f"frame version {frame.version}; this node speaks {FRAME_VERSION}")
    if sum([len(wire.payloads) for wire in frame.messages]) > ENTRIES_MAX:
        raise FrameError(f"a frame with more than {ENTRIES_MAX} entries")
    return Frame([GroupMessage(wire.group, _message(wire)) for wire in frame.messages], frame.removed)


def _why_undecodable(data: bytes, error: Exception) -> str:
    """A frame of another version may have any shape; say so rather than complain of the shape."""
    try:
        version = _decode_version(data).version
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        version = FRAME_VERSION
    if version != FRAME_VERSION:
        return f"frame version {version}; this node speaks {FRAME_VERSION}"
    return f"malformed frame: {error}"


def _encodable(group: int, message: Message) -> tuple[Any, ...]:
    flags = _REJECT * message.reject | _TRANSFER * message.transfer | _LEASE * message.lease
    head: tuple[Any, ...] = (
        group,
        message.type,
        message.to_id,
        message.from_id,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        flags,
        message.reject_hint,
    )
    if message.entries:
        head += (message.context, *_columns(message.entries))
        if message.snapshot is None and not message.lost:
            return head
    elif message.snapshot is not None or message.lost:
        head += (message.context, 0, (), (), ())
    else:
        return (*head, message.context) if message.context else head
    snapshot = None if message.snapshot is None else _encodable_snapshot(message.snapshot)
    return (*head, snapshot, message.lost) if message.lost else (*head, snapshot)


def _columns(entries: Sequence[Entry]) -> tuple[int, list[int], list[int], list[bytes]]:
    first, last = entries[0], entries[-1]
    assert last.index - first.index == len(entries) - 1
    if first.term == last.term:
        terms = [first.term, len(entries)]
    else:
        terms = _runs(entries)
    conf_changes = [offset for offset, entry in enumerate(entries) if entry.kind]
    return first.index, terms, conf_changes, [entry.data for entry in entries]


def _runs(entries: Sequence[Entry]) -> list[int]:
    runs: list[int] = []
    for entry in entries:
        if runs and runs[-2] == entry.term:
            runs[-1] += 1
        else:
            assert not runs or runs[-2] < entry.term
            runs += (entry.term, 1)
    return runs


def _encodable_snapshot(meta: SnapshotMeta) -> tuple[Any, ...]:
    conf = meta.conf_state
    members = (conf.voters, conf.learners, conf.voters_outgoing, conf.learners_next, conf.auto_leave)
    return meta.index, meta.term, members


def _message(wire: _WireMessage) -> Message:
    flags = wire.flags
    return Message(
        wire.type,
        wire.to_id,
        wire.from_id,
        wire.term,
        wire.log_term,
        wire.index,
        wire.commit,
        _entries(wire) if wire.payloads else (),
        flags & _REJECT != 0,
        wire.reject_hint,
        flags & _TRANSFER != 0,
        flags & _LEASE != 0,
        wire.context,
        None if wire.snapshot is None else _snapshot(wire.snapshot),
        wire.lost,
    )


def _entries(wire: _WireMessage) -> tuple[Entry, ...]:
    payloads, terms, first = wire.payloads, wire.terms, wire.first_index
    if first + len(payloads) > _INT_MAX:
        raise FrameError("an entry's index is out of range")
    if len(terms) == 2 and terms[1] == len(payloads):
        entries = tuple(map(Entry, repeat(terms[0]), count(first), repeat(EntryKind.NORMAL), payloads))
    else:
        entries = tuple(map(Entry, _unfolded(terms, len(payloads)), count(first), repeat(EntryKind.NORMAL), payloads))
    for offset in wire.conf_changes:
        if offset >= len(entries):
            raise FrameError("a configuration change lies behind the message's last entry")
        entries[offset].kind = EntryKind.CONF_CHANGE
    return entries


def _unfolded(runs: Sequence[int], length: int) -> list[int]:
    if len(runs) % 2 or sum(runs[1::2]) != length:
        raise FrameError("the terms of the entries do not match their number")
    terms: list[int] = []
    for position in range(0, len(runs), 2):
        if terms and runs[position] < terms[-1]:
            raise FrameError("the terms of the entries fall")
        terms += repeat(runs[position], runs[position + 1])
    return terms


def _snapshot(wire: _WireSnapshot) -> SnapshotMeta:
    conf = wire.conf
    return SnapshotMeta(
        wire.index,
        wire.term,
        ConfState(conf.voters, conf.learners, conf.voters_outgoing, conf.learners_next, conf.auto_leave),
    )


def cut(frame: bytes) -> list[bytes]:
    """The WebSocket messages that carry the frame: itself, or its parts."""
    if len(frame) <= PART_BYTES_MAX:
        return [frame]
    view = memoryview(frame)
    pieces = [view[start : start + PART_BYTES_MAX] for start in range(0, len(frame), PART_BYTES_MAX)]
    last = pieces.pop()
    return [b"".join((_PART_MORE, piece)) for piece in pieces] + [b"".join((_PART_LAST, last))]


class Assembler:
    """Puts the parts of one connection together again.

    Invariant: holds at most PEER_MESSAGE_BYTES_MAX bytes.
    """

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[memoryview] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes | None:
        """The next whole frame, or None while parts are missing. Raises FrameError."""
        if not data or data[0] != _PART:
            if self._parts:
                raise FrameError("a frame begins inside another one")
            return data
        if len(data) < 3 or data[1] > 1:
            raise FrameError("malformed part of a frame")
        self._parts.append(memoryview(data)[2:])
        self._size += len(data) - 2
        if self._size > PEER_MESSAGE_BYTES_MAX:
            raise FrameError(f"a frame of more than {PEER_MESSAGE_BYTES_MAX} bytes")
        if data[1] == 0:
            return None
        whole = b"".join(self._parts)
        self._parts = []
        self._size = 0
        return whole
