"""Pictures of clusters in one line, for tables: nodes are letters, the first voter leads."""

from __future__ import annotations

from dataclasses import replace

from kvstore.placement.operators import Plan, StepKind
from kvstore.placement.thresholds import DEFAULTS, Thresholds
from kvstore.placement.view import Health, NodeView, ShardView, View

SHORT = {
    StepKind.ADD_LEARNER: "+",
    StepKind.PROMOTE: "^",
    StepKind.SWAP: "~",
    StepKind.REMOVE: "-",
    StepKind.TRANSFER: ">",
    StepKind.SPLIT: "/",
}


def picture(
    nodes: str,
    *,
    zones: str = "",
    hosts: str = "",
    down: str = "",
    lost: str = "",
    removed: str = "",
    draining: str = "",
    full: str = "",
    rules: Thresholds = DEFAULTS,
    factors: dict[int, int] | None = None,
) -> View:
    """zones, hosts: a letter for each node. down: for a moment; lost: for longer than dead-after."""
    view = View(rules, factors)
    view.now = 10_000.0
    for number, node in enumerate(nodes):
        health = Health.REMOVED if node in removed else Health.DOWN if node in down + lost else Health.UP
        since = {True: view.now - 1.0, False: 0.0}[node in down]
        view.put_node(
            NodeView(
                id=node,
                name=node,
                zone=zones[number : number + 1],
                host=hosts[number : number + 1],
                health=health,
                down_since=view.now - rules.dead_after_seconds if node in lost else since,
                draining=node in draining,
                capacity_bytes=100 << 30,
                used_bytes=(99 << 30) if node in full else 0,
            )
        )
    return view


def with_shards(view: View, *voters: str, learners: str = "", first: int = 2, **fields: object) -> View:
    for number, nodes in enumerate(voters, first):
        keyspace = 0 if number == 1 else 1
        shard = ShardView(id=number, keyspace=keyspace, version=1, conf=1, voters=tuple(nodes), leader=nodes[0])
        view.put_shard(replace(shard, learners=tuple(learners), **fields))  # type: ignore[arg-type]
    return view


def told(plan: Plan | None) -> str:
    """A plan's steps: "+d ~d-a" = add a learner on d, swap it for a."""
    if plan is None:
        return ""
    return " ".join(SHORT[one.kind] + one.node + (f"-{one.other}" if one.other else "") for one in plan.steps)


def plans(view: View, scheduler: object) -> list[Plan]:
    """All that the scheduler wants, each begun before the next is asked for."""
    found = []
    for plan in scheduler(view):  # type: ignore[operator]
        view.begin(plan)
        found.append(plan)
    return found


def settle(view: View, scheduler: object) -> list[Plan]:
    """All that the scheduler wants, carried out, again and again until it wants nothing more."""
    done: list[Plan] = []
    while found := plans(view, scheduler):
        done += found
        assert len(done) < 1_000, "it does not end"
        for plan in found:
            shard = view.shards[plan.shard]
            view.put_shard(replace(shard, voters=plan.placement.nodes, leader=plan.placement.leader, learners=()))
            view.end(plan.shard)
    return done
