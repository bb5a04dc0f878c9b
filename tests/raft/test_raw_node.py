"""Goal: the contract of RawNode at its edges: what is refused, and that a refusal changes nothing; evidence.
Method: messages by hand (lone.py). The ordinary course of things is in data/."""

from __future__ import annotations

from typing import Any

import pytest

from raft import (
    ConfChange,
    ConfChangeRefused,
    Config,
    Message,
    MessageType,
    NotLeader,
    ProposalDropped,
    RaftError,
    Role,
    StepRefused,
)
from raft.types import ConfChangeKind, ConfChangeSingle, ConfState, ConfTransition

from .lone import Lone, entries_of

# -- configuration


@pytest.mark.parametrize(
    "settings",
    [
        {"replica_id": 0},
        {"heartbeat_ticks": 0},
        {"heartbeat_ticks": 10, "election_ticks": 10},
        {"lease_reads": True, "check_quorum": False},
        {"tick_ms": 0},
        {"append_bytes_max": 0},
        {"inflight_messages_max": 0},
        {"inflight_bytes_max": 0},
        {"uncommitted_bytes_max": 0},
        {"committed_bytes_max": 0},
    ],
)
def test_impossible_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Config(**({"replica_id": 1} | settings))


# -- refusals


def _picture(replica: Lone) -> tuple[object, ...]:
    return (replica.node.status(), replica.terms(), replica.node.has_ready())


@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.APPEND, to_id=2, from_id=3, term=9),
        Message(MessageType.APPEND, to_id=1, from_id=0, term=9),
        Message(MessageType.VOTE, to_id=1, from_id=1, term=9),
        Message(MessageType.APPEND_REPLY, to_id=1, from_id=7, term=3),
        Message(MessageType.HEARTBEAT_REPLY, to_id=1, from_id=7, term=3),
    ],
    ids=["not for us", "from nobody", "from ourselves", "unknown peer", "unknown peer's heartbeat"],
)
def test_a_refused_message_changes_nothing(role: str, message: Message) -> None:
    replica = Lone(terms=[1], term=2, check_quorum=False, pre_vote=False)
    if role != "follower":
        replica.become_candidate()
        assert replica.node.term == 3
    if role == "leader":
        replica.step(MessageType.VOTE_REPLY)
    else:
        replica.node._core.term = 3
        replica.drain()
    before = _picture(replica)
    with pytest.raises(StepRefused):
        replica.node.step(message)
    assert _picture(replica) == before


def test_malformed_messages_are_refused() -> None:
    """They come from outside: never an assertion."""
    replica = Lone(terms=[1])
    for entries in (entries_of([1], first=3), [*entries_of([1], first=2), *entries_of([1], first=4)]):
        with pytest.raises(StepRefused):
            replica.step(MessageType.APPEND, index=1, log_term=1, entries=tuple(entries))
    with pytest.raises(StepRefused):
        replica.step(MessageType.SNAPSHOT)
    leader = Lone()
    leader.lead_with_commit()
    with pytest.raises(StepRefused):
        leader.acknowledge(2, 99)
    for context in (b"", b"short", b"much too long"):
        leader.step(MessageType.HEARTBEAT_REPLY, 2, context=context)
    leader.step(MessageType.HEARTBEAT_REPLY, 2, context=b"\xff" * 8, lease=True)  # a round that was never sent
    leader.node.read_index(b"r")
    leader.drain()
    assert not any(ready.read_states for ready in leader.readys)


def test_refused_proposals() -> None:
    """Definite: nothing of it will ever be in the log."""
    replica = Lone()
    change = ConfChange((ConfChangeSingle(ConfChangeKind.ADD_VOTER, 4),))
    for refused in (
        lambda: replica.node.propose(b"x"),
        lambda: replica.node.propose_many([b"x", b"y"]),
        lambda: replica.node.propose_conf_change(change),
        lambda: replica.node.transfer_leader(2),
    ):
        before = _picture(replica)
        with pytest.raises(NotLeader):
            refused()
        assert _picture(replica) == before
    assert issubclass(NotLeader, ProposalDropped)
    assert issubclass(ConfChangeRefused, ProposalDropped)
    assert issubclass(StepRefused, RaftError)


@pytest.mark.parametrize(
    "change",
    [
        ConfChange(),
        ConfChange((ConfChangeSingle(ConfChangeKind.REMOVE, 1),)),
        ConfChange((ConfChangeSingle(ConfChangeKind.REMOVE, 1),), ConfTransition.JOINT_EXPLICIT),
    ],
    ids=["not joint", "no voter left", "no voter left, joint"],
)
def test_an_impossible_change_is_not_proposed(change: ConfChange) -> None:
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    before = _picture(leader)
    with pytest.raises(ConfChangeRefused):
        leader.node.propose_conf_change(change)
    assert _picture(leader) == before


def test_a_change_of_nothing_but_its_context() -> None:
    """UPDATE: the driver's own data travels through the log as a change of the membership."""
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    change = ConfChange((ConfChangeSingle(ConfChangeKind.UPDATE, 1),), context=b"moved")
    leader.node.propose_conf_change(change)
    leader.drain()
    assert leader.node.conf_state == ConfState(voters=(1,))


def test_a_change_that_the_driver_refuses() -> None:
    """It is not given to apply_conf_change; the membership stays, and the next one may come."""
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    leader._apply = lambda ready: [leader.node.applied_to(entry.index) for entry in ready.committed]  # type: ignore
    change = ConfChange((ConfChangeSingle(ConfChangeKind.ADD_VOTER, 2),))
    leader.node.propose_conf_change(change)
    leader.drain()
    assert leader.node.conf_state == ConfState(voters=(1,))
    leader.node.propose_conf_change(change)


# -- time


def test_the_clock_does_not_go_back() -> None:
    replica = Lone()
    replica.node.tick(100)
    replica.node.tick(100)
    with pytest.raises(AssertionError):
        replica.node.tick(99)


def test_check_quorum_off() -> None:
    """A leader stays though nobody answers, and a follower votes though it hears a leader."""
    leader = Lone(check_quorum=False)
    leader.lead_with_commit()
    leader.tick(100)
    assert leader.node.role == Role.LEADER
    voter = Lone(terms=[1], check_quorum=False)
    voter.step(MessageType.HEARTBEAT)
    assert not voter.step(MessageType.VOTE, 3, term=2, index=1, log_term=1)[0].reject


def test_a_leader_hears_its_quorum_in_any_way() -> None:
    """Answers to appends count as those to heartbeats."""
    leader = Lone(heartbeat_ticks=5)
    leader.lead_with_commit()
    for _ in range(10):
        leader.tick(9)
        leader.node.propose(b"x")
        leader.drain()
        leader.acknowledge(3)
    assert leader.node.role == Role.LEADER
    leader.tick(20)
    assert leader.node.role == Role.FOLLOWER


# -- evidence


def test_evidence_is_about_the_leader_of_now() -> None:
    replica = Lone(terms=[1])
    assert not replica.node.leader_gone(2)
    assert not replica.node.leader_gone(0)
    replica.step(MessageType.HEARTBEAT)
    assert not replica.node.leader_gone(3)
    assert not replica.node.hasten()
    assert replica.node.leader_gone(2)
    assert replica.node.leader_id == 0
    assert not replica.node.leader_gone(2)
    assert replica.node.hasten()
    assert replica.node.role == Role.PRE_CANDIDATE
    assert not replica.node.hasten(), "it campaigns already"


def test_evidence_does_not_outlive_the_term() -> None:
    replica = Lone(terms=[1])
    replica.step(MessageType.HEARTBEAT)
    replica.node.leader_gone(2)
    replica.step(MessageType.VOTE, 3, term=2, index=1, log_term=1)
    assert not replica.node.hasten()


def test_forgetting_a_leader() -> None:
    replica = Lone(terms=[1])
    replica.step(MessageType.HEARTBEAT)
    replica.node.forget_leader()
    assert replica.node.leader_id == 0
    assert not replica.step(MessageType.PRE_VOTE, 3, term=2, index=1, log_term=1)[0].reject
    leader = Lone()
    leader.lead_with_commit()
    leader.node.forget_leader()
    assert leader.node.leader_id == 1


def test_role_changes_are_told_once() -> None:
    replica = Lone(terms=[1])
    replica.readys.clear()
    replica.step(MessageType.HEARTBEAT, context=bytes(8))
    replica.step(MessageType.HEARTBEAT, context=bytes(8))
    assert [ready.role_changed for ready in replica.readys] == [True, False]
    replica.node.leader_gone(2)
    assert replica.node.has_ready()
    assert replica.node.ready().role_changed
    assert not replica.node.has_ready()


# -- looking


def test_the_status_is_a_copy() -> None:
    leader = Lone(learners=(4,))
    leader.lead_with_commit()
    status = leader.node.status()
    assert list(status.progress) == [1, 2, 3, 4]
    assert status.progress[4].is_learner
    leader.node.propose(b"x")
    leader.drain()
    assert status.last_index == 1
    assert Lone().node.status().progress == {}
