"""The cluster as its nodes describe it: each node's /v1/status and one /v1/shards, put together for people.

Used by `kvctl status` and `kvstore dev`. Nothing here does I/O.

Invariant: of two nodes that claim to lead a shard the one with the higher term is believed.
Invariant: a field that a node does not tell is shown as missing, never an exception: versions of nodes may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as its own node tells it."""

    shard: int
    role: str  # leader, follower, candidate, pre-candidate, learner, ...
    term: int
    applied: int
    leader: str | None  # name of the leader that it knows


@dataclass(frozen=True, slots=True)
class NodeView:
    """`up` = it answered. `note` says why not."""

    name: str
    address: str
    up: bool
    note: str = ""
    uptime_seconds: float | None = None
    version: str = ""
    replicas: Mapping[int, ReplicaView] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)  # the status as the node gave it

    @property
    def leads(self) -> tuple[int, ...]:
        return tuple(shard for shard, replica in self.replicas.items() if replica.role == "leader")


def node_view(status: Mapping[str, Any], *, name: str, address: str) -> NodeView:
    """From the answer to GET /v1/status."""
    uptime_ms = status.get("uptime_ms")
    replicas = {}
    rows = status.get("shards")
    for row in rows if isinstance(rows, list) else ():
        shard = int(row.get("id", 0))
        replicas[shard] = ReplicaView(
            shard=shard,
            role=str(row.get("role", "?")),
            term=int(row.get("term") or 0),
            applied=int(row.get("applied") or 0),
            leader=row.get("leader"),
        )
    return NodeView(
        name=str(status.get("name", name)),
        address=address,
        up=True,
        uptime_seconds=uptime_ms / 1000 if isinstance(uptime_ms, int) else None,
        version=str(status.get("version", "")),
        replicas=dict(sorted(replicas.items())),
        raw=status,
    )


@dataclass(frozen=True, slots=True)
class ShardView:
    """`leader` is None while no node that is up leads it."""

    id: int
    leader: str | None
    term: int


def shard_views(nodes: Sequence[NodeView]) -> list[ShardView]:
    """Who leads what, by the nodes' own words."""
    numbers = sorted({shard for node in nodes for shard in node.replicas})
    views = []
    for shard in numbers:
        replicas = [(node, node.replicas[shard]) for node in nodes if node.up and shard in node.replicas]
        leaders = [(replica.term, node.name) for node, replica in replicas if replica.role == "leader"]
        term = max((replica.term for _, replica in replicas), default=0)
        views.append(ShardView(id=shard, leader=max(leaders)[1] if leaders else None, term=term))
    return views


def changes(before: Sequence[NodeView], after: Sequence[NodeView]) -> list[str]:
    """What a person should be told between two pictures: who came, who went, who leads."""
    lines = []
    was_up = {node.name: node.up for node in before}
    for node in after:
        if node.up and not was_up.get(node.name, False):
            lines.append(f"{node.name} is up at http://{node.address}")
        elif not node.up and was_up.get(node.name, False):
            lines.append(f"{node.name} does not answer")
    led = {shard.id: shard for shard in shard_views(before)}
    for shard in shard_views(after):
        old = led.get(shard.id)
        if shard.leader is None:
            if old is not None and old.leader is not None:
                lines.append(f"shard {shard.id} has no leader")
        elif old is None or (old.leader, old.term) != (shard.leader, shard.term):
            lines.append(f"{shard.leader} leads shard {shard.id} in term {shard.term}")
    return lines
