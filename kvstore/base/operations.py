"""The operations on keys and their results, as they travel and as they stand in the log: MessagePack arrays.

An operation is `[tag, seq, ...]`, a result an integer, nil or `[tag, ...]`; docs/protocol.md lists them. The leader
checks the operations of a frame, and puts the very bytes that came into the entry.

Invariant: `decode_mutations` and `decode_reads` either give operations within the hard limits or raise Invalid or
           TooLarge; they never raise anything else, whatever the bytes.
Invariant: `seq` is 0 inside a batch and wherever no session is used.
"""

from __future__ import annotations

import msgspec

from kvstore.base.errors import Invalid, TooLarge
from kvstore.base.limits import (
    BATCH_OPERATIONS_MAX,
    DELETE_RANGE_KEYS_MAX,
    FRAME_OPERATIONS_MAX,
    KEY_BYTES_MAX,
    SCAN_BYTES_MAX,
    SCAN_KEYS_MAX,
    Limits,
)


class Put(msgspec.Struct, array_like=True, tag=1, gc=False):
    seq: int
    key: bytes
    value: bytes


class Delete(msgspec.Struct, array_like=True, tag=2, gc=False):
    """Deleting what is not there succeeds and changes nothing (result 0)."""

    seq: int
    key: bytes


class Cas(msgspec.Struct, array_like=True, tag=3, gc=False):
    """Compare and set. Exactly one of `revision` (0 = the key must be absent) and `expected` is given."""

    seq: int
    key: bytes
    value: bytes | None  # None = delete
    revision: int | None
    expected: bytes | None = None


class Get(msgspec.Struct, array_like=True, tag=4, gc=False):
    seq: int
    key: bytes


class Batch(msgspec.Struct, array_like=True, tag=5):
    """All or nothing: if the condition of any Cas fails, nothing is done. One revision for all."""

    seq: int
    operations: list[Put | Delete | Cas | Get]


class DeleteRange(msgspec.Struct, array_like=True, tag=6, gc=False):
    """Deletes up to `limit` keys of [start, end) in order; end b"" = to the end of the shard."""

    seq: int
    start: bytes
    end: bytes
    limit: int = DELETE_RANGE_KEYS_MAX


class Scan(msgspec.Struct, array_like=True, tag=7, gc=False):
    """A page of [start, end) inside one shard, in key order or in reverse; end b"" = to the end of the shard."""

    seq: int
    start: bytes
    end: bytes
    limit: int = SCAN_KEYS_MAX
    bytes_max: int = SCAN_BYTES_MAX
    reverse: bool = False


Mutation = Put | Delete | Cas | Batch | DeleteRange
ReadOperation = Get | Scan


class Found(msgspec.Struct, array_like=True, tag=1, gc=False, frozen=True):
    value: bytes
    mod_revision: int
    create_revision: int
    version: int


class Item(msgspec.Struct, array_like=True, gc=False, frozen=True):
    key: bytes
    value: bytes
    mod_revision: int
    create_revision: int
    version: int


class Page(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """`cursor` is where to go on (the next start, or in reverse the next, exclusive, end); None = the range is done."""

    items: list[Item]
    cursor: bytes | None
    revision: int  # of the shard, at which the page is consistent


class Mismatch(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The condition failed. `index` is the operation's place in its batch, 0 outside one."""

    index: int
    current: Found | None


class BatchDone(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """`results` as of single operations, in their order."""

    revision: int  # 0 = nothing changed
    results: list[int | Found | None]


class RangeDeleted(msgspec.Struct, array_like=True, tag=5, frozen=True):
    deleted: int
    revision: int  # 0 = nothing changed
    cursor: bytes | None  # the next start; None = the range (in this shard) is done


class Failure(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """One operation of a frame was refused. `code` is an `errors.Code`."""

    code: int
    message: str
    definite: bool = True


Result = int | None | Found | Page | Mismatch | BatchDone | RangeDeleted | Failure
"""int = the revision of the change (0 = nothing to change); None = a Get that found nothing."""


def first_key(operation: Mutation | ReadOperation) -> bytes:
    """The user's key by which the operation's shard is found; b"" = the keyspace's first."""
    match operation:
        case Batch():
            return operation.operations[0].key if operation.operations else b""
        case DeleteRange() | Scan():
            return operation.start
        case _:
            return operation.key


_mutations = msgspec.msgpack.Decoder(list[Mutation])
_reads = msgspec.msgpack.Decoder(list[ReadOperation])
encode = msgspec.msgpack.Encoder().encode


def decode_mutations(data: bytes | msgspec.Raw, limits: Limits) -> list[Mutation]:
    """The checked mutations of one frame. Raises Invalid or TooLarge."""
    try:
        operations = _mutations.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"malformed operations: {error}") from None
    if not 0 < len(operations) <= FRAME_OPERATIONS_MAX:
        raise Invalid(f"a frame carries 1 to {FRAME_OPERATIONS_MAX} operations, not {len(operations)}")
    value_bytes_max = limits.value_bytes_max
    for operation in operations:
        if type(operation) is Put:
            if not 0 < len(operation.key) <= KEY_BYTES_MAX:
                check_key(operation.key)
            if len(operation.value) > value_bytes_max:
                check_value(operation.value, limits)
        else:
            _check_mutation(operation, limits)
    return operations


def decode_reads(data: bytes | msgspec.Raw, limits: Limits) -> list[ReadOperation]:
    """The checked reads of one frame. Raises Invalid or TooLarge."""
    try:
        operations = _reads.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"malformed operations: {error}") from None
    if not 0 < len(operations) <= FRAME_OPERATIONS_MAX:
        raise Invalid(f"a frame carries 1 to {FRAME_OPERATIONS_MAX} operations, not {len(operations)}")
    for operation in operations:
        if type(operation) is Get:
            if not 0 < len(operation.key) <= KEY_BYTES_MAX:
                check_key(operation.key)
        elif type(operation) is Scan:
            _check_range(operation.start, operation.end)
            _check_count("scan limit", operation.limit, SCAN_KEYS_MAX)
            _check_count("scan bytes_max", operation.bytes_max, SCAN_BYTES_MAX)
    return operations


def check_key(key: bytes) -> None:
    if not key:
        raise Invalid("the key is empty; a key has 1 to 480 bytes")
    if len(key) > KEY_BYTES_MAX:
        raise TooLarge(f"the key has {len(key)} bytes; at most {KEY_BYTES_MAX} are allowed")


def check_value(value: bytes, limits: Limits) -> None:
    if len(value) > limits.value_bytes_max:
        raise TooLarge(f"the value has {len(value)} bytes; at most {limits.value_bytes_max} are allowed")


def _check_range(start: bytes, end: bytes) -> None:
    if len(start) > KEY_BYTES_MAX or len(end) > KEY_BYTES_MAX:
        raise TooLarge(f"a bound of the range has more than {KEY_BYTES_MAX} bytes")
    if end and start > end:
        raise Invalid("the range's start lies behind its end")


def _check_count(what: str, count: int, maximum: int) -> None:
    if not 0 < count <= maximum:
        raise Invalid(f"the {what} is {count}; it must be 1 to {maximum}")


def _check_seq(seq: int) -> None:
    if not 0 <= seq < 1 << 63:
        raise Invalid("a sequence number is 0 to 2^63 - 1")


def _check_cas(operation: Cas, limits: Limits) -> None:
    if (operation.revision is None) == (operation.expected is None):
        raise Invalid("a compare-and-set names exactly one of revision and expected value")
    if operation.revision is not None and not 0 <= operation.revision < 1 << 63:
        raise Invalid("a revision is 0 to 2^63 - 1")
    if operation.value is not None:
        check_value(operation.value, limits)
    if operation.expected is not None:
        check_value(operation.expected, limits)


def _check_mutation(operation: Mutation | Get, limits: Limits) -> None:
    _check_seq(operation.seq)
    match operation:
        case Batch(operations=inner):
            if not 0 < len(inner) <= BATCH_OPERATIONS_MAX:
                raise Invalid(f"a batch has 1 to {BATCH_OPERATIONS_MAX} operations, not {len(inner)}")
            for one in inner:
                _check_mutation(one, limits)
        case DeleteRange():
            _check_range(operation.start, operation.end)
            _check_count("delete-range limit", operation.limit, DELETE_RANGE_KEYS_MAX)
        case Cas():
            check_key(operation.key)
            _check_cas(operation, limits)
        case Put():
            check_key(operation.key)
            check_value(operation.value, limits)
        case _:
            check_key(operation.key)
