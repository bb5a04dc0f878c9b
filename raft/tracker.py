"""The membership as this replica has applied it, the progress of each member, and the votes of a campaign.

Invariant: `progress` has exactly the members (voters of both halves, learners), in the order of their ids.
Invariant: only voters count, for commits, votes, reads, leases and the check of the quorum.
Called by: core and the role modules.   Paper: 6.   Thesis: 4.2-4.3.
"""

from __future__ import annotations

from raft.inflights import Inflights
from raft.progress import Progress, ProgressState
from raft.quorum import VoteResult, joint_index, joint_vote
from raft.types import ConfState


class Tracker:
    __slots__ = (
        "_inflight_bytes_max",
        "_inflight_messages_max",
        "_self_id",
        "conf",
        "peers",
        "progress",
        "voter_ids",
        "votes",
    )

    def __init__(self, *, self_id: int, inflight_messages_max: int, inflight_bytes_max: int) -> None:
        self._self_id = self_id
        self._inflight_messages_max = inflight_messages_max
        self._inflight_bytes_max = inflight_bytes_max
        self.conf = ConfState()
        self.progress: dict[int, Progress] = {}
        self.peers: list[tuple[int, Progress]] = []  # `progress` without this replica
        self.voter_ids: tuple[int, ...] = ()  # of both halves
        self.votes: dict[int, bool] = {}

    def adopt(self, conf: ConfState, *, last_index: int) -> None:
        """Make `conf` the membership. Known members keep their progress, new ones are probed at `last_index`."""
        self.conf = conf
        self.voter_ids = tuple(sorted({*conf.voters, *conf.voters_outgoing}))
        learners = set(conf.learners)
        progress: dict[int, Progress] = {}
        for member in sorted({*self.voter_ids, *learners}):
            known = self.progress.get(member)
            if known is None:
                # Counted as active: else the next check of the quorum would hold its late arrival against it.
                known = Progress(self._new_inflights(), next=max(last_index, 1), recent_active=True)
            known.is_learner = member in learners
            progress[member] = known
        self._set_progress(progress)

    def reset_progress(self, *, last_index: int) -> None:
        """A new leader knows nothing of anybody's log, its own excepted (that comes with the next durable write)."""
        self._set_progress(
            {
                member: Progress(self._new_inflights(), next=last_index + 1, is_learner=known.is_learner)
                for member, known in self.progress.items()
            }
        )

    def _set_progress(self, progress: dict[int, Progress]) -> None:
        own = progress.get(self._self_id)
        if own is not None:
            own.state = ProgressState.REPLICATE  # by its own disk
        self.progress = progress
        self.peers = [(member, known) for member, known in progress.items() if member != self._self_id]

    def _new_inflights(self) -> Inflights:
        return Inflights(messages_max=self._inflight_messages_max, bytes_max=self._inflight_bytes_max)

    def is_voter(self, replica_id: int) -> bool:
        return replica_id in self.voter_ids

    # -- quorums

    def committed_index(self) -> int:
        progress = self.progress
        conf = self.conf
        return joint_index(
            [progress[voter].match for voter in conf.voters], [progress[voter].match for voter in conf.voters_outgoing]
        )

    def confirmed_round(self) -> int:
        """The newest heartbeat round that a quorum answered: this replica led when it was sent."""
        progress = self.progress
        conf = self.conf
        return joint_index(
            [progress[voter].acked_round for voter in conf.voters],
            [progress[voter].acked_round for voter in conf.voters_outgoing],
        )

    def promised_round(self) -> int:
        """The newest one that a quorum answered with a lease promise."""
        progress = self.progress
        conf = self.conf
        return joint_index(
            [progress[voter].promised_round for voter in conf.voters],
            [progress[voter].promised_round for voter in conf.voters_outgoing],
        )

    def quorum_active(self) -> bool:
        """A quorum was heard from since `reset_active`."""
        active = {member: known.recent_active for member, known in self.progress.items()}
        active[self._self_id] = True
        return joint_vote(self.conf.voters, self.conf.voters_outgoing, active) == VoteResult.WON

    def reset_active(self) -> None:
        for _, known in self.peers:
            known.recent_active = False

    def is_quorum(self, members: frozenset[int]) -> bool:
        votes = {member: member in members for member in self.voter_ids}
        return joint_vote(self.conf.voters, self.conf.voters_outgoing, votes) == VoteResult.WON

    # -- votes

    def record_vote(self, replica_id: int, *, granted: bool) -> VoteResult:
        """The first answer of a replica stands: a later one is a duplicate."""
        self.votes.setdefault(replica_id, granted)
        return joint_vote(self.conf.voters, self.conf.voters_outgoing, self.votes)
