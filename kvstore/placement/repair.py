"""What should be changed about the replicas of a shard: a pure function from a picture to at most one step.

Invariant: a step never takes a shard below the replicas it has unless more than wanted are left, or the one taken is
           on a node that is no member any more and enough others stay.
Invariant: applied again and again to its own results, it ends: every step lessens what is missing or surplus.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum


class StepKind(StrEnum):
    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Step:
    kind: StepKind
    shard: int
    node: str  # node id
    reason: str


def next_step(
    *,
    shard: int,
    replicas: Collection[str],
    members: Collection[str],
    alive: Collection[str],
    load: Mapping[str, int],
    wanted: int,
) -> Step | None:
    """The next step for one shard.

    replicas, members, alive: node ids. load: how many replicas each node has. wanted: the replication factor.
    Additions come before removals, so that a removed node's data is on its successor first.
    """
    gone = sorted(set(replicas) - set(members))
    present = [node for node in replicas if node in members]
    spare = [node for node in members if node in alive and node not in replicas]
    if len(present) < wanted and spare:
        node = min(spare, key=lambda one: (load.get(one, 0), one))
        return Step(StepKind.ADD, shard, node, f"{len(present)} of {wanted} replicas")
    if gone:
        return Step(StepKind.REMOVE, shard, gone[0], "its node was removed from the cluster")
    if len(present) > wanted:
        node = max(present, key=lambda one: (one not in alive, load.get(one, 0), one))
        return Step(StepKind.REMOVE, shard, node, f"{len(present)} replicas where {wanted} are wanted")
    return None
