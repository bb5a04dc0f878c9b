"""Replicas of a shard in as many zones, and on as many hosts, as there are.

Invariant: each plan makes its shard less crowded.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.placement.filters import can_send, crowding_after, targets
from kvstore.placement.moves import replace
from kvstore.placement.operators import Kind, Plan
from kvstore.placement.safety import danger
from kvstore.placement.view import ShardView, View


def spread(view: View) -> Iterator[Plan]:
    for shard in [view.shards[one] for one in view.crowded]:
        if not view.has_room():
            return
        if view.is_calm(shard.id) and can_send(view, shard):
            plan = _spread_one(view, shard)
            if plan is not None:
                yield plan


def _spread_one(view: View, shard: ShardView) -> Plan | None:
    before = view.crowding(shard.voters)
    options = []
    for away in shard.voters:
        target = next(targets(view, shard, away=away), None)
        if target is not None:
            after = crowding_after(view, shard, away=away, to=target.id)
            options.append((after, away == shard.leader, -len(view.replicas[away]), away, target.id))
    if not options:
        return None
    after, _leads, _count, away, to = min(options)
    if after >= before:
        return None
    what = "zone" if after[0] < before[0] else "host"
    reason = f"two replicas in one {what}"
    plan = replace(view, shard, away=away, to=to, kind=Kind.SPREAD, reason=reason)
    return plan if danger(view, shard, plan) is None else None
