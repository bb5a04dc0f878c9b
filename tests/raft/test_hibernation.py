"""Goal: a quiet group sleeps, one with work does not, and nothing is lost by it. Method: messages by hand (lone.py);
the transcript is data/hibernate.txt."""

from __future__ import annotations

from typing import Any

import pytest

from raft import (
    ConfChange,
    Message,
    MessageType,
    Role,
)
from raft.read_only import encode_round
from raft.types import ConfChangeKind, ConfChangeSingle

from .lone import Lone, only

# -- hibernation


def _sleepy() -> Lone:
    leader = Lone()
    leader.lead_with_commit()
    leader.drain()
    return leader


def _agree(leader: Lone, peer: int, *, sleep_round: int = 1, index: int = 1, reject: bool = False) -> list[Message]:
    return leader.step(MessageType.SLEEP_REPLY, peer, index=index, reject=reject, context=encode_round(sleep_round))


def _asleep(**settings: Any) -> Lone:
    leader = Lone(**settings)
    leader.lead_with_commit()
    leader.drain()
    assert leader.node.sleep()
    leader.drain()
    for peer in (2, 3):
        _agree(leader, peer)
    assert leader.node.asleep
    return leader


def _sleeping_follower(**settings: Any) -> Lone:
    """Of leader 2."""
    replica = Lone(terms=[1, 1], **settings)
    replica.step(MessageType.SLEEP, index=2, log_term=1, commit=2)
    assert replica.node.asleep
    return replica


def test_who_may_not_sleep() -> None:
    replica = Lone()
    assert not replica.node.sleep()
    leader = Lone()
    leader.become_leader()
    assert not leader.node.sleep(), "nothing of its term is committed"
    leader = _sleepy()
    leader.node.read_index(b"r")
    assert not leader.node.sleep(), "a read waits"
    leader = _sleepy()
    leader.node.transfer_leader(2)
    assert not leader.node.sleep(), "a transfer is under way"
    leader = _sleepy()
    leader.slow_disk = True
    leader.node.propose(b"x")
    leader.drain()
    leader.acknowledge(2)
    leader.acknowledge(3)
    assert leader.node.commit == 2
    assert not leader.node.sleep(), "its own disk is not done"


def test_everybody_has_to_agree() -> None:
    leader = _sleepy()
    assert leader.node.sleep()
    sent = leader.drain()
    assert [(message.type, message.to_id) for message in sent] == [(MessageType.SLEEP, 2), (MessageType.SLEEP, 3)]
    _agree(leader, 2)
    _agree(leader, 2)
    _agree(leader, 3, sleep_round=7)
    assert not leader.node.asleep
    _agree(leader, 3)
    assert leader.node.asleep
    leader.tick(1_000)
    assert leader.node.role == Role.LEADER


def test_a_refusal_ends_the_round() -> None:
    leader = _sleepy()
    leader.node.sleep()
    leader.drain()
    sent = _agree(leader, 2, reject=True)
    assert len(only(sent, MessageType.HEARTBEAT)) == 2, "whoever sleeps already is woken"
    _agree(leader, 3)
    _agree(leader, 2)
    assert not leader.node.asleep


def test_a_heartbeat_ends_the_round() -> None:
    """It wakes the one that has answered already: counted as asleep, it would campaign against a leader that is."""
    leader = _sleepy()
    leader.node.sleep()
    leader.drain()
    _agree(leader, 2)
    assert len(only(leader.tick(1), MessageType.HEARTBEAT)) == 2
    _agree(leader, 3)
    assert not leader.node.asleep
    assert leader.node.sleep()
    leader.drain()
    _agree(leader, 2)
    _agree(leader, 3, sleep_round=1)
    assert not leader.node.asleep, "an answer to the round before"
    _agree(leader, 3, sleep_round=2)
    assert not leader.node.asleep, "and that of 2 was one, too"
    _agree(leader, 2, sleep_round=2)
    assert leader.node.asleep


def test_sleep_tells_the_commit_index() -> None:
    """Else the message that tells it would follow, and wake the peers again."""
    leader = _sleepy()
    leader.node.propose(b"x")
    leader.drain()
    leader.node.step(Message(MessageType.APPEND_REPLY, to_id=1, from_id=2, term=1, index=2))
    leader.node.step(Message(MessageType.APPEND_REPLY, to_id=1, from_id=3, term=1, index=2))
    leader.drain()
    leader.node.sleep()
    assert [message.type for message in leader.drain()] == [MessageType.SLEEP] * 2


def test_an_absent_member_gets_no_leadership_and_is_no_quorum() -> None:
    leader = _sleepy()
    assert not leader.node.sleep([2, 3])
    assert leader.node.sleep([3])
    assert [message.to_id for message in leader.drain()] == [2]
    _agree(leader, 2)
    assert leader.node.asleep
    progress = leader.node.status().progress
    assert progress[2].recent_active
    assert not progress[3].recent_active
    assert leader.node.has_quorum_without({3})
    assert not leader.node.has_quorum_without({2, 3})


def test_a_leader_without_heartbeats_is_called_by_whom_another_wakes() -> None:
    replica = _sleeping_follower()
    sent = replica.step(MessageType.PRE_VOTE, 3, term=2, index=2, log_term=1)
    assert [(message.type, message.to_id) for message in sent] == [(MessageType.WAKE, 2)], "and no vote for 3"
    assert not replica.node.asleep
    replica = _sleeping_follower()
    assert not replica.step(MessageType.HEARTBEAT), "the leader knows"
    replica = _sleeping_follower()
    replica.node.wake()
    assert [message.type for message in replica.drain()] == [MessageType.WAKE]


def test_a_call_wakes_a_leader_and_is_answered_by_heartbeats() -> None:
    leader = _asleep()
    sent = leader.step(MessageType.WAKE, 2)
    assert len(only(sent, MessageType.HEARTBEAT)) == 2
    assert not leader.node.asleep
    leader = _asleep()
    assert not leader.step(MessageType.WAKE, 2, term=0), "of a time that is over"
    assert leader.node.asleep


def test_a_stopped_leader_wakes_the_others_once() -> None:
    leader = _asleep()
    calls = leader.node.calls_to_wake()
    assert [(call.type, call.to_id, call.term) for call in calls] == [
        (MessageType.WAKE, 2, 1),
        (MessageType.WAKE, 3, 1),
    ]
    replica = _sleeping_follower()
    assert not replica.node.calls_to_wake()
    replica.step(MessageType.WAKE, 2)
    assert not replica.node.asleep
    replica.tick(5)
    replica.step(MessageType.WAKE, 2)
    replica.tick(15)
    assert replica.node.role == Role.PRE_CANDIDATE, "the second call has not put the campaign off"
    replica = _sleeping_follower()
    replica.step(MessageType.HEARTBEAT, 3, term=2)
    replica.step(MessageType.SLEEP, 3, term=2, index=2, log_term=1, commit=2)
    assert replica.node.asleep
    replica.step(MessageType.WAKE, 2, term=1)
    assert replica.node.asleep, "another one leads now"


def test_silence_counts_as_heartbeats_that_did_not_come() -> None:
    for seed in range(20):
        replica = _sleeping_follower(seed=seed)
        assert not replica.node.leader_silent(3)
        assert replica.node.leader_silent(2)
        assert not replica.node.leader_silent(2), "it knows"
        replies = replica.step(MessageType.PRE_VOTE, 3, term=2, index=2, log_term=1)
        assert not only(replies, MessageType.PRE_VOTE_REPLY)[0].reject
        replica.tick(10)
        assert replica.node.role == Role.PRE_CANDIDATE


def test_silence_does_not_lift_a_promise() -> None:
    replica = Lone(terms=[1, 1], lease_reads=True)
    replica.tick(20)
    replica.step(MessageType.HEARTBEAT, context=encode_round(1), lease=True)
    replica.step(MessageType.SLEEP, index=2, log_term=1, commit=2)
    assert replica.node.leader_silent(2)
    assert not replica.step(MessageType.PRE_VOTE, 3, term=2, index=2, log_term=1)
    replica.tick(10)
    assert replica.node.role == Role.FOLLOWER
    replica.tick(1)
    assert replica.node.role == Role.PRE_CANDIDATE


def test_a_replica_that_lost_records_does_not_sleep() -> None:
    replica = Lone(terms=[1, 1], barred=True)
    (reply,) = replica.step(MessageType.SLEEP, index=2, log_term=1, commit=2)
    assert reply.reject


def test_the_tick_before_a_campaign_can_be_put_off() -> None:
    replica = Lone()
    while not replica.node.campaigns_next:
        replica.tick()
        assert replica.node.role == Role.FOLLOWER
    replica.tick()
    assert replica.node.role == Role.PRE_CANDIDATE
    assert not _asleep().node.campaigns_next
    assert not _sleeping_follower().node.campaigns_next


@pytest.mark.parametrize("wake", ["propose", "read", "change", "transfer", "wake", "message"])
def test_what_wakes_a_leader(wake: str) -> None:
    leader = _asleep()
    leader.step(MessageType.HEARTBEAT_REPLY, 2)
    assert leader.node.asleep, "a late answer is no reason"
    if wake == "propose":
        leader.node.propose(b"x")
    elif wake == "read":
        leader.node.read_index(b"r")
    elif wake == "change":
        leader.node.propose_conf_change(ConfChange((ConfChangeSingle(ConfChangeKind.ADD_LEARNER, 4),)))
    elif wake == "transfer":
        leader.node.transfer_leader(2)
    elif wake == "wake":
        leader.node.wake()
    else:
        leader.step(MessageType.PRE_VOTE, 2, term=2, index=1, log_term=1)
    assert not leader.node.asleep
    sent = leader.drain() if wake != "message" else leader.tick(1)
    assert {message.to_id for message in only(sent, MessageType.HEARTBEAT)} == {2, 3}


def test_a_follower_sleeps_only_on_the_same_log() -> None:
    replica = Lone(terms=[1, 1])
    for index, log_term, commit in ((1, 1, 1), (3, 1, 3), (2, 2, 2)):
        (reply,) = replica.step(MessageType.SLEEP, index=index, log_term=log_term, commit=commit)
        assert reply.reject
        assert not replica.node.asleep
    (reply,) = replica.step(MessageType.SLEEP, index=2, log_term=1, commit=2)
    assert not reply.reject
    assert replica.node.asleep
    assert replica.node.commit == 2
    replica.tick(100)
    assert replica.node.role == Role.FOLLOWER
    replica.step(MessageType.HEARTBEAT)
    assert not replica.node.asleep
    replica.tick(30)
    assert replica.node.role == Role.PRE_CANDIDATE


def test_sleep_extends_no_lease() -> None:
    leader = Lone(lease_reads=True)
    leader.lead_with_commit()
    (beat, _) = leader.tick(1)
    leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context, lease=True)
    leader.node.sleep()
    leader.drain()
    for peer in (2, 3):
        _agree(leader, peer)
    assert leader.node.asleep
    assert leader.node.lease_valid(50 + 399)
    assert not leader.node.lease_valid(50 + 400)


def test_a_lone_voter_sleeps_at_once() -> None:
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    assert leader.node.sleep()
    assert leader.node.asleep
