"""Hot shards apart: the operations a second of the shards that a node leads, near to the mean.

First a leadership goes to another of its voters; where all of them are busy, a replica to a node that is not.
Load is never at rest, so this one has three brakes: differences below a threshold move nothing, a move must leave a
margin, and a shard that was moved rests.

Invariant: a move leaves the target less busy than the source was, by a margin, and the numbers of leaderships and
           replicas in their bounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.placement.filters import can_send, crowding_after, keeps_spread, veto
from kvstore.placement.moves import make_plan, transfer
from kvstore.placement.operators import Kind, Plan, Step, StepKind
from kvstore.placement.schedulers.leaders import leader_bounds
from kvstore.placement.schedulers.replicas import in_bounds, replica_distances
from kvstore.placement.view import ShardView, View

MARGIN = 0.05  # of the mean load of a node
SHARDS_MAX = 50  # the busiest of a node are looked at


def balance_load(view: View) -> Iterator[Plan]:
    while view.has_room() and view.transfers < view.thresholds.transfers_max:
        plan = _next(view)
        if plan is None:
            return
        yield plan


def _next(view: View) -> Plan | None:
    nodes = [node.id for node in view.serving()]
    if len(nodes) < 2:
        return None
    mean = sum(view.load[node] for node in nodes) / len(nodes)
    source = max(nodes, key=lambda node: (view.load[node], node))
    limit = mean + max(view.thresholds.load_tolerance * mean, view.thresholds.load_ignored)
    if view.load[source] <= limit:
        return None
    margin = MARGIN * mean
    hottest = sorted((view.shards[one] for one in view.leaders[source]), key=lambda one: (-one.load, one.id))
    hottest = [one for one in hottest[:SHARDS_MAX] if one.load > margin and view.is_calm(one.id)]
    reason = f"{view.name(source)} does {view.load[source]} operations a second, the mean is {mean:.0f}"
    return _transfer(view, hottest, source, margin, reason) or _move(view, hottest, source, margin, reason)


def _transfer(view: View, hottest: list[ShardView], source: str, margin: float, reason: str) -> Plan | None:
    least, most = leader_bounds(view)
    if len(view.leaders[source]) - 1 < least:
        return None
    options = []
    for shard in hottest:
        for node in shard.voters:
            if node != source and view.in_service(node) and len(view.leaders[node]) + 1 <= most:
                gain = _gain(view, shard, source, node)
                if gain > margin:
                    options.append((-gain * shard.load, shard.id, node))
    if not options:
        return None
    _gained, shard_id, to = min(options)
    return transfer(view, view.shards[shard_id], to=to, kind=Kind.LOAD, reason=reason)


def _move(view: View, hottest: list[ShardView], source: str, margin: float, reason: str) -> Plan | None:
    """A follower of a hot shard to a node that is not busy, which then leads it."""
    least, most = leader_bounds(view)
    if len(view.leaders[source]) - 1 < least:
        return None
    numbers = replica_distances(view)
    idle = sorted((node for node in view.serving()), key=lambda node: (view.load[node.id], node.id))
    for shard in hottest:
        if not can_send(view, shard):
            continue
        for node in idle:
            if len(view.leaders[node.id]) + 1 > most or veto(view, shard, node) is not None:
                continue
            if _gain(view, shard, source, node.id) <= margin:
                break  # the next ones are busier
            able = [
                one
                for one in shard.voters
                if one != source
                and in_bounds(numbers, away=one, to=node.id)
                and keeps_spread(view, shard, away=one, to=node.id)
            ]
            if able:
                away = min(able, key=lambda one: (crowding_after(view, shard, away=one, to=node.id), one))
                steps = [
                    Step(StepKind.ADD_LEARNER, node.id),
                    Step(StepKind.SWAP, node.id, away),
                    Step(StepKind.TRANSFER, node.id),
                ]
                nodes = (*(one for one in shard.nodes if one != away), node.id)
                return make_plan(view, shard, Kind.LOAD, steps, nodes, node.id, reason)
    return None


def _gain(view: View, shard: ShardView, source: str, target: str) -> float:
    """By how much the target stays below the source's load of before."""
    return view.load[source] - view.load[target] - shard.load
