"""Each node's share of the replicas: first by number, then by bytes.

Invariant: a move brings both nodes nearer to their shares, makes no shard more crowded, and one made for bytes leaves
           the numbers in bounds. So the sum of squared distances falls with each move, and balance comes to rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstore.base.ids import META_SHARD
from kvstore.base.limits import MIB
from kvstore.placement.filters import can_send, keeps_spread, veto
from kvstore.placement.moves import replace
from kvstore.placement.operators import Kind, Plan
from kvstore.placement.view import ShardView, View

PAIRS_MAX = 40  # pairs of nodes that are tried for one move: bounds the work of a round where nothing is possible
SHARDS_MAX = 200  # shards that are tried for one pair
STEP = 0.99  # numbers are whole: a node that is nearer than one to its share is there
SIZE_STEP = 16 * MIB  # sizes nearer to each other than this count as equal
BYTES_MIN = 64 * MIB  # a difference that is worth a move


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a node is above (+) or below (-) its share."""

    node: str
    excess: float
    tolerance: float


def distances(view: View, counts: dict[str, int], *, step: float, factor: float = 1.0) -> dict[str, Distance]:
    """Of the nodes in service. counts: by node; step: the least tolerance, in the same unit."""
    shares = view.shares()
    total = sum(counts.values())
    found = {}
    for node, part in shares.items():
        ideal = part * total
        tolerance = max(step, factor * view.thresholds.balance_tolerance * ideal)
        found[node] = Distance(node, counts[node] - ideal, tolerance)
    return found


def replica_distances(view: View) -> dict[str, Distance]:
    return distances(view, {node: len(view.replicas[node]) for node in view.shares()}, step=STEP)


def byte_distances(view: View) -> dict[str, Distance]:
    """Twice the tolerance of numbers: sizes change by themselves."""
    counts = {node: view.data_bytes[node] for node in view.shares()}
    return distances(view, counts, step=float(BYTES_MIN), factor=2.0)


def in_bounds(numbers: dict[str, Distance], *, away: str, to: str, slack: float = 0.0) -> bool:
    """Whether one replica may move without bringing the number of either node further than `slack` out of bounds."""
    source, target = numbers[away], numbers[to]
    return source.excess - 1 >= -source.tolerance - slack and target.excess + 1 <= target.tolerance + slack


def balance_replicas(view: View) -> Iterator[Plan]:
    """By number. Of the shards that could move, one whose size brings the bytes nearer, too."""
    while view.has_room():
        numbers = replica_distances(view)
        plan = None
        for source, target in _pairs(numbers, gap=1.0):
            sizes = byte_distances(view)
            moves = max(1.0, (source.excess - target.excess) / 2)
            best = max(0.0, (sizes[source.node].excess - sizes[target.node].excess) / 2 / moves)
            reason = f"{view.name(source.node)} has {source.excess:+.0f} replicas off its share, "
            reason += f"{view.name(target.node)} {target.excess:+.0f}"
            plan = _move(view, source.node, target.node, best_bytes=best, reason=reason)
            if plan is not None:
                break
        if plan is None:
            return
        yield plan


def balance_bytes(view: View) -> Iterator[Plan]:
    while view.has_room():
        numbers = replica_distances(view)
        sizes = byte_distances(view)
        plan = None
        for source, target in _pairs(sizes, gap=float(BYTES_MIN)):
            if not in_bounds(numbers, away=source.node, to=target.node):
                continue
            gap = source.excess - target.excess
            reason = f"{view.name(source.node)} has {source.excess / MIB:+.0f} MiB off its share, "
            reason += f"{view.name(target.node)} {target.excess / MIB:+.0f} MiB"
            plan = _move(
                view,
                source.node,
                target.node,
                best_bytes=gap / 2,
                bytes_min=min(gap / 16, SIZE_STEP),
                bytes_max=gap,
                reason=reason,
            )
            if plan is not None:
                break
        if plan is None:
            return
        yield plan


def _pairs(found: dict[str, Distance], *, gap: float) -> Iterator[tuple[Distance, Distance]]:
    """From the fullest to the emptiest, where one of the two is out of bounds and a move of `gap` would better it."""
    ranked = sorted(found.values(), key=lambda one: (-one.excess, one.node))
    tried = 0
    for source in ranked:
        for target in reversed(ranked):
            outside = source.excess > source.tolerance or target.excess < -target.tolerance
            if not outside or source.excess - target.excess <= gap + 1e-6:
                break
            yield source, target
            tried += 1
            if tried == PAIRS_MAX:
                return


def _move(
    view: View,
    away: str,
    to: str,
    *,
    best_bytes: float,
    reason: str,
    bytes_min: float = 0.0,
    bytes_max: float = float("inf"),
) -> Plan | None:
    """One replica from `away` to `to`: of a size near to the best one, rather a follower's."""
    if view.receiving[to] >= view.thresholds.receiving_max:
        return None
    there = view.replicas[to]

    def worth(shard: ShardView) -> tuple[int, bool, int]:
        return int(abs(shard.data_bytes - best_bytes) / SIZE_STEP), shard.leader == away, shard.id

    able = [
        known
        for shard in view.replicas[away]
        if shard not in there and bytes_min <= (known := view.shards[shard]).data_bytes < bytes_max
    ]
    able.sort(key=worth)
    tried = 0
    for shard in able:
        if not view.is_calm(shard.id) or not can_send(view, shard):
            continue
        if shard.id == META_SHARD and shard.leader == away:
            continue  # the driver's own node: it would lose its view and its history
        if keeps_spread(view, shard, away=away, to=to) and veto(view, shard, view.nodes[to]) is None:
            return replace(view, shard, away=away, to=to, kind=Kind.REPLICAS, reason=reason)
        tried += 1
        if tried == SHARDS_MAX:
            return None
    return None
