"""The payload of a log entry: a stamp and the commands that the leader gathered under it.

Layout: one byte FORMAT, then the MessagePack array [stamp, [command, ...]]. A command begins with its tag. A write
embeds the operations as the very bytes that the client sent. A split is alone in its entry: what is in front of it in
the log is the undivided shard's, what is behind it belongs to one half.

Invariant: `decode_payload` and `DecodedWrite.decode` without limits accept whatever a leader of any version with this
           format accepted, so they look only at hard limits, and raise DamagedRecord for everything else.
Invariant: unknown fields are refused, never skipped: a replica that does not understand an entry must stop, not drift.
Called by: replica (encode when it stages, decode when it applies what it did not stage itself).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.base.limits import KEY_BYTES_MAX, SESSION_BYTES, Limits
from kvstore.base.operations import Batch, DeleteRange, Mutation, decode_mutations

FORMAT = 1
_FORMAT_BYTE = bytes([FORMAT])


class Write(msgspec.Struct, array_like=True, tag=1, gc=False, forbid_unknown_fields=True):
    """One frame of mutations, each an operation of its own."""

    version: int  # epoch version that the caller believed in
    session: bytes  # SESSION_BYTES, or empty: no exactly-once
    low: int  # lowest seq that the session still waits for
    issued_at: int  # ms; fixed at the first sending
    operations: msgspec.Raw  # list[Mutation]


class Split(msgspec.Struct, array_like=True, tag=2, frozen=True, forbid_unknown_fields=True):
    """Divide the shard: the right half becomes a shard of its own. Carried out only on the very epoch it was made for,
    so at most one of several attempts at it is."""

    version: int  # of the epoch
    conf: int  # of the epoch: it fixes the replicas of both halves
    key: bytes  # full; the first key of the right half
    child: int  # the right half's shard id, never used before
    left_bytes: int  # how much of the shard's data_bytes the left half keeps; an estimate


Command = Write | Split


class Payload(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    stamp: int  # ms
    commands: list[Command]

    @property
    def split(self) -> Split | None:
        """Set when the entry is a split, which is alone in it."""
        first = self.commands[0] if self.commands else None
        return first if isinstance(first, Split) else None

    @property
    def writes(self) -> list[Write]:
        """The commands of an entry that is no split."""
        return [command for command in self.commands if isinstance(command, Write)]


_encode = msgspec.msgpack.Encoder().encode
_payloads = msgspec.msgpack.Decoder(Payload)
_mutations = msgspec.msgpack.Decoder(list[Mutation])


def encode_payload(stamp: int, commands: Sequence[Command]) -> bytes:
    """The data of an entry. `commands` is not changed."""
    assert stamp >= 0
    return _FORMAT_BYTE + _encode(Payload(stamp, commands if type(commands) is list else list(commands)))


def decode_payload(data: bytes) -> Payload:
    """Raises DamagedRecord: the replica that meets it stops."""
    if data[:1] != _FORMAT_BYTE:
        raise DamagedRecord(f"entry of unknown format {data[:1].hex() or 'nothing'}; this program reads {FORMAT}")
    try:
        payload = _payloads.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"entry cannot be decoded: {error}") from None
    if payload.stamp < 0:
        raise DamagedRecord(f"entry has the stamp {payload.stamp}")
    for command in payload.commands:
        if isinstance(command, Split):
            if len(payload.commands) > 1:
                raise DamagedRecord("entry has a split beside other commands")
        elif len(command.session) not in (0, SESSION_BYTES):
            raise DamagedRecord(f"entry has a session of {len(command.session)} bytes")
    return payload


class DecodedWrite:
    """A write with its operations as objects; the leader has it from staging, a follower decodes it."""

    __slots__ = ("operations", "write")

    def __init__(self, write: Write, operations: list[Mutation]) -> None:
        self.write = write
        self.operations = operations

    @classmethod
    def decode(cls, write: Write, limits: Limits | None = None) -> DecodedWrite:
        """With limits (a leader): raises Invalid or TooLarge. Without (a committed entry): raises DamagedRecord."""
        if limits is not None:
            return cls(write, decode_mutations(write.operations, limits))
        try:
            operations = _mutations.decode(write.operations)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise DamagedRecord(f"operations of an entry cannot be decoded: {error}") from None
        for operation in operations:
            # A key that LMDB cannot hold would make the flush fail, and the process end, on every node at once.
            if isinstance(operation, Batch):
                for inner in operation.operations:
                    _check_key(inner.key)
            elif isinstance(operation, DeleteRange):
                if len(operation.start) > KEY_BYTES_MAX or len(operation.end) > KEY_BYTES_MAX:
                    raise DamagedRecord("entry has a range with a bound that is too long")
            elif not 0 < len(operation.key) <= KEY_BYTES_MAX:
                _check_key(operation.key)
        return cls(write, operations)


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise DamagedRecord(f"entry has a key of {len(key)} bytes")
