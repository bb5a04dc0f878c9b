"""The one class that a driver talks to. The package docstring says how.

Invariant: whatever raises has changed nothing.
Invariant: acks come back in the order of their Readys; a Ready has an ack whenever it has something to persist, or
           messages that wait for something that an earlier Ready has asked to persist.
Thesis: 3.8, 10.2.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from random import Random

from raft import election, follower, hibernation, leader
from raft.config import Config
from raft.core import Core
from raft.errors import NotLeader, TransferInProgress, UncommittedLimit
from raft.leader import leading
from raft.status import PeerStatus, Status
from raft.step import step
from raft.storage import LogReader
from raft.types import (
    NO_REPLICA,
    AppendAck,
    ConfChange,
    ConfState,
    EntryKind,
    HardState,
    Message,
    MessageType,
    Ready,
    Role,
    SnapshotMeta,
)


class RawNode:
    __slots__ = ("_core", "_handed_state", "_outstanding", "_ready_number", "_told")

    def __init__(
        self,
        config: Config,
        log: LogReader,
        rng: Random,
        *,
        applied: int = 0,
        now_ms: int = 0,
        campaign_barred: bool = False,
        newborn: bool = False,
    ) -> None:
        """`applied`: what the driver's state machine holds; the log's ConfState is the one at that index.

        `campaign_barred`: the replica has lost log records. It neither votes nor campaigns until `unbar`.
        `newborn`: no process before this one has run the replica, so no lease was promised that would be forgotten.
        """
        core = Core(config, log, rng, applied=applied, now_ms=now_ms, barred=campaign_barred, newborn=newborn)
        self._core = core
        self._ready_number = 0
        self._outstanding: deque[int] = deque()  # numbers of the Readys whose acks are awaited
        self._handed_state = (core.term, core.vote, core.log.commit)  # last handed out for persistence
        self._told = (core.role, core.term, core.leader_id)  # as of the last Ready

    # -- input

    def tick(self, now_ms: int) -> None:
        """At most once in tick_ms of real time. `now_ms`: a clock that never goes back (CLOCK_BOOTTIME)."""
        core = self._core
        assert now_ms >= core.now_ms, "the clock went back"
        core.now_ms = now_ms
        if core.asleep:
            return
        if core.leading is not None:
            leader.tick_leader(core)
        else:
            election.tick_election(core)

    def step(self, message: Message) -> None:
        """Take a message from another replica. Raises StepRefused for one that is of no use here."""
        step(self._core, message)

    def propose(self, data: bytes) -> tuple[int, int]:
        """(term, index) of the new entry. Raises NotLeader, TransferInProgress, UncommittedLimit."""
        return self.propose_many((data,))

    def propose_many(self, payloads: Sequence[bytes]) -> tuple[int, int]:
        """One entry each, all or none; (term, index of the first one). Raises as `propose`."""
        assert payloads
        core = self._core
        lead = core.leading
        if lead is None:
            raise NotLeader(core.leader_id)
        if lead.transfer_target != NO_REPLICA:
            raise TransferInProgress("the leadership is being handed over")
        size = sum([len(data) for data in payloads])
        # An entry larger than the limit passes when it is alone, else it never could.
        if lead.uncommitted_bytes > 0 and lead.uncommitted_bytes + size > core.config.uncommitted_bytes_max:
            raise UncommittedLimit(f"{lead.uncommitted_bytes} bytes are proposed and not committed yet")
        hibernation.wake(core)
        first = core.append_own(list(payloads), EntryKind.NORMAL)
        lead.add_uncommitted(last_index=first + len(payloads) - 1, size=size)
        return core.term, first

    def propose_conf_change(self, change: ConfChange) -> tuple[int, int]:
        """(term, index). Raises NotLeader, TransferInProgress, ConfChangeRefused."""
        core = self._core
        lead = core.leading
        if lead is None:
            raise NotLeader(core.leader_id)
        if lead.transfer_target != NO_REPLICA:
            raise TransferInProgress("the leadership is being handed over")
        index = leader.propose_change(core, change)
        hibernation.wake(core)
        return core.term, index

    def apply_conf_change(self, change: ConfChange) -> ConfState:
        """The driver applies an entry with this change, before it says so with `applied_to`. The new membership.

        A change that the driver refuses is just not given here. Raises ConfChangeRefused when it cannot be applied,
        which a change that this package has proposed always can.
        """
        core = self._core
        if core.leading is not None:
            leader.adopt_change(core, change)
        else:
            core.adopt_change(change)
        return core.tracker.conf

    def read_index(self, context: bytes) -> None:
        """Ask for a ReadState with `context`; a new context for each attempt. Raises NotLeader: nobody to ask.

        May stay without an answer (a lost message, a lost leadership): then ask again with a new context.
        """
        core = self._core
        if core.leading is not None:
            hibernation.wake(core)
            leader.add_read(core, context, core.id)
        elif core.leader_id == NO_REPLICA:
            raise NotLeader(NO_REPLICA)
        else:
            hibernation.wake(core)
            message = Message(MessageType.READ_INDEX, to_id=core.leader_id, context=context)
            # This read tells when the log is whole again, so the leader has to hear of the loss before it answers.
            follower.say_lost(core, message)
            core.send(message)

    def lease_valid(self, now_ms: int) -> bool:
        """No other leader can have been elected up to now. Asked when a read begins *and* after the value was read,
        each time with a fresh `now_ms`; the package docstring has the whole recipe."""
        return leader.lease_valid(self._core, now_ms)

    def set_lease_reads(self, enabled: bool) -> None:
        """Switch the read mode. When switching off, do not make that durable within an election timeout: a voter
        that restarts in index mode does not stand by a promise that it may have given before."""
        assert self._core.config.check_quorum or not enabled
        self._core.lease_reads = enabled

    def transfer_leader(self, to_id: int) -> None:
        """Hand the leadership over. Raises NotLeader; StepRefused when `to_id` is no voter."""
        core = self._core
        if core.leading is None:
            raise NotLeader(core.leader_id)
        leader.start_transfer(core, to_id)
        hibernation.wake(core)

    def campaign(self) -> bool:
        """Now, with PreVote when it is on. False when this replica may not (no voter, barred, a promise, ...)."""
        core = self._core
        return election.maybe_campaign(core, pre_vote=core.config.pre_vote)

    def campaign_without_prevote(self) -> bool:
        """For a new group whose members have nothing to ask each other (the child of a split)."""
        return election.maybe_campaign(self._core, pre_vote=False)

    def leader_gone(self, leader_id: int) -> bool:
        """Evidence that the process of this leader is gone. True when that ended the wait for it: now call `hasten`
        after a short random time. With a lease promise running it takes effect when that has run out, by itself."""
        return follower.on_leader_gone(self._core, leader_id)

    def hasten(self) -> bool:
        """Campaign now if the evidence still stands."""
        core = self._core
        if core.role != Role.FOLLOWER or not follower.may_hasten(core):
            return False
        return election.maybe_campaign(core, pre_vote=core.config.pre_vote)

    def forget_leader(self) -> None:
        """Do not refuse candidates for the sake of the present leader. No effect on a leader or a promise."""
        core = self._core
        if core.leading is None:
            core.leader_id = NO_REPLICA

    def unbar(self) -> None:
        """The log is whole again (see the design of damage): vote and campaign as everybody."""
        self._core.lost = 0

    def report_unreachable(self, replica_id: int) -> None:
        """A message to this peer could not be sent."""
        core = self._core
        progress = core.tracker.progress.get(replica_id)
        if core.leading is not None and progress is not None:
            leader.on_unreachable(core, progress)

    def report_snapshot(self, replica_id: int, ok: bool) -> None:
        """What became of the snapshot that a SNAPSHOT message asked for. Without a report the peer gets nothing."""
        core = self._core
        progress = core.tracker.progress.get(replica_id)
        if core.leading is not None and progress is not None:
            leader.on_snapshot_report(core, progress, ok=ok)

    def sleep(self, absent: Collection[int] = ()) -> bool:
        """Leader: begin to put the group to sleep, without the members that are known to be dead. False: not now."""
        return hibernation.start_sleep(self._core, absent)

    def wake(self) -> None:
        """Start the timers of this replica and, if another one leads, of the leader (which may sleep alone)."""
        hibernation.wake(self._core)
        hibernation.call_leader(self._core)

    def leader_silent(self, leader_id: int) -> bool:
        """Nothing at all was heard from this leader's node for an election timeout. True when that woke this replica;
        one that is awake knows by itself."""
        return hibernation.on_leader_silent(self._core, leader_id)

    def calls_to_wake(self) -> list[Message]:
        """Of a leader that the driver has stopped for good, while its node goes on: to be sent to the others now and
        then, who may sleep and would wait for it. They have no effect once another one leads."""
        core = self._core
        if core.leading is None:
            return []
        return [
            Message(MessageType.WAKE, to_id=peer_id, from_id=core.id, term=core.term)
            for peer_id, _ in core.tracker.peers
        ]

    # -- output

    def has_ready(self) -> bool:
        core = self._core
        log = core.log
        lead = core.leading
        return bool(
            core.messages
            or core.after_append
            or core.read_states
            or log.unstable.has_fresh
            or (core.term, core.vote) != self._handed_state[:2]
            or (core.role, core.term, core.leader_id) != self._told
            or log.can_take_committed(core.config.committed_bytes_max)
            or (lead is not None and (lead.beat_due or lead.send_due or self._read_due()))
        )

    def _read_due(self) -> bool:
        core = self._core
        return core.has_term_commit and leading(core).read_only.can_start

    def ready(self) -> Ready:
        """Everything to be done now; it counts as handed out. Several may be under way."""
        core = self._core
        log = core.log
        if core.leading is not None:
            leader.flush(core)
        snapshot = log.unstable.take_snapshot()
        entries = log.unstable.take_entries()
        hard_state = self._take_hard_state(persists=bool(entries) or snapshot is not None)
        messages, after_append = core.messages, core.after_append
        core.messages, core.after_append = [], []
        ack = None
        if hard_state is not None or entries or snapshot is not None or (after_append and self._outstanding):
            ack = self._new_ack(snapshot)
        elif after_append:
            messages += after_append  # all that they speak of is durable already
            after_append = []
        read_states, core.read_states = core.read_states, []
        told = (core.role, core.term, core.leader_id)
        role_changed = told != self._told
        self._told = told
        return Ready(
            messages=messages,
            after_append=after_append,
            hard_state=hard_state,
            entries=entries,
            snapshot=snapshot,
            committed=log.take_committed(core.config.committed_bytes_max),
            read_states=read_states,
            ack=ack,
            role_changed=role_changed,
        )

    def _take_hard_state(self, *, persists: bool) -> HardState | None:
        """Term and vote as soon as they change. The commit index only along with something else: it can be learned
        again, but has to be durable no later than entries that rest on it (a second change of the membership)."""
        core = self._core
        state = (core.term, core.vote, core.log.commit)
        handed = self._handed_state
        if state == handed or (not persists and state[:2] == handed[:2]):
            return None
        self._handed_state = state
        return HardState(*state)

    def _new_ack(self, snapshot: SnapshotMeta | None) -> AppendAck:
        """It speaks for everything handed out until now and not durable yet, not only for its own Ready: writes are
        done in order. So an ack that is dropped because the term has changed is made up for by the next one."""
        core = self._core
        self._ready_number += 1
        self._outstanding.append(self._ready_number)
        last_index, last_term = core.log.unstable.handed_position()
        return AppendAck(
            number=self._ready_number,
            term=core.term,
            last_index=last_index,
            last_term=last_term,
            snapshot_index=0 if snapshot is None else snapshot.index,
        )

    def on_durable(self, ack: AppendAck) -> None:
        """Everything that its Ready asked to persist is durable. In the order of the Readys."""
        core = self._core
        assert self._outstanding
        assert self._outstanding[0] == ack.number, "acks out of order"
        self._outstanding.popleft()
        core.durable_term = max(core.durable_term, ack.term)
        if ack.snapshot_index:
            meta = core.log.stable_snapshot_to(ack.snapshot_index)
            if meta is not None:
                follower.on_snapshot_installed(core, meta)
        if ack.term != core.term:
            # The bytes may have been replaced since, and those in the log now only look the same (ABA). A later
            # Ready has persisted the new term, and its ack speaks for all of the tail.
            return
        if ack.last_index:
            core.log.unstable.stable_to(index=ack.last_index, term=ack.last_term)
        if core.role == Role.CANDIDATE:
            election.on_own_vote_durable(core)
        elif core.leading is not None:
            leader.on_own_durable(core)

    def applied_to(self, index: int) -> None:
        """Everything up to `index` is applied by the driver's state machine."""
        core = self._core
        core.log.applied_to(index)
        if core.leading is not None:
            leader.maybe_leave_joint(core)

    # -- questions

    @property
    def role(self) -> Role:
        return self._core.role

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def leader_id(self) -> int:
        """0 when unknown."""
        return self._core.leader_id

    @property
    def commit(self) -> int:
        return self._core.log.commit

    @property
    def applied(self) -> int:
        return self._core.log.applied

    @property
    def last_index(self) -> int:
        return self._core.log.last_index

    @property
    def durable_index(self) -> int:
        """The log is durable here up to this index, as far as acks have told; 0 while a snapshot is installed."""
        return self._core.log.stable_index

    @property
    def conf_state(self) -> ConfState:
        return self._core.tracker.conf

    @property
    def asleep(self) -> bool:
        return self._core.asleep

    @property
    def campaigns_next(self) -> bool:
        """The next tick is likely to begin a campaign. A driver of many groups may put that tick off for a while."""
        core = self._core
        return (
            core.leading is None
            and not core.asleep
            and core.election_elapsed + 1 >= core.election_timeout
            and core.can_campaign
        )

    def has_quorum_without(self, absent: Collection[int]) -> bool:
        """Whether the other members are a quorum."""
        tracker = self._core.tracker
        return tracker.is_quorum(frozenset(voter for voter in tracker.voter_ids if voter not in absent))

    @property
    def barred(self) -> bool:
        return self._core.barred

    def status(self) -> Status:
        core = self._core
        log = core.log
        lead = core.leading
        lease_ms = None
        if lead is not None and core.lease_reads and lead.lease.start_ms is not None:
            lease_ms = lead.lease.start_ms + lead.lease.length_ms
        return Status(
            replica_id=core.id,
            role=core.role,
            term=core.term,
            vote=core.vote,
            leader_id=core.leader_id,
            commit=log.commit,
            applied=log.applied,
            first_index=log.first_index,
            last_index=log.last_index,
            stable_index=log.stable_index,
            conf_state=core.tracker.conf,
            transfer_target=NO_REPLICA if lead is None else lead.transfer_target,
            asleep=core.asleep,
            barred=core.barred,
            lease_until_ms=lease_ms,
            promise_ticks=core.promise_ticks,
            uncommitted_bytes=0 if lead is None else lead.uncommitted_bytes,
            progress={} if lead is None else self._peer_statuses(),
        )

    def _peer_statuses(self) -> dict[int, PeerStatus]:
        return {
            member: PeerStatus(
                match=known.match,
                next=known.next,
                state=known.state,
                is_learner=known.is_learner,
                recent_active=known.recent_active,
                inflight=len(known.inflights.queue),
                inflight_bytes=known.inflights.bytes,
                pending_snapshot=known.pending_snapshot,
            )
            for member, known in self._core.tracker.progress.items()
        }
