"""How replicas ought to be divided among nodes: by capacity, as far as spreading over zones allows.

With three zones and three replicas each zone holds one replica of every shard, however many nodes it has; a target that
ignored it could never be reached, and balance would try for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Crowding = tuple[int, int]
"""Pairs of a shard's replicas in one zone, pairs on one host; compared in this order."""

WEIGHT_MIN, WEIGHT_MAX = 0.5, 2.0
"""A disk of ten times the size makes no processor of ten times the speed."""
ROUNDS = 64


def least_crowding(places: Sequence[tuple[str, str]], count: int) -> Crowding:
    """The least crowding of `count` replicas on nodes at these (zone, host)s; one replica a node.

    Greedy: the next replica goes to the zone with the fewest of them, there to the host with the fewest.
    """
    nodes = Counter(places)
    zones: Counter[str] = Counter()
    hosts: Counter[tuple[str, str]] = Counter()
    for _ in range(count):
        free = [place for place, number in nodes.items() if number > hosts[place]]
        if not free:
            break
        place = min(free, key=lambda one: (zones[one[0]], hosts[one], one))
        zones[place[0]] += 1
        hosts[place] += 1
    return pairs(zones.values()), pairs(hosts.values())


def node_shares(capacities: Mapping[str, int], zones: Mapping[str, str], sizes: Mapping[int, int]) -> dict[str, float]:
    """Which part of all replicas should be on each node; the parts add up to 1.

    capacities: bytes by node id, 0 = unknown; zones: by node id; sizes: how many shards want so many replicas.
    """
    if not capacities:
        return {}
    weights = _weights(capacities)
    by_zone: dict[str, list[str]] = {}
    for node in capacities:
        by_zone.setdefault(zones[node], []).append(node)
    replicas: Counter[str] = Counter()  # by zone
    for count, shards in sizes.items():
        if count > 0 and shards > 0:
            for zone, part in _zone_parts(by_zone, weights, count).items():
                replicas[zone] += part * shards  # type: ignore[assignment]
    total = sum(replicas.values()) or 1
    shares: dict[str, float] = {}
    for zone, nodes in by_zone.items():
        weight = sum(weights[node] for node in nodes)
        part = replicas[zone] / total if replicas else 1 / len(by_zone)
        shares.update({node: part * weights[node] / weight for node in nodes})
    return shares


def _weights(capacities: Mapping[str, int]) -> dict[str, float]:
    known = [size for size in capacities.values() if size > 0]
    mean = sum(known) / len(known) if known else 1.0
    return {
        node: min(max(size / mean, WEIGHT_MIN), WEIGHT_MAX) if size > 0 else 1.0 for node, size in capacities.items()
    }


def _zone_parts(by_zone: Mapping[str, Sequence[str]], weights: Mapping[str, float], count: int) -> dict[str, float]:
    """How many of a shard's `count` replicas each zone gets on average: by weight, between the bounds of an even
    spread. The factor that makes the bounded parts add up is found by halving."""
    even, spare = divmod(count, len(by_zone))
    low = {zone: float(min(even, len(nodes))) for zone, nodes in by_zone.items()}
    high = {zone: float(min(even + (spare > 0), len(nodes))) for zone, nodes in by_zone.items()}
    if sum(high.values()) < count:  # zones with too few nodes: the others take what is left
        high = {zone: float(len(nodes)) for zone, nodes in by_zone.items()}
    weight = {zone: sum(weights[node] for node in nodes) for zone, nodes in by_zone.items()}
    wanted = min(float(count), sum(high.values()))
    below, above = 0.0, count / min(weight.values()) + 1.0
    for _ in range(ROUNDS):
        middle = (below + above) / 2
        if sum(min(max(middle * weight[zone], low[zone]), high[zone]) for zone in by_zone) < wanted:
            below = middle
        else:
            above = middle
    return {zone: min(max(above * weight[zone], low[zone]), high[zone]) for zone in by_zone}


def pairs(counts: Iterable[int]) -> int:
    return sum(count * (count - 1) // 2 for count in counts)
