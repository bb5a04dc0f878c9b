"""The same number of leaderships on every node: each costs work, and a node that dies takes them all with it.

Invariant: a transfer brings both nodes nearer to the mean.
Invariant: the meta group's leader stays: the driver would lose its view and its history for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.base.ids import META_SHARD
from kvstore.placement.moves import transfer
from kvstore.placement.operators import Kind, Plan
from kvstore.placement.view import View

STEP = 0.99
STEP_UNDER_LOAD = 1.5  # lets hot shards be parted even where each node leads but a few
PAIRS_MAX = 100


def leader_bounds(view: View) -> tuple[float, float]:
    """(least, most) leaderships that a node in service should have."""
    nodes = view.leading()
    if not nodes:
        return 0.0, 0.0
    mean = sum(len(view.leaders[node]) for node in nodes) / len(nodes)
    tolerance = max(STEP, view.thresholds.balance_tolerance * mean)
    if max(view.load[node] for node in nodes) >= view.thresholds.load_ignored:
        tolerance = max(STEP_UNDER_LOAD, 2 * view.thresholds.balance_tolerance * mean)
    return mean - tolerance, mean + tolerance


def balance_leaders(view: View) -> Iterator[Plan]:
    while view.has_room() and view.transfers < view.thresholds.transfers_max:
        plan = _next(view)
        if plan is None:
            return
        yield plan


def _next(view: View) -> Plan | None:
    least, most = leader_bounds(view)
    counts = {node: len(view.leaders[node]) for node in view.leading()}
    ranked = sorted(counts, key=lambda node: (-counts[node], node))
    tried = 0
    for source in ranked:
        for target in reversed(ranked):
            outside = counts[source] > most or counts[target] < least
            if not outside or counts[source] - counts[target] < 2:
                break
            reason = f"{view.name(source)} leads {counts[source]} shards, {view.name(target)} {counts[target]}"
            plan = _transfer(view, source, target, reason)
            tried += 1
            if plan is not None or tried == PAIRS_MAX:
                return plan
    return None


def _transfer(view: View, source: str, target: str, reason: str) -> Plan | None:
    """The busiest shard that does not leave the target busier than the source; else the least busy one."""
    gap = view.load[source] - view.load[target]
    held = view.replicas[target]
    able = [view.shards[shard] for shard in view.leaders[source] if shard in held and view.is_calm(shard)]
    able = [shard for shard in able if target in shard.voters and shard.leader == source and shard.id != META_SHARD]
    if not able:
        return None
    fitting = [shard for shard in able if shard.load <= gap / 2]
    if fitting:
        shard = max(fitting, key=lambda one: (one.load, -one.id))
    else:
        shard = min(able, key=lambda one: (one.load, one.id))
    return transfer(view, shard, to=target, kind=Kind.LEADERS, reason=reason)
