"""How well this node keeps up, by its own judgement: the local health multiplier.

A node that is slow sees others miss its deadlines. So it gives them more time, by as much as the signs say that the
fault is its own: probes that nobody answered though relays were asked, suspicions of itself that it had to refute.

Invariant: 0 <= score < `health_max`.

Source: Lifeguard (Dadgar, Phillips, Currey 2017), section 4.1, LHA-Probe.
"""

from __future__ import annotations


class Awareness:
    def __init__(self, health_max: int) -> None:
        assert health_max >= 1
        self._health_max = health_max
        self.score = 0

    def shift(self, delta: int) -> None:
        """Up is worse."""
        self.score = min(max(self.score + delta, 0), self._health_max - 1)

    def scaled(self, seconds: float) -> float:
        return seconds * (self.score + 1)
