"""Campaigns that need not wait for an election timeout: who begins, in which order, and how many at once.

The death of a node may leave a thousand groups without a leader, and each of the survivors knows. They take turns: of
the replicas that are left, each group has another one that goes first, so the leaders spread and the votes do not
split; the next one goes a little later, if that has come to nothing.

Invariant: what is due is begun in the order in which it is due, CAMPAIGNS_PER_STEP at most each STEP_MS: a thousand
           groups have leaders within a second, and messages and log writes of a step still share their batches.
Called by: host_driver. Pure; times are the loop's seconds.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from enum import IntEnum

STEP_MS = 10
CAMPAIGNS_PER_STEP = 16
FIRST_MS_MIN = 20  # the others may hear of the loss a few ms later, and refuse their votes until then
FIRST_MS_MAX = 50
TURN_MS = 40  # an election that has a winner takes a few round trips and a write to the disk
AGAIN_MS_MIN = 100
AGAIN_MS_MAX = 300
AGAIN_MAX = 2  # after that the election timeout decides, as where there is no evidence


class Reason(IntEnum):
    EVIDENCE = 0
    AGAIN = 1  # an attempt had no winner: two that begin at the same moment split the votes
    FOUNDED = 2  # a new group has no leader to wait for


@dataclass(frozen=True, slots=True)
class Campaign:
    group: int
    reason: Reason
    attempt: int = 0


class Haste:
    """The campaigns that wait for their moment."""

    __slots__ = ("_numbers", "_rng", "_waiting")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._numbers = 0
        self._waiting: list[tuple[float, int, Campaign]] = []  # a heap by (due, number)

    def on_evidence(self, ranks: list[tuple[int, int]], *, now: float) -> None:
        """`ranks`: (group, how many of the others go first) of all groups that have lost their leader."""
        # How long the turn of all that go first takes, when they are many.
        crowd_ms = STEP_MS * len(ranks) / CAMPAIGNS_PER_STEP
        for group, rank in ranks:
            wait_ms = self._rng.uniform(FIRST_MS_MIN, FIRST_MS_MAX) + rank * (TURN_MS + crowd_ms)
            self._push(now + wait_ms / 1_000, group, Reason.EVIDENCE, 0)

    def on_founded(self, groups: list[int], *, now: float) -> None:
        for group in groups:
            self._push(now, group, Reason.FOUNDED, 0)

    def on_undecided(self, campaign: Campaign, *, now: float) -> None:
        """It was begun, and is to be looked at again."""
        if campaign.attempt < AGAIN_MAX and campaign.reason != Reason.FOUNDED:
            wait_ms = self._rng.uniform(AGAIN_MS_MIN, AGAIN_MS_MAX)
            self._push(now + wait_ms / 1_000, campaign.group, Reason.AGAIN, campaign.attempt + 1)

    def pop_due(self, now: float) -> Campaign | None:
        if self._waiting and self._waiting[0][0] <= now:
            return heapq.heappop(self._waiting)[2]
        return None

    @property
    def next_due(self) -> float | None:
        return self._waiting[0][0] if self._waiting else None

    def _push(self, due: float, group: int, reason: Reason, attempt: int) -> None:
        self._numbers += 1
        heapq.heappush(self._waiting, (due, self._numbers, Campaign(group, reason, attempt)))
