"""How long a suspect has to refute: the shorter, the more nodes have come to suspect it independently.

One accuser may be wrong because it is itself slow or cut off; several can hardly be. So the time begins long and falls
with the logarithm of the confirmations.

Invariant: a confirmation never lengthens the time; each accuser counts once.

Source: Lifeguard (Dadgar, Phillips, Currey 2017), section 4.2, LHA-Suspicion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from kvstore.gossip.settings import GossipSettings


def suspicion_seconds(*, seconds_min: float, seconds_max: float, confirmations: int, expected: int) -> float:
    """From the beginning of the suspicion to the declaration of death. `expected` 0: nobody is there to confirm."""
    if expected == 0:
        return seconds_min
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return max(seconds_min, seconds_max - share * (seconds_max - seconds_min))


@dataclass(slots=True)
class Suspicion:
    """Of one incarnation of one member."""

    began: float
    seconds_min: float
    seconds_max: float
    expected: int  # confirmations, beside the first accuser
    accusers: list[str] = field(default_factory=list)  # node ids; at most expected + 1

    @classmethod
    def begin(cls, accuser: str, *, members: int, settings: GossipSettings, now: float) -> Suspicion:
        """`members`: those that are neither dead nor gone, this node and the suspect included."""
        seconds_min = settings.suspicion_seconds_min(members)
        # Without enough others nobody could confirm, and the suspect would get the longest time for nothing.
        expected = settings.confirmations if members - 2 >= settings.confirmations else 0
        return cls(now, seconds_min, seconds_min * settings.suspicion_stretch, expected, [accuser])

    def confirm(self, accuser: str) -> bool:
        """Whether this is news: another accuser, and not more than are needed."""
        if len(self.accusers) > self.expected or accuser in self.accusers:
            return False
        self.accusers.append(accuser)
        return True

    @property
    def ends_at(self) -> float:
        return self.began + suspicion_seconds(
            seconds_min=self.seconds_min,
            seconds_max=self.seconds_max,
            confirmations=len(self.accusers) - 1,
            expected=self.expected,
        )
