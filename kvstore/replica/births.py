"""How the child of a split comes to life on this node, and what waits for it until then.

A split is applied in the middle of a turn; in the same turn, before anything else is looked at, `bear` makes the
child's replica beside the parent's. Its state is in memory only, until the next flush writes both halves at one cut.
Durable at once is its identity and the beginning of its log (where it has a log already, nothing is written).

    no trace of the child       identity, log from FOUNDING_INDEX, first hard state
    its log, no flushed state   a crash came before the flush: the parent's replay has made the state anew, and the log,
                                term and vote that are on the disk go on from it
    an empty replica            its leader was faster than the parent's log: it becomes the child, and keeps what it
                                has voted
    a tombstone, or a later     it was removed from here, and perhaps added again: nothing is created, and the range's
    replica id, or no place     data is deleted; a later replica gets it by a snapshot

Invariant: a hard state on the disk is never overwritten by one that forgets a term or a vote.
Invariant: no message of the child leaves before its identity is durable (`Replica.starting`).
Invariant: a log without flushed state is given up, as damaged, only when nothing here can replay the split any more:
           the parent's replica is gone, or its state has come by a snapshot from behind the split. As long as it can,
           the log is kept and says nothing: what it has acknowledged stays true.
Invariant: whatever would take away the parent's flushed state waits until its children here are flushed.
Invariant: ranges of live replicas never overlap; looked at whenever one is born or installed.
Called by: host_driver, lifecycle, snapshots.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.replica.environment import Birth, Environment
from kvstore.replica.host_core import LEADER_MESSAGES, HostCore
from kvstore.replica.membership import FOUNDERS_IDS_MAX
from kvstore.replica.replica import Replica
from kvstore.state.shard_meta import FOUNDING_INDEX, FOUNDING_TERM
from kvstore.storage.protocol import GroupLog, LogWrite, ReplicaIdentity
from kvstore.transport.protocol import GroupMessage
from raft import HardState

if TYPE_CHECKING:
    from kvstore.replica.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

GROUPS_MAX = 512  # of which messages are kept: a burst of splits on a node that is behind
MESSAGES_MAX = 8  # of one group: the votes of an election and its repetitions, the newest
MESSAGE_BYTES_MAX = 1024  # larger ones are appends with entries, which Raft sends again


@dataclass(slots=True)
class _Waiting:
    """Messages for a replica that a split is going to make here, perhaps."""

    since_ms: int
    messages: list[tuple[str, GroupMessage]] = field(default_factory=list)


class Births:
    """The children of this node's shards: born, about to be, and those that cannot be any more."""

    def __init__(self, core: HostCore, environment: Environment, lifecycle: Lifecycle) -> None:
        self.core = core
        self.environment = environment
        self.lifecycle = lifecycle
        self.unborn: dict[int, ReplicaIdentity] = {}  # groups with a log here, whose state the parent's replay makes
        self._born_at: dict[int, int] = {}  # by parent: index of the last split that was applied here before this start
        self._waiting: dict[int, _Waiting] = {}  # by group, in the order of their first message

    # -- a split was applied ---------------------------------------------------------------------------------------

    def bear(self, birth: Birth, on_durable: Callable[[Replica], None]) -> Replica | None:
        """Make the child's replica, or delete its range where it has none. `on_durable`: it may speak now."""
        environment = self.environment
        state, parent = birth.state, birth.parent
        descriptor = state.descriptor
        group = descriptor.id
        old = self.core.replicas.get(group)
        place = descriptor.replica_on(environment.node)
        tombstone = self.core.tombstones.get(group, 0)
        known = environment.log_store.groups().get(group)
        newest = max(tombstone, known.replica_id if known is not None else 0)
        waiting = self._waiting.pop(group, None)
        if place is None or tombstone >= place.replica_id or newest > place.replica_id:
            assert old is None or (old.state is None and not old.installing), f"shard {group} is here already"
            logger.info("group %d: no replica of this child is to be here; its range is deleted", group)
            self.unborn.pop(group, None)
            environment.state_store.destroy_shard(group, descriptor.start, descriptor.end, _nothing)
            return None
        overlapping = self.lifecycle.overlapping(group, descriptor.start, descriptor.end)
        assert not overlapping, f"child {group} of {parent.group} meets the ranges of {list(overlapping)}"
        log, write = self._log_of(birth, place.replica_id, known, old)
        born: list[Replica] = []

        def durable() -> None:
            (replica,) = born
            replica.starting = False
            if self.core.replicas.get(group) is replica:
                on_durable(replica)

        if write is not None:
            environment.log_store.submit([write], durable)
        log.conf_state = state.conf_state
        replica = self.lifecycle.make(group, log, state, newborn=write is not None and old is None)
        born.append(replica)
        replica.starting = write is not None
        replica.stamps = parent.stamps.fork()
        if old is not None:
            old.end_requests("the replica begins anew as the child of a split")
            replica.node_of.update(old.node_of)
            self.core.remove(group)
        self.core.add(replica)
        if parent.is_leader and replica.raw.term == FOUNDING_TERM:
            # Nobody can lead the child yet, so there is nobody whom the higher term would disturb.
            replica.raw.campaign_without_prevote()
        for node, envelope in waiting.messages if waiting is not None else ():
            self.core.on_messages(node, [envelope])
        logger.info("group %d: replica %d is born of group %d", group, place.replica_id, parent.group)
        return replica

    def _log_of(
        self, birth: Birth, replica_id: int, known: ReplicaIdentity | None, old: Replica | None
    ) -> tuple[GroupLog, LogWrite | None]:
        """The child's log, and what has to be written for it to begin; None: it has begun, before a crash."""
        group = birth.state.group
        store = self.environment.log_store
        log = store.open_group(group, verify_from=FOUNDING_INDEX)
        if self.unborn.pop(group, None) is not None:
            assert log.first_index() == FOUNDING_INDEX + 1, (group, log.first_index())
            self.bear_witness(group, log)
            return log, None
        assert old is None or (old.state is None and not old.installing), f"shard {group} is here already"
        voted, _ = log.initial_state()
        damaged_at = known.damaged_at if known is not None and not known.tombstone else 0
        return log, LogWrite(
            group=group,
            identity=ReplicaIdentity(
                replica_id=replica_id, damaged_at=damaged_at, parent=birth.parent.group, born_at=birth.index
            ),
            reset=(FOUNDING_INDEX, FOUNDING_TERM),
            hard_state=HardState(term=max(FOUNDING_TERM, voted.term), vote=voted.vote, commit=FOUNDING_INDEX),
        )

    # -- a split that is still to come -----------------------------------------------------------------------------

    def on_stranger(self, node: str, envelope: GroupMessage) -> None:
        """A message for a replica that is not here. One that a change of the membership added is made by its leader's
        first message, empty, to be filled by a snapshot (not by a request for a vote, which may come from one that does
        not know of its own removal). One of a group's first members may be about to be born here, so its messages are
        kept. If nothing comes of that for a while it is made empty as well, and becomes the child when the split is
        applied after all; this by whatever message, since its vote may be the one without which there is no leader. It
        has no past that it could contradict: who had one has an identity or a tombstone."""
        group, message = envelope.group, envelope.message
        if message.to_id > FOUNDERS_IDS_MAX:
            if message.type in LEADER_MESSAGES:
                self.lifecycle.admit(group, message.to_id)
            return
        now = self.environment.clock.boot_ms()
        waiting = self._waiting.get(group)
        if waiting is None:
            if len(self._waiting) >= GROUPS_MAX:
                del self._waiting[next(iter(self._waiting))]
            waiting = self._waiting[group] = _Waiting(now)
        if sum(len(entry.data) for entry in message.entries) <= MESSAGE_BYTES_MAX:
            waiting.messages.append((node, envelope))
            del waiting.messages[:-MESSAGES_MAX]
        if group not in self.unborn and now - waiting.since_ms >= 2 * self.environment.config.election_ms:
            del self._waiting[group]
            self.lifecycle.admit(group, message.to_id)

    # -- children without a flushed state --------------------------------------------------------------------------

    def look_at(self, identities: Iterable[ReplicaIdentity]) -> None:
        """At the start, before anything is loaded."""
        for identity in identities:
            if identity.parent:
                self._born_at[identity.parent] = max(identity.born_at, self._born_at.get(identity.parent, 0))

    def bear_witness(self, group: int, log: GroupLog) -> None:
        """A child's identity proves that its parent's log was committed up to the split: it was written when that had
        been applied. The hard state may say less; with this the parent replays the split at once, and need not hear a
        leader first, who may have nothing for it but a snapshot from behind it."""
        born_at = self._born_at.get(group, 0)
        state, _ = log.initial_state()
        if state.commit < born_at <= log.last_index():
            known = HardState(term=state.term, vote=state.vote, commit=born_at)
            self.environment.log_store.submit([LogWrite(group=group, hard_state=known)], _nothing)

    def load(self, group: int, identity: ReplicaIdentity) -> bool:
        """At the start, of a child whose log is here and whose state was not flushed: True when the parent's replay
        will make that."""
        store = self.environment
        parent = store.log_store.groups().get(identity.parent)
        image = store.state_store.shards().get(identity.parent)
        if parent is None or parent.tombstone or (image is not None and image.applied_index >= identity.born_at):
            return False
        self.unborn[group] = identity
        return True

    def on_parent_gone(self, group: int) -> None:
        """The replica of this group is destroyed: nothing here will replay its splits."""
        self._give_up([child for child, identity in self.unborn.items() if identity.parent == group])

    def on_installed(self, group: int, index: int) -> None:
        """A snapshot at `index` has taken this group past the splits up to there."""
        self._give_up(
            [child for child, identity in self.unborn.items() if identity.parent == group and identity.born_at <= index]
        )

    def _give_up(self, children: list[int]) -> None:
        for child in children:
            del self.unborn[child]
            logger.warning("group %d: the state that its log goes on from is lost; the leader has to heal it", child)
            self.core.add(self.lifecycle.make_lost(child))

    def unflushed_of(self, group: int) -> bool:
        """Whether children of this group live here of which no state is on the disk yet, since a crash would need the
        group's flushed state to make them anew. They are about to be flushed."""
        images = self.environment.state_store.shards()
        found = any(
            replica.state is not None and replica.log.identity.parent == group and replica.group not in images
            for replica in self.core.replicas.values()
        )
        self.environment.flush_wanted |= found
        return found


def _nothing() -> None:
    """For submissions that nobody waits for."""
