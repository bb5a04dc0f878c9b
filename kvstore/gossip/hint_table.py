"""The hints that stand: one a shard, in the order of keys.

Invariant: the hints held do not overlap, stand in key order, and are at most one a shard; gaps are possible.
Invariant: a hint is taken out only by one that overrides it, of the same shard or with a range that overlaps. So a
    table that was given the newest hints of all shards, in whatever order and among whatever older ones, holds just
    these (see hint.py for why a newest one is never overridden).
Called by: leader_hints, router/shard_map.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Ranged(Protocol):
    """What the table must know of a hint: the shard, and its range in full keys."""

    @property
    def id(self) -> int: ...
    @property
    def start(self) -> bytes: ...
    @property
    def end(self) -> bytes: ...


H = TypeVar("H", bound=Ranged)


class HintTable(Generic[H]):
    def __init__(self, overrides: Callable[[H, H], bool]) -> None:
        """`overrides`: whether the first of two stands, as a strict total order; see hint.py."""
        self._overrides = overrides
        self._starts: list[bytes] = []  # of _hints, for bisect
        self._hints: list[H] = []
        self._by_id: dict[int, H] = {}

    def __len__(self) -> int:
        return len(self._hints)

    def __iter__(self) -> Iterator[H]:
        """In the order of keys."""
        return iter(self._hints)

    def get(self, shard: int) -> H | None:
        return self._by_id.get(shard)

    def find(self, key: bytes) -> H | None:
        """The hint whose range holds the full key."""
        position = bisect_right(self._starts, key) - 1
        if position < 0:
            return None
        hint = self._hints[position]
        return hint if key < hint.end else None

    def merge(self, new: H) -> list[H] | None:
        """The hints that it has put out (one of the same shard is among them); None when it does not stand itself."""
        known = self._by_id.get(new.id)
        if known is not None and not self._overrides(new, known):
            return None
        first, last = self._overlapped_by(new)
        out = self._hints[first:last]
        if not all([one.id == new.id or self._overrides(new, one) for one in out]):
            return None
        for one in out:
            del self._by_id[one.id]
        self._hints[first:last] = [new]
        self._starts[first:last] = [new.start]
        if new.id in self._by_id:  # the shard's older range did not even touch the new one
            assert known is not None
            out.append(known)
            position = bisect_left(self._starts, known.start)
            assert self._hints[position] is known
            del self._hints[position], self._starts[position]
        self._by_id[new.id] = new
        return out

    def drop(self, shard: int) -> H | None:
        hint = self._by_id.pop(shard, None)
        if hint is not None:
            position = bisect_left(self._starts, hint.start)
            assert self._hints[position] is hint
            del self._hints[position], self._starts[position]
        return hint

    def _overlapped_by(self, new: H) -> tuple[int, int]:
        """[first, last) positions of the hints whose ranges overlap the new one's, or where it belongs if none does."""
        first = bisect_right(self._starts, new.start) - 1
        if first < 0 or self._hints[first].end <= new.start:
            first += 1
        return first, max(first, bisect_left(self._starts, new.end))
