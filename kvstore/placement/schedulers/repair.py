"""As many replicas as are wanted, none on a node that is lost. Also keeps up the meta group: only its number differs.

Invariant: a node that is merely down keeps its replicas; so does one that is lost while no other node can take over,
           unless it was removed for good.
Invariant: applied again and again to its own results it ends: each plan lessens what is missing, surplus or unfinished.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.placement.filters import best_target, can_send
from kvstore.placement.moves import add, promote, remove, replace, swap
from kvstore.placement.operators import Kind, Plan
from kvstore.placement.safety import danger, has_quorum
from kvstore.placement.view import ShardView, View

LEARNER_SECONDS_MAX = 30.0  # for an addition by hand; then a learner that nobody needs is taken back


def repair(view: View) -> Iterator[Plan]:
    """The shards with the fewest voters alive first."""
    waiting = [view.shards[shard] for shard in view.unwell if shard not in view.running]
    for shard in sorted(waiting, key=lambda one: (sum(map(view.is_up, one.voters)), one.id)):
        if not view.has_room():
            return
        if view.rests(shard.id) or shard.joint or shard.leader is None or not has_quorum(view, shard.voters):
            continue
        plan = _repair_one(view, shard)
        if plan is not None and danger(view, shard, plan) is None:
            yield plan


def _repair_one(view: View, shard: ShardView) -> Plan | None:
    wanted = view.wanted(shard)
    lost = [node for node in shard.voters if view.is_lost(node)]
    if shard.learners:
        return _finish(view, shard, missing=wanted - (len(shard.voters) - len(lost)))
    if len(shard.voters) > wanted:
        return _shrink(view, shard, wanted)
    if not lost and len(shard.voters) == wanted:
        return None
    target = best_target(view, shard, away=lost[0] if lost else None) if can_send(view, shard) else None
    if lost:
        if target is not None:
            reason = "was removed from the cluster" if view.is_removed(lost[0]) else "is down for too long"
            why = f"{view.name(lost[0])} {reason}"
            return replace(view, shard, away=lost[0], to=target.id, kind=Kind.REPAIR, reason=why)
        others = [one for one in view.nodes if one not in shard.nodes and not view.is_removed(one)]
        if view.is_removed(lost[0]) and not others:
            why = f"{view.name(lost[0])} was removed from the cluster, and no other node is left"
            return remove(view, shard, node=lost[0], kind=Kind.REPAIR, reason=why)
        return None
    if target is None:
        return None
    return add(view, shard, to=target.id, kind=Kind.REPAIR, reason=f"{len(shard.voters)} of {wanted} replicas")


def _finish(view: View, shard: ShardView, *, missing: int) -> Plan | None:
    """A learner without a running plan: take it in where it is needed, in place of a voter that is to go if there is
    one. Where it is not, its addition broke off, or somebody adds it by hand just now."""
    for node in sorted(shard.learners):
        going = sorted(shard.voters, key=lambda one: (not view.is_lost(one), one))
        going = [one for one in going if view.is_lost(one) or view.is_draining(one)]
        if going and view.in_service(node) and (plan := _take_over(view, shard, node, going[0])) is not None:
            return plan
        if view.in_service(node) and missing <= 0 and view.learning_seconds(shard.id) < LEARNER_SECONDS_MAX:
            return None
        if not view.in_service(node) or missing <= 0:
            why = "its addition broke off" if view.in_service(node) else "it was being added, and its node is not there"
            return remove(view, shard, node=node, kind=Kind.REPAIR, reason=why)
    return promote(view, shard, node=min(shard.learners), kind=Kind.REPAIR, reason="it has no vote yet")


def _take_over(view: View, shard: ShardView, node: str, away: str) -> Plan | None:
    why = "is drained" if view.is_draining(away) else "is down for too long or removed"
    reason = f"{view.name(away)} {why}, and {view.name(node)} has begun to take over"
    return swap(view, shard, node=node, away=away, kind=Kind.REPAIR, reason=reason)


def _shrink(view: View, shard: ShardView, wanted: int) -> Plan | None:
    """One voter less: a lost one, one that is drained, one that crowds a zone, the one on the fullest node, the latest;
    rather a follower than the leader."""
    shares = view.shares()

    def unwanted(node: str) -> tuple[object, ...]:
        rest = view.crowding(tuple(one for one in shard.voters if one != node))
        fullness = len(view.replicas.get(node, ())) / max(shares.get(node, 0.0), 1e-9)
        return (
            not view.is_removed(node),
            not view.is_lost(node),
            view.in_service(node),
            rest,
            node == shard.leader,
            -fullness,
            -shard.voters.index(node),
        )

    reason = f"{len(shard.voters)} replicas where {wanted} are wanted"
    for node in sorted(shard.voters, key=unwanted):
        plan = remove(view, shard, node=node, kind=Kind.REPAIR, reason=reason)
        if plan is not None and danger(view, shard, plan) is None:
            return plan
    return None
