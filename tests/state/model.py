"""The dumb second implementation: the rules of docs/state.md in dicts and sorts, without a thought of speed.

Nothing of kvstore/state is used but its limits and the texts of its refusals.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.base.errors import Code
from kvstore.base.operations import (
    Batch,
    BatchDone,
    Cas,
    Delete,
    DeleteRange,
    Failure,
    Found,
    Get,
    Item,
    Mismatch,
    Mutation,
    Page,
    Put,
    RangeDeleted,
    Result,
    Scan,
)
from kvstore.state.shard_meta import StateLimits

KEY_BYTES_MAX = 480
SLICE = 100


@dataclass
class Frame:
    """A write as a client made it."""

    session: bytes
    low: int
    issued_at: int
    version: int
    operations: list[Mutation]


@dataclass
class Model:
    """User keys only; the shard is [start, end), end b"" = no bound."""

    limits: StateLimits
    start: bytes
    end: bytes
    stamp: int
    version: int = 1
    revision: int = 0
    floor: int = 0
    executions: int = 0
    data: dict[bytes, Found] = field(default_factory=dict)
    answers: dict[tuple[bytes, int], tuple[int, Result]] = field(default_factory=dict)
    lows: dict[bytes, int] = field(default_factory=dict)
    newest: dict[bytes, int] = field(default_factory=dict)  # its keys are the sessions known
    _spent: int = 0

    # -- an entry

    def entry(self, stamp: int, frames: list[Frame]) -> list[list[Result]]:
        self.stamp = max(self.stamp, stamp)
        self._spent = 0
        results = []
        for frame in frames:
            if frame.session in self.newest:
                self._raise_low(frame.session, frame.low)
            results.append([self._one(frame, operation) for operation in frame.operations])
        self._expire()
        self._evict()
        return results

    def _raise_low(self, session: bytes, low: int) -> None:
        self.lows[session] = max(low, self.lows[session])
        for known, seq in list(self.answers):
            if known == session and seq < self.lows[session]:
                del self.answers[known, seq]

    def _one(self, frame: Frame, operation: Mutation) -> Result:
        """The rules, in the order of the design."""
        key = (frame.session, operation.seq)
        if frame.session and key in self.answers:
            answer = self.answers[key][1]
            if weight(answer) and self._spent >= self.limits.result_bytes_max:
                return refused(Code.OVERLOADED, definite=False)
            self._spent += weight(answer)
            return answer
        if frame.session:
            low = self.lows.get(frame.session, frame.low)
            if frame.issued_at <= max(self.floor, self.stamp - self.limits.window_ms) or operation.seq < low:
                return refused(Code.SESSION_EXPIRED)
            if frame.issued_at > self.stamp + self.limits.ahead_ms:
                return refused(Code.INVALID)
        if frame.version != self.version or not self.inside(operation):
            return refused(Code.STALE_ROUTE)
        result = self._execute(operation)
        if frame.session and not isinstance(result, Failure):
            self.answers[key] = (frame.issued_at, result)
            self.lows.setdefault(frame.session, frame.low)
            self.newest[frame.session] = max(frame.issued_at, self.newest.get(frame.session, 0))
        return result

    # -- what is remembered

    def _expire(self) -> None:
        bound = (self.stamp - self.limits.window_ms) // SLICE * SLICE
        for key, (issued_at, _) in list(self.answers.items()):
            if issued_at < bound:
                del self.answers[key]
        for session, newest in list(self.newest.items()):
            if newest < bound:
                del self.newest[session], self.lows[session]

    def _evict(self) -> None:
        if self._size() <= self.limits.answers_max and self.weight() <= self.limits.answer_bytes_max:
            return
        answers_keep = self.limits.answers_max - self.limits.answers_max // 32
        bytes_keep = self.limits.answer_bytes_max - self.limits.answer_bytes_max // 32
        while self._size() > answers_keep or self.weight() > bytes_keep:
            items: list[tuple[int, bytes, int, bool]] = [
                (issued_at, session, seq, False) for (session, seq), (issued_at, _) in self.answers.items()
            ]
            items += [(self.newest[session], session, -(1 << 64), True) for session in self._empty()]
            issued_at, session, seq, empty = min(items)
            self.floor = max(self.floor, issued_at)
            if not empty:
                del self.answers[session, seq]
            if session in self._empty() and self.newest[session] <= self.floor:
                del self.newest[session], self.lows[session]

    def _empty(self) -> list[bytes]:
        holders = {session for session, _ in self.answers}
        return [session for session in self.newest if session not in holders]

    def _size(self) -> int:
        return len(self.answers) + len(self.newest)

    def weight(self) -> int:
        return sum(weight(result) for _, result in self.answers.values())

    # -- the operations

    def inside(self, operation: Mutation | Get | Scan) -> bool:
        if isinstance(operation, Batch):
            return all(self._key_inside(inner.key) for inner in operation.operations)
        if isinstance(operation, DeleteRange | Scan):
            end = operation.end or self.end
            upper = not self.end or (bool(end) and end <= self.end)
            return self.start <= operation.start and upper and (not end or operation.start <= end)
        return self._key_inside(operation.key)

    def _key_inside(self, key: bytes) -> bool:
        return self.start <= key and (not self.end or key < self.end)

    def _execute(self, operation: Mutation) -> Result:
        self.executions += 1
        if isinstance(operation, Put):
            self.revision += 1
            return self._change(operation.key, operation.value, self.revision)
        if isinstance(operation, Delete):
            self.revision += operation.key in self.data
            return self._change(operation.key, None, self.revision)
        if isinstance(operation, Cas):
            return self._cas(operation)
        if isinstance(operation, Batch):
            return self._batch(operation)
        return self._delete_range(operation)

    def _change(self, key: bytes, value: bytes | None, revision: int) -> int:
        """Set or delete; the revision, or 0 where there was nothing to delete."""
        old = self.data.pop(key, None)
        if value is None:
            return 0 if old is None else revision
        create, version = (revision, 1) if old is None else (old.create_revision, old.version + 1)
        self.data[key] = Found(value, revision, create, version)
        return revision

    def _cas(self, operation: Cas) -> Result:
        if self._spent >= self.limits.result_bytes_max:
            return refused(Code.OVERLOADED)
        old = self.data.get(operation.key)
        if not holds(operation, old):
            self._spent += len(old.value) if old else 0
            return Mismatch(0, old)
        self.revision += operation.value is not None or old is not None
        return self._change(operation.key, operation.value, self.revision)

    def _batch(self, operation: Batch) -> Result:
        if self._spent >= self.limits.result_bytes_max:
            return refused(Code.OVERLOADED)
        before = dict(self.data)
        spent = self._spent
        for index, inner in enumerate(operation.operations):
            old = before.get(inner.key)
            if isinstance(inner, Cas) and not holds(inner, old):
                self._spent += len(old.value) if old else 0
                return Mismatch(index, old)
            if isinstance(inner, Get):
                spent += len(old.value) if old else 0
                if spent > self.limits.result_bytes_max:
                    return refused(Code.OVERLOADED if self._spent else Code.TOO_LARGE)
        self._spent = spent
        results: list[int | Found | None] = []
        for inner in operation.operations:
            if isinstance(inner, Get):
                results.append(before.get(inner.key))
            else:
                value = None if isinstance(inner, Delete) else inner.value
                results.append(self._change(inner.key, value, self.revision + 1))
        changed = any(isinstance(result, int) and result for result in results)
        self.revision += changed
        return BatchDone(self.revision if changed else 0, results)

    def _delete_range(self, operation: DeleteRange) -> Result:
        keys = [
            key for key in sorted(self.data) if operation.start <= key and (not operation.end or key < operation.end)
        ]
        size = 0
        deleted = 0
        for key in keys[: operation.limit]:
            if size >= self.limits.delete_range_bytes_max:
                break
            size += 4 + len(key) + len(self.data.pop(key).value)
            deleted += 1
        self.revision += deleted > 0
        cursor = after(keys[deleted - 1]) if 0 < deleted < len(keys) else None
        return RangeDeleted(deleted, self.revision if deleted else 0, cursor)

    # -- reads

    def scan(self, operation: Scan) -> Page:
        keys = [
            key for key in sorted(self.data) if operation.start <= key and (not operation.end or key < operation.end)
        ]
        if operation.reverse:
            keys.reverse()
        items: list[Item] = []
        size = 0
        for key in keys[: operation.limit]:
            found = self.data[key]
            size += 4 + len(key) + len(found.value)
            if items and size > operation.bytes_max:
                break
            items.append(Item(key, found.value, found.mod_revision, found.create_revision, found.version))
        cursor = None
        if len(items) < len(keys):
            cursor = items[-1].key if operation.reverse else after(items[-1].key)
        return Page(items, cursor, self.revision)


def holds(operation: Cas, old: Found | None) -> bool:
    if operation.revision is not None:
        return operation.revision == (old.mod_revision if old else 0)
    return old is not None and old.value == operation.expected


def after(key: bytes) -> bytes:
    """The least key behind `key`; the tests do not use the one that has none."""
    if len(key) < KEY_BYTES_MAX:
        return key + b"\0"
    while key[-1] == 0xFF:
        key = key[:-1]
    return key[:-1] + bytes([key[-1] + 1])


def weight(result: Result) -> int:
    if isinstance(result, Found):
        return 64 + len(result.value)
    if isinstance(result, Mismatch):
        return 64 + weight(result.current)
    if isinstance(result, BatchDone):
        return 64 + sum(16 + weight(one) for one in result.results)
    if isinstance(result, RangeDeleted):
        return 64 + len(result.cursor or b"")
    return 0


def refused(code: Code, *, definite: bool = True) -> Failure:
    """As `plain` makes a Failure comparable: without its text."""
    return Failure(int(code), "", definite)


def plain(result: Result) -> Result:
    """Without the text of a Failure, which is for people."""
    return Failure(result.code, "", result.definite) if isinstance(result, Failure) else result
