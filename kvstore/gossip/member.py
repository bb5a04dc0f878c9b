"""What is told of a node, and how two tales about the same node are merged.

Invariant: only the owner of a record raises its incarnation; whatever else the record says (address, labels, version)
    changes only with it.
Invariant: `merged` is the join of a semilattice over (incarnation, state): commutative, associative, idempotent. So all
    members that have heard the same tales, in any order and any number of times, believe the same.

Source: SWIM (Das, Gupta, Motivala 2002), section 4.2.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

INCARNATIONS_PER_BOOT = 1_000_000
"""An incarnation is the durable count of the process's starts times this, plus the refutations since: it rises with
each restart, whatever the clock says and however much was forgotten."""


class MemberState(IntEnum):
    """In the order in which a tale of the same incarnation overrides another one."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Member(msgspec.Struct, array_like=True, frozen=True):
    """One node, as it is told from node to node."""

    node: str  # NodeId, 32 hexadecimal digits
    name: str
    address: str  # HOST:PORT, of TCP and UDP
    incarnation: int
    state: MemberState = MemberState.ALIVE
    labels: dict[str, str] = {}
    version: str = ""

    @property
    def rank(self) -> tuple[int, MemberState]:
        """What decides which of two tales stands."""
        return self.incarnation, self.state

    @property
    def is_gone(self) -> bool:
        return self.state >= MemberState.DEAD


def merged(one: Member, other: Member) -> Member:
    """The tale that stands. Both are about the same node."""
    assert one.node == other.node
    return other if other.rank > one.rank else one
