"""What a shard's image says beside data, index, term and conf state, and its bytes.

Layout: one byte FORMAT, then a MessagePack array of ShardMeta's fields.

Invariant: fields are only added at the end, with a default; the meaning of a field never changes under one FORMAT.
Invariant: everything that steers `apply` and is not in an entry is in here, so that replicas of two versions of the
           program, or with two configurations, go on computing the same.
"""

from __future__ import annotations

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.base.limits import MIB, SESSION_ANSWERS_MAX, SESSION_WINDOW_MS, STAMP_AHEAD_MS_MAX
from kvstore.base.shards import ShardDescriptor
from raft.types import ConfState

FOUNDING_INDEX = 1
"""With FOUNDING_TERM: where the logs of founders, and of a split's child, begin, so that an empty log (index 0) always
needs a snapshot."""
FOUNDING_TERM = 1
"""That of a group in which nobody has ever campaigned."""

FORMAT = 1
_FORMAT_BYTE = bytes([FORMAT])

ConfTuple = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]


class StateLimits(msgspec.Struct, array_like=True, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds that decide results, fixed when the shard is created."""

    window_ms: int = SESSION_WINDOW_MS  # how long an answer is kept, and how old a mutation may be
    ahead_ms: int = STAMP_AHEAD_MS_MAX  # how far ahead of the stamp a mutation may have been issued
    answers_max: int = SESSION_ANSWERS_MAX  # answers and sessions remembered
    answer_bytes_max: int = 16 * MIB  # of answers that are more than a number
    result_bytes_max: int = 8 * MIB  # values in the results of one entry: fits a stream message of 16 MiB
    delete_range_bytes_max: int = 4 * MIB  # read by one delete-range; then it stops early, with a cursor

    def __post_init__(self) -> None:
        assert self.window_ms > self.ahead_ms >= 0
        assert self.answers_max > 0
        assert self.answer_bytes_max > 0
        assert self.result_bytes_max > 0
        assert self.delete_range_bytes_max > 0


class ShardMeta(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    descriptor: ShardDescriptor
    revision: int
    stamp: int  # ms; of the last entry that had one
    floor: int  # ms; a mutation issued at or before it may have been forgotten
    limits: StateLimits
    data_bytes: int = 0  # full keys and values of all records; after a split an estimate, that may be below zero


_encode = msgspec.msgpack.Encoder().encode
_metas = msgspec.msgpack.Decoder(ShardMeta)


def encode_meta(meta: ShardMeta) -> bytes:
    return _FORMAT_BYTE + _encode(meta)


def decode_meta(data: bytes) -> ShardMeta:
    """Raises DamagedRecord."""
    if data[:1] != _FORMAT_BYTE:
        raise DamagedRecord(f"shard meta of unknown format {data[:1].hex() or 'nothing'}; this program reads {FORMAT}")
    try:
        return _metas.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, AssertionError) as error:
        raise DamagedRecord(f"shard meta cannot be decoded: {error}") from None


def conf_to_tuple(conf: ConfState) -> ConfTuple:
    return conf.voters, conf.learners, conf.voters_outgoing, conf.learners_next, conf.auto_leave


def conf_from_tuple(conf: ConfTuple) -> ConfState:
    voters, learners, voters_outgoing, learners_next, auto_leave = conf
    return ConfState(
        voters=voters,
        learners=learners,
        voters_outgoing=voters_outgoing,
        learners_next=learners_next,
        auto_leave=auto_leave,
    )
