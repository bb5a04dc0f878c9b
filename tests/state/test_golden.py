"""Goal: what is on disks, in logs and in snapshots stays readable. Method: blobs of each format, kept for ever.

A blob that no longer decodes to its value is a broken upgrade; one that its value no longer encodes to is a change of
format: raise the FORMAT byte, keep reading the old one, and add blobs of the new one beside these.
"""

from __future__ import annotations

import msgspec

from kvstore.base.operations import (
    Batch,
    BatchDone,
    Cas,
    Delete,
    DeleteRange,
    Found,
    Get,
    Mismatch,
    Mutation,
    Put,
    RangeDeleted,
    Result,
    encode,
)
from kvstore.base.shards import Replica, ReplicaRole, ShardDescriptor
from kvstore.state.command import DecodedWrite, Split, Write, decode_payload, encode_payload
from kvstore.state.session import Session, decode_session, encode_session
from kvstore.state.shard import ShardState
from kvstore.state.shard_meta import ShardMeta, StateLimits, decode_meta, encode_meta
from kvstore.storage.protocol import ShardImage
from raft.types import ConfState
from tests.state.fake_store import FakeStore

STAMP = 1_700_000_000_123
SESSION = bytes(range(16))
OPERATIONS: list[Mutation] = [
    Put(7, b"key", b"value"),
    Delete(8, b"key"),
    Cas(9, b"key", b"new", revision=5),
    Cas(10, b"key", None, revision=None, expected=b"old"),
    Batch(11, [Put(0, b"a", b"1"), Delete(0, b"b"), Cas(0, b"c", b"", revision=0), Get(0, b"d")]),
    DeleteRange(12, b"a", b"", limit=100),
]
DESCRIPTOR = ShardDescriptor(
    id=2,
    keyspace=1,
    start=b"\0\0\0\1",
    end=b"\0\0\0\2",
    version=3,
    conf=4,
    replicas=(Replica("0" * 32, 1), Replica("1" * 32, 9, ReplicaRole.LEARNER)),
)
META = ShardMeta(DESCRIPTOR, revision=1_234_567, stamp=STAMP, floor=STAMP - 600_000, limits=StateLimits())
ANSWERS: dict[int, Result] = {
    7: 41,
    8: 0,
    9: Mismatch(0, Found(b"value", 40, 3, 2)),
    10: Mismatch(0, None),
    11: BatchDone(42, [42, 0, 42, None, Found(b"x", 1, 1, 1)]),
    12: RangeDeleted(100, 43, b"k\0"),
}
CONF = ConfState((1, 2), learners=(9,), voters_outgoing=(1, 3), learners_next=(3,), auto_leave=True)

PAYLOAD_1 = bytes.fromhex(
    "0192cf0000018bcfe5687b92960103c410000102030405060708090a0b0c0d0e0f07cf0000018bcfe5649396940107c4036b"
    "6579c40576616c7565930208c4036b6579960309c4036b6579c4036e657705c096030ac4036b6579c0c0c4036f6c6493050b"
    "94940100c40161c40131930200c40162960300c40163c40000c0930400c4016495060cc40161c40064960103c40000009194"
    "0107c4036b6579c40576616c7565"
)
META_1 = bytes.fromhex(
    "0195970201c40400000001c4040000000203049293d920303030303030303030303030303030303030303030303030303030"
    "3030303030010193d92031313131313131313131313131313131313131313131313131313131313131310902ce0012d687cf"
    "0000018bcfe5687bcf0000018bcfdc40bb96ce000927c0cd1388ce00030d40ce01000000ce00800000ce00400000"
)
SESSION_1 = bytes.fromhex(
    "019507cf0000018bcfe56880960708090a0b0c960c0d0e0f10119629009303009501c40576616c7565280302930300c09304"
    "2a952a002ac09501c401780101019405642bc4026b00"
)


def golden_session() -> Session:
    session = Session(low=7)
    session.newest = STAMP + 5
    for seq, result in sorted(ANSWERS.items(), reverse=True):  # the order of the answers is not part of the state
        session.remember(seq, STAMP - seq, result)
    return session


def test_payload() -> None:
    operations = msgspec.Raw(encode(OPERATIONS))
    writes = [Write(3, SESSION, 7, STAMP - 1_000, operations), Write(3, b"", 0, 0, msgspec.Raw(encode(OPERATIONS[:1])))]
    assert encode_payload(STAMP, writes) == PAYLOAD_1
    payload = decode_payload(PAYLOAD_1)
    assert payload.stamp == STAMP
    first, second = payload.writes
    assert (first.version, first.session, first.low, first.issued_at) == (3, SESSION, 7, STAMP - 1_000)
    assert DecodedWrite.decode(first).operations == OPERATIONS
    assert (second.session, DecodedWrite.decode(second).operations) == (b"", OPERATIONS[:1])


def test_split() -> None:
    data = b"\x01\x92\xcf\x00\x00\x01\x8b\xcf\xe5h{\x91\x96\x02\x03\x09\xc4\x05\x00\x00\x00\x01m(\xcd\x13\x88"
    split = Split(version=3, conf=9, key=b"\0\0\0\1m", child=40, left_bytes=5_000)
    assert encode_payload(1_700_000_000_123, [split]) == data
    assert decode_payload(data).split == split


def test_meta() -> None:
    """Bytes from before `data_bytes` was added are still read, with its default."""
    assert decode_meta(META_1) == META
    assert encode_meta(META)[2:] == META_1[2:] + b"\x00"  # the array has one more field
    sized = msgspec.structs.replace(META, data_bytes=77)
    assert decode_meta(encode_meta(sized)) == sized


def test_session() -> None:
    assert encode_session(golden_session()) == SESSION_1
    session = decode_session(SESSION_1)
    assert (session.low, session.newest) == (7, STAMP + 5)
    assert session.answers == {seq: (STAMP - seq, result) for seq, result in ANSWERS.items()}


def test_a_shard_loads_from_them() -> None:
    image = ShardImage(900, 12, ((1, 2), (9,), (1, 3), (3,), True), META_1)
    state = ShardState.load(2, image, {SESSION: SESSION_1}, FakeStore())
    assert (state.revision, state.stamp, state.floor) == (META.revision, META.stamp, META.floor)
    assert (state.applied_index, state.applied_term, state.conf_state) == (900, 12, CONF)
    assert state.answer_count == len(ANSWERS)
    assert state.image() == msgspec.structs.replace(image, meta=encode_meta(META))
    assert state.change().sessions == {}, "loading changes nothing"
