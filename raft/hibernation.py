"""A group without work stops its timers: no ticks count, no heartbeats are sent.

Invariant: the leader falls asleep only when every member that is not known to be absent has the last index, has it
           committed and has said that it sleeps; and those are a quorum.
Invariant: nothing follows a SLEEP but what its round is over for: whatever else is sent would wake the peer again, and
           its answer from before must not count any more.
Invariant: sleep extends nothing: a lease runs on by the clock, and a promise does not run off while asleep.
Invariant: it lets nobody vote, and forget, what it would not awake: only timers stand still. So all that sleep can cost
           is time, and that is bounded by whoever is awake: it campaigns, and each of its messages wakes who gets it.
Whoever is woken (by a message, a proposal, a read, the driver) starts its timers anew; a leader wakes the others with
a round of heartbeats, and a member that somebody else has woken wakes its leader. The driver watches the nodes: it
wakes every group whose leader's process was replaced, was stopped, or is not heard of, and every leader that could not
find a quorum any more.
Called by: raft/step.py and raft/raw_node.py.
"""

from __future__ import annotations

from collections.abc import Collection

from raft.core import Core
from raft.progress import Progress
from raft.read_only import decode_round, encode_round
from raft.types import NO_REPLICA, Message, MessageType, Role

QUIET_REPLIES = frozenset({MessageType.HEARTBEAT_REPLY, MessageType.APPEND_REPLY, MessageType.SLEEP_REPLY})
"""Late answers that do not wake a leader."""


def start_sleep(core: Core, absent: Collection[int]) -> bool:
    """Ask the members that are there to sleep. False when something is going on, or there is no quorum of them."""
    lead = core.leading
    if lead is None or core.asleep:
        return False
    log = core.log
    last = log.last_index
    present = [(peer_id, progress) for peer_id, progress in core.tracker.peers if peer_id not in absent]
    quiet = (
        core.has_term_commit
        and log.commit == last
        and log.applied == last
        and log.stable_index == last
        and lead.transfer_target == NO_REPLICA
        and lead.read_only.is_empty
        and all(progress.match == last for _, progress in present)
        and core.tracker.is_quorum(frozenset([core.id, *(peer_id for peer_id, _ in present)]))
    )
    if not quiet:
        return False
    lead.sleep_index = last
    lead.sleep_round += 1
    # The message takes the place of a heartbeat, and has the time until the next one.
    lead.beat_due = False
    core.heartbeat_elapsed = 0
    lead.sleep_acks.clear()
    lead.absent = frozenset(absent)
    context = encode_round(lead.sleep_round)
    for peer_id, progress in present:
        progress.sent_commit = last  # the message tells it
        core.send(
            Message(
                MessageType.SLEEP,
                to_id=peer_id,
                index=last,
                log_term=log.last_term,
                commit=log.commit,
                context=context,
            )
        )
    _maybe_fall_asleep(core)
    return True


def on_sleep(core: Core, message: Message) -> None:
    log = core.log
    same = message.index == log.last_index and log.matches(index=message.index, term=message.log_term)
    # A barred one must go on asking until it is healed.
    quiet = same and log.stable_index == message.index and not core.barred
    if quiet:
        log.commit_to(message.commit)
        core.asleep = True
    core.send(
        Message(
            MessageType.SLEEP_REPLY,
            to_id=message.from_id,
            index=message.index,
            reject=not quiet,
            context=message.context,
        )
    )


def on_sleep_reply(core: Core, message: Message, progress: Progress) -> None:
    lead = core.leading
    progress.recent_active = True
    if lead is None or lead.sleep_index == 0 or decode_round(message.context) != lead.sleep_round:
        return
    if message.reject:
        wake(core)
        return
    lead.sleep_acks.add(message.from_id)
    _maybe_fall_asleep(core)


def _maybe_fall_asleep(core: Core) -> None:
    lead = core.leading
    assert lead is not None
    waits_for = [
        peer_id for peer_id, _ in core.tracker.peers if peer_id not in lead.absent and peer_id not in lead.sleep_acks
    ]
    if not waits_for:
        assert core.log.commit == core.log.last_index
        lead.sleep_index = 0
        core.asleep = True
        for peer_id, progress in core.tracker.peers:
            if peer_id in lead.absent:
                progress.recent_active = False  # nobody to hand the leadership to, whoever asks while it sleeps


def rouse(core: Core, from_id: int) -> None:
    """A message has come. Whom somebody else than its leader wakes tells the leader: it would wait for heartbeats that
    a sleeping leader does not send, and at last campaign against it."""
    slept = core.asleep
    wake(core)
    if slept and from_id != core.leader_id:
        call_leader(core)


def call_leader(core: Core) -> None:
    """Have the leader start its timers, where another one leads."""
    if core.leading is None and core.leader_id != NO_REPLICA:
        core.send(Message(MessageType.WAKE, to_id=core.leader_id))


def wake(core: Core) -> None:
    """Start the timers anew. Also ends a sleep round that is under way."""
    lead = core.leading
    if not core.asleep and (lead is None or lead.sleep_index == 0):
        return
    core.asleep = False
    core.election_elapsed = 0
    if lead is not None:
        lead.sleep_index = 0
        lead.beat_due = True
        core.heartbeat_elapsed = 0
        # Nobody was asked anything meanwhile, so nobody's silence counts.
        core.tracker.reset_active()
    assert core.role != Role.LEADER or lead is not None


def on_leader_silent(core: Core, leader_id: int) -> bool:
    """The leader's node was not heard of for an election timeout: go on as if its heartbeats had failed to come, which
    a sleeping leader does not send. Votes are free at once, and the campaign comes within another timeout at most."""
    if not core.asleep or core.leading is not None or core.leader_id != leader_id:
        return False
    core.asleep = False
    core.election_elapsed = max(core.election_elapsed, core.config.election_ticks)
    return True
