"""An ordered map of bytes with transactions that behaves like an LMDB environment as far as the stores use one.

It lets the very code of the LMDB stores run in simulation. Nothing here is durable or not: a transaction takes effect
when it commits, and `memory.MemoryDisk` decides when that is and what a crash loses.

Invariant: a read transaction sees what was committed when it began, until it ends.
Invariant: at most one write transaction is open; it sees its own writes; aborted, it has changed nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class PowerCut(Exception):
    """The disk takes no further transaction (a simulated crash in the middle of a job)."""


class _Version:
    """One committed state. Shared by its readers, changed in place only while it has none."""

    __slots__ = ("data", "keys", "readers")

    def __init__(self, data: dict[bytes, bytes], keys: list[bytes]) -> None:
        self.data = data
        self.keys = keys  # sorted
        self.readers = 0

    def copy(self) -> _Version:
        return _Version(dict(self.data), list(self.keys))


class MemoryEnvironment:
    def __init__(self) -> None:
        self.current = _Version({}, [])
        self.last_id = 0
        self.commits_left: int | None = None  # None = any number; set while a crash plays out
        self.writer: MemoryTransaction | None = None

    def begin(self, *, write: bool = False, buffers: bool = False) -> MemoryTransaction:
        if write:
            assert self.writer is None, "two write transactions"
            if self.commits_left == 0:
                raise PowerCut
        return MemoryTransaction(self, write=write, buffers=buffers)

    def stat(self) -> dict[str, int]:
        return {"entries": len(self.current.keys)}

    def close(self) -> None:
        """The bytes stay: the next store opens the same environment."""

    @property
    def used_bytes(self) -> int:
        return sum(len(key) + len(value) for key, value in self.current.data.items())

    def flip(self, key: bytes, position: int) -> None:
        """Damage a stored byte (counted as Python does)."""
        value = bytearray(self.current.data[key])
        value[position] ^= 0xFF
        self.current.data[key] = bytes(value)

    def wipe(self) -> None:
        self.current = _Version({}, [])


class MemoryTransaction:
    def __init__(self, env: MemoryEnvironment, *, write: bool, buffers: bool) -> None:
        self._env = env
        self._write = write
        self._buffers = buffers
        self._open = True
        self._undo: list[tuple[bytes, bytes | None]] = []
        self._id = env.last_id + (1 if write else 0)
        version = env.current
        if write:
            version = version.copy() if version.readers else version
            env.writer = self
        else:
            version.readers += 1
        self.version = version

    def id(self) -> int:
        return self._id

    def get(self, key: bytes) -> Any:
        assert self._open
        value = self.version.data.get(bytes(key))
        return memoryview(value) if self._buffers and value is not None else value

    def put(self, key: bytes, value: bytes) -> bool:
        assert self._write and self._open
        data = self.version.data
        old = data.get(key)
        self._undo.append((key, old))
        if old is None:
            insort(self.version.keys, key)
        data[key] = value
        return True

    def delete(self, key: bytes) -> bool:
        assert self._write and self._open
        old = self.version.data.pop(key, None)
        if old is None:
            return False
        self._undo.append((key, old))
        del self.version.keys[bisect_left(self.version.keys, key)]
        return True

    def cursor(self) -> MemoryCursor:
        return MemoryCursor(self, self._buffers)

    def commit(self) -> None:
        assert self._write and self._open
        self._open = False
        env = self._env
        env.current = self.version
        env.last_id = self._id
        env.writer = None
        if env.commits_left is not None:
            env.commits_left -= 1

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        if not self._write:
            self.version.readers -= 1
            return
        self._env.writer = None
        if self.version is not self._env.current:
            return
        for key, old in reversed(self._undo):
            present = key in self.version.data
            if old is None:
                if present:
                    del self.version.data[key]
                    del self.version.keys[bisect_left(self.version.keys, key)]
            else:
                if not present:
                    insort(self.version.keys, key)
                self.version.data[key] = old

    def __enter__(self) -> MemoryTransaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._write and kind is None:
            self.commit()
        else:
            self.abort()


class MemoryCursor:
    """Positioned on a key, or (b"") nowhere."""

    def __init__(self, txn: MemoryTransaction, buffers: bool) -> None:
        self._txn = txn
        self._buffers = buffers
        self._key = b""

    def _at(self, position: int) -> bool:
        keys = self._txn.version.keys
        self._key = keys[position] if 0 <= position < len(keys) else b""
        return bool(self._key)

    def _position(self) -> int:
        return bisect_left(self._txn.version.keys, self._key)

    def _shown(self, data: bytes) -> Any:
        return memoryview(data) if self._buffers else data

    def key(self) -> Any:
        return self._shown(self._key)

    def set_range(self, key: bytes) -> bool:
        return self._at(bisect_left(self._txn.version.keys, key))

    def last(self) -> bool:
        return self._at(len(self._txn.version.keys) - 1)

    def prev(self) -> bool:
        return self._at(self._position() - 1)

    def delete(self) -> bool:
        """Moves on to the next key, as LMDB does."""
        position = self._position()
        self._txn.delete(self._key)
        self._at(position)
        return True

    def iternext(self) -> Iterator[tuple[Any, Any]]:
        version = self._txn.version
        for key in version.keys[self._position() :] if self._key else ():
            yield self._shown(key), self._shown(version.data[key])

    def iterprev(self) -> Iterator[tuple[Any, Any]]:
        version = self._txn.version
        for key in reversed(version.keys[: self._position() + 1] if self._key else ()):
            yield self._shown(key), self._shown(version.data[key])
