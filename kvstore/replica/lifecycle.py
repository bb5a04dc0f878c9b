"""How replicas come to be on this node, are loaded after a restart, and are destroyed.

Invariant: a replica's identity is durable before its first message leaves.
Invariant: a tombstone is durable before any of the replica's data is deleted; its replica id never rises again.
Invariant: ranges of replicas on a node never overlap, also with ranges that are being installed or deleted.
Invariant: two environments are never atomic together. Where the flushed state is ahead of the log (a crash between a
           snapshot's last transaction and the log's reset), the log is reset to the state's position.
Called by: host_driver, snapshots.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kvstore.base.config import ReadMode
from kvstore.base.errors import DamagedRecord
from kvstore.base.shards import ShardDescriptor
from kvstore.replica.births import Births
from kvstore.replica.environment import Environment
from kvstore.replica.host_core import HostCore, election_ticks_of
from kvstore.replica.membership import image_conf_state
from kvstore.replica.replica import Replica
from kvstore.state.shard import ShardState
from kvstore.state.shard_meta import FOUNDING_INDEX, FOUNDING_TERM, decode_meta
from kvstore.storage.protocol import GroupLog, LogWrite, ReplicaIdentity, ShardImage
from raft import Config, ConfState, HardState, RawNode, SnapshotMeta
from raft.errors import LogCompacted, LogUnavailable

logger = logging.getLogger(__name__)


def _nothing() -> None:
    """For submissions that nobody waits for."""


class Lifecycle:
    """Creates, loads and destroys the replicas of a host."""

    def __init__(self, core: HostCore, environment: Environment) -> None:
        self.core = core
        self.environment = environment
        self.births = Births(core, environment, self)
        self._admitting: set[int] = set()

    # -- start -----------------------------------------------------------------------------------------------------

    def load_all(self) -> None:
        """Every replica that the disk knows, in the order of the groups."""
        self.births.look_at(self.environment.log_store.groups().values())
        for group, identity in sorted(self.environment.log_store.groups().items()):
            if identity.tombstone:
                self.core.tombstones[group] = identity.replica_id
                self._finish_destruction(group)
            elif not self._is_unborn(group, identity):
                self.core.add(self._load(group))

    def found(self, descriptor: ShardDescriptor, conf_state: ConfState, *, done: Callable[[], None]) -> None:
        """Write the first state and log of a founding replica; nothing runs yet. May be done again after a crash.

        Every founder writes the same state. So it has no stamp: that of this node's own clock would be another one than
        the others', and would let the same entry be refused as too old by one replica and be done by another.
        """
        environment = self.environment
        place = descriptor.replica_on(environment.node)
        assert place is not None
        state = ShardState.create(
            descriptor.id,
            descriptor,
            conf_state,
            applied_index=FOUNDING_INDEX,
            applied_term=FOUNDING_TERM,
            stamp=0,
            store=environment.state_store,
        )
        write = LogWrite(
            group=descriptor.id,
            identity=ReplicaIdentity(replica_id=place.replica_id),
            reset=(FOUNDING_INDEX, FOUNDING_TERM),
            hard_state=HardState(term=FOUNDING_TERM, commit=FOUNDING_INDEX),
        )
        image = state.image()
        environment.state_store.create_shard(descriptor.id, image, lambda: environment.log_store.submit([write], done))

    def _is_unborn(self, group: int, identity: ReplicaIdentity) -> bool:
        """A child of a split of which nothing was flushed: its parent's replay is to make its state."""
        store = self.environment.state_store
        if not identity.parent or group in store.shards() or group in store.incomplete():
            return False
        return self.births.load(group, identity)

    def make_lost(self, group: int) -> Replica:
        """A replica whose log is here, and not the state that it goes on from: it is to be healed by the leader."""
        log = self.environment.log_store.open_group(group, verify_from=0)
        self._forget_log(group, log)
        return self.make(group, log, None)

    def _load(self, group: int) -> Replica:
        environment = self.environment
        image = environment.state_store.shards().get(group)
        if group in environment.state_store.incomplete():
            logger.warning(
                "group %d: an installation of a snapshot was cut off; it is to be healed by the leader", group
            )
            return self.make_lost(group)
        if image is None and environment.log_store.groups()[group].parent:
            logger.warning("group %d: the state was never flushed, and can't be made anew", group)
            return self.make_lost(group)
        if image is None:  # admitted, and no snapshot came yet
            log = environment.log_store.open_group(group, verify_from=0)
            return self.make(group, log, None)
        log = environment.log_store.open_group(group, verify_from=image.applied_index)
        if not _holds(log, image):
            environment.log_store.submit(
                [LogWrite(group=group, reset=(image.applied_index, image.applied_term))], _nothing
            )
        self.births.bear_witness(group, log)
        log.conf_state = image_conf_state(image)
        if log.identity.damaged_at:
            logger.warning(
                "group %d: log records behind index %d are lost; no vote from here until the leader has healed it",
                group,
                log.last_index(),
            )
        damage: DamagedRecord | None = None
        try:
            sessions = environment.state_store.sessions(group)
        except DamagedRecord as error:
            sessions, damage = {}, error
        replica = self.make(group, log, ShardState.load(group, image, sessions, environment.state_store))
        if damage is not None:
            replica.rot(damage)
        return replica

    def _forget_log(self, group: int, log: GroupLog, done: Callable[[], None] = _nothing) -> None:
        """The data that the log continues from is gone: begin empty, as a replica that lost what it acknowledged."""
        damaged = ReplicaIdentity(
            replica_id=log.identity.replica_id, damaged_at=max(1, log.last_index(), log.identity.damaged_at)
        )
        log.identity = damaged
        self.environment.log_store.submit([LogWrite(group=group, identity=damaged, reset=(0, 0))], done)

    def make(self, group: int, log: GroupLog, state: ShardState | None, *, newborn: bool = False) -> Replica:
        """A replica on this log. `newborn`: nothing has run it before, see RawNode."""
        environment = self.environment
        config = environment.config
        raft_config = Config(
            replica_id=log.identity.replica_id,
            election_ticks=election_ticks_of(config),
            heartbeat_ticks=max(1, config.heartbeat_ms // config.tick_ms),
            tick_ms=config.tick_ms,
            lease_reads=config.read_mode == ReadMode.LEASE,
        )
        raw = RawNode(
            raft_config,
            log,
            environment.rng,  # one for all: a generator of its own would be the largest part of a replica
            applied=0 if state is None else state.applied_index,
            now_ms=environment.clock.boot_ms(),
            campaign_barred=log.identity.damaged_at > 0,
            newborn=newborn,
        )
        if state is not None:
            log.set_snapshot(SnapshotMeta(state.applied_index, state.applied_term, state.conf_state))
        return Replica(
            group=group, replica_id=log.identity.replica_id, raw=raw, log=log, state=state, environment=environment
        )

    # -- while running ---------------------------------------------------------------------------------------------

    def admit(self, group: int, replica_id: int) -> None:
        """A leader writes to a replica that is to be here: make an empty one, which its snapshot will fill."""
        if group in self._admitting or self.core.tombstones.get(group, 0) >= replica_id:
            return
        if group in self.births.unborn:
            return  # a log without its state, for which the parent's replay is awaited
        old = self.core.replicas.get(group)
        if old is not None:
            if old.replica_id >= replica_id or old.installing:
                return  # an installation ends, or is given up; the leader asks again
            if self.births.unflushed_of(group):
                return  # children of it are about to be flushed
            self.destroy(old)  # removed while it was not listening, and added again
        if group in self.environment.state_store.incomplete():
            return  # the old one's data is still being deleted; the leader asks again
        self._admitting.add(group)
        identity = ReplicaIdentity(replica_id=replica_id)

        def durable() -> None:
            self._admitting.discard(group)
            if group not in self.core.replicas:
                log = self.environment.log_store.open_group(group, verify_from=0)
                self.core.add(self.make(group, log, None))
                logger.info("group %d: replica %d is admitted and waits for its snapshot", group, replica_id)

        self.environment.log_store.submit([LogWrite(group=group, identity=identity, reset=(0, 0))], durable)

    def reload_without_state(self, replica: Replica) -> Replica:
        """An installation broke off and left no usable state: begin as a replica that is to be healed."""
        group = replica.group
        replica.end_requests("the replica is being restored from the leader")
        if self.core.replicas.get(group) is replica:
            self.core.remove(group)
        log = replica.log
        self._forget_log(group, log)
        log.conf_state = ConfState()
        fresh = self.make(group, log, None)
        fresh.node_of.update(replica.node_of)
        self.core.add(fresh)
        return fresh

    def rebuild(self, replica: Replica) -> None:
        """Its disk gave back damage, and another replica leads: drop all that is here and be healed by a snapshot.

        First the log, as lost, then the state: a crash in between leaves a replica that is barred from voting and finds
        its damage anew. It must never have a log without the state that the log goes on from.
        """
        group, log, state = replica.group, replica.log, replica.state
        if state is None or group in self._admitting or self.births.unflushed_of(group):
            return
        store = self.environment.state_store
        descriptor = state.descriptor
        self._admitting.add(group)  # nobody else may make a replica of the group meanwhile
        self.core.remove(group)
        replica.state = None
        logger.warning("group %d: what is damaged here is dropped; the leader will send a snapshot", group)

        def forgotten() -> None:
            store.destroy_shard(group, descriptor.start, descriptor.end, dropped)

        def dropped() -> None:
            self._admitting.discard(group)
            log.conf_state = ConfState()
            fresh = self.make(group, log, None)
            fresh.node_of.update(replica.node_of)
            self.core.add(fresh)

        self._forget_log(group, log, forgotten)

    def destroy(self, replica: Replica) -> None:
        """The replica is no member any more: tombstone first, then the data, in bounded steps."""
        group = replica.group
        self.core.remove(group)
        self.core.tombstones[group] = replica.replica_id
        replica.end_requests("the replica was removed from this node")
        state = replica.state
        replica.state = None
        identity = ReplicaIdentity(replica_id=replica.replica_id, tombstone=True)

        def buried() -> None:
            store = self.environment.state_store
            bounds = store.incomplete().get(group)  # of an installation that was given up
            if state is not None:
                bounds = state.descriptor.start, state.descriptor.end
            if bounds is not None:
                store.destroy_shard(group, *bounds, _nothing)

        self.births.on_parent_gone(group)
        logger.info("group %d: replica %d leaves this node", group, replica.replica_id)
        self.environment.log_store.submit([LogWrite(group=group, identity=identity, destroy=True)], buried)

    def _finish_destruction(self, group: int) -> None:
        """A crash came between the tombstone and the end of the deletes."""
        store = self.environment.state_store
        bounds = store.incomplete().get(group)
        image = store.shards().get(group)
        if bounds is None and image is not None:
            descriptor = ShardState.load(group, image, {}, store).descriptor
            bounds = (descriptor.start, descriptor.end)
        if bounds is not None:
            store.destroy_shard(group, *bounds, _nothing)

    def overlapping(self, group: int, start: bytes, end: bytes) -> Sequence[int]:
        """Other groups whose range here meets [start, end): of a live replica, or of one whose data is being installed
        or deleted."""
        live = [
            other.group
            for other in self.core.replicas.values()
            if other.group != group
            and other.state is not None
            and other.state.descriptor.start < end
            and start < other.state.descriptor.end
        ]
        unfinished = [
            other
            for other, (low, high) in self.environment.state_store.incomplete().items()
            if other != group and low < end and start < high
        ]
        return live + unfinished

    def flushed_overlapping(self, group: int, start: bytes, end: bytes) -> Sequence[int]:
        """Other groups of which the disk says that they hold a part of [start, end). After a crash their replay begins
        there, so nothing may be written into the range by anybody else before they are flushed again."""
        found = []
        for other, image in self.environment.state_store.shards().items():
            if other != group:
                descriptor = decode_meta(image.meta).descriptor
                if descriptor.start < end and start < descriptor.end:
                    found.append(other)
        return found


def _holds(log: GroupLog, image: ShardImage) -> bool:
    """Whether the log goes on from the flushed state."""
    try:
        return log.term(image.applied_index) == image.applied_term
    except (LogCompacted, LogUnavailable):
        return False
