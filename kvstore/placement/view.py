"""The cluster as the placement driver sees it: values for nodes and shards, and indexes over them.

Nodes and shards are immutable values; `put_node` and `put_shard` exchange one and correct the indexes by it, so that a
round costs what has changed and not shards times nodes. Everything that is counted is counted *as if the running
operators were done* (`begin`, `end`): a scheduler never sees a gap that is being filled already.

Invariant: for each node, `replicas`, `leaders`, `data_bytes` and `load` say what the placements of all shards say.
Invariant: a shard has at most one running plan, and is not touched by another until that has ended.
Invariant: `unwell` holds exactly the shards that are not as they are wanted, leaving aside balance; `crowded` those
           that could be spread better over zones or hosts if every node had room; `oversize` those to be split.
Called by: driver (writes), schedulers and filters (read only).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kvstore.base.ids import META_SHARD
from kvstore.base.shards import ReplicaRole, ShardDescriptor
from kvstore.placement.operators import Placement, Plan
from kvstore.placement.shares import Crowding, least_crowding, node_shares, pairs
from kvstore.placement.thresholds import DEFAULTS, Thresholds, meta_voters


class Health(StrEnum):
    UP = "up"
    DOWN = "down"
    REMOVED = "removed"  # for good


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node. `down_since`: seconds on the driver's clock, 0 = it is up."""

    id: str
    name: str
    zone: str = ""  # nodes without the label are in one zone
    host: str = ""  # a node without the label is a host of its own
    health: Health = Health.UP
    down_since: float = 0.0
    draining: bool = False
    capacity_bytes: int = 0  # of the disk; 0 = not known yet
    used_bytes: int = 0
    disk_full: bool = False  # it refuses writes and hands leaderships over by itself

    @property
    def in_service(self) -> bool:
        """Whether it may receive anything."""
        return self.health == Health.UP and not self.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardView:
    """One shard as its replicas report it. Loads are operations a second, smoothed."""

    id: int
    keyspace: int
    version: int
    conf: int
    voters: tuple[str, ...]  # node ids
    learners: tuple[str, ...] = ()
    leader: str | None = None  # node id; None = not known
    joint: bool = False  # a membership change is under way
    data_bytes: int = 0
    reads: int = 0
    writes: int = 0
    splittable: bool = True  # False: its leader has found no legal key to split it at

    @property
    def load(self) -> int:
        return self.reads + self.writes

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.voters + self.learners

    @property
    def quorum(self) -> int:
        return len(self.voters) // 2 + 1


def shard_view(descriptor: ShardDescriptor, **observed: object) -> ShardView:
    """From a descriptor and what else was observed (fields of ShardView)."""
    return ShardView(
        id=descriptor.id,
        keyspace=descriptor.keyspace,
        version=descriptor.version,
        conf=descriptor.conf,
        voters=tuple(place.node for place in descriptor.replicas if place.role == ReplicaRole.VOTER),
        learners=tuple(place.node for place in descriptor.replicas if place.role == ReplicaRole.LEARNER),
        **observed,  # type: ignore[arg-type]
    )


class View:
    """See the module. The attributes are to be read; only the methods change them."""

    def __init__(self, thresholds: Thresholds = DEFAULTS, factors: dict[int, int] | None = None) -> None:
        """`factors`: replication factors of keyspaces (by number) where they differ from the thresholds'."""
        self.thresholds = thresholds
        self.factors = dict(factors or {})
        self.now = 0.0  # seconds, the driver's clock
        self.nodes: dict[str, NodeView] = {}
        self.shards: dict[int, ShardView] = {}
        self.running: dict[int, Plan] = {}  # by shard
        self.replicas: dict[str, dict[int, None]] = {}  # node -> shards, ordered for the sake of determinism
        self.leaders: dict[str, dict[int, None]] = {}
        self.data_bytes: Counter[str] = Counter()
        self.load: Counter[str] = Counter()
        self.receiving: Counter[str] = Counter()  # replicas on their way to a node
        self.sending: Counter[str] = Counter()
        self.transfers = 0  # running plans that only transfer a leadership
        self.unwell: dict[int, None] = {}
        self.crowded: dict[int, None] = {}
        self.oversize: dict[int, None] = {}
        self.sizes: Counter[int] = Counter()  # number of voters wanted -> shards
        self._placed: dict[int, Placement] = {}  # what is counted of each shard
        self._wanted: dict[int, int] = {}
        self._rest: dict[int, float] = {}  # shard -> until when it is left alone
        self._learning: dict[int, float] = {}  # shard -> since when it has been seen with a learner
        self._least: dict[int, Crowding] = {}  # by number of replicas, from the nodes
        self._shares: dict[str, float] | None = None  # until nodes or the number of shards change
        self._present = 0  # nodes that are not removed
        self._meta_wanted = 1

    # -- what is asked ---------------------------------------------------------------------------------------------

    def name(self, node: str) -> str:
        known = self.nodes.get(node)
        return known.name if known else node[:8]

    def is_up(self, node: str) -> bool:
        known = self.nodes.get(node)
        return known is not None and known.health == Health.UP

    def in_service(self, node: str) -> bool:
        known = self.nodes.get(node)
        return known is not None and known.in_service

    def may_lead(self, node: str) -> bool:
        """Whether a leadership may be given to it."""
        known = self.nodes.get(node)
        return known is not None and known.in_service and not known.disk_full

    def is_draining(self, node: str) -> bool:
        known = self.nodes.get(node)
        return known is not None and known.draining

    def is_removed(self, node: str) -> bool:
        known = self.nodes.get(node)
        return known is not None and known.health == Health.REMOVED

    def is_lost(self, node: str) -> bool:
        """Removed for good, or down for longer than dead-after. A node that nobody knows is not lost: its record may
        be under way."""
        known = self.nodes.get(node)
        if known is None or known.health == Health.UP:
            return False
        return known.health == Health.REMOVED or self.now - known.down_since >= self.thresholds.dead_after_seconds

    def serving(self) -> list[NodeView]:
        """The nodes that may receive something, by id."""
        return [node for node in self.nodes.values() if node.in_service]

    def leading(self) -> list[str]:
        """The nodes that may be given leaderships, by id."""
        return [node for node in self.nodes if self.may_lead(node)]

    def wanted(self, shard: ShardView) -> int:
        """How many voters it should have."""
        if shard.id == META_SHARD:
            return self._meta_wanted
        factor = self.factors.get(shard.keyspace, self.thresholds.replication_factor)
        return max(1, min(factor, self._present))

    def crowding(self, nodes: tuple[str, ...]) -> Crowding:
        """Pairs of these nodes in one zone, pairs on one host. Less is better."""
        zones: Counter[str] = Counter()
        hosts: Counter[str] = Counter()
        for node in nodes:
            known = self.nodes.get(node)
            zones[known.zone if known else ""] += 1
            hosts[(known.host if known else "") or node] += 1
        return pairs(zones.values()), pairs(hosts.values())

    def least_crowding(self, count: int) -> Crowding:
        """The least that this many replicas can have on the nodes in service."""
        if count not in self._least:
            self._least[count] = least_crowding([(node.zone, node.host or node.id) for node in self.serving()], count)
        return self._least[count]

    def placed(self, shard: int) -> Placement:
        """Where its replicas and its leader are, or will be once the running plan is done."""
        return self._placed[shard]

    def is_calm(self, shard: int) -> bool:
        """Whether balance may touch it: it is well, no plan runs, it was not moved or refused a moment ago."""
        if shard in self.running or shard in self.unwell or self._rest.get(shard, 0.0) > self.now:
            return False
        known = self.shards[shard]
        return not known.joint and known.leader is not None and self.in_service(known.leader)

    def rests(self, shard: int) -> bool:
        return self._rest.get(shard, 0.0) > self.now

    def learning_seconds(self, shard: int) -> float:
        """How long it has been seen with a learner."""
        return self.now - self._learning.get(shard, self.now)

    def has_room(self) -> bool:
        return len(self.running) < self.thresholds.operators_max

    def shares(self) -> dict[str, float]:
        """Of each node in service: which part of all replicas should be on it, by capacity and zones."""
        if self._shares is None:
            capacities = {node.id: node.capacity_bytes for node in self.serving()}
            zones = {node.id: node.zone for node in self.serving()}
            self._shares = node_shares(capacities, zones, self.sizes)
        return self._shares

    # -- what changes it -------------------------------------------------------------------------------------------

    def put_node(self, node: NodeView) -> None:
        before = self.nodes.get(node.id)
        if before == node:
            return
        self.nodes[node.id] = node
        self.replicas.setdefault(node.id, {})
        self.leaders.setdefault(node.id, {})
        self._shares = None
        if before is None or _standing(before) != _standing(node):
            # Rare (a node comes, goes, drains, is relabelled): what is wanted of any shard may be another thing now.
            self._recheck()

    def set_rules(self, thresholds: Thresholds, factors: dict[int, int]) -> None:
        if (thresholds, factors) != (self.thresholds, self.factors):
            self.thresholds, self.factors = thresholds, dict(factors)
            self._recheck()

    def put_shard(self, shard: ShardView) -> None:
        before = self.shards.get(shard.id)
        if before == shard:
            return
        if before is not None:
            self._count(shard.id, -1)
        self.shards[shard.id] = shard
        if shard.learners:
            self._learning.setdefault(shard.id, self.now)
        else:
            self._learning.pop(shard.id, None)
        plan = self.running.get(shard.id)
        self._placed[shard.id] = plan.placement if plan else Placement(shard.nodes, shard.leader)
        self._count(shard.id, +1)
        self._check(shard)

    def begin(self, plan: Plan) -> None:
        """Count the plan as if it were done."""
        assert plan.shard not in self.running, "one plan a shard"
        self._count(plan.shard, -1)
        self.running[plan.shard] = plan
        self._placed[plan.shard] = plan.placement
        self._count(plan.shard, +1)
        self._weigh(plan, +1)

    def end(self, shard: int, *, rest_seconds: float = 0.0) -> None:
        """Count the shard as it is observed; `rest_seconds`: balance leaves it alone for so long."""
        plan = self.running.pop(shard)
        self._weigh(plan, -1)
        known = self.shards[shard]
        self._count(shard, -1)
        self._placed[shard] = Placement(known.nodes, known.leader)
        self._count(shard, +1)
        if rest_seconds > 0:
            self._rest[shard] = self.now + rest_seconds
        else:
            self._rest.pop(shard, None)

    def _weigh(self, plan: Plan, sign: int) -> None:
        for node in plan.receivers:
            self.receiving[node] += sign
        if plan.receivers and plan.sender is not None:
            self.sending[plan.sender] += sign
        self.transfers += sign * plan.only_transfers

    def _count(self, shard: int, sign: int) -> None:
        known = self.shards[shard]
        placement = self._placed[shard]
        for node in placement.nodes:
            index = self.replicas.setdefault(node, {})
            if sign > 0:
                index[shard] = None
            else:
                del index[shard]
            self.data_bytes[node] += sign * known.data_bytes
        if placement.leader is not None:
            index = self.leaders.setdefault(placement.leader, {})
            if sign > 0:
                index[shard] = None
            else:
                del index[shard]
            self.load[placement.leader] += sign * known.load

    def _recheck(self) -> None:
        self._least.clear()
        self._present = sum(node.health != Health.REMOVED for node in self.nodes.values())
        self._meta_wanted = meta_voters_wanted(self.nodes.values())
        for shard in self.shards.values():
            self._check(shard)

    def _check(self, shard: ShardView) -> None:
        wanted = self.wanted(shard)
        before = self._wanted.get(shard.id)
        if before != wanted:
            self._shares = None
            if before is not None:
                self.sizes[before] -= 1
            self.sizes[wanted] += 1
            self._wanted[shard.id] = wanted
        well = not shard.learners and len(shard.voters) == wanted and all(map(self.in_service, shard.voters))
        _keep(self.unwell, shard.id, not well)
        crowded = well and self.crowding(shard.voters) > self.least_crowding(wanted)
        _keep(self.crowded, shard.id, crowded)
        thresholds = self.thresholds
        large = shard.data_bytes >= thresholds.split_bytes or shard.load >= thresholds.split_load
        _keep(self.oversize, shard.id, large and shard.splittable)


def meta_voters_wanted(nodes: Iterable[NodeView]) -> int:
    """Of the meta group. A node that is drained makes no fifth voter, but it counts where there are few."""
    present = [node for node in nodes if node.health != Health.REMOVED]
    staying = sum(not node.draining for node in present)
    return min(meta_voters(len(present)), max(3, meta_voters(staying)))


def _standing(node: NodeView) -> tuple[object, ...]:
    return node.zone, node.host, node.health, node.draining


def _keep(index: dict[int, None], shard: int, present: bool) -> None:
    if present:
        index[shard] = None
    else:
        index.pop(shard, None)
