"""Goal: what is encoded comes back equal; whatever else comes in is a FrameError, and cheap.

Method: golden bytes (the format is on the wire), hypothesis for round trips and for damage, a table of hostile frames.
"""

from __future__ import annotations

import tracemalloc
from itertools import accumulate

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.base.limits import MIB, PEER_MESSAGE_BYTES_MAX
from kvstore.transport.frames import (
    ENTRIES_MAX,
    FRAME_MESSAGES_MAX,
    PART_BYTES_MAX,
    Assembler,
    FrameError,
    Removed,
    cut,
    decode,
    encode,
    message_bytes_max,
)
from kvstore.transport.protocol import GroupMessage
from raft.types import ConfState, Entry, EntryKind, Message, MessageType, SnapshotMeta

# -- golden bytes: frames of version 1 must be understood, and written the same, for as long as version 1 is spoken

HEARTBEAT = GroupMessage(2, Message(MessageType.HEARTBEAT, 12, 11, 5, commit=300, lease=True, context=b"\x01\x02"))
APPEND = GroupMessage(
    7,
    Message(
        MessageType.APPEND,
        2,
        1,
        6,
        4,
        1000,
        999,
        (
            Entry(4, 1001, EntryKind.NORMAL, b"put"),
            Entry(6, 1002, EntryKind.NORMAL, b""),
            Entry(6, 1003, EntryKind.CONF_CHANGE, b"add"),
        ),
    ),
)
REJECT = GroupMessage(
    7, Message(MessageType.APPEND_REPLY, 1, 2, 6, 3, 1000, reject=True, reject_hint=900, transfer=False)
)
SNAPSHOT = GroupMessage(
    1,
    Message(
        MessageType.SNAPSHOT, 3, 1, 9, snapshot=SnapshotMeta(70_000, 8, ConfState((1, 2), (3,), (1, 4), (4,), True))
    ),
)
GOLDEN = [
    ([], [], "93019090"),
    ([HEARTBEAT], [], "9301919b02070c0b05000 0cd012c0400c4020102 90"),
    ([APPEND], [], "9301919f07010201060 4cd03e8cd03e70000c400cd03e99404010602 9102 93c403707574c400c403616464 90"),
    ([REJECT], [Removed(9, 4)], "9301919a0702010206 03cd03e80001cd0384 919209 04"),
    (
        [SNAPSHOT],
        [],
        "930191dc001001090301090000000000c40000909090 93ce00011170 08 95920102 9103 920104 9104 c3 90",
    ),
]


@pytest.mark.parametrize(("messages", "removed", "blob"), GOLDEN)
def test_golden_bytes(messages: list[GroupMessage], removed: list[Removed], blob: str) -> None:
    data = bytes.fromhex(blob.replace(" ", ""))
    assert encode(messages, removed).hex() == data.hex()
    frame = decode(data)
    assert frame.messages == messages
    assert frame.removed == removed


def test_a_later_node_may_add_fields_at_the_end() -> None:
    wire = msgspec.msgpack.decode(encode([HEARTBEAT], [Removed(1, 2)]))
    wire[1][0] += [0, [], [], [], None, 0, "new in a message"]
    wire[2][0].append("new in a notice")
    wire.append(["beats"])
    frame = decode(msgspec.msgpack.encode(wire))
    assert frame.messages == [HEARTBEAT]
    assert frame.removed == [Removed(1, 2)]


# -- round trips

number = st.integers(0, (1 << 62)) | st.integers(0, 300)
replicas = st.lists(number, max_size=5).map(tuple)


@st.composite
def entry_runs(draw: st.DrawFn) -> tuple[Entry, ...]:
    """Contiguous indexes, terms that never fall."""
    first = draw(number)
    steps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 5]), max_size=20))
    start = draw(st.integers(0, 1 << 40))
    return tuple(
        Entry(start + rise, first + offset, draw(st.sampled_from(EntryKind)), draw(st.binary(max_size=40)))
        for offset, rise in enumerate(accumulate(steps))
    )


snapshots = st.builds(
    SnapshotMeta, number, number, st.builds(ConfState, replicas, replicas, replicas, replicas, st.booleans())
)
messages = st.builds(
    Message,
    st.sampled_from(MessageType),
    number,
    number,
    number,
    number,
    number,
    number,
    entry_runs(),
    st.booleans(),
    number,
    st.booleans(),
    st.booleans(),
    st.binary(max_size=64),
    st.none() | snapshots,
)
frames = st.lists(st.builds(GroupMessage, number, messages), max_size=8)
notices = st.lists(st.builds(Removed, number, number), max_size=4)


@given(frames, notices)
@settings(max_examples=80, deadline=None)
def test_round_trip(sent: list[GroupMessage], removed: list[Removed]) -> None:
    data = encode(sent, removed)
    frame = decode(data)
    assert frame.messages == sent
    assert frame.removed == removed
    for one in frame.messages:
        assert type(one.message.type) is MessageType
        assert all(type(entry.kind) is EntryKind for entry in one.message.entries)
        assert all(type(entry.data) is bytes for entry in one.message.entries)


@given(frames)
@settings(max_examples=40, deadline=None)
def test_the_size_is_never_underestimated(sent: list[GroupMessage]) -> None:
    assert len(encode(sent)) <= 16 + sum(message_bytes_max(one.message) for one in sent)


# -- hostile bytes


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_frame_or_a_typed_error(data: bytes) -> None:
    try:
        decode(data)
    except FrameError:
        pass


@given(frames.filter(bool), st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_frames_give_a_frame_or_a_typed_error(sent: list[GroupMessage], data: st.DataObject) -> None:
    damaged = bytearray(encode(sent))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        frame = decode(bytes(damaged))
    except FrameError:
        return
    for one in frame.messages:
        indexes = [entry.index for entry in one.message.entries]
        assert indexes == list(range(indexes[0], indexes[0] + len(indexes))) if indexes else True
        assert all(0 <= entry.term < 1 << 63 for entry in one.message.entries)


def wire_append(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "group": 1, "type": 1, "to_id": 2, "from_id": 1, "term": 5, "log_term": 5, "index": 9, "commit": 9, "flags": 0,
        "reject_hint": 0, "context": b"", "first_index": 10, "terms": [5, 2], "conf_changes": [],
        "payloads": [b"a", b"b"],
    }  # fmt: skip
    fields |= changes
    return msgspec.msgpack.encode([1, [list(fields.values())], []])


def test_the_hostile_table_starts_from_a_good_frame() -> None:
    assert len(decode(wire_append()).messages[0].message.entries) == 2


HOSTILE = {
    "nothing": b"",
    "not an array": b"\x01",
    "another version": (msgspec.msgpack.encode([2, "new shape"]), "frame version 2"),
    "another version, same shape": (msgspec.msgpack.encode([9, [], []]), "frame version 9"),
    "bytes behind the frame": encode([HEARTBEAT]) + b"\x00",
    "a negative number": wire_append(term=-1),
    "a number of 64 bits": wire_append(commit=1 << 63),
    "an unknown type": wire_append(type=200),
    "text for bytes": wire_append(context="text"),
    "an endless context": wire_append(context=b"x" * 5_000),
    "too few terms": (wire_append(terms=[5, 1]), "terms"),
    "too many terms": (wire_append(terms=[5, 3]), "terms"),
    "an odd run": (wire_append(terms=[5, 1, 6]), "terms"),
    "a huge run": (wire_append(terms=[5, 1 << 62]), "terms"),
    "runs that cancel out": wire_append(terms=[5, 3, 6, -1]),
    "terms that fall": (wire_append(terms=[5, 1, 4, 1]), "fall"),
    "a change behind the end": (wire_append(conf_changes=[2]), "configuration change"),
    "an index out of range": (wire_append(first_index=(1 << 63) - 2), "index"),
    "a million messages claimed": b"\x93\x01\xdd\x00\x10\x00\x00",
    "four billion payloads claimed": wire_append()[:-7] + b"\xdd\xff\xff\xff\xff",
    "four gigabytes claimed": b"\x93\x01\x91\x9b\x02\x07\x0c\x0b\x05\x00\x00\x00\x00\x00\xc6\xff\xff\xff\xff",
    "too many entries in all": (
        b"\x93\x01\x92" + wire_append(payloads=[b""] * 200_000, terms=[5, 200_000])[3:-1] * 2 + b"\x90",
        "entries",
    ),
    "a deep nest": b"\x91" * 5_000,
    "too long": (b"\x00" * (PEER_MESSAGE_BYTES_MAX + 1), "at most"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames(name: str) -> None:
    case = HOSTILE[name]
    data, text = case if isinstance(case, tuple) else (case, ".")
    with pytest.raises(FrameError, match=text):
        decode(data)


def test_counts_are_refused_before_anything_is_built() -> None:
    messages = msgspec.msgpack.encode([HEARTBEAT.group, 7, 1, 1, 1, 0, 0, 0, 0, 0]) * (FRAME_MESSAGES_MAX + 1)
    data = b"\x93\x01\xdd" + (FRAME_MESSAGES_MAX + 1).to_bytes(4, "big") + messages + b"\x90"
    assert peak_bytes(data) < 64_000


@pytest.mark.parametrize(
    "data",
    [
        wire_append(payloads=[b""] * ENTRIES_MAX, terms=[5, ENTRIES_MAX]),
        msgspec.msgpack.encode([1, [[300, 7, 1, 1, 1, 0, 0, 0, 0, 0]] * FRAME_MESSAGES_MAX, []]),
        msgspec.msgpack.encode([1, [], [[300, 300]] * FRAME_MESSAGES_MAX]),
    ],
)
def test_memory_is_bounded_by_the_size_of_the_frame(data: bytes) -> None:
    """Empty payloads and messages of one kind are the worst cases that are still frames, as their objects are many."""
    assert peak_bytes(data) < 32 * MIB


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        try:
            decode(data)
        except FrameError:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- parts


@pytest.mark.parametrize(
    "size", [0, 1, PART_BYTES_MAX, PART_BYTES_MAX + 1, 2 * PART_BYTES_MAX, 2 * PART_BYTES_MAX + 7, 5 * MIB]
)
def test_parts_make_the_frame_again(size: int) -> None:
    frame = encode([GroupMessage(1, Message(MessageType.APPEND, 1, entries=(Entry(1, 1, data=bytes(size)),)))])
    parts = cut(frame)
    assert len(parts) == -(-len(frame) // PART_BYTES_MAX)
    assert all(len(part) <= PART_BYTES_MAX + 2 for part in parts)
    assembler = Assembler()
    for _ in range(2):
        wholes = [assembler.feed(part) for part in parts]
        assert wholes == [None] * (len(parts) - 1) + [frame]


@pytest.mark.parametrize(
    "parts",
    [
        [b"\xc1"],
        [b"\xc1\x00"],
        [b"\xc1\x02x"],
        [b"\xc1\x00x", b"\x93\x01\x90\x90"],
        [b"\xc1\x00x", b""],
        [b"\xc1\x00" + bytes(PEER_MESSAGE_BYTES_MAX), b"\xc1\x01x"],
    ],
)
def test_malformed_parts(parts: list[bytes]) -> None:
    assembler = Assembler()
    with pytest.raises(FrameError):
        for part in parts:
            assembler.feed(part)
