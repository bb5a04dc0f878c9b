"""What a node does about the cluster in the background: keep its own record, know the others, repair shards.

Every node runs one. Keeping the record and knowing the others happens everywhere, repair only where the meta group is
led. A repair that breaks off is begun again from what the shards say then.

Invariant: nothing is remembered here that matters: a step follows from the members' records and the descriptors.
Invariant: a step is carried out only on the very membership that it was decided for (the epoch's `conf`): the picture
           here may be old, and a step decided twice could take away one replica too many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from kvstore import __version__
from kvstore.base.errors import DuplicateName, KVError, StartRefused
from kvstore.base.ids import META_SHARD
from kvstore.base.shards import ReplicaRole, Route, ShardDescriptor
from kvstore.placement.members import MemberRecord, Picture, read_members, read_removed
from kvstore.placement.repair import Step, StepKind, next_step
from kvstore.replica.environment import Environment, NodeAddress
from kvstore.replica.host_driver import HostDriver

logger = logging.getLogger(__name__)

ROUND_SECONDS = 0.5
REPAIR_SECONDS_MAX = 120.0
REPLICATION_FACTOR = 3
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
        connected: Callable[[str], bool],
        set_peers: Callable[[dict[str, str]], None],
        ask: Callable[[str], Awaitable[Picture]],
        learn_routes: Callable[[list[Route]], None],
        on_refused: Callable[[BaseException], None],
    ) -> None:
        """`ask`: the node at HOST:PORT for its picture; raises KVError. `on_refused`: the cluster does not want this
        node (any more); it must end."""
        self._host = host
        self._environment = environment
        self._actions = actions
        self._connected = connected
        self._set_peers = set_peers
        self._ask = ask
        self._learn_routes = learn_routes
        self._on_refused = on_refused
        self._record = MemberRecord(
            name=environment.config.name,
            node=environment.node,
            address=environment.config.advertise_address,
            labels=dict(environment.config.labels),
            version=__version__,
        )
        self.members: list[MemberRecord] = []
        self.removed: list[str] = []  # node ids; known where the meta group has a replica
        self._pictures: list[Picture] = []  # of this round
        self.operators: deque[Operator] = deque(maxlen=HISTORY_MAX)
        self._operator_count = 0
        self._repairing: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """For ever; cancelled at the node's stop."""
        while True:
            try:
                await self._look_around()
                self._refresh()
                await self._announce()
                self._repair()
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

    # -- knowing the others ----------------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        """Ask others what they know: all of them where the meta group is led, for repair; elsewhere one, for the
        routes of shards that have no replica here."""
        environment = self._environment
        addresses = [place.address for node, place in environment.addresses.items() if self._connected(node)]
        if not self._host.leads(META_SHARD):
            addresses = addresses or list(environment.config.join)
            addresses = [environment.rng.choice(addresses)] if addresses else []
        answers = await asyncio.gather(*map(self._ask, addresses), return_exceptions=True)
        self._pictures = [answer for answer in answers if isinstance(answer, Picture)]
        for picture in self._pictures:
            self._learn_routes(picture.routes)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, KVError):
                raise answer

    def _refresh(self) -> None:
        """From the meta group's state here while it is led; a replica without a leader may have been left behind
        (or removed), so then what another node tells comes first."""
        meta = self._host.core.replicas.get(META_SHARD)
        state = meta.state if meta is not None else None
        told = next((picture.members for picture in self._pictures if picture.members), [])
        if meta is not None and state is not None and (meta.raw.leader_id or not told):
            members = [member.record for member in read_members(state)]
            self.removed = read_removed(state)
        else:
            members = told
        if members:
            self.members = members
            self.learn(members)

    def learn(self, members: list[MemberRecord]) -> None:
        """Take over names and addresses, and connect."""
        addresses = self._environment.addresses
        for record in members:
            if record.node != self._environment.node:
                addresses[record.node] = NodeAddress(record.name, record.address)
        needed = {node: place.address for node, place in addresses.items() if node != self._environment.node}
        self._set_peers(needed)

    async def _announce(self) -> None:
        """Write this node's record when it is missing or says something else."""
        if not self.members and META_SHARD not in self._host.core.replicas:
            return  # nobody has told yet what is known
        known = next((record for record in self.members if record.name == self._record.name), None)
        if known != self._record:
            record = self._record
            await self._actions.join(
                name=record.name, node_id=record.node, address=record.address, labels=dict(record.labels)
            )

    # -- repair ----------------------------------------------------------------------------------------------------

    def _repair(self) -> None:
        """Start the next step of every shard, one at a time each, where the meta group is led."""
        if not self._host.leads(META_SHARD):
            return
        descriptors = self._descriptors()
        load: dict[str, int] = {}
        for descriptor in descriptors:
            for place in descriptor.replicas:
                load[place.node] = load.get(place.node, 0) + 1
        for descriptor in descriptors:
            if descriptor.id in self._repairing:
                continue
            step = self._step(descriptor, load)
            if step is not None:
                self._start(step, descriptor.conf)

    def _descriptors(self) -> list[ShardDescriptor]:
        """Of all shards: as a replica here has it, or as the shard's leader told in this round where that is newer."""
        newest: dict[int, ShardDescriptor] = {}
        local = [one.state.descriptor for one in self._host.core.replicas.values() if one.state is not None]
        for descriptor in (*local, *(one for picture in self._pictures for one in picture.led)):
            known = newest.get(descriptor.id)
            if known is None or (descriptor.version, descriptor.conf) > (known.version, known.conf):
                newest[descriptor.id] = descriptor
        return [newest[shard] for shard in sorted(newest)]

    def _step(self, descriptor: ShardDescriptor, load: dict[str, int]) -> Step | None:
        own = self._environment.node
        return next_step(
            shard=descriptor.id,
            replicas=[place.node for place in descriptor.replicas],
            learners=[place.node for place in descriptor.replicas if place.role == ReplicaRole.LEARNER],
            alive=[record.node for record in self.members if record.node == own or self._connected(record.node)],
            removed=self.removed,
            load=load,
            wanted=REPLICATION_FACTOR,
        )

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
