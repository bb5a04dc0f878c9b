"""What a leader knows of one peer's log, and how fast it may send.

Invariant: match < next. Everything up to `match` is durable on the peer; [match + 1, next) is on its way.
Invariant: `match` never falls in one term, unless the peer itself says that it lost a part of its log.

    PROBE      `next` is a guess; one append at a time, then wait for the answer
    REPLICATE  the logs agree; appends are pipelined as far as the in-flight limits allow
    SNAPSHOT   the peer needs what is compacted; nothing is sent until the snapshot was reported

Called by: raft/tracker.py, raft/leader.py.   Paper: 5.3.   Thesis: 10.2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from raft.inflights import Inflights


class ProgressState(IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


@dataclass(slots=True)
class Progress:
    inflights: Inflights
    match: int = 0
    next: int = 1
    state: ProgressState = ProgressState.PROBE
    is_learner: bool = False
    recent_active: bool = False
    """Heard from since the last check of the quorum."""
    paused: bool = False
    """PROBE only: the one append is out; the answer, or that to a heartbeat of the tick, ends it."""
    probe_empty: bool = False
    """PROBE only: the one that is out has no entries, so its answer brings no news."""
    append_due: bool = False
    """An append must go even if it is empty: it makes the peer say what it lacks after a loss."""
    beat_due: bool = False
    """A heartbeat of the tick is out; its answer may resume the flow (answers to read rounds must not: too many)."""
    beat_match: int = 0
    beat_next: int = 0
    """`match` and `next` when the newest heartbeat of the tick was sent."""
    stalled: bool = False
    """As of that heartbeat: what was under way at the one before has not been acknowledged at all."""
    lost_seen: int = 0
    """The nonce of the peer's newest loss of log records that was heard of in this term."""
    pending_snapshot: int = 0
    """SNAPSHOT only: the index of what was sent."""
    sent_commit: int = 0
    """The highest commit index that the peer was told and can use: it has, or was sent, the log up to there."""
    acked_round: int = 0
    """The newest heartbeat round that the peer answered in this term."""
    promised_round: int = 0
    """The newest one that it answered with a lease promise."""

    def on_beat(self) -> None:
        """A heartbeat of the tick goes out."""
        self.stalled = self.match == self.beat_match and self.match + 1 < self.beat_next
        self.beat_match = self.match
        self.beat_next = self.next
        self.beat_due = True

    def on_beat_answered(self, *, last_index: int) -> None:
        """The peer is there. If something seems to be lost, an append must go and bring it to light."""
        self.beat_due = False
        self.paused = False
        if self.match < last_index and (
            self.state == ProgressState.PROBE or (self.stalled and self.match == self.beat_match)
        ):
            self.append_due = True

    def become_probe(self) -> None:
        # A peer that is through with its snapshot is at least there, however old `match` is.
        if self.state == ProgressState.SNAPSHOT:
            next_index = max(self.match + 1, self.pending_snapshot + 1)
        else:
            next_index = self.match + 1
        self._reset(ProgressState.PROBE, next_index)

    def become_replicate(self) -> None:
        self._reset(ProgressState.REPLICATE, self.match + 1)

    def become_snapshot(self, index: int) -> None:
        self._reset(ProgressState.SNAPSHOT, index + 1)
        self.pending_snapshot = index

    def _reset(self, state: ProgressState, next_index: int) -> None:
        self.state = state
        self.paused = False
        self.probe_empty = False
        self.pending_snapshot = 0
        self.inflights.reset()
        self.next = next_index
        self.sent_commit = min(self.sent_commit, next_index - 1)
        assert self.match < self.next

    def on_sent(self, *, last_index: int, count: int, size: int, commit: int) -> None:
        """An append with `count` entries up to `last_index` and `size` payload bytes went out."""
        assert self.state != ProgressState.SNAPSHOT
        self.append_due = False
        self.sent_commit = max(self.sent_commit, min(commit, last_index))
        if self.state == ProgressState.PROBE:
            # Also after an empty one: it asks a question, and a second one would learn nothing more.
            self.paused = True
            self.probe_empty = count == 0
        elif count:
            self.next = last_index + 1
            self.inflights.add(last_index=last_index, size=size)

    def maybe_update(self, index: int) -> bool:
        """The peer has `index`. False when that is no news (a late or doubled answer)."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    def maybe_decrease(self, *, rejected: int, hint: int) -> bool:
        """The peer refused an append after `rejected`; try after `hint`. False when the refusal is out of date."""
        if self.state == ProgressState.SNAPSHOT:
            return False
        if self.state == ProgressState.REPLICATE:
            if rejected <= self.match or rejected >= self.next:
                return False
            # Some append before was lost. `match` is certain, so go on from there.
            self.inflights.shrink()
            self.become_probe()
            return True
        if rejected != self.next - 1:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    def on_lost(self, *, nonce: int, durable_index: int) -> None:
        """The peer has lost log records since it acknowledged them: nothing it said before this start counts.

        Once for each start: it says so in many messages, and each would begin everything anew.
        """
        if nonce in (0, self.lost_seen):
            return
        self.lost_seen = nonce
        if durable_index < self.match:
            self.match = 0
            self._reset(ProgressState.PROBE, durable_index + 1)
            self.append_due = True

    def wants_commit(self, commit: int) -> bool:
        """The peer has entries that are committed, and was not told of that."""
        return self.sent_commit < commit and self.sent_commit < self.match

    def has_work(self, *, last_index: int, commit: int) -> bool:
        """Something is to be sent, if it may be sent now."""
        return self.next <= last_index or self.append_due or self.wants_commit(commit)
