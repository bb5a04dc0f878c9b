"""What no plan may do, whoever made it: the operator board asserts it of every plan before it begins.

Invariant (of a plan that passes): never two replicas of a shard on one node; at every step, in both halves of a joint
change, the voters that are up are a majority, if they are one now; at its end it is where it said that it would be.
"""

from __future__ import annotations

from collections.abc import Collection

from kvstore.placement.operators import Plan, StepKind
from kvstore.placement.view import ShardView, View


def has_quorum(view: View, voters: Collection[str]) -> bool:
    return sum(map(view.is_up, voters)) >= len(voters) // 2 + 1


def danger(view: View, shard: ShardView, plan: Plan) -> str | None:
    """What is wrong with the plan; None = nothing."""
    voters, learners, leader = set(shard.voters), set(shard.learners), shard.leader
    if not has_quorum(view, voters):
        return "the shard has no quorum"
    for step in plan.steps:
        node = step.node
        if step.kind == StepKind.ADD_LEARNER:
            if node in voters | learners:
                return f"a second replica on {view.name(node)}"
            learners.add(node)
        elif step.kind in (StepKind.PROMOTE, StepKind.SWAP):
            if node not in learners:
                return f"{view.name(node)} has no learner to promote"
            learners.remove(node)
            voters.add(node)
            if step.kind == StepKind.SWAP:
                if step.other == leader:
                    return "the leader is removed"
                voters.discard(step.other)
        elif step.kind == StepKind.REMOVE:
            if node == leader:
                return "the leader is removed"
            voters.discard(node)
            learners.discard(node)
        elif step.kind == StepKind.TRANSFER:
            if node not in voters or not view.is_up(node):
                return f"{view.name(node)} cannot lead"
            leader = node
        if not has_quorum(view, voters):
            return f"no quorum after: {step.kind} {view.name(node)}"
    if voters | learners != set(plan.placement.nodes):
        return "the steps do not lead to the placement"
    return None
