"""What each mutation does to the data of a shard, and which revision it gets.

Invariant: revision rises by one for each operation that changes something (a batch is one), and by nothing else.
Invariant: an operation that is refused (Failure) or does not hold (Mismatch) has changed nothing.
Invariant: an entry is applied as a whole or not at all: when the store fails in the middle (a damaged record), what
           was written is taken back, so that the shard stands, and may be flushed, at the entry before.
Invariant: everything that is written lies in [start, end) of the shard at this index: a replay of old entries over
           newer data of a neighbour (after a split) must not touch it.

A batch first reads, then writes: every condition and every Get of it sees the state before the batch, and then its
changes are made in their order. So a Mismatch always carries a value that was really there, and where two operations
of a batch name one key the later change wins.
Called by: shard.py only.
"""

from __future__ import annotations

from typing import Final

from kvstore.base.errors import Code
from kvstore.base.limits import KEYSPACE_PREFIX_BYTES
from kvstore.base.operations import (
    Batch,
    BatchDone,
    Cas,
    Delete,
    DeleteRange,
    Failure,
    Found,
    Get,
    Mismatch,
    Mutation,
    Put,
    RangeDeleted,
    Result,
    Scan,
)
from kvstore.base.shards import ShardDescriptor, keyspace_prefix
from kvstore.state.data import ShardData
from kvstore.state.reads import found, next_key
from kvstore.state.shard_meta import StateLimits
from kvstore.storage.protocol import Record

STALE_ROUTE: Final = Failure(int(Code.STALE_ROUTE), "The shard's range has changed since the route was learned.")
ANSWERS_TOO_LARGE: Final = Failure(
    int(Code.OVERLOADED), "Too many large values were asked for at once; this operation was not executed."
)
BATCH_TOO_LARGE: Final = Failure(int(Code.TOO_LARGE), "The values that this batch reads are too large for one answer.")


class Executor:
    """Executes operations on the store under the rules of one descriptor. Knows nothing of sessions."""

    __slots__ = (
        "_data_bytes_before",
        "_limits",
        "_revision_before",
        "_store",
        "_undo",
        "budget",
        "data_bytes",
        "end",
        "prefix",
        "revision",
        "start",
    )

    def __init__(
        self, store: ShardData, descriptor: ShardDescriptor, limits: StateLimits, revision: int, data_bytes: int
    ) -> None:
        self._store = store
        self._limits = limits
        self.revision = revision
        self._revision_before = revision  # when the entry began
        self.data_bytes = data_bytes  # full keys and values of all records
        self._data_bytes_before = data_bytes
        self._undo: list[tuple[bytes, Record | None]] = []  # what the entry has overwritten, in its order
        self.budget = limits.result_bytes_max  # bytes of values that the results of this entry may still carry
        self.follow(descriptor)

    def follow(self, descriptor: ShardDescriptor) -> None:
        """The range is the descriptor's from now on."""
        assert descriptor.start < descriptor.end
        assert descriptor.start.startswith(keyspace_prefix(descriptor.keyspace))
        self.prefix = keyspace_prefix(descriptor.keyspace)
        self.start = descriptor.start
        self.end = descriptor.end

    def begin_entry(self) -> None:
        assert not self._undo
        self._revision_before = self.revision
        self._data_bytes_before = self.data_bytes
        self.budget = self._limits.result_bytes_max

    def end_entry(self) -> None:
        self._undo.clear()

    def roll_back(self) -> None:
        """Everything as it was at begin_entry."""
        for key, old in reversed(self._undo):
            if old is None:
                self._store.delete(key)
            else:
                self._store.put(key, old)
        self._undo.clear()
        self.revision = self._revision_before
        self.data_bytes = self._data_bytes_before

    def covers(self, operation: Mutation | Get | Scan) -> bool:
        """Every key and range of the operation lies in the shard."""
        match operation:
            case Batch():
                prefix, start, end = self.prefix, self.start, self.end
                return all(start <= prefix + inner.key < end for inner in operation.operations)
            case DeleteRange() | Scan():
                start, end = self.bounds(operation.start, operation.end)
                return self.start <= start <= end <= self.end
            case _:
                return self.start <= self.prefix + operation.key < self.end

    def bounds(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """A range of user keys in full keys."""
        return self.prefix + start, self.prefix + end if end else self.end

    def execute(self, operation: Mutation) -> Result:
        """Do it, or refuse it with a Failure. `covers` holds."""
        match operation:
            case Put():
                return self.put(self.prefix + operation.key, operation.value)
            case Delete():
                return self._delete(operation)
            case Cas():
                return self._cas(operation)
            case Batch():
                return self._batch(operation)
            case DeleteRange():
                return self._delete_range(operation)

    def put(self, key: bytes, value: bytes) -> int:
        """key: full, in the shard. The hot path of most loads."""
        self.revision = revision = self.revision + 1
        self._write(key, value, revision)
        return revision

    def _write(self, key: bytes, value: bytes, revision: int) -> None:
        old = self._store.get(key)
        self._undo.append((key, old))
        if old is None:
            self.data_bytes += len(key) + len(value)
            self._store.put(key, Record(value, revision, revision, 1))
        else:
            self.data_bytes += len(value) - len(old.value)
            self._store.put(key, Record(value, revision, old.create_revision, old.version + 1))

    def _remove(self, key: bytes, old: Record) -> None:
        self._undo.append((key, old))
        self.data_bytes -= len(key) + len(old.value)
        self._store.delete(key)

    def _delete(self, operation: Delete) -> int:
        key = self.prefix + operation.key
        old = self._store.get(key)
        if old is None:
            return 0
        self._remove(key, old)
        self.revision += 1
        return self.revision

    def _cas(self, operation: Cas) -> Result:
        if self.budget <= 0:
            return ANSWERS_TOO_LARGE
        key = self.prefix + operation.key
        old = self._store.get(key)
        if not _holds(operation, old):
            self.budget -= len(old.value) if old is not None else 0
            return Mismatch(0, found(old))
        if operation.value is not None:
            return self.put(key, operation.value)
        if old is None:
            return 0
        self._remove(key, old)
        self.revision += 1
        return self.revision

    def _batch(self, operation: Batch) -> Result:
        if self.budget <= 0:
            return ANSWERS_TOO_LARGE
        reads = self._batch_reads(operation)
        if not isinstance(reads, list):
            return reads
        revision = self.revision + 1  # of the batch, if it changes anything
        results: list[int | Found | None] = []
        changed = False
        for inner in operation.operations:
            if isinstance(inner, Get):
                results.append(reads[len(results)])
                continue
            key = self.prefix + inner.key
            value = None if isinstance(inner, Delete) else inner.value
            if value is not None:
                self._write(key, value, revision)
            elif (old := self._store.get(key)) is not None:
                self._remove(key, old)
            else:
                results.append(0)
                continue
            changed = True
            results.append(revision)
        if changed:
            self.revision = revision
        return BatchDone(revision if changed else 0, results)

    def _batch_reads(self, operation: Batch) -> list[Found | None] | Mismatch | Failure:
        """What the Gets find, by place in the batch; or why nothing of it is done: the first condition in its order
        that does not hold, or values that do not fit into an answer."""
        reads: list[Found | None] = []
        budget = self.budget
        for place, inner in enumerate(operation.operations):
            current = None
            if isinstance(inner, Cas):
                old = self._store.get(self.prefix + inner.key)
                if not _holds(inner, old):
                    self.budget -= len(old.value) if old is not None else 0
                    return Mismatch(place, found(old))
            elif isinstance(inner, Get):
                current = found(self._store.get(self.prefix + inner.key))
                budget -= len(current.value) if current is not None else 0
                if budget < 0:
                    alone = self.budget == self._limits.result_bytes_max
                    return BATCH_TOO_LARGE if alone else ANSWERS_TOO_LARGE
            reads.append(current)
        self.budget = budget
        return reads

    def _delete_range(self, operation: DeleteRange) -> RangeDeleted:
        """Stops at the limit, or once it has read delete_range_bytes_max.

        The bytes are counted here, not by the store: where the command stops is part of the replicated result.
        """
        start, end = self.bounds(operation.start, operation.end)
        bytes_max = self._limits.delete_range_bytes_max
        deleted = 0
        bytes_read = 0
        cursor: bytes | None = None
        more = start < end
        while more and deleted < operation.limit and bytes_read < bytes_max:
            limit = operation.limit - deleted
            pairs, more = self._store.scan(start, end, limit=limit, bytes_max=bytes_max - bytes_read)
            assert pairs or not more
            for place, (key, record) in enumerate(pairs):
                self._remove(key, record)
                deleted += 1
                bytes_read += len(key) + len(record.value)
                if bytes_read >= bytes_max:
                    more = more or place + 1 < len(pairs)
                    break
            if pairs:
                cursor = next_key(key[KEYSPACE_PREFIX_BYTES:])
                if cursor is None:
                    break
                start = self.prefix + cursor
        if deleted:
            self.revision += 1
        return RangeDeleted(deleted, self.revision if deleted else 0, cursor if more else None)


def _holds(operation: Cas, old: Record | None) -> bool:
    """The condition; with neither revision nor expected value none (staging refuses that), it never holds."""
    if operation.revision is not None:
        return (0 if old is None else old.mod_revision) == operation.revision
    return old is not None and operation.expected is not None and old.value == operation.expected
