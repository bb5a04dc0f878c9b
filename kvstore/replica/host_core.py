"""All Raft groups of one node, advanced together: who has something to do, and what the node must do for them.

`pump` asks every dirty replica for its Ready and folds all of them into one `Effects`: one log transaction, one
message batch for each peer. The driver starts those, then calls `apply`. What must wait for the disk comes back by
`on_durable`.

    stage / step / tick  ->  dirty  ->  pump  ->  Effects  ->  driver: send, submit to the log thread
                                        apply  <-  committed entries, read states
                             dirty  <-  on_durable (acks, the messages that waited for the disk)

A tick goes through the groups that are awake (hibernation), and a turn through those that are dirty: what a group costs
that has nothing to do is its memory.

Invariant: messages in `Persisted.after` leave only after the log transaction that carries their Ready is durable.
Invariant: the Readys of a replica become durable in the order in which they were taken (the log thread is first-in,
           first-out, and acks are given in that order).
Invariant: whatever changes a replica marks it; so after `apply` it is settled who is awake.
Invariant: campaigns under way are bounded (turns), whether evidence (haste) or a time-out began them.
Called by: host_driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from kvstore.base.config import NodeConfig
from kvstore.base.errors import DamagedRecord
from kvstore.replica.environment import Environment
from kvstore.replica.haste import Campaign, Reason
from kvstore.replica.hibernation import Hibernation
from kvstore.replica.liveness import Liveness, Sight
from kvstore.replica.neighbours import Neighbours
from kvstore.replica.replica import Replica
from kvstore.replica.requests import Deadlines
from kvstore.replica.turns import Turns
from kvstore.state.shard_meta import FOUNDING_TERM
from kvstore.storage.protocol import LogWrite
from kvstore.transport.protocol import GroupMessage
from raft import NO_REPLICA, AppendAck, Message, MessageType, Ready, Role, StepRefused

VOTE_REQUESTS = (MessageType.VOTE, MessageType.PRE_VOTE)
LEADER_MESSAGES = (MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT)

Outbox = dict[str, list[GroupMessage]]
"""Messages by node id."""


@dataclass(slots=True)
class Persisted:
    """What one replica is told, and may send, once its part of a log transaction is durable."""

    replica: Replica
    ack: AppendAck
    after: list[Message]


@dataclass(slots=True)
class Effects:
    """What the node must do now."""

    writes: list[LogWrite] = field(default_factory=list)
    persisted: list[Persisted] = field(default_factory=list)
    outbox: Outbox = field(default_factory=dict)
    snapshots: list[tuple[Replica, Message]] = field(default_factory=list)  # to stream to a peer
    readys: list[tuple[Replica, Ready]] = field(default_factory=list)  # for `apply`
    removed: list[tuple[str, int, int]] = field(default_factory=list)  # (node, group, replica id): REMOVED notices
    touched: list[Replica] = field(default_factory=list)  # all that were dirty


class HostCore:
    """The groups of one node. Synchronous; no I/O."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.replicas: dict[int, Replica] = {}
        self.tombstones: dict[int, int] = {}  # group -> highest replica id that was removed here
        self.dirty: dict[int, Replica] = {}  # in the order in which they became so
        self.deadlines = Deadlines.starting(environment.clock.boot_ms())
        self.removed_notices: list[tuple[str, int, int]] = []
        self.strangers: list[tuple[str, GroupMessage]] = []  # for groups without a replica here; bounded
        self.leaders: dict[int, int] = {}  # highest term of a leader that wrote to a replica under installation
        self.curable: list[Replica] = []  # damaged ones that another replica leads now
        self.removed: dict[int, Replica] = {}  # no members any more, by group: to be destroyed
        config = environment.config
        election_ticks = election_ticks_of(config)
        self.liveness = Liveness(silent_ticks_max=election_ticks)
        self.hibernation = Hibernation(self.replicas, self.liveness, election_ticks=election_ticks)
        self.turns = Turns(self.replicas)
        self.leads_anew = False  # what is led here, or its descriptor or term, has changed since the driver looked
        self.routes_anew: dict[int, None] = {}  # groups whose route may have changed, for the router's map to take
        self.neighbours = Neighbours(environment.node, linger_ms=2 * removal_linger_ms(config))

    def add(self, replica: Replica) -> None:
        assert replica.group not in self.replicas
        self.replicas[replica.group] = replica
        self.hibernation.awake[replica.group] = replica
        self.mark(replica)

    def remove(self, group: int) -> Replica:
        self.dirty.pop(group, None)
        self.removed.pop(group, None)
        self.hibernation.drop(group)
        self.leads_anew = True
        self.routes_anew[group] = None
        self.neighbours.drop(group, self.environment.clock.boot_ms())
        return self.replicas.pop(group)

    def mark(self, replica: Replica) -> None:
        self.dirty[replica.group] = replica

    # -- input -----------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int, heard: Callable[[str], int]) -> list[str]:
        """`heard`: what the transport says of a node. Gives the nodes that are silent from now on."""
        self.environment.metrics.proposals_expired += self.deadlines.sweep(now_ms)
        hibernation = self.hibernation
        self._settle_stopped()
        silent = []
        for node, sight in self.liveness.tick(heard):
            self._mark_all(hibernation.on_node(node, sight))
            if sight is Sight.SILENT:
                silent.append(node)
        self._mark_all(hibernation.tick())
        self.turns.tick()
        for replica in hibernation.awake.values():
            self._tick_one(replica, now_ms)
        return silent

    def _tick_one(self, replica: Replica, now_ms: int) -> None:
        raw = replica.raw
        waits = raw.campaigns_next and not self._may_campaign(replica)
        try:
            replica.tick(now_ms, waits_for_turn=waits)
        except DamagedRecord as error:
            replica.rot(error)
            self.mark(replica)
            return
        begins_sleep = raw.role == Role.LEADER and self.hibernation.consider(replica)
        if begins_sleep or raw.has_ready() or replica.reads.waiting or replica.healing.healed:
            self.mark(replica)
        elif raw.asleep and not replica.needs_ticks:
            self.mark(replica)  # what it had to wait for awake is over

    def _may_campaign(self, replica: Replica) -> bool:
        """Its timer has run out. Without a quorum of nodes to ask, a campaign would be noise."""
        if not self.hibernation.sees_quorum(replica):
            return False
        return self.turns.may_begin(replica.group, goes_first=self._rank(replica, NO_REPLICA) == 0)

    def _settle_stopped(self) -> None:
        """Replicas may be stopped by whoever touches them, a read for example."""
        stopped, self.environment.stopped = self.environment.stopped, []
        for group in stopped:
            replica = self.replicas.get(group)
            if replica is not None and replica.failed:
                self.hibernation.on_stopped(replica)
                self.mark(replica)

    def _mark_all(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            self.mark(replica)

    def on_messages(self, node: str, messages: Iterable[GroupMessage]) -> None:
        for envelope in messages:
            message = envelope.message
            self.environment.metrics.raft_messages_received += 1
            replica = self.replicas.get(envelope.group)
            if replica is None or replica.replica_id < message.to_id:
                self._on_stranger(node, envelope)
            elif replica.replica_id > message.to_id:
                self.removed_notices.append((node, envelope.group, message.to_id))
            elif replica.failed:
                # Its own term never changes any more; what an older leader says would not heal it.
                if replica.rotten and message.type in LEADER_MESSAGES and message.term >= replica.raw.term:
                    self.curable.append(replica)
            elif replica.installing:
                if message.type in LEADER_MESSAGES:
                    self.leaders[replica.group] = max(message.term, self.leaders.get(replica.group, 0))
            elif message.type in VOTE_REQUESTS and replica.knows_removed(message.from_id):
                # It was away when it was removed, and would stand in the way of whoever is to have its range.
                self.removed_notices.append((node, envelope.group, message.from_id))
            else:
                replica.node_of.setdefault(message.from_id, node)
                self._step(replica, message)

    def _on_stranger(self, node: str, envelope: GroupMessage) -> None:
        """A message for a replica that is not here: a new one to come, or one that was removed."""
        if self.tombstones.get(envelope.group, 0) >= envelope.message.to_id:
            self.removed_notices.append((node, envelope.group, envelope.message.to_id))
        elif len(self.strangers) < 1_000:
            self.strangers.append((node, envelope))

    def _step(self, replica: Replica, message: Message) -> None:
        try:
            replica.raw.step(message)
        except StepRefused:
            return
        except DamagedRecord as error:
            replica.rot(error)
            return
        self.mark(replica)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def peer_up(self, node: str, boot: str) -> list[tuple[int, int]]:
        """A connection is open. (group, rank) of those that have lost their leader: its process is another one now."""
        sight = self.liveness.on_up(node, boot)
        orphans = self._orphaned_by(node, self.replicas) if sight is Sight.REPLACED else []
        self._mark_all(self.hibernation.on_node(node, sight))
        return orphans

    def peer_gone(self, node: str) -> list[tuple[int, int]]:
        """Evidence that the process of a node is gone. (group, rank) of those that may hasten an election for it."""
        # It is said again and again; who is led from there and sleeps was woken when it was news.
        news = self.liveness.on_gone(node)
        replicas = self.replicas if news else self.hibernation.awake
        orphans = self._orphaned_by(node, replicas)
        for replica, other in self.hibernation.members_on(node, replicas):
            replica.raw.report_unreachable(other)
            if self.hibernation.wake_without_quorum(replica):
                self.mark(replica)
        return orphans

    def founded(self) -> list[int]:
        """Groups that have just been founded: there is no leader to wait for, and their first voter asks at once."""
        return [
            replica.group
            for replica in self.hibernation.awake.values()
            if replica.raw.term == FOUNDING_TERM and min(replica.raw.conf_state.voters, default=0) == replica.replica_id
        ]

    def _orphaned_by(self, node: str, replicas: dict[int, Replica]) -> list[tuple[int, int]]:
        orphans = []
        for replica, other in self.hibernation.members_on(node, replicas):
            if replica.raw.leader_gone(other):
                orphans.append((replica.group, self._rank(replica, other)))
                self.mark(replica)
            elif not replica.raw.asleep and replica.group not in self.hibernation.awake:
                self.mark(replica)  # woken for all that: a promise to that leader has to run out first
        return orphans

    def _rank(self, replica: Replica, lost_id: int) -> int:
        """How many of the voters that are left go first, another one in each group."""
        conf = replica.raw.conf_state
        own = replica.replica_id
        left = [
            voter
            for voter in sorted({*conf.voters, *conf.voters_outgoing})
            if voter == own or (voter != lost_id and self.liveness.is_alive(replica.node_of.get(voter, "")))
        ]
        return (left.index(own) - replica.group) % len(left) if own in left else len(left)

    def hasten(self, campaign: Campaign) -> bool:
        """Campaign because of evidence, or of the beginning of a group; True when it was begun, so that it is worth to
        look again in a while."""
        replica = self.replicas.get(campaign.group)
        if replica is None or replica.failed or replica.installing:
            return False
        raw = replica.raw
        if campaign.reason == Reason.FOUNDED:
            campaigns = raw.term == FOUNDING_TERM and raw.campaign()
        elif campaign.reason == Reason.AGAIN:
            campaigns = raw.role in (Role.CANDIDATE, Role.PRE_CANDIDATE) and raw.campaign()
        else:
            campaigns = raw.hasten()
        if campaigns:
            self.turns.on_begun(campaign.group)
        self.mark(replica)
        return campaigns

    # -- output ----------------------------------------------------------------------------------------------------

    def pump(self) -> Effects:
        """Take what every dirty replica has to do."""
        effects = Effects()
        dirty, self.dirty = self.dirty, {}
        for replica in dirty.values():
            if replica.healing.healed:
                self._persist_healed(effects, replica)
            try:
                ready = replica.collect()
            except DamagedRecord as error:  # of an entry that is to be sent or applied: nothing has left of this Ready
                replica.rot(error)
                continue
            if ready is not None:
                self._collect(effects, replica, ready)
        effects.touched = list(dirty.values())
        calls, self.hibernation.calls = self.hibernation.calls, []
        for replica, message in calls:
            add_to(effects.outbox, replica, message)
        effects.removed, self.removed_notices = self.removed_notices, []
        return effects

    def _collect(self, effects: Effects, replica: Replica, ready: Ready) -> None:
        self._route(effects, replica, ready.messages)
        if ready.ack is not None:
            snapshot = ready.snapshot
            effects.writes.append(
                LogWrite(
                    group=replica.group,
                    reset=None if snapshot is None else (snapshot.index, snapshot.term),
                    entries=ready.entries,
                    hard_state=ready.hard_state,
                )
            )
            effects.persisted.append(Persisted(replica, ready.ack, ready.after_append))
        else:
            assert ready.hard_state is None
            assert not ready.entries
            self._route(effects, replica, ready.after_append)
        effects.readys.append((replica, ready))

    def _route(self, effects: Effects, replica: Replica, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.type == MessageType.SNAPSHOT:
                effects.snapshots.append((replica, message))
                continue
            add_to(effects.outbox, replica, message)

    def _persist_healed(self, effects: Effects, replica: Replica) -> None:
        replica.healing.healed = False
        identity = msgspec.structs.replace(replica.log.identity, damaged_at=0)
        replica.log.identity = identity
        effects.writes.append(LogWrite(group=replica.group, identity=identity))

    def apply(self, effects: Effects) -> None:
        """Execute what is committed. Called after the effects were started, so that disk and peers work meanwhile."""
        metrics = self.environment.metrics
        now_ms = self.environment.clock.boot_ms()
        perf = self.environment.perf
        began = perf()
        committed = 0
        for replica, ready in effects.readys:
            committed += len(ready.committed)
            replica.apply(ready)
            if replica.raw.has_ready():
                self.mark(replica)
        if committed:
            metrics.commits += committed
            metrics.apply_seconds.observe(perf() - began)
        for replica in effects.touched:
            self._settle(replica, now_ms)

    def _settle(self, replica: Replica, now_ms: int) -> None:
        if self.replicas.get(replica.group) is not replica:
            return
        self.neighbours.settle(replica.group, replica.state, now_ms)
        self.leads_anew |= replica.leads_anew()
        if replica.route_anew():
            self.routes_anew[replica.group] = None
        if replica.removed:
            self.removed[replica.group] = replica
        if self.hibernation.settle(replica):
            self.mark(replica)

    def on_durable(self, persisted: list[Persisted]) -> Outbox:
        """Hand out the acks, and give the messages that waited for them."""
        outbox: Outbox = {}
        for part in persisted:
            replica = part.replica
            if self.replicas.get(replica.group) is not replica:
                continue  # destroyed meanwhile
            try:
                replica.raw.on_durable(part.ack)
            except DamagedRecord as error:
                replica.rot(error)
                continue
            for message in part.after:
                add_to(outbox, replica, message)
            self.mark(replica)
        return outbox

    # -- what there is ---------------------------------------------------------------------------------------------

    def role_counts(self) -> dict[str, float]:
        counts: dict[str, float] = {role.name.lower(): 0 for role in Role}
        counts |= {"learner": 0, "failed": 0, "hibernating": 0}
        for replica in self.replicas.values():
            counts[replica.role_name] += 1
            counts["hibernating"] += replica.raw.asleep
        return counts


def election_ticks_of(config: NodeConfig) -> int:
    """The smallest election timeout, as the groups count it."""
    return max(4, config.election_ms // config.tick_ms)


def removal_linger_ms(config: NodeConfig) -> int:
    """How long a removed replica is kept: a member that crashes may wake up without the last commit, in the joint
    state, and need its vote. By then the members have flushed the new configuration."""
    return 2 * (config.flush_interval_ms + config.election_ms)


def add_to(outbox: Outbox, replica: Replica, message: Message) -> None:
    """Address a message; without a known node it is dropped (Raft repeats it)."""
    node = replica.node_of.get(message.to_id)
    if node is None:
        return
    envelope = GroupMessage(replica.group, message)
    waiting = outbox.get(node)
    if waiting is None:
        outbox[node] = [envelope]
    else:
        waiting.append(envelope)
