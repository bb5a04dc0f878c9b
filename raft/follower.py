"""What a replica does on the word of its leader.

Invariant: an append is acknowledged (after it is durable) only up to the last entry that the leader is known to have.
Invariant: an answer to a heartbeat is sent only when this term is on disk: a lease promise must outlive a restart, and
           only a replica with a durable term refuses votes after one.
Called by: raft/step.py.   Paper: 5.3, 7.   Thesis: 3.5, 5, 6.4, 6.4.1.
"""

from __future__ import annotations

from raft.core import Core
from raft.election import maybe_campaign
from raft.errors import StepRefused
from raft.types import NO_REPLICA, Message, MessageType, ReadState, SnapshotMeta


def on_append(core: Core, message: Message) -> None:
    log = core.log
    entries = message.entries
    index = message.index
    if entries and (entries[0].index != index + 1 or entries[-1].index != index + len(entries)):
        raise StepRefused("the entries of an append do not follow its index")
    if index < log.commit:
        _acknowledge(core, message.from_id, log.commit)  # old; all of that is here
        return
    if log.maybe_append(index=index, log_term=message.log_term, entries=entries):
        last = index + len(entries)
        # Not beyond `last`: what lies behind it may be a leftover that this leader does not have.
        log.commit_to(min(message.commit, last))
        _acknowledge(core, message.from_id, last)
        return
    # Where could we agree? Whatever has a higher term than the leader's entry there cannot be the leader's.
    hint, hint_term = log.last_at_or_before(index=min(index, log.last_index), term=message.log_term)
    core.send_durable(
        Message(
            MessageType.APPEND_REPLY,
            to_id=message.from_id,
            index=index,
            reject=True,
            reject_hint=hint,
            log_term=hint_term,
        )
    )


def _acknowledge(core: Core, leader_id: int, index: int) -> None:
    queue = core.after_append
    if queue:
        last = queue[-1]
        if last.type == MessageType.APPEND_REPLY and not last.reject and last.term == core.term:
            # One answer for several appends of one turn; it says what the earlier would have said.
            if last.index < index:
                last.index = index
            return
    core.send_durable(Message(MessageType.APPEND_REPLY, to_id=leader_id, index=index))


def on_heartbeat(core: Core, message: Message) -> None:
    # The leader sends min(match, commit), so this is in our log, unless we lost a part of it.
    commit = min(message.commit, core.log.last_index) if core.barred else message.commit
    core.log.commit_to(commit)
    if not message.context:
        return  # no round: the leader just tells of a commit
    promise = message.lease and core.lease_reads
    if promise:
        core.promise_ticks = core.promise_length()
    reply = Message(MessageType.HEARTBEAT_REPLY, to_id=message.from_id, context=message.context, lease=promise)
    say_lost(core, reply)
    if core.durable_term == core.term:
        core.send(reply)
    else:
        core.send_durable(reply)


def say_lost(core: Core, message: Message) -> None:
    if core.lost:
        message.lost = core.lost
        message.index = core.log.stable_index


def on_snapshot(core: Core, message: Message) -> None:
    meta = message.snapshot
    if meta is None:
        raise StepRefused("a snapshot message without a snapshot")
    if _restore(core, meta):
        _acknowledge(core, message.from_id, meta.index)
    else:
        _acknowledge(core, message.from_id, core.log.commit)


def _restore(core: Core, meta: SnapshotMeta) -> bool:
    """Take the snapshot as the new start of the log. False when it brings nothing new."""
    log = core.log
    if meta.index <= log.commit:
        return False
    if log.matches(index=meta.index, term=meta.term):
        # We have all those entries; the snapshot just says that they are committed.
        log.commit_to(meta.index)
        return False
    log.restore(meta)
    return True


def on_snapshot_installed(core: Core, meta: SnapshotMeta) -> None:
    """Only now: changes that were handed out before may have been applied meanwhile, to the old membership.

    A replica that is being added may not be a member yet: the entries after the snapshot will say so.
    """
    core.tracker.progress.clear()
    core.adopt_conf(meta.conf_state)


def on_timeout_now(core: Core, message: Message) -> None:
    """The leader hands over. Its lease is over, so promises to it do not bind any more (thesis, 3.10)."""
    maybe_campaign(core, pre_vote=False, transfer=True)


def on_read_index_reply(core: Core, message: Message) -> None:
    core.read_states.append(ReadState(context=message.context, index=message.index, term=message.term))


def on_leader_gone(core: Core, leader_id: int) -> bool:
    """Evidence that the leader's process is gone. True when it ended the wait for it here and now."""
    if leader_id == NO_REPLICA or core.leader_id != leader_id or core.leader_id == core.id:
        return False
    core.gone_leader_id = leader_id
    core.asleep = False
    if core.promise_ticks > 0:
        return False
    core.leader_id = NO_REPLICA
    return True


def may_hasten(core: Core) -> bool:
    """The evidence still stands: nobody was heard from since."""
    return core.gone_leader_id != NO_REPLICA and core.leader_id == NO_REPLICA and core.promise_ticks == 0
