"""Goal: a replica that lost log records does no harm, and gets them again. Method: messages by hand (lone.py); the
transcript is data/damaged.txt."""

from __future__ import annotations

import pytest

from raft import (
    MessageType,
    Role,
)

from .lone import Lone, only

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
    """In every answer to a heartbeat and with every read, until it is whole: one of them could get lost."""
    replica = Lone(terms=[1], barred=True)
    for _ in range(2):
        (reply,) = replica.step(MessageType.HEARTBEAT, commit=4, context=bytes(8))
        assert (reply.lost != 0, reply.index) == (True, 1)
        assert replica.node.commit == 1
        (reply,) = replica.append([], index=4, log_term=1)
        assert (reply.reject, reply.reject_hint) == (True, 1)
    replica.node.read_index(b"r")
    (asked,) = replica.drain()
    assert (asked.lost != 0, asked.index) == (True, 1)
    replica.slow_disk = True
    replica.append([1], index=1, log_term=1)
    (reply,) = replica.step(MessageType.HEARTBEAT, commit=1, context=bytes(8))
    assert reply.index == 1, "what is not on disk yet is not there"
    replica.finish_writes()
    (reply,) = replica.step(MessageType.HEARTBEAT, commit=2, context=bytes(8))
    assert (reply.lost != 0, reply.index) == (True, 2)
    replica.node.unbar()
    (reply,) = replica.step(MessageType.HEARTBEAT, commit=2, context=bytes(8))
    assert reply.lost == 0


def test_each_start_has_another_number() -> None:
    numbers = {Lone(barred=True, seed=seed).node._core.lost for seed in range(20)}
    assert len(numbers) == 20
    assert 0 not in numbers


def test_a_healthy_replica_that_lost_something_stops() -> None:
    replica = Lone(terms=[1])
    with pytest.raises(AssertionError, match="lost"):
        replica.step(MessageType.HEARTBEAT, commit=4)


def _leader() -> Lone:
    """It has 6 entries, and 2 has acknowledged all of them."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose_many([b"x"] * 5)
    leader.drain()
    leader.acknowledge(2)
    return leader


@pytest.mark.parametrize("kind", [MessageType.HEARTBEAT_REPLY, MessageType.READ_INDEX])
def test_a_leader_sends_again_what_was_lost(kind: MessageType) -> None:
    """Its commit index stays; and what is there again is no loss."""
    leader = _leader()
    assert leader.node.commit == 6
    sent = leader.step(kind, 2, lost=7, index=3)
    (message,) = only(sent, MessageType.APPEND)
    assert (message.index, len(message.entries)) == (3, 3)
    assert leader.node.status().progress[2].match == 0
    assert leader.node.commit == 6
    leader.acknowledge(2)
    assert leader.node.status().progress[2].match == 6
    assert only(leader.step(kind, 2, lost=7, index=6), MessageType.APPEND) == []


def test_what_was_lost_does_not_count() -> None:
    """An acknowledgement of before the loss may not commit anything after the leader has answered a read of that
    replica: it takes the answer to mean that with that much it is whole."""
    leader = Lone()
    leader.lead_with_commit()
    leader.slow_disk = True
    leader.node.propose(b"x")
    leader.drain()
    leader.acknowledge(2)
    assert leader.node.commit == 1, "2 has it, the leader's own disk has not"
    leader.step(MessageType.READ_INDEX, 2, lost=7, index=1, context=b"r")
    leader.finish_writes()
    assert leader.node.commit == 1
    leader.acknowledge(2)
    assert leader.node.commit == 2


def test_it_begins_again_once_for_each_loss() -> None:
    """Where messages are doubled and reordered, old ones would begin it all again and again."""
    leader = _leader()
    assert leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=7, index=3) != []
    leader.acknowledge(2)
    for index in (3, 4, 2):
        assert leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=7, index=index) == []
    assert leader.node.status().progress[2].match == 6
    assert leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=9, index=1) != []
    assert leader.node.status().progress[2].match == 0


def test_a_loss_of_what_was_never_acknowledged() -> None:
    """Nothing to begin again."""
    leader = _leader()
    assert leader.step(MessageType.HEARTBEAT_REPLY, 2, lost=7, index=6) == []
    assert leader.node.status().progress[2].match == 6
