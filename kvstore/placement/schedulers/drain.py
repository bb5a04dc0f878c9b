"""Everything off a node that is drained: its leaderships first, so that no client waits, then its replicas.

Invariant: a replica goes only when another has taken over; a drain that nobody can take over waits and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstore.placement.filters import best_target, blocked_by, can_send
from kvstore.placement.moves import heir, replace, transfer
from kvstore.placement.operators import Kind, Plan
from kvstore.placement.safety import danger, has_quorum
from kvstore.placement.view import Health, ShardView, View

BLOCKED_MAX = 10  # shards that a report names


def drain(view: View) -> Iterator[Plan]:
    for node in [one for one in view.nodes.values() if one.draining and one.health != Health.REMOVED]:
        for shard in _idle(view, tuple(view.leaders[node.id])):
            to = heir(view, shard, but=node.id)
            if not view.has_room() or view.transfers >= view.thresholds.transfers_max:
                break
            if to is not None and shard.leader == node.id and has_quorum(view, shard.voters):
                yield transfer(view, shard, to=to, kind=Kind.DRAIN, reason=f"{node.name} is drained")
        for shard in _idle(view, tuple(view.replicas[node.id])):
            if not view.has_room():
                return
            plan = _move(view, shard, node.id)
            if plan is not None:
                yield plan


def _idle(view: View, shards: tuple[int, ...]) -> Iterator[ShardView]:
    for shard in shards:
        known = view.shards[shard]
        if shard not in view.running and not view.rests(shard) and not known.joint and not known.learners:
            yield known


def _move(view: View, shard: ShardView, node: str) -> Plan | None:
    if node not in shard.voters or shard.leader is None or len(shard.voters) > view.wanted(shard):
        return None  # too many voters: repair takes this one away
    if shard.leader == node and heir(view, shard, but=node) is not None:
        return None  # its leadership goes first
    if not can_send(view, shard):
        return None
    target = best_target(view, shard, away=node)
    if target is None:
        return None
    reason = f"{view.name(node)} is drained"
    plan = replace(view, shard, away=node, to=target.id, kind=Kind.DRAIN, reason=reason)
    return plan if danger(view, shard, plan) is None else None


@dataclass(frozen=True, slots=True)
class DrainState:
    """How far a drain is. `blocked`: (shard, why), at most BLOCKED_MAX of them."""

    leaders: int
    replicas: int
    data_bytes: int
    moving: int
    blocked: tuple[tuple[int, str], ...]

    @property
    def done(self) -> bool:
        return self.replicas == 0


def drain_state(view: View, node: str) -> DrainState:
    """As observed, not as planned: what is still there."""
    shards = [shard for shard in view.shards.values() if node in shard.nodes]
    blocked: list[tuple[int, str]] = []
    for shard in shards:
        if len(blocked) < BLOCKED_MAX and shard.id not in view.running and node in shard.voters:
            why = _obstacle(view, shard, node)
            if why is not None:
                blocked.append((shard.id, why))
    return DrainState(
        leaders=sum(shard.leader == node for shard in shards),
        replicas=len(shards),
        data_bytes=sum(shard.data_bytes for shard in shards),
        moving=sum(shard.id in view.running for shard in shards),
        blocked=tuple(blocked),
    )


def _obstacle(view: View, shard: ShardView, node: str) -> str | None:
    if not has_quorum(view, shard.voters):
        return "it has no quorum"
    if shard.leader is None:
        return "it has no leader"
    if len(shard.voters) > view.wanted(shard) or not view.has_room() or not can_send(view, shard):
        return None  # it only waits for its turn
    if best_target(view, shard, away=node) is not None:
        return None
    busy = any(view.receiving[one.id] >= view.thresholds.receiving_max for one in view.serving())
    return None if busy else f"no node can take its replica: {blocked_by(view, shard)}"
