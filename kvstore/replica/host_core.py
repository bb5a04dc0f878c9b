"""All Raft groups of one node, advanced together: who has something to do, and what the node must do for them.

`pump` asks every dirty replica for its Ready and folds all of them into one `Effects`: one log transaction, one
message batch for each peer. The driver starts those, then calls `apply`. What must wait for the disk comes back by
`on_durable`.

    stage / step / tick  ->  dirty  ->  pump  ->  Effects  ->  driver: send, submit to the log thread
                                        apply  <-  committed entries, read states
                             dirty  <-  on_durable (acks, the messages that waited for the disk)

Invariant: messages in `Persisted.after` leave only after the log transaction that carries their Ready is durable.
Invariant: the Readys of a replica become durable in the order in which they were taken (the log thread is first-in,
           first-out, and acks are given in that order).
Called by: host_driver.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kvstore.base.errors import DamagedRecord
from kvstore.replica.environment import Environment
from kvstore.replica.replica import Replica
from kvstore.replica.requests import Deadlines
from kvstore.storage.protocol import LogWrite, ReplicaIdentity
from kvstore.transport.protocol import GroupMessage
from raft import AppendAck, Message, MessageType, Ready, Role, StepRefused

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
        self.leads_anew = False  # what is led here, or its descriptor or term, has changed since the driver looked

    def add(self, replica: Replica) -> None:
        assert replica.group not in self.replicas
        self.replicas[replica.group] = replica
        self.mark(replica)

    def remove(self, group: int) -> Replica:
        self.dirty.pop(group, None)
        return self.replicas.pop(group)

    def mark(self, replica: Replica) -> None:
        self.dirty[replica.group] = replica

    # -- input -----------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        self.environment.metrics.proposals_expired += self.deadlines.sweep(now_ms)
        for replica in self.replicas.values():
            try:
                replica.tick(now_ms)
            except DamagedRecord as error:
                replica.rot(error)
                continue
            if replica.raw.has_ready() or replica.reads.waiting or replica.healing.healed:
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

    def peer_gone(self, node: str) -> list[Replica]:
        """Evidence that the process of a node is gone; the replicas that may hasten an election because of it."""
        hasty = []
        for replica in self.replicas.values():
            for replica_id, place in replica.node_of.items():
                if place == node:
                    replica.raw.report_unreachable(replica_id)
                    if replica.raw.leader_gone(replica_id):
                        hasty.append(replica)
        return hasty

    def hasten(self, replica: Replica, *, again: bool) -> bool:
        """Campaign because of evidence; True when the election may come to be without a winner, so that it is worth to
        look again in a while. `again`: it did."""
        if self.replicas.get(replica.group) is not replica or replica.failed or replica.installing:
            return False
        raw = replica.raw
        if again:
            campaigns = raw.role in (Role.CANDIDATE, Role.PRE_CANDIDATE) and raw.campaign()
        else:
            campaigns = raw.hasten()
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
        identity = ReplicaIdentity(replica_id=replica.replica_id)
        replica.log.identity = identity
        effects.writes.append(LogWrite(group=replica.group, identity=identity))

    def apply(self, effects: Effects) -> None:
        """Execute what is committed. Called after the effects were started, so that disk and peers work meanwhile."""
        metrics = self.environment.metrics
        perf = self.environment.perf
        began = perf()
        committed = 0
        for replica, ready in effects.readys:
            committed += len(ready.committed)
            replica.apply(ready)
            self.leads_anew |= replica.leads_anew()
            if replica.raw.has_ready():
                self.mark(replica)
        if committed:
            metrics.commits += committed
            metrics.apply_seconds.observe(perf() - began)

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
