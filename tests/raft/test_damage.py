"""Goal: a replica that lost log records does no harm, and gets them again. Method: messages by hand (lone.py); the
transcript is data/damaged.txt."""

from __future__ import annotations

import pytest

from raft import (
    MessageType,
    Role,
)

from .lone import Lone

# -- damage


def test_a_damaged_replica_does_not_vote() -> None:
    replica = Lone(terms=[1], barred=True)
    for kind in (MessageType.PRE_VOTE, MessageType.VOTE):
        (reply,) = replica.step(kind, 3, term=2, index=9, log_term=9)
        assert reply.reject
    assert not replica.node.campaign()
    assert not replica.node.campaign_without_prevote()
    assert replica.tick(100) == []
    replica.step(MessageType.TIMEOUT_NOW, 2, term=3)
    assert replica.node.role == Role.FOLLOWER
    assert replica.node.barred
    replica.node.unbar()
    replica.node.forget_leader()
    assert not replica.step(MessageType.VOTE, 3, term=4, index=9, log_term=9)[0].reject


def test_a_damaged_replica_says_so() -> None:
    """Again and again: one such answer could get lost, and the leader would never know."""
    replica = Lone(terms=[1], barred=True)
    for _ in range(2):
        (reply,) = replica.step(MessageType.HEARTBEAT, commit=4, context=bytes(8))
        assert (reply.lost, reply.index) == (True, 1)
        assert replica.node.commit == 1
        (reply,) = replica.append([], index=4, log_term=1)
        assert (reply.reject, reply.reject_hint) == (True, 1)
    (reply,) = replica.append([1], index=1, log_term=1)
    assert (reply.reject, reply.index) == (False, 2)
    (reply,) = replica.step(MessageType.HEARTBEAT, commit=2, context=bytes(8))
    assert (reply.lost, reply.index) == (True, 2)
    replica.node.unbar()
    (reply,) = replica.step(MessageType.HEARTBEAT, commit=2, context=bytes(8))
    assert not reply.lost


def test_a_healthy_replica_that_lost_something_stops() -> None:
    replica = Lone(terms=[1])
    with pytest.raises(AssertionError, match="lost"):
        replica.step(MessageType.HEARTBEAT, commit=4)


def test_a_leader_sends_again_what_was_lost() -> None:
    """Its commit index stays; and what is there again is no loss."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose_many([b"x"] * 5)
    leader.drain()
    leader.acknowledge(2)
    leader.acknowledge(3)
    assert leader.node.commit == 6
    leader.tick(1)
    (message,) = leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=True, index=3)
    assert (message.index, len(message.entries)) == (3, 3)
    assert leader.node.status().progress[2].match == 0
    assert leader.node.commit == 6
    leader.acknowledge(2)
    assert leader.node.status().progress[2].match == 6
    leader.tick(1)
    assert leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=True, index=6) == []


def test_it_begins_again_once_a_beat() -> None:
    """Where messages are reordered, old answers would begin it all again and again."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose_many([b"x"] * 5)
    leader.drain()
    leader.acknowledge(2)
    leader.tick(1)
    assert leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=True, index=3) != []
    leader.acknowledge(2)
    assert leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=True, index=3) == []
    assert leader.node.status().progress[2].match == 6
