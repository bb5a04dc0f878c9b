"""Placement on paper: a cluster of values, the schedulers as they are, and the moves that it takes to come to rest.

    python -m benchmarks.placement [--nodes 50] [--shards 20000] [--seed 1]

For each change (nodes join, one dies, one is drained, load is skewed) it prints how many replicas and leaderships were
moved, the least that could have been enough, the largest distance from the mean afterwards, and the processor's time.
A second later nothing may move any more: what moves then is printed as "restless".
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from dataclasses import dataclass, replace

from kvstore.base.ids import META_SHARD
from kvstore.base.limits import GIB, MIB
from kvstore.placement.board import NEEDS_TARGET, OperatorBoard
from kvstore.placement.operators import Operator, Step, StepKind
from kvstore.placement.safety import has_quorum
from kvstore.placement.schedulers.leaders import leader_bounds
from kvstore.placement.schedulers.replicas import replica_distances
from kvstore.placement.thresholds import Thresholds
from kvstore.placement.view import Health, NodeView, ShardView, View

RULES = Thresholds(operators_max=1_000, receiving_max=8, sending_max=8, transfers_max=64)
ROUNDS_MAX = 20_000


class PaperCluster:
    """Does what operators ask, one step of each a round, and shows it to the view as reports would."""

    def __init__(self, rules: Thresholds = RULES) -> None:
        self.view = View(rules)
        self.board = OperatorBoard(self.view)
        self.replica_moves = 0
        self.leader_moves = 0
        self.failed = 0
        self._leaderless: set[int] = set()

    def add_node(self, number: int, zone: str = "", host: str = "") -> str:
        node = NodeView(id=f"id{number:03}", name=f"n{number}", zone=zone, host=host, capacity_bytes=1_000 * GIB)
        self.view.put_node(node)
        return node.id

    def change_node(self, node: str, **fields: object) -> None:
        self.view.put_node(replace(self.view.nodes[node], **fields))  # type: ignore[arg-type]

    def add_shard(self, shard: int, voters: list[str], data_bytes: int = 0) -> None:
        known = ShardView(
            id=shard,
            keyspace=0 if shard == META_SHARD else 1,
            version=1,
            conf=1,
            voters=tuple(voters),
            leader=voters[0],
            data_bytes=data_bytes,
        )
        self.view.put_shard(known)

    def round(self) -> int:
        """One second: every running operator does a step; returns how many operators began."""
        view = self.view
        view.now += 1.0
        self._elect()
        for operator in list(self.board.running.values()):
            if operator.step is not None:
                self._carry_out(operator, operator.step)
        self.board.observe()
        self.failed += sum(one.state == "failed" and one.ended == view.now for one in self.board.ended)
        return len(self.board.decide())

    def rest(self) -> int:
        """Until nothing has run or begun for so long that no shard rests any more; returns the rounds up to then."""
        last = 0
        for number in range(ROUNDS_MAX):
            if self.round() or self.board.running:
                last = number
            elif number - last > self.view.thresholds.rest_seconds:
                return last
        raise AssertionError("it does not come to rest")

    def _elect(self) -> None:
        """Leaders on nodes that are down are followed by others, where there is a quorum."""
        view = self.view
        down = [one.id for one in view.nodes.values() if one.health != Health.UP]
        led = {shard for node in down for shard in view.leaders[node] if view.shards[shard].leader == node}
        for shard in sorted(led | self._leaderless):
            known = view.shards[shard]
            alive = [voter for voter in known.voters if view.is_up(voter)]
            if len(alive) >= known.quorum:
                self._leaderless.discard(shard)
                self.leader_moves += 1
                view.put_shard(replace(known, leader=alive[0]))
            else:
                self._leaderless.add(shard)
                view.put_shard(replace(known, leader=None))

    def _carry_out(self, operator: Operator, step: Step) -> None:
        shard = self.view.shards[operator.plan.shard]
        if shard.leader is None or not has_quorum(self.view, shard.voters):
            return
        if step.kind in NEEDS_TARGET and not self.view.is_up(step.node):
            return  # a leader waits for a learner that cannot catch up
        if step.kind == StepKind.ADD_LEARNER:
            self.replica_moves += 1
            shard = replace(shard, learners=(*shard.learners, step.node))
        elif step.kind == StepKind.TRANSFER:
            self.leader_moves += 1
            shard = replace(shard, leader=step.node)
        elif step.kind == StepKind.SPLIT:
            self._split(shard)
            return
        else:
            gone = {StepKind.SWAP: step.other, StepKind.REMOVE: step.node}.get(step.kind)
            voters = [one for one in shard.voters if one != gone]
            if step.kind != StepKind.REMOVE:
                voters.append(step.node)
            learners = tuple(one for one in shard.learners if one != step.node)
            shard = replace(shard, voters=tuple(voters), learners=learners)
        self.view.put_shard(replace(shard, conf=shard.conf + 1))

    def _split(self, shard: ShardView) -> None:
        half = shard.data_bytes // 2
        parent = replace(
            shard, version=shard.version + 1, data_bytes=half, reads=shard.reads // 2, writes=shard.writes // 2
        )
        self.view.put_shard(parent)
        self.view.put_shard(replace(parent, id=max(self.view.shards) + 1, data_bytes=shard.data_bytes - half))


def uniform_cluster(nodes: int, shards: int, rng: random.Random, *, zones: int = 5) -> PaperCluster:
    """Three replicas of each shard in three zones, at random among the emptiest."""
    cluster = PaperCluster()
    ids = [cluster.add_node(number, zone=f"z{number % zones}") for number in range(nodes)]
    by_zone: dict[str, list[str]] = {}
    for node in ids:
        by_zone.setdefault(cluster.view.nodes[node].zone, []).append(node)
    for shard in range(2, shards + 2):
        voters = []
        for zone in rng.sample(sorted(by_zone), min(3, len(by_zone))):
            few = min(len(cluster.view.replicas[node]) for node in by_zone[zone])
            voters.append(rng.choice([node for node in by_zone[zone] if len(cluster.view.replicas[node]) == few]))
        cluster.add_shard(shard, voters, rng.randint(8, 60) * MIB)
    return cluster


@dataclass(frozen=True)
class Result:
    name: str
    rounds: int
    replica_moves: int
    replica_least: int
    leader_moves: int
    leader_least: int
    replicas_off: float  # largest distance from its share, as a part of it
    leaders_off: float  # the same from the mean
    load_off: float  # how far the busiest node is above the mean
    restless: int
    seconds: float


def least_moves(view: View) -> tuple[int, int]:
    """(replicas, leaderships) that must move at least: what is missing below the bounds, or above them, or must go."""
    distances = replica_distances(view).values()
    missing = sum(max(0.0, -one.excess - one.tolerance) for one in distances)
    surplus = sum(max(0.0, one.excess - one.tolerance) for one in distances)
    homeless = sum(len(shards) for node, shards in view.replicas.items() if not view.in_service(node))
    low, high = leader_bounds(view)
    counts = Counter({node.id: len(view.leaders[node.id]) for node in view.serving()})
    leaderless = sum(len(view.leaders[node.id]) for node in view.nodes.values() if not node.in_service)
    leaders = max(sum(max(0.0, low - count) for count in counts.values()),
                  sum(max(0.0, count - high) for count in counts.values()), float(leaderless))  # fmt: skip
    return round(max(missing, surplus, homeless)), round(leaders)


def measure(name: str, cluster: PaperCluster) -> Result:
    view = cluster.view
    replicas, leaders = cluster.replica_moves, cluster.leader_moves
    replica_least, leader_least = least_moves(view)
    began = time.process_time()
    rounds = cluster.rest()
    seconds = time.process_time() - began
    moved = cluster.replica_moves - replicas, cluster.leader_moves - leaders
    for _ in range(100):  # past every rest
        cluster.round()
    restless = cluster.replica_moves - replicas - moved[0] + cluster.leader_moves - leaders - moved[1]
    counts = [len(view.leaders[node.id]) for node in view.serving()]
    mean = sum(counts) / len(counts)
    distances = [one for one in replica_distances(view).values()]
    shares = [len(view.replicas[one.node]) - one.excess for one in distances]
    off = max(abs(one.excess) / share for one, share in zip(distances, shares, strict=True) if share)
    leaders_off = max(abs(count - mean) for count in counts) / mean if mean else 0.0
    loads = [view.load[node.id] for node in view.serving()]
    load_off = max(loads) * len(loads) / sum(loads) - 1 if sum(loads) else 0.0
    return Result(
        name, rounds, moved[0], replica_least, moved[1], leader_least, off, leaders_off, load_off, restless, seconds
    )


def scenarios(nodes: int, shards: int, seed: int) -> list[Result]:
    """One after the other on one cluster, but for the first rows, which have one each."""
    rng = random.Random(seed)
    results = []
    joining = nodes // 10
    cluster = uniform_cluster(nodes - joining, shards, rng)
    cluster.rest()
    for number in range(nodes - joining, nodes):
        cluster.add_node(number, zone=f"z{number % 5}")
    results.append(measure(f"{joining} nodes join {nodes - joining}", cluster))
    rules = cluster.view.thresholds
    dead, drained = sorted(cluster.view.nodes)[:2]
    cluster.change_node(dead, health=Health.DOWN, down_since=cluster.view.now - rules.dead_after_seconds)
    results.append(measure("a node dies for ever", cluster))
    cluster.change_node(drained, draining=True)
    results.append(measure("a node is drained", cluster))
    busy = sorted(cluster.view.nodes)[2:5]  # three nodes lead all that is hot
    hot = sorted(cluster.view.shards, key=lambda one: (cluster.view.shards[one].leader not in busy, rng.random()))
    for rank, shard in enumerate(hot):
        known = cluster.view.shards[shard]
        cluster.view.put_shard(replace(known, reads=int(9_000 / (1 + rank) ** 0.7), writes=0))
    results.append(measure("three nodes lead what is hot", cluster))
    large = rng.sample(hot, shards // 100)
    for shard in large:
        cluster.view.put_shard(replace(cluster.view.shards[shard], data_bytes=256 * MIB))
    results.append(measure(f"{len(large)} shards grow to 256 MiB", cluster))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{arguments.nodes} nodes, {arguments.shards} shards, 3 replicas, 5 zones, seed {arguments.seed}")
    heads = ("", "rounds", "moved", "at least", "transfers", "at least", "replicas off", "leaders off", "load off",
             "restless", "CPU s")  # fmt: skip
    print(f"{heads[0]:30}" + "".join(f"{head:>14}" for head in heads[1:-1]) + f"{heads[-1]:>8}")
    for one in scenarios(arguments.nodes, arguments.shards, arguments.seed):
        print(
            f"{one.name:30}{one.rounds:14}{one.replica_moves:14}{one.replica_least:14}{one.leader_moves:14}"
            f"{one.leader_least:14}{one.replicas_off:14.1%}{one.leaders_off:14.1%}{one.load_off:14.1%}{one.restless:14}{one.seconds:8.1f}"
        )


if __name__ == "__main__":
    main()
