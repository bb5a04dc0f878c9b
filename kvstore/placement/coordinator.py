"""What a node does about the cluster in the background: keep its own record, know where others are, repair shards.

Every node runs one. Repair, and telling gossip of removed nodes, happen only where the meta group is led. A repair that
breaks off is begun again from what the shards say then.

Invariant: nothing is remembered here that matters: a step follows from the members' records, the descriptors, and who
           is alive as gossip believes.
Invariant: a step is carried out only on the very membership that it was decided for (the epoch's `conf`): the picture
           here may be old, and a step decided twice could take away one replica too many.
Invariant: a node connects only with those that it shares a group with (replica/neighbours).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from kvstore.base.errors import DuplicateName, KVError, StartRefused
from kvstore.base.ids import META_SHARD
from kvstore.base.shards import ReplicaRole, ShardDescriptor
from kvstore.gossip.hint import Hint
from kvstore.gossip.member import MemberState
from kvstore.placement.census import Gossip
from kvstore.placement.members import RecordReader, Records
from kvstore.placement.repair import REPLICATION_FACTOR, Step, StepKind, meta_voters, next_step
from kvstore.replica.environment import Environment, NodeAddress
from kvstore.replica.host_driver import HostDriver

logger = logging.getLogger(__name__)

ROUND_SECONDS = 0.5
ANNOUNCE_SECONDS = 60.0
"""Between two times at which a node makes sure that it is a member as it says; sooner when others took it for gone."""
HISTORY_MAX = 100


class Actions(Protocol):
    """What the coordinator has done by the node's administration (router/admin)."""

    async def join(self, *, name: str, node_id: str, address: str, labels: dict[str, str]) -> dict[str, Any]: ...
    async def add_replica(self, shard: int, node: str, conf: int) -> dict[str, Any]: ...
    async def remove_replica(self, shard: int, node: str, conf: int) -> dict[str, Any]: ...


@dataclass(slots=True)
class Operator:
    """One repair, for people: GET /v1/operators."""

    id: int
    kind: str
    shard: int
    node: str
    reason: str
    state: str  # running, done, failed
    error: str = ""


class Coordinator:
    """The background work of one node."""

    def __init__(
        self,
        host: HostDriver,
        environment: Environment,
        actions: Actions,
        *,
        gossip: Gossip,
        hints: Callable[[], Iterable[Hint]],
        set_peers: Callable[[dict[str, str]], None],
        on_refused: Callable[[BaseException], None],
    ) -> None:
        """`hints`: what the shards' leaders tell. `set_peers`: HOST:PORT by node id of whom to be connected with.
        `on_refused`: the cluster does not want this node (any more); it must end."""
        self._host = host
        self._environment = environment
        self._actions = actions
        self._gossip = gossip
        self._hints = hints
        self._set_peers = set_peers
        self._on_refused = on_refused
        self._reader = RecordReader()
        self._records: Records | None = None  # as of the last round
        self._peers: dict[str, str] | None = None  # as last set
        self._announced = -1  # this node's incarnation at that time
        self._announce_at = 0.0
        self.operators: deque[Operator] = deque(maxlen=HISTORY_MAX)
        self._operator_count = 0
        self._repairing: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever; cancelled at the node's stop."""
        while True:
            try:
                self._learn()
                self.connect()
                if self._host.leads(META_SHARD):
                    self._tell_removals()
                    self._repair()
                await self._announce()
            except DuplicateName as error:
                self._on_refused(StartRefused(error.message))
                return
            except KVError as error:
                logger.debug("coordination: %s", error)
            await asyncio.sleep(ROUND_SECONDS * self._environment.rng.uniform(0.8, 1.2))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- who is there ----------------------------------------------------------------------------------------------

    def records(self) -> Records | None:
        """As the meta group's replica here has them; None where there is none, or none that hears of a leader: it may
        have been left behind, or removed."""
        meta = self._host.core.replicas.get(META_SHARD)
        if meta is None or meta.state is None or not meta.raw.leader_id:
            return None
        return self._reader.read(meta.state)

    def _learn(self) -> None:
        """Where gossip has not heard of a node (yet), its record says where it is."""
        meta = self._host.core.replicas.get(META_SHARD)
        self._records = None if meta is None or meta.state is None else self._reader.read(meta.state)
        for member in self._records.members if self._records else ():
            record = member.record
            if self._gossip.member(record.node) is None:
                self._environment.addresses[record.node] = NodeAddress(record.name, record.address)

    def connect(self) -> None:
        """With the nodes that share a group with this one, as far as it is known where they are."""
        addresses = self._environment.addresses
        nodes = self._host.core.neighbours.nodes(self._environment.clock.boot_ms())
        peers = {node: addresses[node].address for node in nodes if node in addresses}
        if peers != self._peers:
            self._peers = peers
            self._set_peers(peers)

    async def _announce(self) -> None:
        """Have this node's record say what it is. Whoever was told to be gone, and lives, has a new incarnation: maybe
        it was removed for good, which it hears by this. Raises DuplicateName then."""
        loop = asyncio.get_running_loop()
        environment = self._environment
        own = self._gossip.member(environment.node)
        incarnation = -1 if own is None else own.incarnation
        if self._announced == incarnation and loop.time() < self._announce_at:
            return
        config = environment.config
        await self._actions.join(
            name=config.name,
            node_id=environment.node,
            address=config.advertise_address,
            labels=dict(config.labels),
        )
        self._announced = incarnation
        self._announce_at = loop.time() + ANNOUNCE_SECONDS * environment.rng.uniform(0.8, 1.2)

    def _tell_removals(self) -> None:
        """Gossip must not go on looking for nodes that were removed; one that still runs will ask (`_announce`)."""
        for node in self._records.removed if self._records else ():
            member = self._gossip.member(node)
            if member is not None and member.state != MemberState.LEFT:
                self._gossip.declare_left(node)

    # -- repair ----------------------------------------------------------------------------------------------------

    def _repair(self) -> None:
        """Start the next step of every shard that needs one, one at a time each."""
        records = self._records
        if records is None or not records.members:
            return  # nobody has announced itself yet; the first one binds all founders
        descriptors = self._descriptors()
        load: dict[str, int] = {}
        for descriptor in descriptors:
            for place in descriptor.replicas:
                load[place.node] = load.get(place.node, 0) + 1
        nodes = [member.record.node for member in records.members]
        alive = [node for node in nodes if self._gossip.alive(node)]
        for descriptor in descriptors:
            if descriptor.id in self._repairing:
                continue
            step = next_step(
                shard=descriptor.id,
                replicas=[place.node for place in descriptor.replicas],
                learners=[place.node for place in descriptor.replicas if place.role == ReplicaRole.LEARNER],
                alive=alive,
                removed=records.removed,
                load=load,
                wanted=meta_voters(len(nodes)) if descriptor.id == META_SHARD else REPLICATION_FACTOR,
            )
            if step is not None:
                self._start(step, descriptor.conf)

    def _descriptors(self) -> list[ShardDescriptor]:
        """Of all shards: as a replica here has it, or as the shard's leader told where that is newer."""
        newest = {one.group: one.state.descriptor for one in self._host.core.replicas.values() if one.state is not None}
        for hint in self._hints():
            known = newest.get(hint.id)
            if hint.replicas and (known is None or (hint.version, hint.conf) > (known.version, known.conf)):
                newest[hint.id] = hint.descriptor
        return [newest[shard] for shard in sorted(newest)]

    def _start(self, step: Step, conf: int) -> None:
        self._operator_count += 1
        place = self._environment.address_of(step.node)
        operator = Operator(
            id=self._operator_count,
            kind=step.kind.value,
            shard=step.shard,
            node=place.name if place else step.node,
            reason=step.reason,
            state="running",
        )
        self.operators.append(operator)
        self._repairing.add(step.shard)
        task = asyncio.get_running_loop().create_task(self._carry_out(step, conf, operator))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, step: Step, conf: int, operator: Operator) -> None:
        logger.info("shard %d: %s a replica on %s: %s", step.shard, step.kind.value, operator.node, step.reason)
        try:
            if step.kind == StepKind.ADD:
                await self._actions.add_replica(step.shard, step.node, conf)
            else:
                await self._actions.remove_replica(step.shard, step.node, conf)
            operator.state = "done"
        except KVError as error:
            operator.state, operator.error = "failed", error.message
            logger.info("shard %d: %s on %s: %s", step.shard, step.kind.value, operator.node, error.message)
        finally:
            self._repairing.discard(step.shard)

    def describe(self) -> list[dict[str, Any]]:
        """The operators, newest first."""
        return [asdict(operator) for operator in reversed(self.operators)]
