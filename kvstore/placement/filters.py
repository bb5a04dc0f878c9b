"""Which node may receive a replica of a shard, and why another may not: each filter vetoes with a reason.

The reasons are for people: a drain that cannot go on shows them.
Invariant: whatever has no veto here is safe to try; that it is also the best is the scheduler's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from kvstore.placement.shares import Crowding
from kvstore.placement.view import Health, NodeView, ShardView, View

Filter = Callable[[View, ShardView, NodeView], str | None]
BUSY = "it is receiving other replicas"


def not_up(view: View, shard: ShardView, node: NodeView) -> str | None:
    if node.health == Health.REMOVED:
        return "it was removed from the cluster"
    return "it is down" if node.health == Health.DOWN else None


def drains(view: View, shard: ShardView, node: NodeView) -> str | None:
    return "it is being drained" if node.draining else None


def has_a_replica(view: View, shard: ShardView, node: NodeView) -> str | None:
    has = node.id in shard.nodes or node.id in view.placed(shard.id).nodes
    return "it has a replica already" if has else None


def disk_full(view: View, shard: ShardView, node: NodeView) -> str | None:
    """With what is to come counted too: the room must be there when the snapshot arrives."""
    if node.disk_full:
        return "its disk is nearly full"
    if node.capacity_bytes <= 0:
        return None
    part = (node.used_bytes + shard.data_bytes) / node.capacity_bytes
    return "its disk is nearly full" if part > view.thresholds.disk_used_max else None


def busy(view: View, shard: ShardView, node: NodeView) -> str | None:
    return BUSY if view.receiving[node.id] >= view.thresholds.receiving_max else None


FILTERS: tuple[Filter, ...] = (not_up, drains, has_a_replica, disk_full, busy)


def veto(view: View, shard: ShardView, node: NodeView) -> str | None:
    """The first reason why this node cannot receive a replica of the shard; None = it can."""
    for one in FILTERS:
        reason = one(view, shard, node)
        if reason is not None:
            return reason
    return None


def can_send(view: View, shard: ShardView) -> bool:
    """Whether its leader may send one snapshot more."""
    return shard.leader is not None and view.sending[shard.leader] < view.thresholds.sending_max


def keeps_spread(view: View, shard: ShardView, *, away: str, to: str) -> bool:
    """Whether a move leaves the replicas no more crowded in zones and on hosts than they are."""
    source, target = view.nodes[away], view.nodes[to]
    if (source.zone, source.host) == (target.zone, target.host) and source.host:
        return True
    return crowding_after(view, shard, away=away, to=to) <= view.crowding(shard.voters)


def crowding_after(view: View, shard: ShardView, *, away: str | None, to: str) -> Crowding:
    return view.crowding((*(node for node in shard.voters if node != away), to))


def targets(view: View, shard: ShardView, *, away: str | None) -> Iterator[NodeView]:
    """Nodes that may receive a replica, `away` being its replica that goes: the best spread first, then the emptiest.

    A node in a zone that has a replica comes only after all others: "while there is a choice".
    """
    able = [node for node in view.nodes.values() if veto(view, shard, node) is None]
    shares = view.shares()

    def worth(node: NodeView) -> tuple[Crowding, float, str]:
        fullness = len(view.replicas[node.id]) / max(shares.get(node.id, 0.0), 1e-9)
        return crowding_after(view, shard, away=away, to=node.id), fullness, node.id

    return iter(sorted(able, key=worth))


def best_target(view: View, shard: ShardView, *, away: str | None) -> NodeView | None:
    """The first of `targets`; None too where a better spread has only to wait for a node that is busy.

    Taking the second zone because the first one's nodes are receiving just now would be undone later by spread.
    """
    best = next(targets(view, shard, away=away), None)
    if best is None:
        return None
    reached = crowding_after(view, shard, away=away, to=best.id)
    for node in view.nodes.values():
        if veto(view, shard, node) == BUSY and crowding_after(view, shard, away=away, to=node.id) < reached:
            return None
    return best


def blocked_by(view: View, shard: ShardView) -> str:
    """Why no node can receive a replica, in a sentence's part: "n4 is down; n5 ..."; nodes with a replica left out."""
    reasons: Counter[str] = Counter()
    for node in view.nodes.values():
        if node.health != Health.REMOVED and has_a_replica(view, shard, node) is None:
            reasons[f"{node.name}: {veto(view, shard, node) or 'it could'}"] += 1
    return "; ".join(sorted(reasons)) or "every node has a replica already"
