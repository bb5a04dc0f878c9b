"""A shard as of one LMDB read transaction, cut into chunks that can be read again until it is closed.

Invariant: header and chunks come from the same committed state; the store opens the transaction so.
Invariant: a record that does not match its checksum is not sent on (DamagedRecord).
The methods may run on any thread, one at a time; `close` may come from the loop in between (the map grows).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import lmdb

from kvstore.base.errors import DamagedRecord
from kvstore.storage import records
from kvstore.storage.chunks import Cut, encode_chunk, stored_ranges
from kvstore.storage.errors import SnapshotLost
from kvstore.storage.protocol import SnapshotHeader


class LmdbSnapshot:
    """See `protocol.SnapshotReader`."""

    def __init__(
        self, txn: lmdb.Transaction[bytes], header: SnapshotHeader, *, on_close: Callable[[LmdbSnapshot], None]
    ) -> None:
        self.header = header
        self._txn = txn
        self._on_close = on_close
        self._closed = False
        self._lock = threading.Lock()
        self._ranges = stored_ranges(header.group, header.start, header.end)
        self._starts: list[bytes | None] = [self._ranges[0][0]]  # where each chunk begins; None behind the last

    def chunk(self, number: int) -> bytes | None:
        """Raises SnapshotLost once closed, DamagedRecord. About 1.5 ms for a chunk of small records."""
        with self._lock:
            if self._closed:
                raise SnapshotLost(f"the snapshot of shard {self.header.group} is closed")
            try:
                # Who asks for a chunk has asked for the ones before it; walking on is for a sender that skips.
                while len(self._starts) <= number and (last := self._starts[-1]) is not None:
                    self._starts.append(self._cut(last)[1])
                start = self._starts[number] if number < len(self._starts) else None
                if start is None:
                    return None
                cut, following = self._cut(start)
            except lmdb.Error as error:
                raise DamagedRecord(f"the data of shard {self.header.group} can't be read: {error}") from error
            if number + 1 == len(self._starts):
                self._starts.append(following)
            return encode_chunk(self.header.group, number, cut.pairs, last=following is None)

    def _cut(self, start: bytes) -> tuple[Cut, bytes | None]:
        """One chunk's pairs from `start` on, and where the next one begins."""
        cut = Cut()
        cursor = self._txn.cursor()
        for low, high in self._ranges:
            if start >= high or not cursor.set_range(max(low, start)):
                continue
            for key, raw in cursor.iternext():
                if key >= high:
                    break
                if not cut.add(key, raw):
                    return cut, key
                records.check(key, raw)
        return cut, None

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._txn.abort()
                self._on_close(self)
