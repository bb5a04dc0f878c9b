"""Pauses between attempts: doubled up to a limit, each somewhere between half and whole, so that nodes spread out."""

from __future__ import annotations

import random


class Backoff:
    """Seconds."""

    __slots__ = ("_rng", "_seconds", "_seconds_max", "_seconds_min")

    def __init__(self, *, seconds_min: float, seconds_max: float, rng: random.Random) -> None:
        self._seconds_min = seconds_min
        self._seconds_max = seconds_max
        self._seconds = seconds_min
        self._rng = rng

    def next(self) -> float:
        pause = self._seconds * self._rng.uniform(0.5, 1.0)
        self._seconds = min(self._seconds * 2, self._seconds_max)
        return pause

    def reset(self) -> None:
        self._seconds = self._seconds_min

    def slow_down(self) -> None:
        """The trouble will not pass by itself soon: go to the longest pause."""
        self._seconds = self._seconds_max
