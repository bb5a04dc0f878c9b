"""What a majority says: about an index that each voter acknowledged, and about a vote.

Invariant: two quorums of one configuration, joint or not, share a voter.
Invariant: the empty configuration agrees to everything, so that a joint configuration with an empty second half
           behaves like its first half alone.
Pure functions on short lists. Paper: section 6. Thesis: 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

INDEX_INFINITE = (1 << 63) - 1
"""What the empty configuration has committed."""


class VoteResult(IntEnum):
    PENDING = 0  # the voters not heard from decide
    LOST = 1  # not even all of them could win it
    WON = 2


def majority_index(acknowledged: list[int]) -> int:
    """The highest index that a majority acknowledged. One value a voter, 0 = not heard from. Sorts the list."""
    if not acknowledged:
        return INDEX_INFINITE
    acknowledged.sort()
    return acknowledged[(len(acknowledged) - 1) >> 1]


def joint_index(incoming: list[int], outgoing: list[int]) -> int:
    """The highest index that majorities of both halves acknowledged."""
    if not outgoing:
        return majority_index(incoming)
    return min(majority_index(incoming), majority_index(outgoing))


def majority_vote(voters: Iterable[int], votes: Mapping[int, bool]) -> VoteResult:
    """`votes` may hold answers of replicas that are no voters; they do not count."""
    size = granted = missing = 0
    for voter in voters:
        size += 1
        vote = votes.get(voter)
        if vote is None:
            missing += 1
        elif vote:
            granted += 1
    if size == 0:
        return VoteResult.WON
    needed = size // 2 + 1
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.PENDING if granted + missing >= needed else VoteResult.LOST


def joint_vote(incoming: Iterable[int], outgoing: Iterable[int], votes: Mapping[int, bool]) -> VoteResult:
    """Won when both halves are won, lost when one is lost."""
    first = majority_vote(incoming, votes)
    second = majority_vote(outgoing, votes)
    if first == second:
        return first
    if VoteResult.LOST in (first, second):
        return VoteResult.LOST
    return VoteResult.PENDING
