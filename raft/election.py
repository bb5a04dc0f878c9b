"""Campaigns and votes.

Invariant: a vote is given at most once a term, to a log that is at least as up to date, and is told only when it is
           durable. The same holds for the candidate itself: it asks for votes only when its own term, vote and log
           are durable, or votes given to a log that a crash has cut short could be counted after a restart.
Invariant: a replica that hears a leader, or has promised it a lease, answers no candidate (unless that very leader
           asked for the election), so that a removed or cut-off replica cannot disturb the others.
Invariant: only voters of the candidate's configuration count. Whoever is asked answers, whatever it thinks of itself:
           a replica may have become a voter and not know yet (thesis, 4.1).
Called by: raft/step.py and raw_node.py.   Paper: 5.2, 5.4.1.   Thesis: 3.4, 4.2.3, 9.6.
"""

from __future__ import annotations

from raft.core import Core
from raft.quorum import VoteResult
from raft.types import NO_REPLICA, Message, MessageType, Role


def maybe_campaign(core: Core, *, pre_vote: bool, transfer: bool = False) -> bool:
    """Start a campaign unless this replica may not lead or vote now. `transfer`: the leader has asked for it."""
    if core.role == Role.LEADER or not core.can_campaign:
        return False
    if core.promise_ticks > 0 and not transfer:
        return False  # a vote for itself would break the promise as well
    if core.log.has_unapplied_conf_change():
        # It would count with a membership that is known to be outdated, two steps behind the newest, maybe.
        return False
    if pre_vote:
        core.become_pre_candidate()
        _ask(core, MessageType.PRE_VOTE, term=core.term + 1, transfer=False)
        _on_result(core, core.tracker.record_vote(core.id, granted=True))
    else:
        core.become_candidate()
        _ask(core, MessageType.VOTE, term=core.term, transfer=transfer)
    return True


def _ask(core: Core, kind: MessageType, *, term: int, transfer: bool) -> None:
    index, log_term = core.log.last_index, core.log.last_term
    # A pre-vote binds nobody, so it need not wait for the disk.
    send = core.send if kind == MessageType.PRE_VOTE else core.send_durable
    for voter in core.tracker.voter_ids:
        if voter != core.id:
            send(Message(kind, to_id=voter, term=term, index=index, log_term=log_term, transfer=transfer))


def on_own_vote_durable(core: Core) -> None:
    """The term and the vote of this candidate are on disk: now its own vote counts."""
    assert core.role == Role.CANDIDATE
    _on_result(core, core.tracker.record_vote(core.id, granted=True))


def on_vote_reply(core: Core, message: Message) -> None:
    """Also for pre-votes; the caller has sorted out the terms."""
    pre_vote = message.type == MessageType.PRE_VOTE_REPLY
    asked = Role.PRE_CANDIDATE if pre_vote else Role.CANDIDATE
    if pre_vote and not message.reject and message.term != core.term + 1:
        return  # granted for an older campaign
    if message.reject:
        learn_commit(core, message)
    if core.role == asked:
        _on_result(core, core.tracker.record_vote(message.from_id, granted=not message.reject))


def _on_result(core: Core, result: VoteResult) -> None:
    if result == VoteResult.WON:
        if core.role == Role.CANDIDATE:
            core.become_leader()
        else:
            maybe_campaign(core, pre_vote=False)
    elif result == VoteResult.LOST:
        core.become_follower(core.term, NO_REPLICA)


def refuses_candidates(core: Core, message: Message) -> bool:
    """This replica stands by its leader: the request is dropped, and its term with it."""
    if message.transfer:
        return False
    return core.promise_ticks > 0 or (core.config.check_quorum and core.hears_leader)


def on_vote_request(core: Core, message: Message) -> None:
    """VOTE of this term, or PRE_VOTE of this or a later one."""
    pre_vote = message.type == MessageType.PRE_VOTE
    free = (
        core.vote == message.from_id
        or (core.vote == NO_REPLICA and core.leader_id == NO_REPLICA)
        or (pre_vote and message.term > core.term)
    )
    promised = core.promise_ticks > 0 and not message.transfer
    up_to_date = core.log.is_up_to_date(index=message.index, term=message.log_term)
    granted = free and up_to_date and not promised and not core.barred
    if not granted:
        refuse(core, message)
        return
    # A granted pre-vote carries the term that it is for.
    reply = Message(_reply_type(message.type), to_id=message.from_id, term=message.term)
    if pre_vote:
        core.send(reply)
        return
    core.send_durable(reply)
    core.vote = message.from_id
    core.election_elapsed = 0


def refuse(core: Core, request: Message) -> None:
    """A refusal carries our term, from which the asker can learn, and how far we know the log to be committed."""
    log = core.log
    reply = Message(_reply_type(request.type), to_id=request.from_id, reject=True)
    reply.commit, reply.log_term = log.commit, log.term(log.commit)
    core.send_durable(reply)


def learn_commit(core: Core, message: Message) -> None:
    """From a refusal of any term: that an entry is committed is true in all of them.

    Without it a group could be stuck for ever: the one replica that must be asked has a longer log, but is no voter any
    more and never campaigns, and the candidate that needs its vote for the old membership does not know that the
    change is committed (it has lost that in a restart).
    """
    log = core.log
    if core.role == Role.LEADER or message.commit <= log.commit:
        return
    if not log.matches(index=message.commit, term=message.log_term):
        return
    log.commit_to(message.commit)
    if core.role != Role.FOLLOWER and log.has_unapplied_conf_change():
        core.become_follower(core.term, NO_REPLICA)  # it counts with an outdated membership; again once applied


def _reply_type(request: MessageType) -> MessageType:
    return MessageType.PRE_VOTE_REPLY if request == MessageType.PRE_VOTE else MessageType.VOTE_REPLY


def tick_election(core: Core) -> None:
    """One tick of a replica that does not lead."""
    core.election_elapsed += 1
    if core.promise_ticks > 0:
        core.promise_ticks -= 1
        if core.promise_ticks == 0 and core.gone_leader_id != NO_REPLICA:
            # The evidence came while the promise was running; now it takes effect, a little apart from the others.
            core.leader_id = NO_REPLICA
            wait = core.rng.randrange(1, core.config.heartbeat_ticks + 1)
            core.election_timeout = min(core.election_timeout, core.election_elapsed + wait)
    if core.election_elapsed >= core.election_timeout:
        # The timer is not reset when it may not campaign now: it tries again with the next tick.
        maybe_campaign(core, pre_vote=core.config.pre_vote)
