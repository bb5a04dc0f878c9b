"""What a node does about the cluster in the background: keep its own record, know where others are, place shards.

Every node runs one. Placement (office), and telling gossip of removed nodes, happen only where the meta group is led.

Invariant: nothing is remembered here that matters: all of it follows from the members' records and from gossip.
Invariant: a node connects only with those that it shares a group with (replica/neighbours).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from kvstore.base.errors import DuplicateName, KVError, StartRefused
from kvstore.base.ids import META_SHARD
from kvstore.gossip.member import MemberState
from kvstore.placement.census import Gossip
from kvstore.placement.members import RecordReader, Records
from kvstore.placement.office import PlacementOffice
from kvstore.replica.environment import Environment, NodeAddress
from kvstore.replica.host_driver import HostDriver

logger = logging.getLogger(__name__)

ROUND_SECONDS = 0.5
ANNOUNCE_SECONDS = 60.0
"""Between two times at which a node makes sure that it is a member as it says; sooner when others took it for gone."""


class Actions(Protocol):
    """What the coordinator has done by the node's administration (router/admin)."""

    async def join(self, *, name: str, node_id: str, address: str, labels: dict[str, str]) -> dict[str, Any]: ...


class Coordinator:
    """The background work of one node."""

    def __init__(
        self,
        host: HostDriver,
        environment: Environment,
        actions: Actions,
        *,
        gossip: Gossip,
        office: PlacementOffice,
        set_peers: Callable[[dict[str, str]], None],
        on_refused: Callable[[BaseException], None],
    ) -> None:
        """`set_peers`: HOST:PORT by node id of whom to be connected with. `on_refused`: the cluster does not want this
        node (any more); it must end."""
        self._host = host
        self._environment = environment
        self._actions = actions
        self._gossip = gossip
        self._office = office
        self._set_peers = set_peers
        self._on_refused = on_refused
        self._reader = RecordReader()
        self._records: Records | None = None  # as of the last round
        self._peers: dict[str, str] | None = None  # as last set
        self._announced = -1  # this node's incarnation at that time
        self._announce_at = 0.0

    async def run(self) -> None:
        """For ever; cancelled at the node's stop."""
        while True:
            try:
                self._learn()
                self.connect()
                if self._host.leads(META_SHARD):
                    self._tell_removals()
                await self._office.round(self._records)
                await self._announce()
            except DuplicateName as error:
                self._on_refused(StartRefused(f"DUPLICATE_NAME: {error.message}"))
                return
            except KVError as error:
                logger.debug("coordination: %s", error)
            await asyncio.sleep(ROUND_SECONDS * self._environment.rng.uniform(0.8, 1.2))

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
