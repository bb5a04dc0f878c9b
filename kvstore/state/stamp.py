"""The leader's clock for entries: wall time, but never faster than twice or slower than half of real time.

The stamp of an entry is replicated data; replicas never look at a clock while applying. A jump of the wall clock, or
another leader with another wall clock, must not make the stamp jump: mutations under way would be refused as too old or
too new, and whatever is timed by stamps would end early or late. Real time is measured with CLOCK_BOOTTIME.

Invariant: `next` never gives less than any stamp applied here, nor than any that it gave and that may yet be applied.
Invariant: once a stamp is trusted (below), a later one is ahead of it by at most twice the real time between them.

A bound from above needs a stamp of which we know when it was made. For one that was given here, that is known. One of
another leader is applied here soon after it was made - or long after, when this replica was down, cut off, or is
replaying its log; then "twice the time since it was applied" would hold the stamp far behind the wall clock for as long
as the outage lasted. So a foreign stamp is trusted only when it, and one before, came as far apart as they were made.
Called by: replica. Pure: all times are arguments, in ms.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

PROOF_MS = 2_000  # two foreign stamps this far apart, at a believable rate, show that we hear the leader live
SLACK_MS = 500  # how unevenly stamps may arrive for that
JUMP_MS = 1_000  # the wall clock is this far outside the bounds: a jump


class _Anchor(NamedTuple):
    """A stamp and when it was seen. Halves of ms, or else many small steps at half speed would be rounded away."""

    halves: int
    boot_ms: int

    @property
    def stamp(self) -> int:
        return self.halves // 2


class StampClock:
    """One for each replica, for as long as it runs."""

    __slots__ = ("_applied", "_given", "_jumping", "_probe", "_trusted", "jumps", "last")

    def __init__(self, stamp: int, boot_ms: int) -> None:
        """stamp: the one that the state was loaded with, made at some time before; 0 = a state without any."""
        self.last = stamp  # ms; the highest stamp applied here, or given and not known to be lost
        self.jumps = 0  # times the wall clock was seen to leave the bounds; for a metric
        self._jumping = False
        self._applied = _Anchor(2 * stamp, boot_ms)  # the last foreign stamp, and when it was applied here
        self._trusted: _Anchor | None = None  # the last stamp of which we know when it was made
        self._probe: _Anchor | None = None  # a foreign stamp that waits for a second one, to be trusted
        self._given: deque[_Anchor] = deque()  # given here and not applied yet, rising

    def fork(self) -> StampClock:
        """For the child of a split, whose stamps go on from the parent's under the same bounds. What was given here and
        is not applied yet is the parent's alone."""
        child = StampClock(self._applied.stamp, self._applied.boot_ms)
        child._applied, child._trusted, child._probe = self._applied, self._trusted, self._probe
        child.last = max(self._applied.stamp, self._trusted.stamp if self._trusted else 0)
        return child

    def next(self, wall_ms: int, boot_ms: int) -> int:
        """The stamp of an entry that is proposed now."""
        halves = self._halves(wall_ms, boot_ms)
        far = abs(2 * wall_ms - halves) > 2 * JUMP_MS
        if far and not self._jumping:
            self.jumps += 1
        self._jumping = far
        stamp = halves // 2
        if self._given and self._given[-1].stamp == stamp:
            self._given.pop()  # one anchor for each stamp, so that there are no more than ms
        self._given.append(_Anchor(halves, boot_ms))
        assert stamp >= self.last
        self.last = stamp
        return stamp

    def on_applied(self, stamp: int, boot_ms: int) -> None:
        """An entry with this stamp has been applied here, whoever gave it."""
        given = self._given
        while given and given[0].stamp < stamp:
            given.popleft()
        if given and given[0].stamp == stamp:
            self._trusted = self._probe = given[0]
        else:
            # Another leader's entry. Whatever we gave before it and is not applied by now was overwritten, and must not
            # bind us: it may have followed a clock that was wrong. (Should it be applied all the same, it will be in
            # the state's stamp, which never goes back.)
            given.clear()
            self.last = max(self._applied.stamp, self._trusted.stamp if self._trusted else 0, stamp)
            self._applied = _Anchor(2 * stamp, boot_ms)
            self._prove(self._applied)

    def peek(self, wall_ms: int, boot_ms: int) -> int:
        """The stamp that `next` would give now: what a caller that has not heard one may count issued_at from."""
        return self._halves(wall_ms, boot_ms) // 2

    def _halves(self, wall_ms: int, boot_ms: int) -> int:
        """The wall clock within its bounds for now, in halves of ms."""
        made = self._given[-1] if self._given else self._trusted
        low = max(2 * self.last, self._applied.halves + (boot_ms - self._applied.boot_ms))
        if made is None:
            return max(low, 2 * wall_ms)
        low = max(low, made.halves + (boot_ms - made.boot_ms))
        return max(low, min(2 * wall_ms, made.halves + 4 * (boot_ms - made.boot_ms)))

    def _prove(self, seen: _Anchor) -> None:
        """Trust a foreign stamp if it and the probe came as far apart as they were made."""
        if self._probe is None:
            self._probe = seen
            return
        made_ms = seen.stamp - self._probe.stamp
        passed_ms = seen.boot_ms - self._probe.boot_ms
        if passed_ms >= PROOF_MS:
            if passed_ms // 2 - SLACK_MS <= made_ms <= 2 * passed_ms + SLACK_MS:
                self._trusted = seen
            self._probe = seen
