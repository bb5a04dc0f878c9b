"""One change of a shard's replicas, carried out at its leader: learner first, voter once it has caught up.

Every change goes through joint consensus and one step at a time; each step waits until the one before is applied.

Invariant: nothing here is needed for safety: broken off at any point, the shard is left with a working membership.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from kvstore.base.errors import Conflict, NotFound, NotLeader, Unavailable
from kvstore.base.shards import Replica as ReplicaPlace
from kvstore.base.shards import ReplicaRole
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.membership import ConfContext, encode_context, id_of_addition
from kvstore.replica.replica import Replica
from raft import ConfChange, ConfChangeKind, ConfChangeSingle, ConfTransition, RaftError

logger = logging.getLogger(__name__)

CATCH_UP_ENTRIES = 64  # a learner this near to the commit index is caught up


class ReplicaChange:
    """Adds or removes a replica of one group led here. Raises NotLeader as soon as it is led elsewhere."""

    def __init__(self, host: HostDriver, group: int, *, timeout_seconds: float, conf: int | None = None) -> None:
        """`conf`: the epoch that the change was decided for; on another one it is refused. None = whatever it is."""
        self._host = host
        self._group = group
        self._timeout = timeout_seconds
        self._conf = conf

    async def add(self, node: str) -> None:
        """Make `node` a voter; returns at once when it is one."""
        async with self._bounded():
            place = self._descriptor_place(node)
            if place is None:
                replica_id = await self._add_learner(node)
            elif place.role == ReplicaRole.VOTER:
                return
            else:
                replica_id = place.replica_id
            await self._host.until(lambda: self._caught_up(replica_id))
            await self._change(ConfChangeSingle(ConfChangeKind.ADD_VOTER, replica_id))

    async def add_learner(self, node: str) -> None:
        """Put a replica without a vote on `node`; returns at once when there is one."""
        async with self._bounded():
            if self._descriptor_place(node) is None:
                await self._add_learner(node)

    async def promote(self, node: str, *, other: str | None = None) -> None:
        """Give the learner on `node` a vote once it has caught up, and take the replica on `other` out in the same
        joint change: so the number of voters stays what it is. Returns at once when all that is done."""
        async with self._bounded():
            place = self._descriptor_place(node)
            gone = self._descriptor_place(other) if other is not None else None
            if place is None:
                raise NotFound(f"shard {self._group} has no learner there")
            if gone is not None and gone.replica_id == self._leader().replica_id:
                self._hand_over()
            changes = []
            if place.role != ReplicaRole.VOTER:
                await self._host.until(lambda: self._caught_up(place.replica_id))
                changes.append(ConfChangeSingle(ConfChangeKind.ADD_VOTER, place.replica_id))
            if gone is not None:
                changes.append(ConfChangeSingle(ConfChangeKind.REMOVE, gone.replica_id))
            if changes:
                await self._change(*changes)

    async def remove(self, node: str) -> None:
        """Take the replica on `node` out; a leader hands the leadership over first."""
        async with self._bounded():
            place = self._descriptor_place(node)
            if place is None:
                raise NotFound(f"shard {self._group} has no replica there")
            if place.replica_id == self._leader().replica_id:
                self._hand_over()
            await self._change(ConfChangeSingle(ConfChangeKind.REMOVE, place.replica_id))

    def _hand_over(self) -> NoReturn:
        replica = self._leader()
        replica.transfer_away()
        self._host.mark(replica)
        raise NotLeader("the replica to be removed leads; it hands the leadership over first: try again")

    async def _add_learner(self, node: str) -> int:
        replica = await self._settled()
        replica_id = id_of_addition(replica.raw.last_index + 1)
        context = encode_context(ConfContext(nodes=((replica_id, node),)))
        single = ConfChangeSingle(ConfChangeKind.ADD_LEARNER, replica_id)
        index = await self._change(single, context=context)
        assert replica_id == id_of_addition(index)
        return replica_id

    async def _change(self, *changes: ConfChangeSingle, context: bytes = b"") -> int:
        """Propose once no other change is under way, and wait until it is applied and the joint state is left."""
        replica = await self._settled()
        change = ConfChange(changes=changes, transition=ConfTransition.JOINT_IMPLICIT, context=context)
        try:
            _term, index = replica.raw.propose_conf_change(change)
        except RaftError as error:
            raise Unavailable(f"shard {self._group} takes no change now: {error}") from None
        self._host.mark(replica)
        told = ", ".join(f"{one.kind.name} replica {one.replica_id}" for one in changes)
        logger.info("group %d: %s proposed at %d", self._group, told, index)
        await self._host.until(lambda: self._leader().raw.applied >= index)
        await self._settled()
        return index

    async def _settled(self) -> Replica:
        """Once everything in the log is applied and the configuration is not joint: the core takes a change."""
        await self._host.until(lambda: not self._leader().raw.conf_state.voters_outgoing)
        return self._leader()

    def _caught_up(self, replica_id: int) -> bool:
        replica = self._leader()
        progress = replica.raw.status().progress.get(replica_id)
        return progress is not None and progress.match + CATCH_UP_ENTRIES >= replica.raw.commit and progress.match > 0

    def _leader(self) -> Replica:
        replica = self._host.core.replicas.get(self._group)
        if replica is None or not replica.is_leader or replica.state is None:
            raise NotLeader(f"this node does not lead shard {self._group}")
        return replica

    def _descriptor_place(self, node: str) -> ReplicaPlace | None:
        state = self._leader().state
        assert state is not None
        if self._conf is not None and state.descriptor.conf != self._conf:
            raise Conflict(f"the replicas of shard {self._group} have changed since this was decided")
        return state.descriptor.replica_on(node)

    def _bounded(self) -> asyncio.Timeout:
        return asyncio.timeout(self._timeout)
