"""The plans that schedulers are made of: add, remove, replace a replica, transfer a leadership.

A replacement never has fewer voters than before, nor an even number for long: the newcomer is a learner until it has
caught up, and its promotion and the other's removal are one joint change.
"""

from __future__ import annotations

from kvstore.placement.operators import Kind, Placement, Plan, Step, StepKind
from kvstore.placement.view import ShardView, View


def make_plan(
    view: View, shard: ShardView, kind: Kind, steps: list[Step], nodes: tuple[str, ...], leader: str | None, reason: str
) -> Plan:
    return Plan(
        kind=kind,
        shard=shard.id,
        version=shard.version,
        conf=shard.conf,
        steps=tuple(steps),
        placement=Placement(nodes, leader),
        sender=shard.leader,
        reason=reason,
    )


def heir(view: View, shard: ShardView, *, but: str) -> str | None:
    """Who should lead instead of `but`: of the voters in service the one with the fewest leaderships; one whose disk is
    full only where there is no other."""
    able = [node for node in shard.voters if node != but and view.in_service(node)]
    return min(
        able, key=lambda node: (not view.may_lead(node), len(view.leaders[node]), view.load[node], node), default=None
    )


def transfer(view: View, shard: ShardView, *, to: str, kind: Kind, reason: str) -> Plan:
    return make_plan(view, shard, kind, [Step(StepKind.TRANSFER, to)], shard.nodes, to, reason)


def add(view: View, shard: ShardView, *, to: str, kind: Kind, reason: str) -> Plan:
    steps = [Step(StepKind.ADD_LEARNER, to), Step(StepKind.PROMOTE, to)]
    return make_plan(view, shard, kind, steps, (*shard.nodes, to), shard.leader, reason)


def promote(view: View, shard: ShardView, *, node: str, kind: Kind, reason: str) -> Plan:
    return make_plan(view, shard, kind, [Step(StepKind.PROMOTE, node)], shard.nodes, shard.leader, reason)


def swap(view: View, shard: ShardView, *, node: str, away: str, kind: Kind, reason: str) -> Plan | None:
    """The learner on `node` in place of the voter on `away`. None where that one leads and nobody else can."""
    nodes = tuple(one for one in shard.nodes if one != away)
    if shard.leader != away:
        return make_plan(view, shard, kind, [Step(StepKind.SWAP, node, away)], nodes, shard.leader, reason)
    to = heir(view, shard, but=away)
    if to is None:
        return None
    steps = [Step(StepKind.TRANSFER, to), Step(StepKind.SWAP, node, away)]
    return make_plan(view, shard, kind, steps, nodes, to, reason)


def remove(view: View, shard: ShardView, *, node: str, kind: Kind, reason: str) -> Plan | None:
    """None where it leads and nobody else can."""
    nodes = tuple(one for one in shard.nodes if one != node)
    if shard.leader != node:
        return make_plan(view, shard, kind, [Step(StepKind.REMOVE, node)], nodes, shard.leader, reason)
    to = heir(view, shard, but=node)
    if to is None:
        return None
    steps = [Step(StepKind.TRANSFER, to), Step(StepKind.REMOVE, node)]
    return make_plan(view, shard, kind, steps, nodes, to, reason)


def replace(view: View, shard: ShardView, *, away: str, to: str, kind: Kind, reason: str) -> Plan:
    """`away` is a voter. Where it leads, another takes over first; where none can, the newcomer does."""
    nodes = (*(one for one in shard.nodes if one != away), to)
    steps = [Step(StepKind.ADD_LEARNER, to)]
    leader = shard.leader
    if leader != away:
        steps.append(Step(StepKind.SWAP, to, away))
    elif (next_leader := heir(view, shard, but=away)) is not None:
        leader = next_leader
        steps += [Step(StepKind.TRANSFER, leader), Step(StepKind.SWAP, to, away)]
    else:
        leader = to
        steps += [Step(StepKind.PROMOTE, to), Step(StepKind.TRANSFER, to), Step(StepKind.REMOVE, away)]
    return make_plan(view, shard, kind, steps, nodes, leader, reason)
