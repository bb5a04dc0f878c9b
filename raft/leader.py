"""What a leader does: replicate, commit, confirm reads and its lease, hand over.

Invariant: it commits by counting only entries of its own term (everything from `first_index` on); older ones follow.
Invariant: its own disk counts like any other: `match` of itself moves in `on_own_durable` only.
Invariant: no read is answered before an entry of its term is committed, nor on answers to rounds of another term.
Invariant: no lease is used from the start of a transfer on, and never again in a term in which TIMEOUT_NOW was sent.
What is to be sent is noted while stepping and sent once, by `flush`, with the next Ready: so what many calls of one
turn bring goes in one append per peer and one round of heartbeats.
Called by: raft/step.py and raft/raw_node.py.   Paper: 5.3, 5.4, 6, 8.   Thesis: 3.10, 4, 6.4, 10.2.1.
"""

from __future__ import annotations

from raft.confchange import apply_change, encode_change, is_joint
from raft.core import Core, LeaderState
from raft.errors import ConfChangeRefused, LogCompacted, StepRefused
from raft.log import payload_bytes
from raft.progress import Progress, ProgressState
from raft.read_only import ReadRequest, decode_round, encode_round
from raft.types import NO_REPLICA, ConfChange, Entry, EntryKind, Message, MessageType, ReadState


def leading(core: Core) -> LeaderState:
    state = core.leading
    assert state is not None
    return state


# -- sending


def flush(core: Core) -> None:
    """Put into `core.messages` what is due. Called once a Ready."""
    lead = leading(core)
    sent_before = len(core.messages)
    if lead.send_due:
        lead.send_due = False
        for peer_id, progress in core.tracker.peers:
            send_appends(core, peer_id, progress)
    if core.has_term_commit and lead.read_only.can_start:
        _send_round(core, read_index=core.log.commit, of_tick=lead.beat_due)
    elif lead.beat_due:
        _send_round(core, read_index=None, of_tick=True)
    lead.beat_due = False
    if len(core.messages) > sent_before:
        lead.sleep_index = 0  # it wakes whoever has gone to sleep in this round: another round, later


def send_appends(core: Core, peer_id: int, progress: Progress) -> None:
    """As much as the peer may have now: several appends when it replicates, one question when it is probed."""
    log = core.log
    while True:
        state = progress.state
        if state == ProgressState.SNAPSHOT or (progress.paused and state == ProgressState.PROBE):
            return
        last_index = log.last_index
        low = progress.next
        fresh = low <= last_index and not progress.inflights.full
        if not fresh and not progress.append_due:
            if progress.wants_commit(log.commit):
                _send_commit(core, peer_id, progress)
            return
        try:
            log_term = log.term(low - 1)
            entries = log.slice(low=low, high=last_index + 1, bytes_max=core.config.append_bytes_max) if fresh else []
        except LogCompacted:
            _send_snapshot(core, peer_id, progress)
            return
        _send_append(core, peer_id, progress, log_term=log_term, entries=entries)
        if not entries:
            return


def _send_append(core: Core, peer_id: int, progress: Progress, *, log_term: int, entries: list[Entry]) -> None:
    index = progress.next - 1
    commit = core.log.commit
    core.send(
        Message(
            MessageType.APPEND, to_id=peer_id, index=index, log_term=log_term, commit=commit, entries=tuple(entries)
        )
    )
    last_index = index + len(entries)
    progress.on_sent(last_index=last_index, count=len(entries), size=payload_bytes(entries), commit=commit)


def _send_commit(core: Core, peer_id: int, progress: Progress) -> None:
    """The commit index and nothing else, to a peer that is known to have that much: no answer wanted. Should it get
    lost, the next heartbeat of the tick tells it again."""
    commit = min(progress.match, core.log.commit)
    progress.sent_commit = commit
    core.send(Message(MessageType.HEARTBEAT, to_id=peer_id, commit=commit))


def _send_last_commit(core: Core, peer_id: int, progress: Progress) -> None:
    """To a peer that this leader will not hear from any more: the commit index, behind what is in flight to it."""
    log = core.log
    index = progress.next - 1
    if progress.state != ProgressState.REPLICATE or progress.sent_commit >= log.commit or index < log.first_index:
        return
    core.send(Message(MessageType.APPEND, to_id=peer_id, index=index, log_term=log.term(index), commit=log.commit))


def _send_snapshot(core: Core, peer_id: int, progress: Progress) -> None:
    """The peer lacks what is compacted. Not for one that is silent: it would wait for a report in vain."""
    if not progress.recent_active:
        return
    meta = core.log.snapshot()
    if meta is None or meta.index <= progress.match:
        progress.paused = progress.state == ProgressState.PROBE  # asked again after the next heartbeat
        return
    progress.become_snapshot(meta.index)
    core.send(Message(MessageType.SNAPSHOT, to_id=peer_id, snapshot=meta))


def _send_round(core: Core, *, read_index: int | None, of_tick: bool) -> None:
    """One round of heartbeats. Each has a number, whether it carries reads or not: its answers confirm older ones."""
    lead = leading(core)
    number = lead.read_only.start_round(read_index=read_index)
    lease = core.lease_reads and not lead.timeout_now_sent and lead.transfer_target == NO_REPLICA
    if lease:
        lead.lease.on_round(number=number, now_ms=core.now_ms)
    context = encode_round(number)
    commit = core.log.commit
    for peer_id, progress in core.tracker.peers:
        if of_tick:
            progress.on_beat()
        elif progress.is_learner:
            continue
        core.send(
            Message(
                MessageType.HEARTBEAT,
                to_id=peer_id,
                commit=min(progress.match, commit),
                context=context,
                lease=lease,
            )
        )
    own = core.tracker.progress.get(core.id)
    if own is not None:
        own.acked_round = number
        if lease:
            own.promised_round = number
    confirm_rounds(core)


# -- time


def tick_leader(core: Core) -> None:
    config = core.config
    lead = leading(core)
    core.election_elapsed += 1
    core.heartbeat_elapsed += 1
    if core.election_elapsed >= config.election_ticks:
        core.election_elapsed = 0
        if config.check_quorum and not core.tracker.quorum_active():
            core.become_follower(core.term, NO_REPLICA)
            return
        core.tracker.reset_active()
        # The target did not make it in one election timeout: take proposals again (thesis, 3.10).
        lead.transfer_target = NO_REPLICA
    if core.heartbeat_elapsed >= config.heartbeat_ticks:
        core.heartbeat_elapsed = 0
        lead.beat_due = True


# -- commit


def on_own_durable(core: Core) -> None:
    """The leader's own log is durable up to `stable_index`."""
    own = core.tracker.progress.get(core.id)
    if own is not None and own.maybe_update(core.log.stable_index):
        maybe_commit(core)


def maybe_commit(core: Core) -> bool:
    lead = leading(core)
    index = core.tracker.committed_index()
    # first_index: counting says nothing about entries of older terms (paper, figure 8).
    if index < lead.first_index or not core.log.commit_to(index):
        return False
    lead.free_uncommitted(index)
    lead.send_due = True
    return True


# -- answers of peers


def on_append_reply(core: Core, message: Message, progress: Progress) -> None:
    log = core.log
    progress.recent_active = True
    if message.reject:
        _on_append_rejected(core, message, progress)
        return
    if message.index > log.last_index:
        raise StepRefused("the peer acknowledges what this leader does not have")
    lead = leading(core)
    news = progress.maybe_update(message.index)
    state = progress.state
    if state == ProgressState.REPLICATE:
        if news:
            progress.inflights.free_to(message.index)
    elif state == ProgressState.PROBE:
        # An old answer without news is none to the probe (unless that was empty): the pipeline would begin with each.
        if news or (progress.probe_empty and message.index == progress.match):
            progress.become_replicate()
    elif progress.match + 1 >= log.first_index:
        # Good enough to go on from the log, wherever it got that from.
        progress.become_probe()
        progress.become_replicate()
    if news:
        maybe_commit(core)
        maybe_finish_transfer(core, message.from_id, progress)
    if progress.has_work(last_index=log.last_index, commit=log.commit):
        lead.send_due = True


def _on_append_rejected(core: Core, message: Message, progress: Progress) -> None:
    """The peer does not have (index, its term); it says where its log could agree with ours."""
    hint = message.reject_hint
    if hint < progress.match:
        # The peer has everything up to `match`, so it could agree there: this was sent before it had, together with
        # dozens of others after one loss, and each would begin the pipeline anew. (Or the peer has lost log records;
        # then its answer to the next heartbeat says so.)
        return
    if message.log_term > 0:
        # Nothing of ours with a higher term than the peer's there can be the peer's either.
        hint, _ = core.log.last_at_or_before(index=hint, term=message.log_term)
    if not progress.maybe_decrease(rejected=message.index, hint=hint):
        return
    progress.append_due = True
    leading(core).send_due = True


def on_heartbeat_reply(core: Core, message: Message, progress: Progress) -> None:
    lead = leading(core)
    progress.recent_active = True
    on_lost(core, message, progress)
    if progress.beat_due:
        progress.on_beat_answered(last_index=core.log.last_index)
        lead.send_due = True
    number = min(decode_round(message.context), lead.read_only.newest_round)
    if number > progress.acked_round:
        progress.acked_round = number
    if message.lease and number > progress.promised_round:
        progress.promised_round = number
    confirm_rounds(core)


def on_lost(core: Core, message: Message, progress: Progress) -> None:
    """What the peer acknowledged and has lost must not count for a commit any more (the commit index never falls)."""
    if message.lost:
        progress.on_lost(nonce=message.lost, durable_index=message.index)
        leading(core).send_due = True


def on_unreachable(core: Core, progress: Progress) -> None:
    """The driver could not send. What is in flight is lost, most likely: begin again, carefully."""
    if progress.state == ProgressState.REPLICATE:
        progress.become_probe()


def on_snapshot_report(core: Core, progress: Progress, *, ok: bool) -> None:
    if progress.state != ProgressState.SNAPSHOT:
        return
    if not ok:
        progress.pending_snapshot = 0
    progress.become_probe()
    # Success: its answer will come with the position. Failure: not at once again. Either way the next heartbeat helps.
    progress.paused = True


# -- reads and lease


def add_read(core: Core, context: bytes, from_id: int) -> None:
    leading(core).read_only.waiting.append(ReadRequest(context, from_id))


def confirm_rounds(core: Core) -> None:
    lead = leading(core)
    read_only = lead.read_only
    if core.lease_reads:
        lead.lease.confirm(core.tracker.promised_round())
    if not read_only.rounds:
        return
    for round_ in read_only.confirm(core.tracker.confirmed_round()):
        for request in round_.requests:
            if request.from_id == core.id:
                core.read_states.append(ReadState(request.context, round_.index, core.term))
            else:
                core.send(
                    Message(
                        MessageType.READ_INDEX_REPLY,
                        to_id=request.from_id,
                        index=round_.index,
                        context=request.context,
                    )
                )


def lease_valid(core: Core, now_ms: int) -> bool:
    lead = core.leading
    return (
        lead is not None
        and core.lease_reads
        and core.has_term_commit
        and lead.transfer_target == NO_REPLICA
        and not lead.timeout_now_sent
        and lead.lease.valid(now_ms)
    )


# -- hand over


def start_transfer(core: Core, to_id: int) -> None:
    """Raises StepRefused when that replica cannot lead."""
    lead = leading(core)
    progress = core.tracker.progress.get(to_id)
    if progress is None or not core.tracker.is_voter(to_id):
        raise StepRefused("only a voter can become the leader")
    if to_id == core.id:
        lead.transfer_target = NO_REPLICA  # stay; an earlier TIMEOUT_NOW cannot be called back
        return
    if to_id == lead.transfer_target:
        return
    lead.transfer_target = to_id
    core.election_elapsed = 0  # the time that the target has
    lead.send_due = True
    if not maybe_finish_transfer(core, to_id, progress):
        progress.append_due = True  # if it is not under way already, this brings to light what the target lacks


def maybe_finish_transfer(core: Core, peer_id: int, progress: Progress) -> bool:
    """Once the target has everything, it may campaign at once."""
    lead = leading(core)
    if lead.transfer_target != peer_id or progress.match != core.log.last_index:
        return False
    lead.timeout_now_sent = True
    core.send(Message(MessageType.TIMEOUT_NOW, to_id=peer_id))
    return True


# -- membership


def propose_change(core: Core, change: ConfChange) -> int:
    """The index of the entry. Raises ConfChangeRefused."""
    lead = leading(core)
    if lead.pending_conf_index > core.log.applied:
        raise ConfChangeRefused("another change of the membership may be under way")
    apply_change(core.tracker.conf, change)  # refuses what would not be possible
    index = core.append_own([encode_change(change)], EntryKind.CONF_CHANGE)
    lead.pending_conf_index = index
    return index


def maybe_leave_joint(core: Core) -> None:
    """A joint state that leaves by itself is applied: propose the end of it."""
    conf = core.tracker.conf
    if is_joint(conf) and conf.auto_leave and leading(core).pending_conf_index <= core.log.applied:
        propose_change(core, ConfChange())


def adopt_change(core: Core, change: ConfChange) -> None:
    """The membership that this leader counts with changes. Raises ConfChangeRefused."""
    before = core.tracker.peers
    core.adopt_change(change)
    stays = core.tracker.is_voter(core.id)
    for peer_id, progress in before:
        # Who goes shall know that, as far as it can be told; and when the leader goes, all others what is committed.
        if not stays or peer_id not in core.tracker.progress:
            _send_last_commit(core, peer_id, progress)
    if not stays:
        core.become_follower(core.term, NO_REPLICA)
        return
    lead = leading(core)
    if not core.tracker.is_voter(lead.transfer_target):
        lead.transfer_target = NO_REPLICA
    lead.send_due = True  # new members; and a smaller quorum may have committed more
    maybe_commit(core)
    confirm_rounds(core)
