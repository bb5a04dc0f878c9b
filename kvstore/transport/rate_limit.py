"""A token bucket without a clock: how long must the next bytes wait?

Invariant: over any time t no more than `rate * t + burst` bytes are let through, plus the largest single amount.
"""

from __future__ import annotations


class TokenBucket:
    """Bytes and seconds. One bucket is shared by all streams of a node."""

    __slots__ = ("_burst", "_level", "_now", "_rate")

    def __init__(self, *, rate: float, burst: float) -> None:
        assert rate > 0
        assert burst >= 0
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._now: float | None = None

    def reserve(self, amount: int, *, now: float) -> float:
        """Take the amount, going into debt if need be; the seconds after which it may be sent."""
        if self._now is not None:
            self._level = min(self._burst, self._level + self._rate * max(0.0, now - self._now))
        self._now = now
        self._level -= amount
        return max(0.0, -self._level / self._rate)
