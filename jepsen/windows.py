"""What may go next: for each rank the operations that are open while the operation of that rank is the first one left.

Operations that must be placed are ranked by their returns. While rank r is the first that is not placed, all of lower
rank are, and of the others those may go next that were called before r returns.
Invariant: every open operation has a bit of its own; a bit is used again only after the operation that had it has
           returned, so that what is placed fits into few bits (as many as were ever open at once).
Invariant: a window is worked out when it is first looked at: a search that fails early should not pay for all of them.
Used by: search.py only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from jepsen.history import Operation


@dataclass(slots=True)
class Traits:
    """What the model says of each effect (by its number); see model.py."""

    observes: list[bool]
    at_once: list[bool]  # observers, and what is eager or absorbed
    eager: list[bool]
    resets: list[bool]


@dataclass(slots=True)
class Window:
    own: int  # the bit of the operation of this rank
    at_once: list[tuple[int, int, int]]  # bit, effect, rank of those that may be placed at once, by return
    moving: tuple[int, ...]  # ranks of those that may change the state, by return
    optional: int  # how many optional operations have been called before the return of this rank
    resets_below: int  # resets of lower ranks
    resets: int  # bits of the open operations that reset
    groups: list[tuple[int, list[tuple[int, int]]]] | None = None
    """Effect, and (bit, rank) of those in `moving` that have it. Groups by their first return, last first."""


@dataclass(slots=True)
class _Sketch:
    """What is needed to work out a window."""

    at_once: tuple[int, ...]
    moving: tuple[int, ...]
    optional: int
    resets_below: int


@dataclass(slots=True)
class Windows:
    must: Sequence[Operation]  # by rank
    may: Sequence[Operation]  # by call: the optional ones
    effects: Sequence[int]  # by rank
    traits: Traits
    bits: list[int] = field(default_factory=list)  # by rank
    _sketches: list[_Sketch] = field(default_factory=list)
    _windows: list[Window | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        rank_of = {one.index: rank for rank, one in enumerate(self.must)}
        by_call = [rank_of[one.index] for one in sorted(self.must, key=lambda one: (one.call, one.index))]
        may_calls = [one.call for one in self.may]
        self.bits = [0] * len(self.must)
        self._windows = [None] * len(self.must)
        at_once: list[int] = []
        moving: list[int] = []
        free: list[int] = []
        width = called = resets_below = 0
        for rank, operation in enumerate(self.must):
            while called < len(by_call) and self.must[by_call[called]].call < operation.ret:
                opened = by_call[called]
                if not free:
                    free.append(1 << width)
                    width += 1
                self.bits[opened] = free.pop()
                if self.traits.at_once[self.effects[opened]]:
                    insort(at_once, opened)
                if not self.traits.observes[self.effects[opened]]:
                    insort(moving, opened)
                called += 1
            optional = bisect_left(may_calls, operation.ret)
            self._sketches.append(_Sketch(tuple(at_once), tuple(moving), optional, resets_below))
            for ranks in (at_once, moving):
                if ranks and ranks[0] == rank:
                    del ranks[0]
            free.append(self.bits[rank])
            resets_below += self.traits.resets[self.effects[rank]]

    def __len__(self) -> int:
        return len(self.must)

    def at(self, rank: int) -> Window:
        found = self._windows[rank]
        if found is None:
            sketch = self._sketches[rank]
            found = self._windows[rank] = Window(
                own=self.bits[rank],
                at_once=[(self.bits[other], self.effects[other], other) for other in sketch.at_once],
                moving=sketch.moving,
                optional=sketch.optional,
                resets_below=sketch.resets_below,
                resets=sum(self.bits[other] for other in sketch.moving if self.traits.resets[self.effects[other]]),
            )
        return found

    def groups(self, window: Window) -> list[tuple[int, list[tuple[int, int]]]]:
        if window.groups is None:
            groups: dict[int, list[tuple[int, int]]] = {}
            for rank in window.moving:
                groups.setdefault(self.effects[rank], []).append((self.bits[rank], rank))
            window.groups = list(reversed(groups.items()))
        return window.groups
