"""The state of one replica, and what it becomes: follower, pre-candidate, candidate, leader.

Invariant: the term never falls; in one term this replica votes for at most one candidate.
Invariant: `leading` is there exactly while the role is LEADER.
Invariant: a message that tells of something not yet durable here goes to `after_append`.
Invariant: nothing here is addressed to this replica itself; what a leader or candidate owes to itself is counted when
           `on_durable` says that it is on disk.
The role modules (election, follower, leader, hibernation) are functions on a Core; step.py chooses among them.
Paper: figure 2, section 5.   Thesis: 3.4, 9.6.
"""

from __future__ import annotations

from collections import deque
from random import Random

from raft.confchange import apply_change
from raft.config import Config
from raft.lease import LeaderLease
from raft.log import RaftLog
from raft.read_only import ReadOnly
from raft.storage import LogReader
from raft.tracker import Tracker
from raft.types import (
    NO_REPLICA,
    ConfChange,
    ConfState,
    Entry,
    EntryKind,
    Message,
    ReadState,
    Role,
)


class LeaderState:
    """What only a leader has; made anew for each term that it leads."""

    __slots__ = (
        "absent",
        "beat_due",
        "first_index",
        "lease",
        "pending_conf_index",
        "read_only",
        "send_due",
        "sleep_acks",
        "sleep_index",
        "sleep_round",
        "timeout_now_sent",
        "transfer_target",
        "uncommitted",
        "uncommitted_bytes",
    )

    def __init__(self, config: Config, *, first_index: int) -> None:
        self.first_index = first_index  # of the entries of this term: the no-op
        self.lease = LeaderLease(config)
        self.read_only = ReadOnly()
        # A change of the membership at or before it may not be applied yet; no other one until then.
        self.pending_conf_index = first_index - 1
        self.send_due = True  # some peer may have something to be sent
        self.beat_due = False  # a round of heartbeats goes with the next Ready; the first append does as well
        self.transfer_target = NO_REPLICA
        self.timeout_now_sent = False  # in this term: no lease any more, the target may be elected at once
        self.uncommitted: deque[tuple[int, int]] = deque()  # (last index of a batch, its payload bytes)
        self.uncommitted_bytes = 0
        self.sleep_index = 0  # not 0: a sleep round at this index is under way
        self.sleep_round = 0  # number of the newest one in this term
        self.sleep_acks: set[int] = set()
        self.absent: frozenset[int] = frozenset()  # members that the sleep round does without

    def add_uncommitted(self, *, last_index: int, size: int) -> None:
        self.uncommitted.append((last_index, size))
        self.uncommitted_bytes += size

    def free_uncommitted(self, commit: int) -> None:
        queue = self.uncommitted
        while queue and queue[0][0] <= commit:
            self.uncommitted_bytes -= queue.popleft()[1]


class Core:
    __slots__ = (
        "after_append",
        "asleep",
        "config",
        "durable_term",
        "election_elapsed",
        "election_timeout",
        "gone_leader_id",
        "heartbeat_elapsed",
        "id",
        "leader_id",
        "leading",
        "lease_reads",
        "log",
        "lost",
        "messages",
        "now_ms",
        "promise_ticks",
        "read_states",
        "rng",
        "role",
        "term",
        "tracker",
        "vote",
    )

    def __init__(
        self,
        config: Config,
        reader: LogReader,
        rng: Random,
        *,
        applied: int,
        now_ms: int,
        barred: bool,
        newborn: bool = False,
    ) -> None:
        hard_state, conf_state = reader.initial_state()
        self.config = config
        self.id = config.replica_id
        self.rng = rng
        self.now_ms = now_ms  # as of the last tick
        self.log = RaftLog(reader, commit=hard_state.commit, applied=applied)
        self.tracker = Tracker(
            self_id=self.id,
            inflight_messages_max=config.inflight_messages_max,
            inflight_bytes_max=config.inflight_bytes_max,
        )
        self.tracker.adopt(conf_state, last_index=self.log.last_index)
        self.role = Role.FOLLOWER
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.durable_term = hard_state.term  # the term on disk, as far as acks have told
        self.leader_id = NO_REPLICA
        self.leading: LeaderState | None = None
        # Not 0: this replica has lost a part of its log. It neither votes nor campaigns, and says so with this number,
        # another one for each start, by which a leader tells a new loss from one that it has heard of.
        self.lost = rng.getrandbits(48) | 1 if barred else 0
        self.asleep = False
        self.lease_reads = config.lease_reads
        self.gone_leader_id = NO_REPLICA  # the leader of this term whose process is gone, by evidence
        self.heartbeat_elapsed = 0
        self.election_elapsed = 0  # ticks since the leader was heard, or the campaign or leadership began
        self.election_timeout = 0
        # Ticks for which a lease promise holds: no vote for anybody. It was given before a restart, maybe, and is not
        # on disk; but whoever gave one had a durable term before (see follower.on_heartbeat).
        may_have_promised = self.lease_reads and self.term > 0 and not newborn
        self.promise_ticks = self.promise_length() if may_have_promised else 0
        self.messages: list[Message] = []  # may leave at once
        self.after_append: list[Message] = []  # may leave once everything before is durable
        self.read_states: list[ReadState] = []
        self.reset_election_timer()

    # -- small questions

    def promise_length(self) -> int:
        """Ticks. One more than an election timeout: the first one may come right after the promise."""
        return self.config.election_ticks + 1

    @property
    def barred(self) -> bool:
        return self.lost != 0

    @property
    def can_campaign(self) -> bool:
        return self.tracker.is_voter(self.id) and not self.barred and self.log.unstable.snapshot is None

    @property
    def hears_leader(self) -> bool:
        """Within one election timeout; also true of the leader itself."""
        return self.leader_id != NO_REPLICA and self.election_elapsed < self.config.election_ticks

    @property
    def has_term_commit(self) -> bool:
        """Leader only: an entry of its own term is committed, so its commit index is up to date (paper, 8)."""
        return self.leading is not None and self.log.commit >= self.leading.first_index

    def reset_election_timer(self) -> None:
        ticks = self.config.election_ticks
        self.election_elapsed = 0
        self.election_timeout = ticks + self.rng.randrange(ticks)

    def send(self, message: Message) -> None:
        """For what may leave before anything is durable."""
        message.from_id = self.id
        if message.term == 0:
            message.term = self.term
        self.messages.append(message)

    def send_durable(self, message: Message) -> None:
        """For what may leave only when everything up to now is on disk."""
        message.from_id = self.id
        if message.term == 0:
            message.term = self.term
        self.after_append.append(message)

    # -- roles

    def become_follower(self, term: int, leader_id: int) -> None:
        """Also from follower: a new term, or a leader found."""
        assert term >= self.term, "the term fell"
        if term > self.term:
            self.term = term
            self.vote = NO_REPLICA
        self._change_role(Role.FOLLOWER)
        self.leader_id = leader_id

    def become_pre_candidate(self) -> None:
        """Asks whether it could win; neither term nor vote change (thesis, 9.6)."""
        assert self.role != Role.LEADER
        self._change_role(Role.PRE_CANDIDATE)

    def become_candidate(self) -> None:
        assert self.role != Role.LEADER
        assert not self.barred
        self.term += 1
        self.vote = self.id
        self._change_role(Role.CANDIDATE)

    def become_leader(self) -> None:
        assert self.role == Role.CANDIDATE
        assert self.vote == self.id
        log = self.log
        self._change_role(Role.LEADER)
        self.leader_id = self.id
        self.tracker.reset_progress(last_index=log.last_index)
        self.leading = LeaderState(self.config, first_index=log.last_index + 1)
        # Nothing of an older term may be committed by counting; this entry commits them (paper, 5.4.2 and 8).
        log.append((Entry(term=self.term, index=log.last_index + 1),))

    def _change_role(self, role: Role) -> None:
        self.role = role
        self.leading = None
        self.leader_id = NO_REPLICA
        self.gone_leader_id = NO_REPLICA
        self.heartbeat_elapsed = 0
        self.asleep = False
        self.tracker.votes.clear()
        self.reset_election_timer()

    # -- entries of our own

    def append_own(self, payloads: list[bytes], kind: EntryKind) -> int:
        """A leader's new entries; the index of the first one."""
        assert self.leading is not None
        first = self.log.last_index + 1
        term = self.term
        entries = [Entry(term, index, kind, data) for index, data in enumerate(payloads, first)]
        self.log.append(entries)
        self.leading.send_due = True
        return first

    # -- membership

    def adopt_change(self, change: ConfChange) -> None:
        """Raises ConfChangeRefused."""
        self.adopt_conf(apply_change(self.tracker.conf, change))

    def adopt_conf(self, conf: ConfState) -> None:
        self.tracker.adopt(conf, last_index=self.log.last_index)
