"""Where a message goes: the rules that hold for all types, then the one function for this type and role.

Invariant: a message of a higher term makes this replica a follower of that term before anything else, except
           requests that it refuses while it stands by a leader, and pre-votes, which bind nobody.
Invariant: a message of a lower term changes nothing; its sender is told the newer term where it could hang otherwise.
Called by: raft/raw_node.py.   Paper: 5.1.   Thesis: 4.2.3, 9.6.
"""

from __future__ import annotations

from raft import election, follower, hibernation, leader
from raft.core import Core
from raft.errors import StepRefused
from raft.types import NO_REPLICA, Message, MessageType, Role

FROM_LEADER = frozenset(
    {
        MessageType.APPEND,
        MessageType.HEARTBEAT,
        MessageType.SNAPSHOT,
        MessageType.TIMEOUT_NOW,
        MessageType.READ_INDEX_REPLY,
        MessageType.SLEEP,
    }
)
VOTE_REQUESTS = frozenset({MessageType.VOTE, MessageType.PRE_VOTE})
VOTE_REPLIES = frozenset({MessageType.VOTE_REPLY, MessageType.PRE_VOTE_REPLY})


def step(core: Core, message: Message) -> None:
    """Raises StepRefused."""
    if message.to_id != core.id:
        raise StepRefused(f"the message is for replica {message.to_id}, this is {core.id}")
    if message.from_id in (NO_REPLICA, core.id):
        raise StepRefused("the message has no sender")
    kind = message.type
    if kind == MessageType.WAKE and message.term < core.term:
        return  # of a leader, or to one, whose time is over
    if (core.asleep or core.leading is not None) and kind not in hibernation.QUIET_REPLIES:
        hibernation.rouse(core, message.from_id)
    if message.term < core.term:
        _on_old_term(core, message)
        return
    if kind in VOTE_REQUESTS:
        _on_candidate(core, message)
        return
    if message.term > core.term and not _adopt_term(core, message):
        return
    if kind in VOTE_REPLIES:
        election.on_vote_reply(core, message)
        return
    if kind in FROM_LEADER:
        _on_leader(core, message)
    elif kind != MessageType.WAKE:  # that one has done all that it can
        _on_peer(core, message)


def _adopt_term(core: Core, message: Message) -> bool:
    """A higher term. False when that is all that the message has to say."""
    if message.type == MessageType.PRE_VOTE_REPLY and not message.reject:
        return True  # it names the term that we would campaign at
    core.become_follower(message.term, NO_REPLICA)
    return message.type in FROM_LEADER or message.type in VOTE_REPLIES


def _on_old_term(core: Core, message: Message) -> None:
    kind = message.type
    if kind in VOTE_REQUESTS:
        election.refuse(core, message)
    elif kind in (MessageType.APPEND, MessageType.SNAPSHOT) or (kind == MessageType.HEARTBEAT and message.context):
        # A leader that we have left behind (by a campaign that nobody else joined) would never hear of our term, and
        # we take nothing from it: this makes it step down, and a new election bring us together (thesis, 4.2.3).
        core.send_durable(Message(MessageType.APPEND_REPLY, to_id=message.from_id, reject=True))
    elif kind in VOTE_REPLIES and message.reject:
        # Who refuses a pre-vote does not take over its term, so it may be behind in that for ever and still know more.
        election.learn_commit(core, message)


def _on_candidate(core: Core, message: Message) -> None:
    if message.term > core.term:
        if election.refuses_candidates(core, message):
            return
        if message.type == MessageType.VOTE:
            core.become_follower(message.term, NO_REPLICA)
    election.on_vote_request(core, message)


def _on_leader(core: Core, message: Message) -> None:
    """From the leader of our term."""
    assert core.role != Role.LEADER, "two leaders in one term"
    sender = message.from_id
    if core.role != Role.FOLLOWER:
        core.become_follower(core.term, sender)
    assert core.leader_id in (NO_REPLICA, sender), "two leaders in one term"
    core.leader_id = sender
    core.gone_leader_id = NO_REPLICA
    core.election_elapsed = 0
    kind = message.type
    if kind == MessageType.APPEND:
        follower.on_append(core, message)
    elif kind == MessageType.HEARTBEAT:
        follower.on_heartbeat(core, message)
    elif kind == MessageType.SNAPSHOT:
        follower.on_snapshot(core, message)
    elif kind == MessageType.TIMEOUT_NOW:
        follower.on_timeout_now(core, message)
    elif kind == MessageType.READ_INDEX_REPLY:
        follower.on_read_index_reply(core, message)
    else:
        hibernation.on_sleep(core, message)


def _on_peer(core: Core, message: Message) -> None:
    """To the leader of our term."""
    if core.leading is None:
        raise StepRefused("this replica does not lead")
    kind = message.type
    progress = core.tracker.progress.get(message.from_id)
    if kind == MessageType.READ_INDEX:
        if progress is not None:
            leader.on_lost(core, message, progress)
        leader.add_read(core, message.context, message.from_id)
        return
    if progress is None:
        raise StepRefused(f"replica {message.from_id} is not a member")
    if kind == MessageType.APPEND_REPLY:
        leader.on_append_reply(core, message, progress)
    elif kind == MessageType.HEARTBEAT_REPLY:
        leader.on_heartbeat_reply(core, message, progress)
    elif kind == MessageType.SLEEP_REPLY:
        hibernation.on_sleep_reply(core, message, progress)
    else:
        raise StepRefused(f"unknown type {kind}")
