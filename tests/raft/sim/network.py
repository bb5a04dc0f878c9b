"""The simulated network: when, how often and whether a message arrives.

Invariant: a message is never altered, and never invented.
Invariant: on an ordered network, messages of one link that do arrive arrive in the order of sending, copies aside.
A cut is looked at when a message arrives, so what is on its way when a cut begins is lost, and what was sent during
a cut may still get through after it (a socket's buffer does that too).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from .options import NetworkOptions


class Network:
    __slots__ = ("_busy_until", "_late", "_late_us", "_ordered", "_rng", "_span", "_start", "cuts", "duplicate", "loss")

    def __init__(self, options: NetworkOptions, rng: random.Random) -> None:
        self._rng = rng
        low, high = options.latency_us
        self._start = low
        self._span = high - low
        self._ordered = options.ordered
        self.loss = options.loss
        self.duplicate = options.duplicate
        self._late = options.late
        self._late_us = options.late_us
        self._busy_until: dict[tuple[int, int], int] = {}
        self.cuts: set[tuple[int, int]] = set()  # (from, to); only ever asked for membership

    def arrivals(self, now_us: int, from_id: int, to_id: int) -> tuple[int, ...]:
        """When the copies of a message sent now arrive; empty = lost."""
        draw = self._rng.random
        if self.loss and draw() < self.loss:
            return ()
        at = now_us + self._start + int(draw() * self._span)
        if self._late and draw() < self._late:
            at += int(draw() * self._late_us)
        if self._ordered:
            link = (from_id, to_id)
            at = max(at, self._busy_until.get(link, 0))
            self._busy_until[link] = at
        if self.duplicate and draw() < self.duplicate:
            spread = self._span + self._late_us if self._late else self._span * 4
            return at, at + int(draw() * spread)
        return (at,)

    def split(self, left: Iterable[int], right: Iterable[int]) -> None:
        """Nothing passes between the two sides."""
        right = tuple(right)
        for one in left:
            for other in right:
                self.cuts.add((one, other))
                self.cuts.add((other, one))

    def cut_one_way(self, from_id: int, to_id: int) -> None:
        self.cuts.add((from_id, to_id))

    def heal(self) -> None:
        self.cuts.clear()

    def become_good(self) -> None:
        """No faults from now on, and latencies far below an election timeout."""
        self.heal()
        self.loss = self.duplicate = self._late = 0.0
        self._start, self._span = 500, 4_500
