"""What no plan may do, whoever made it: the operator board asserts it of every plan before it begins.

Invariant (of a plan that passes): never two replicas of a shard on one node; at every step, in both halves of a joint
change, the voters that are up are a majority, if they are one now; at its end it is where it said that it would be.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kvstore.placement.operators import Plan, Step, StepKind
from kvstore.placement.view import ShardView, View


def has_quorum(view: View, voters: Collection[str]) -> bool:
    return sum(map(view.is_up, voters)) >= len(voters) // 2 + 1


def danger(view: View, shard: ShardView, plan: Plan) -> str | None:
    """What is wrong with the plan; None = nothing."""
    if not has_quorum(view, shard.voters):
        return "the shard has no quorum"
    sketch = _Sketch(set(shard.voters), set(shard.learners), shard.leader)
    for step in plan.steps:
        objection = sketch.do(view, step)
        if objection is not None:
            return objection
    if sketch.voters | sketch.learners != set(plan.placement.nodes):
        return "the steps do not lead to the placement"
    return None


def costs_quorum(view: View, shard: ShardView, step: Step) -> bool:
    """Whether doing this step now would: since its plan was made, nodes may have died. Only a removal can; a newcomer
    that is up never makes a majority smaller."""
    if step.kind != StepKind.REMOVE or not has_quorum(view, shard.voters):
        return False
    return not has_quorum(view, [node for node in shard.voters if node != step.node])


@dataclass(slots=True)
class _Sketch:
    """A shard on paper, after some steps."""

    voters: set[str]
    learners: set[str]
    leader: str | None

    def do(self, view: View, step: Step) -> str | None:
        """Do the step, or say what is wrong with it."""
        node = step.node
        if step.kind == StepKind.ADD_LEARNER:
            if node in self.voters | self.learners:
                return f"a second replica on {view.name(node)}"
            self.learners.add(node)
        elif step.kind in (StepKind.PROMOTE, StepKind.SWAP):
            if node not in self.learners:
                return f"{view.name(node)} has no learner to promote"
            if step.kind == StepKind.SWAP and step.other == self.leader:
                return "the leader is removed"
            self.learners.remove(node)
            self.voters.add(node)
            self.voters.discard(step.other)
        elif step.kind == StepKind.REMOVE:
            if node == self.leader:
                return "the leader is removed"
            self.voters.discard(node)
            self.learners.discard(node)
        elif step.kind == StepKind.TRANSFER:
            if node not in self.voters or not view.is_up(node):
                return f"{view.name(node)} cannot lead"
            self.leader = node
        if not has_quorum(view, self.voters):
            return f"no quorum after: {step.kind} {view.name(node)}"
        return None
