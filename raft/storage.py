"""What the core reads of the durable log: the protocol, and an in-memory log that fulfils it.

Only reads. Writes are asked for by `Ready` and done by the driver; what the driver has not yet made durable
is held by the core itself (`raft/unstable.py`), so a storage need not show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raft.types import ConfState, Entry, HardState, SnapshotMeta


class LogReader(Protocol):
    """Invariant: first_index <= last_index + 1, and term(first_index - 1) is known."""

    def initial_state(self) -> tuple[HardState, ConfState]:
        """What was durable when the replica was started; a new replica has empty ones."""

    def first_index(self) -> int:
        """Index of the first entry held; the ones before are compacted."""

    def last_index(self) -> int:
        """Index of the last entry held; first_index - 1 when there is none."""

    def term(self, index: int) -> int:
        """Term at `index`, first_index - 1 included. Raises LogCompacted, LogUnavailable."""

    def entries(self, *, low: int, high: int, bytes_max: int) -> Sequence[Entry]:
        """Entries of [low, high), cut after the one that reaches bytes_max, but at least one.

        Raises LogCompacted, LogUnavailable.
        """

    def snapshot(self) -> SnapshotMeta | None:
        """Position of a snapshot that the driver can send *now*, or None: ask again later."""
