"""The administration of a node: what it tells about itself and the cluster, and membership on request.

What must be done by a leader is done here where it is led here, and otherwise by the leader's node, which is asked once
and never passes it on (`perform` is what such a request runs).

Invariant: a name is bound by compare-and-set in the meta group, so that two nodes never have it at the same time.
Invariant: the names of all founders are bound before any other name, and before any of them could be taken by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from kvstore import __version__
from kvstore.base import operations as ops
from kvstore.base.errors import DuplicateName, Invalid, KVError, NotFound, NotLeader, Timeout, Unavailable
from kvstore.base.ids import META_SHARD, SYSTEM_KEYSPACE
from kvstore.base.operations import Batch, Cas, Delete, Failure, Mismatch, Mutation, Put, Result
from kvstore.base.shards import ReplicaRole, user_bounds
from kvstore.base.stream import Mutate, Refused, Results
from kvstore.placement.census import Gossip, MemberStatus, census, count_states
from kvstore.placement.coordinator import Coordinator
from kvstore.placement.founding import Founders
from kvstore.placement.members import MemberRecord, Records, encode_member, member_key, read_records, removed_key
from kvstore.placement.replica_change import ReplicaChange
from kvstore.placement.wishes import draining_key
from kvstore.replica.environment import Environment
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.replica import Replica
from kvstore.router.peer_api import PeerClient, encode_records
from kvstore.router.placement_admin import PlacementAdmin
from kvstore.router.router import ShardRouter
from kvstore.router.shard_map import KEYSPACES
from kvstore.router.split_admin import SplitAdmin
from kvstore.transport.quiet_log import QuietLog
from raft import RaftError

logger = logging.getLogger(__name__)

CHANGE_SECONDS_MAX = 60.0
META_TIMEOUT_MS = 5_000
META_SECONDS_MAX = META_TIMEOUT_MS / 1_000 + 1.0  # what such an operation may take, one attempt at the end included
READY_TIMEOUT_MS = 1_000


class NodeAdmin:
    """Fulfils `router.protocol.Admin`."""

    def __init__(
        self,
        host: HostDriver,
        environment: Environment,
        router: ShardRouter,
        peers: PeerClient,
        *,
        cluster: str,
        founders: Founders,
        gossip: Gossip,
        started_ms: int,
    ) -> None:
        self._host = host
        self._environment = environment
        self._router = router
        self._peers = peers
        self._cluster = cluster
        self._founders = founders
        self._gossip = gossip
        self._started_ms = started_ms
        self._quiet = QuietLog(logger)
        self.coordinator: Coordinator | None = None
        self.placement = PlacementAdmin(host, self)
        self._splits = SplitAdmin(host, self)
        self._told: Records | None = None  # by a node with a replica of the meta group, as last asked
        self._operations: Mapping[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "admit": self.join,  # of a node that is none yet, and asks whomever it knows
            "join": self._join_here,
            "remove_node": self._remove_node_here,
            "add_replica": self._add_replica_here,
            "remove_replica": self._remove_replica_here,
            "transfer": self._transfer_here,
            **self.placement.operations,
            **self._splits.operations,
        }

    # -- what there is ---------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        environment = self._environment
        return {
            "name": environment.config.name,
            "node_id": environment.node,
            "cluster_id": self._cluster,
            "boot_id": environment.boot,
            "version": __version__,
            "address": environment.config.advertise_address,
            "uptime_ms": environment.clock.boot_ms() - self._started_ms,
            "read_mode": environment.config.read_mode.value,
            "disk_full": environment.disk_full,
            "log": dict(environment.log_store.sizes()),
            "state": dict(environment.state_store.sizes()),
            "shards": [self._replica_status(replica) for replica in self._host.core.replicas.values()],
        }

    def _replica_status(self, replica: Replica) -> dict[str, Any]:
        raw = replica.raw
        leader = self._environment.address_of(replica.leader_node)
        return {
            "id": replica.group,
            "replica_id": replica.replica_id,
            "role": replica.role_name.replace("_", "-"),
            "problem": replica.failed,
            "term": raw.term,
            "leader": leader.name if leader else None,
            "commit": raw.commit,
            "applied": replica.state.applied_index if replica.state else 0,
            "last_index": raw.last_index,
            "first_index": replica.log.first_index(),
            "damaged": replica.healing.damaged,
            "revision": replica.state.revision if replica.state else 0,
        }

    async def members(self) -> list[dict[str, Any]]:
        """As `census` has them. A node without the records asks for them; without an answer, by what it last knew."""
        records = self._records()
        if records is None:
            records = await self._ask_records()
        return [asdict(row) for row in self._census(records)]

    def member_counts(self) -> dict[str, float]:
        """How many members are in each state, for the metrics: by what this node knows without asking."""
        return count_states(self._census(self._records() or self._told))

    def _census(self, records: Records | None) -> list[MemberStatus]:
        return census(records, self._gossip.members(), self._gossip.now())

    def _records(self) -> Records | None:
        return self.coordinator.records() if self.coordinator is not None else None

    async def _ask_records(self) -> Records | None:
        address = self._leader_of(META_SHARD)
        if address is not None:
            with contextlib.suppress(KVError):
                self._told = await self._peers.records(address)
        return self._told

    def shards(self) -> list[dict[str, Any]]:
        return [
            self._shard(replica) for _, replica in sorted(self._host.core.replicas.items()) if replica.state is not None
        ]

    def _shard(self, replica: Replica) -> dict[str, Any]:
        assert replica.state is not None
        descriptor = replica.state.descriptor
        names = {number: name for name, number in KEYSPACES.items()} | {int(SYSTEM_KEYSPACE): "_system"}
        start, end = user_bounds(descriptor)
        leader = self._environment.address_of(replica.leader_node)
        progress = replica.raw.status().progress if replica.is_leader else {}
        reads, writes = self.placement.office.load(descriptor.id)
        return {
            "id": descriptor.id,
            "keyspace": names.get(descriptor.keyspace, str(descriptor.keyspace)),
            "start": ops_text(start),
            "end": ops_text(end),
            "epoch": {"version": descriptor.version, "conf": descriptor.conf},
            "leader": leader.name if leader else None,
            "term": replica.raw.term,
            "joint": bool(replica.raw.conf_state.voters_outgoing),  # a change of the replicas is under way
            "replicas": [
                {
                    "node": place.name if (place := self._environment.address_of(one.node)) else one.node,
                    "replica_id": one.replica_id,
                    "role": ReplicaRole(one.role).name.lower(),
                    "match": progress[one.replica_id].match if one.replica_id in progress else None,
                }
                for one in descriptor.replicas
            ],
            "revision": replica.state.revision,
            "applied": replica.state.applied_index,
            "approximate_bytes": replica.state.data_bytes,
            "indivisible": replica.splits.is_indivisible,  # no cut was found: one key, or one key group
            "reads_per_second": reads,
            "writes_per_second": writes,
            "log_bytes": replica.log.bytes_behind(replica.raw.last_index),
        }

    async def operators(self) -> list[dict[str, Any]]:
        return await self.placement.operators()

    async def ready(self) -> dict[str, Any]:
        """A linearizable read through every shard's leader, as far as this node knows them."""
        if self._environment.disk_full:
            raise Unavailable("the disk is nearly full: this node takes no writes")
        routes = self._router.routes()[2]
        if not routes:
            raise Unavailable("this node does not know any shard yet")
        for route in routes:
            if route.leader is None:
                raise Unavailable(f"shard {route.id} has no leader that this node knows")
        await self._router.query("default", [ops.Get(0, routes[0].start or b"\0")], timeout_ms=READY_TIMEOUT_MS)
        return {"ready": True, "shards": len(routes)}

    # -- membership, wherever the leader is ------------------------------------------------------------------------

    async def join(self, *, name: str, node_id: str, address: str, labels: dict[str, str]) -> dict[str, Any]:
        arguments = {"name": name, "node_id": node_id, "address": address, "labels": labels}
        return await self.at_leader(META_SHARD, "join", arguments, seconds=META_SECONDS_MAX)

    async def remove_node(self, name: str) -> dict[str, Any]:
        return await self.at_leader(META_SHARD, "remove_node", {"name": name}, seconds=META_SECONDS_MAX)

    async def add_replica(self, shard: int, node: str, conf: int | None = None) -> dict[str, Any]:
        """`conf`: only on this membership, see ReplicaChange."""
        return await self.at_leader(shard, "add_replica", {"shard": shard, "node": node, "conf": conf})

    async def remove_replica(self, shard: int, node: str, conf: int | None = None) -> dict[str, Any]:
        return await self.at_leader(shard, "remove_replica", {"shard": shard, "node": node, "conf": conf})

    async def transfer(self, shard: int, node: str) -> dict[str, Any]:
        return await self.at_leader(shard, "transfer", {"shard": shard, "node": node}, seconds=META_SECONDS_MAX)

    async def split(self, shard: int, key: bytes | None, version: int | None = None) -> dict[str, Any]:
        """At the user's key, or in the middle. `version`: only on this epoch; without it and without a key, on the one
        that this node knows, so that a request that has to be repeated splits once."""
        route = self._router.route_of(shard)
        if route is None:
            raise NotFound(f"this node knows no shard {shard}")
        if key is None and version is None:
            version = route.version
        done = await self._splits.split(shard, key, version)
        at = bytes.fromhex(done["key"])
        return {"shard": shard, "child": done["child"], "at": ops_text(at), "at_base64": b64encode(at).decode()}

    async def at_leader(
        self, shard: int, operation: str, arguments: dict[str, Any], *, seconds: float = CHANGE_SECONDS_MAX
    ) -> dict[str, Any]:
        """Here, or by the leader's node; follows a leadership that moves, for a bounded time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                if self._host.leads(shard):
                    return await self.perform(operation, arguments)
                leader = self._leader_of(shard)
                if leader is None:
                    raise Unavailable(f"no leader of shard {shard} is known")
                return await self._peers.admin(leader, operation, arguments, seconds=began + seconds - loop.time())
            except (NotLeader, Unavailable) as error:
                if loop.time() > began + META_TIMEOUT_MS / 1_000:
                    raise Unavailable(error.message) from None
            await asyncio.sleep(self._environment.rng.uniform(0.05, 0.15))

    async def perform(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Do it here or raise NotLeader. What another node's request runs."""
        if operation == "records":
            records = self._records()
            if records is None:
                raise NotLeader("this node does not have the members' records")
            return {"records": encode_records(records)}
        action = self._operations.get(operation)
        if action is None:
            raise Invalid(f"there is no operation {operation!r}")
        try:
            return await action(**arguments)
        except TypeError as error:
            raise Invalid(f"wrong arguments for {operation}: {error}") from None
        except TimeoutError:
            raise Timeout(f"{operation} was not done in time; it may still be") from None

    def _leader_of(self, shard: int) -> str | None:
        """HOST:PORT of another node that leads the shard, as the replica here knows or gossip tells; where nobody does,
        of one that has a replica, or of any that lives."""
        own = self._environment.config.advertise_address
        route = self._router.route_of(shard)
        if route is not None and route.address is not None and route.address != own:
            return route.address
        addresses = [] if route is None else [address for _, address, _ in route.replicas if address != own]
        if not addresses:
            members = [view.member for view in self._gossip.members() if not view.member.is_gone]
            addresses = [member.address for member in members if member.node != self._environment.node]
        return self._environment.rng.choice(addresses) if addresses else None

    # -- at the leader ---------------------------------------------------------------------------------------------

    async def _join_here(self, *, name: str, node_id: str, address: str, labels: dict[str, str]) -> dict[str, Any]:
        await self.bind_founders()
        records = self.led_records()
        if node_id in records.removed:
            raise self._refused_join(
                f"{node_id} at {address}",
                f"node {name} ({node_id[:8]}) was removed from the cluster for good: start it with an empty --data "
                "directory to join as a new node",
            )
        record = MemberRecord(name=name, node=node_id, address=address, labels=labels, version=__version__)
        known = records.named(name)
        if known is not None and known.record.node != node_id:
            raise self._refused_join(
                f"{node_id} at {address}",
                f"the name {name} belongs to another node, at {known.record.address}; choose another --name, or "
                f"`kvctl node remove {name}` if that one is gone for good",
            )
        if known is None or known.record != record:
            revision = known.revision if known else 0
            await self.write_meta(Cas(0, member_key(name), encode_member(record), revision))
        return {"cluster": self._cluster, "name": name}

    def _refused_join(self, who: str, text: str) -> DuplicateName:
        """Told here, too: whoever looks after this cluster may not see the other node's log."""
        now = self._environment.clock.boot_ms() / 1_000
        self._quiet.warn(f"join {who}", f"node {who} is refused: DUPLICATE_NAME: {text}", now=now)
        return DuplicateName(text)

    async def bind_founders(self) -> None:
        """A founder whose disk is lost before it wrote its record would come back under its name as another node, while
        the replicas of the old one stayed, with no name by which to remove it. Only founders lead the meta group before
        anybody has joined."""
        records = self.led_records()
        names = {member.record.name for member in records.members}
        missing = [
            MemberRecord(name=name, node=node, address=address)
            for name, node, address in self._founders
            if name not in names and node not in records.removed
        ]
        if missing:
            await self.write_meta(Batch(0, [Cas(0, member_key(one.name), encode_member(one), 0) for one in missing]))

    async def _remove_node_here(self, *, name: str) -> dict[str, Any]:
        """Done again, by somebody who got no answer, it says the same."""
        await self.bind_founders()
        records = self.led_records()
        known = records.named(name)
        if known is None:
            gone = [node for node, last in records.removed.items() if last == name]
            if not gone:
                raise NotFound(f"there is no member {name}")
            return {"removed": name, "node_id": gone[-1]}
        if len(records.members) == 1:
            raise Invalid("the last member can't be removed")
        node = known.record.node
        unbind = Cas(0, member_key(name), None, known.revision)
        forget = Delete(0, draining_key(name))
        await self.write_meta(Batch(0, [unbind, forget, Put(0, removed_key(node), name.encode())]))
        self._gossip.declare_left(node)
        return {"removed": name, "node_id": node}

    async def _add_replica_here(self, *, shard: int, node: str, conf: int | None = None) -> dict[str, Any]:
        node_id = self.node_id(node)
        await ReplicaChange(self._host, shard, timeout_seconds=CHANGE_SECONDS_MAX, conf=conf).add(node_id)
        return {"shard": shard, "added": node}

    async def _remove_replica_here(self, *, shard: int, node: str, conf: int | None = None) -> dict[str, Any]:
        change = ReplicaChange(self._host, shard, timeout_seconds=CHANGE_SECONDS_MAX, conf=conf)
        await change.remove(self.node_id(node))
        return {"shard": shard, "removed": node}

    async def _transfer_here(self, *, shard: int, node: str) -> dict[str, Any]:
        replica = self.led(shard)
        assert replica.state is not None
        place = replica.state.descriptor.replica_on(self.node_id(node))
        if place is None or place.role != ReplicaRole.VOTER:
            raise NotFound(f"shard {shard} has no voter on {node}")
        if place.replica_id == replica.replica_id:
            return {"shard": shard, "leader": node}
        progress = replica.raw.status().progress.get(place.replica_id)
        if progress is None or not progress.recent_active:
            # It would be waited for, while the shard takes no writes, for as long as an election takes.
            raise Unavailable(f"{node} has not answered the leader of shard {shard} lately; is it up?")
        try:
            replica.raw.transfer_leader(place.replica_id)
        except RaftError as error:
            raise Unavailable(str(error)) from None
        self._host.mark(replica)
        target = place.replica_id

        def decided() -> bool:
            return replica.raw.leader_id == target or (replica.is_leader and not replica.raw.status().transfer_target)

        async with asyncio.timeout(META_TIMEOUT_MS / 1_000):
            await self._host.until(decided)
        if replica.raw.leader_id != target:
            raise Unavailable(f"{node} did not take the leadership; is it up and not far behind?")
        return {"shard": shard, "leader": node}

    def led(self, shard: int) -> Replica:
        replica = self._host.core.replicas.get(shard)
        if replica is None or not replica.is_leader or replica.state is None:
            raise NotLeader(f"this node does not lead shard {shard}")
        return replica

    def led_records(self) -> Records:
        """As the meta group's state holds them here, where it is led."""
        state = self.led(META_SHARD).state
        assert state is not None
        return read_records(state)

    def node_id(self, node: str) -> str:
        """From a member's name or id; node ids of replicas whose member is gone stand for themselves."""
        rows = [row for row in self._census(self._records()) if node in (row.name, row.node_id)]
        if rows:  # without the records it may be somebody's of the same name who was removed
            return min(rows, key=lambda row: row.state in ("dead", "left")).node_id
        for node_id, place in self._environment.addresses.items():  # of a founder that nobody has heard yet
            if node == place.name:
                return node_id
        for replica in self._host.core.replicas.values():
            if replica.state is not None and replica.state.descriptor.replica_on(node) is not None:
                return node
        raise NotFound(f"there is no member {node}")

    async def write_meta(self, operation: Mutation) -> Result:
        """One mutation of the cluster's records, by the leader of the meta group here. Raises KVError."""
        replica = self.led(META_SHARD)
        assert replica.state is not None
        future: asyncio.Future[Results | Refused] = asyncio.get_running_loop().create_future()
        frame = Mutate(
            id=0,
            shard=META_SHARD,
            version=replica.state.descriptor.version,
            timeout_ms=META_TIMEOUT_MS,
            session=b"",
            low=0,
            issued_at=0,
            operations=msgspec.Raw(ops.encode([operation])),
        )

        def reply(answer: Results | Refused) -> None:
            if not future.done():
                future.set_result(answer)

        self._router.mutate_at(replica, frame, reply)
        answer = await future
        if isinstance(answer, Refused):
            raise NotLeader(answer.message) if answer.definite else Timeout(answer.message)
        result = answer.results[0]
        if isinstance(result, Failure):
            raise Unavailable(result.message)
        if isinstance(result, Mismatch):
            raise Unavailable("the member's record changed at the same time; try again")
        return result


def ops_text(key: bytes) -> str:
    """A key for JSON: UTF-8 as it is, other bytes escaped."""
    return key.decode("utf-8", "backslashreplace")
