"""What travels in gossip packets beside the members: small items that are merged by their receiver.

The core asks for the items that are due and fills what is left of each packet with them. A digest of everything that
is held goes with each probe; where two nodes differ they exchange the digests of parts, and then the items of the parts
that differ. So news travels at once, and what was lost or overflowed a queue is repaired later.

Invariant: nothing here depends on delivery, order or number of times; receiving an item twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Cargo(Protocol):
    @property
    def pending(self) -> int:
        """Items that wait to be sent."""

    def digest(self) -> int:
        """64 bits over all items held, whatever the order in which they came."""

    def take(self, bytes_max: int, *, members: int) -> list[msgspec.Raw]:
        """Encoded items that are due, within so many bytes; each counts as sent once more. `members`: how many nodes
        there are, for the number of times that an item is sent."""

    def receive(self, items: Sequence[msgspec.Raw], now: float) -> None:
        """Merge. Never raises: what is malformed is counted and skipped."""

    def buckets(self) -> bytes:
        """Digests of the parts, at most packet.BUCKETS_BYTES_MAX bytes; not the same bytes each time."""

    def differing(self, buckets: bytes, *, bytes_max: int, packets_max: int) -> list[list[msgspec.Raw]]:
        """The items of the parts whose digest is not the one in `buckets` (another node's, perhaps malformed), for at
        most so many packets of so many bytes; another choice at each call where they are too many."""
