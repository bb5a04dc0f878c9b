"""What should be changed about the replicas of a shard: a pure function from a picture to at most one step.

Invariant: only a node that was removed for good loses its replica without more than wanted being left; a node that
           is down, or has no record yet, does not.
Invariant: applied again and again to its own results, it ends: every step lessens what is missing or surplus.
Invariant: a learner is an addition that broke off: it is finished where its node lives, and taken back where not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from kvstore.placement.thresholds import DEFAULTS, META_VOTERS_MAX

REPLICATION_FACTOR = DEFAULTS.replication_factor


def meta_voters(nodes: int) -> int:
    """How many voters the meta group has, of so many nodes: an odd number up to five. With two nodes it is two: one
    voter alone would lose the cluster's records with its disk."""
    return META_VOTERS_MAX if nodes >= META_VOTERS_MAX else min(3, nodes)


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
    learners: Collection[str],
    alive: Collection[str],
    removed: Collection[str],
    load: Mapping[str, int],
    wanted: int,
) -> Step | None:
    """The next step for one shard.

    Node ids: replicas = where the shard is; learners = those of them without a vote; alive = members that can be
    reached; removed = removed for good.
    load: how many replicas each node has. wanted: the replication factor.
    Additions come before removals, so that a removed node's data is on its successor first.
    """
    gone = sorted(node for node in replicas if node in removed)
    present = [node for node in replicas if node not in removed]
    spare = [node for node in alive if node not in replicas and node not in removed]
    for node in sorted(node for node in learners if node not in removed):
        if node not in alive:
            return Step(StepKind.REMOVE, shard, node, "it was being added, and its node is down")
        if len(present) <= wanted:
            return Step(StepKind.ADD, shard, node, "it has no vote yet")
    if len(present) < wanted and spare:
        node = min(spare, key=lambda one: (load.get(one, 0), one))
        return Step(StepKind.ADD, shard, node, f"{len(present)} of {wanted} replicas")
    if gone:
        return Step(StepKind.REMOVE, shard, gone[0], "its node was removed from the cluster")
    if len(present) > wanted:
        node = max(present, key=lambda one: (one in learners, one not in alive, load.get(one, 0), one))
        return Step(StepKind.REMOVE, shard, node, f"{len(present)} replicas where {wanted} are wanted")
    return None
