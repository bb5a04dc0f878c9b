"""The leader lease: how long no other leader can have been elected.

Invariant: it starts when the round of heartbeats was *sent* that a quorum of voters (of both halves) answered with
           a promise, on a clock that also counts suspended time. Each of them refuses its vote for at least one
           election timeout after it has promised, which is later.
Invariant: it lasts 0.8 of the smallest election timeout; the rest is for clocks that run at different speeds.
Called by: raft/leader.py.   Thesis: 6.4.1.
"""

from __future__ import annotations

from collections import deque

from raft.config import Config

LEASE_PERCENT = 80
SENT_MAX = 256
"""Rounds whose sending time is kept, one for each time that a tick told; a lease is over long before."""


class LeaderLease:
    __slots__ = ("_sent", "length_ms", "start_ms")

    def __init__(self, config: Config) -> None:
        self.length_ms = config.election_ticks * config.tick_ms * LEASE_PERCENT // 100
        self.start_ms: int | None = None
        self._sent: deque[tuple[int, int]] = deque()  # (first round sent at that time, ms), both rising

    def on_round(self, *, number: int, now_ms: int) -> None:
        """A round that asks for promises is sent. `now_ms` may lag (the last tick's time): that only shortens."""
        sent = self._sent
        if sent and sent[-1][1] == now_ms:
            return
        if len(sent) == SENT_MAX:
            sent.popleft()
        sent.append((number, now_ms))

    def confirm(self, number: int) -> None:
        """A quorum has promised in round `number` or a later one. Taken anew each time: with another membership
        the quorum's round may be an older one."""
        sent = self._sent
        while len(sent) > 1 and sent[1][0] <= number:
            sent.popleft()
        self.start_ms = sent[0][1] if sent and sent[0][0] <= number else None

    def valid(self, now_ms: int) -> bool:
        return self.start_ms is not None and now_ms < self.start_ms + self.length_ms
