"""An atomic batch: several operations on keys of one shard, done together or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Protocol, Self

from kvstore.base.errors import Conflict, Invalid, TooLarge
from kvstore.base.operations import Batch, BatchDone, Cas, Delete, Found, Get, Put, check_key
from kvstore.client.keys import Key, Value, to_bytes

BatchOperation = Put | Delete | Cas | Get


class BatchConflict(Conflict):
    """A condition in a batch failed; nothing was done. `index` is the operation's place in the batch."""

    def __init__(self, message: str, *, index: int, detail: Found | None) -> None:
        super().__init__(message, detail=detail)
        self.index = index


class BatchOperations:
    """Collects operations. The methods can be chained."""

    def __init__(self) -> None:
        self.operations: list[BatchOperation] = []

    def put(self, key: Key, value: Value) -> Self:
        self.operations.append(Put(0, to_bytes(key), to_bytes(value)))
        return self

    def delete(self, key: Key) -> Self:
        self.operations.append(Delete(0, to_bytes(key)))
        return self

    def get(self, key: Key) -> Self:
        self.operations.append(Get(0, to_bytes(key)))
        return self

    def cas(
        self,
        key: Key,
        value: Value | None,
        *,
        revision: int | None = None,
        expected: Value | None = None,
        absent: bool = False,
    ) -> Self:
        """As `Client.cas`."""
        self.operations.append(make_cas(key, value, revision=revision, expected=expected, absent=absent))
        return self


class CommitBatch(Protocol):
    def __call__(
        self, operations: Iterable[BatchOperation], *, timeout: float | None = None
    ) -> Awaitable[BatchDone]: ...


class BatchBuilder(BatchOperations):
    """`await kv.batch().cas("a", None, expected="1").put("b", "1").commit()`"""

    def __init__(self, commit: CommitBatch) -> None:
        super().__init__()
        self._commit = commit

    async def commit(self, *, timeout: float | None = None) -> BatchDone:
        """Raises BatchConflict when a condition fails, Invalid when the keys lie in different shards."""
        return await self._commit(self.operations, timeout=timeout)


def make_cas(key: Key, value: Value | None, *, revision: int | None, expected: Value | None, absent: bool) -> Cas:
    """Raises Invalid unless exactly one condition is given."""
    if (revision is not None) + (expected is not None) + absent != 1:
        raise Invalid("a compare-and-set needs exactly one of revision=, expected= and absent=True")
    return Cas(
        0,
        to_bytes(key),
        None if value is None else to_bytes(value),
        0 if absent else revision,
        None if expected is None else to_bytes(expected),
    )


def make_batch(operations: Iterable[BatchOperation], *, operations_max: int, value_bytes_max: int) -> Batch:
    """Raises Invalid or TooLarge; what the node would refuse never leaves the client."""
    batch = Batch(0, list(operations))
    if not 0 < len(batch.operations) <= operations_max:
        raise Invalid(f"a batch has 1 to {operations_max} operations, not {len(batch.operations)}")
    for operation in batch.operations:
        if not isinstance(operation, (Put, Delete, Cas, Get)):
            raise Invalid(f"a batch is made of Put, Delete, Cas and Get, not {type(operation).__name__}")
        check_key(operation.key)
        if isinstance(operation, Put):
            check_size(operation.value, value_bytes_max)
        elif isinstance(operation, Cas):
            check_cas(operation, value_bytes_max)
    return batch


def check_cas(operation: Cas, value_bytes_max: int) -> None:
    """Raises Invalid or TooLarge."""
    if (operation.revision is None) == (operation.expected is None):
        raise Invalid("a compare-and-set names exactly one of revision and expected value")
    if operation.revision is not None and not 0 <= operation.revision < 1 << 63:
        raise Invalid("a revision is 0 to 2^63 - 1")
    check_size(operation.value or b"", value_bytes_max)
    check_size(operation.expected or b"", value_bytes_max)


def check_size(value: bytes, value_bytes_max: int) -> None:
    if len(value) > value_bytes_max:
        raise TooLarge(f"the value has {len(value)} bytes; at most {value_bytes_max} are allowed")
