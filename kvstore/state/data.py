"""What the state machine needs of the store: records by full key. `storage.protocol.StateStore` fulfils it.

Invariant: a change is visible to the next call.
"""

from __future__ import annotations

from typing import Protocol

from kvstore.storage.protocol import Record


class ShardData(Protocol):
    """See StateStore for what each method promises."""

    def get(self, key: bytes) -> Record | None: ...
    def put(self, key: bytes, record: Record) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(
        self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
    ) -> tuple[list[tuple[bytes, Record]], bool]: ...
