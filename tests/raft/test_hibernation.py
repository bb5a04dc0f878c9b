"""Goal: a quiet group sleeps, one with work does not, and nothing is lost by it. Method: messages by hand (lone.py);
the transcript is data/hibernate.txt."""

from __future__ import annotations

import pytest

from raft import (
    ConfChange,
    MessageType,
    Role,
)
from raft.types import ConfChangeKind, ConfChangeSingle

from .lone import Lone, only

# -- hibernation


def _sleepy() -> Lone:
    leader = Lone()
    leader.lead_with_commit()
    leader.drain()
    return leader


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
    leader.step(MessageType.SLEEP_REPLY, 2, index=1)
    leader.step(MessageType.SLEEP_REPLY, 2, index=1)
    leader.step(MessageType.SLEEP_REPLY, 3, index=0)
    assert not leader.node.asleep
    leader.step(MessageType.SLEEP_REPLY, 3, index=1)
    assert leader.node.asleep
    leader.tick(1_000)
    assert leader.node.role == Role.LEADER


def test_a_refusal_ends_the_round() -> None:
    leader = _sleepy()
    leader.node.sleep()
    leader.drain()
    sent = leader.step(MessageType.SLEEP_REPLY, 2, index=1, reject=True)
    assert len(only(sent, MessageType.HEARTBEAT)) == 2, "whoever sleeps already is woken"
    leader.step(MessageType.SLEEP_REPLY, 3, index=1)
    leader.step(MessageType.SLEEP_REPLY, 2, index=1)
    assert not leader.node.asleep


@pytest.mark.parametrize("wake", ["propose", "read", "change", "transfer", "wake", "message"])
def test_what_wakes_a_leader(wake: str) -> None:
    leader = _sleepy()
    leader.node.sleep()
    leader.drain()
    for peer in (2, 3):
        leader.step(MessageType.SLEEP_REPLY, peer, index=1)
    assert leader.node.asleep
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
        leader.step(MessageType.SLEEP_REPLY, peer, index=1)
    assert leader.node.asleep
    assert leader.node.lease_valid(50 + 399)
    assert not leader.node.lease_valid(50 + 400)


def test_a_lone_voter_sleeps_at_once() -> None:
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    assert leader.node.sleep()
    assert leader.node.asleep
