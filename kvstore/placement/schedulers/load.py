"""Hot shards apart: the operations a second of the shards that a node leads, near to the mean.

First a leadership goes to another of its voters; where all of them are busy, a replica to a node that is not.
Load is never at rest, so this one has three brakes: differences below a threshold move nothing, a move must leave a
margin, and a shard that was moved rests.

Invariant: a move leaves the target less busy than the source was, by a margin, and the number of leaderships in
           its bounds. The number of replicas may leave them by one: balance gives an idle follower back for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest

from kvstore.base.ids import META_SHARD
from kvstore.placement.filters import can_send, crowding_after, keeps_spread, veto
from kvstore.placement.moves import make_plan, transfer
from kvstore.placement.operators import Kind, Plan, Step, StepKind
from kvstore.placement.schedulers.leaders import leader_bounds
from kvstore.placement.schedulers.replicas import Distance, in_bounds, replica_distances
from kvstore.placement.view import ShardView, View

MARGIN = 0.05  # of the mean load of a node
MOVES_MAX = 500  # a shard with less than this part of what is too much is not worth a move
OPTIONS_MAX = 8  # of what could be done, the best are looked at closely
GIVERS_MAX = 8  # nodes that could make room by giving a leadership away
IDLE_MAX = 4  # shards of each
SHARDS_MAX = 100  # the busiest of a node are looked at


def balance_load(view: View) -> Iterator[Plan]:
    while view.has_room() and view.transfers < view.thresholds.transfers_max:
        plan = _next(view)
        if plan is None:
            return
        yield plan


def _next(view: View) -> Plan | None:
    nodes = view.leading()
    if len(nodes) < 2:
        return None
    mean = sum(view.load[node] for node in nodes) / len(nodes)
    source = max(nodes, key=lambda node: (view.load[node], node))
    limit = mean + max(view.thresholds.load_tolerance * mean, view.thresholds.load_ignored)
    if view.load[source] <= limit:
        return None
    margin = MARGIN * mean
    hottest = sorted((view.shards[one] for one in view.leaders[source]), key=lambda one: (-one.load, one.id))
    least = (view.load[source] - mean) / MOVES_MAX
    hottest = [
        one for one in hottest[:SHARDS_MAX] if one.load > least and one.id != META_SHARD and view.is_calm(one.id)
    ]
    reason = f"{view.name(source)} does {view.load[source]} operations a second, the mean is {mean:.0f}"
    return _transfer(view, hottest, source, margin, reason) or _move(view, hottest, source, margin, reason)


def _transfer(view: View, hottest: list[ShardView], source: str, margin: float, reason: str) -> Plan | None:
    options = []
    for shard in hottest:
        for node in shard.voters:
            if node != source and view.may_lead(node):
                gain = _gain(view, shard, source, node)
                if gain > margin:
                    options.append((-gain * shard.load, shard.id, node))
    for _gained, shard_id, to in sorted(options)[:OPTIONS_MAX]:
        shard = view.shards[shard_id]
        plan = transfer(view, shard, to=to, kind=Kind.LOAD, reason=reason)
        chosen = _with_room(view, plan, shard, source, to)
        if chosen is not None:
            return chosen
    return None


def _move(view: View, hottest: list[ShardView], source: str, margin: float, reason: str) -> Plan | None:
    """A follower of a hot shard to a node that is not busy, which then leads it."""
    numbers = replica_distances(view)
    idle = sorted(view.serving(), key=lambda node: (view.load[node.id], node.id))
    for shard in hottest[:OPTIONS_MAX]:
        if not can_send(view, shard):
            continue
        for node in idle:
            if _gain(view, shard, source, node.id) <= margin:
                break  # the next ones are busier
            away = None if veto(view, shard, node) else _least_needed(view, shard, source, node.id, numbers)
            if away is not None:
                steps = (
                    Step(StepKind.ADD_LEARNER, node.id),
                    Step(StepKind.SWAP, node.id, away),
                    Step(StepKind.TRANSFER, node.id),
                )
                nodes = (*(one for one in shard.nodes if one != away), node.id)
                plan = make_plan(view, shard, Kind.LOAD, list(steps), nodes, node.id, reason)
                chosen = _with_room(view, plan, shard, source, node.id)
                if chosen is not None:
                    return chosen
    return None


def _least_needed(view: View, shard: ShardView, source: str, to: str, numbers: dict[str, Distance]) -> str | None:
    """Which follower the newcomer can replace."""
    able = [
        one
        for one in shard.voters
        if one != source
        and in_bounds(numbers, away=one, to=to, slack=1.0)
        and keeps_spread(view, shard, away=one, to=to)
    ]
    return min(able, key=lambda one: (crowding_after(view, shard, away=one, to=to), one), default=None)


def _with_room(view: View, plan: Plan, shard: ShardView, source: str, target: str) -> Plan | None:
    """The plan, where the numbers of leaderships allow it; else one that makes room for it, an idle shard's leadership
    to the source or away from the target. That costs less than the plan will gain."""
    least, most = leader_bounds(view)
    counts = {node: len(view.leaders[node]) for node in view.leading()}
    cost_max = shard.load * _gain(view, shard, source, target) / 2
    if counts[source] - 1 < least:
        givers = [node for node in counts if node != source and counts[node] - 1 >= least]
        receivers = {source}
    elif counts[target] + 1 > most:
        givers = [target]
        receivers = {node for node in counts if node != source and counts[node] + 1 <= most}
    else:
        return plan
    for giver in sorted(givers, key=lambda node: (node != target, -counts[node], node))[:GIVERS_MAX]:
        able = [
            view.shards[one]
            for one in view.leaders[giver]
            if one != META_SHARD and not receivers.isdisjoint(view.shards[one].voters) and view.is_calm(one)
        ]
        for one in nsmallest(IDLE_MAX, able, key=_load_of):
            for to in sorted(receivers.intersection(one.voters)):
                if one.load * (view.load[to] - view.load[giver] + one.load) < cost_max and one.leader == giver:
                    reason = f"in exchange for a busier one: {plan.reason}"
                    return transfer(view, one, to=to, kind=Kind.LOAD, reason=reason)
    return None


def _load_of(shard: ShardView) -> tuple[int, int]:
    return shard.load, shard.id


def _gain(view: View, shard: ShardView, source: str, target: str) -> float:
    """By how much the target stays below the source's load of before."""
    return view.load[source] - view.load[target] - shard.load
