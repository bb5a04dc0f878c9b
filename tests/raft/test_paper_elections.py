"""The Raft paper (Ongaro and Ousterhout, extended version), sections 5.1 and 5.2: one test for each claim.

Method: one replica, messages written by hand (lone.py); whole conversations are in data/.
"""

from __future__ import annotations

import pytest

from raft import MessageType, Role

from .lone import Lone, only

FROM_LEADER = [MessageType.APPEND, MessageType.HEARTBEAT]
ROLES = ["follower", "candidate", "leader"]


def _in_role(role: str, **settings: object) -> Lone:
    replica = Lone(terms=[1], term=1, check_quorum=False, pre_vote=False, **settings)
    if role == "candidate":
        replica.become_candidate()
    elif role == "leader":
        replica.become_leader()
    return replica


# -- 5.1 Raft basics


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", FROM_LEADER)
def test_a_higher_term_makes_a_follower(role: str, kind: MessageType) -> None:
    """5.1: if a server's term is smaller than the other's, it updates it; a candidate or leader reverts to follower."""
    replica = _in_role(role)
    replica.step(kind, term=7, index=1, log_term=1)
    assert replica.node.role == Role.FOLLOWER
    assert replica.node.term == 7
    assert replica.node.leader_id == 2


@pytest.mark.parametrize("role", ROLES)
def test_a_request_with_an_old_term_is_rejected(role: str) -> None:
    """5.1: if a server receives a request with a stale term number, it rejects the request."""
    replica = _in_role(role)
    term, index = replica.node.term, replica.node.last_index
    sent = replica.append([1, 1], index=1, log_term=1, term=term - 1)
    assert replica.node.last_index == index
    assert [(message.type, message.reject, message.term) for message in sent] == [
        (MessageType.APPEND_REPLY, True, term)
    ]
    sent = replica.step(MessageType.VOTE, term=term - 1, index=9, log_term=9)
    assert [(message.type, message.reject, message.term) for message in sent] == [(MessageType.VOTE_REPLY, True, term)]
    assert replica.node.role.name.lower() == role


def test_an_old_answer_is_ignored() -> None:
    """5.1, 5.2: votes and acknowledgements of an older term do not count."""
    replica = _in_role("candidate")
    replica.step(MessageType.VOTE_REPLY, term=replica.node.term - 1)
    assert replica.node.role == Role.CANDIDATE
    leader = _in_role("leader")
    leader.step(MessageType.APPEND_REPLY, term=leader.node.term - 1, index=2)
    assert leader.node.commit == 0


# -- 5.2 Leader election


def test_a_server_starts_as_follower() -> None:
    """5.2: when servers start up, they begin as followers."""
    replica = Lone(terms=[1, 2], vote=3)
    assert replica.node.role == Role.FOLLOWER
    assert replica.node.term == 2


def test_a_leader_sends_heartbeats() -> None:
    """5.2: leaders send periodic heartbeats to all followers in order to maintain their authority."""
    leader = Lone(learners=(4,), heartbeat_ticks=3)
    leader.lead_with_commit()
    assert leader.tick(2) == []
    beats = only(leader.tick(1), MessageType.HEARTBEAT)
    assert [message.to_id for message in beats] == [2, 3, 4]
    assert leader.tick(2) == []
    assert len(leader.tick(1)) == 3


def test_heartbeats_keep_a_follower() -> None:
    """5.2: a server remains in follower state as long as it receives valid requests from a leader."""
    replica = Lone(terms=[1])
    for _ in range(20):
        replica.tick(9)
        replica.step(MessageType.HEARTBEAT, commit=0)
    assert replica.node.role == Role.FOLLOWER


@pytest.mark.parametrize("role", ["follower", "candidate"])
def test_an_election_begins_after_the_timeout(role: str) -> None:
    """5.2: it increments its current term, votes for itself and asks the others; a candidate does so anew in time."""
    replica = _in_role(role)
    term = replica.node.term
    sent = replica.tick(20)
    requests = only(sent, MessageType.VOTE)[:2]
    assert [(message.to_id, message.term) for message in requests] == [(2, term + 1), (3, term + 1)]
    assert replica.log.initial_state()[0].vote == 1
    assert replica.node.role == Role.CANDIDATE


@pytest.mark.parametrize(
    ("size", "granted", "refused", "role"),
    [
        (1, [], [], Role.LEADER),
        (3, [2], [], Role.LEADER),
        (3, [], [2], Role.CANDIDATE),
        (3, [], [2, 3], Role.FOLLOWER),
        (5, [2, 3], [], Role.LEADER),
        (5, [2], [3, 4], Role.CANDIDATE),
        (5, [2], [3, 4, 5], Role.FOLLOWER),
        (5, [2, 3], [4, 5], Role.LEADER),
        (5, [2, 2], [], Role.CANDIDATE),
    ],
)
def test_a_majority_elects(size: int, granted: list[int], refused: list[int], role: Role) -> None:
    """5.2: a candidate wins with votes from a majority of the full cluster; a voter counts once."""
    replica = Lone(voters=tuple(range(1, size + 1)), pre_vote=False)
    replica.become_candidate()
    for voter in granted:
        if replica.node.role == Role.CANDIDATE:
            replica.step(MessageType.VOTE_REPLY, voter)
    for voter in refused:
        if replica.node.role == Role.CANDIDATE:
            replica.step(MessageType.VOTE_REPLY, voter, reject=True)
    assert replica.node.role == role
    assert replica.node.term == 1


@pytest.mark.parametrize(("vote", "asker", "granted"), [(0, 2, True), (0, 3, True), (2, 2, True), (2, 3, False)])
def test_one_vote_a_term(vote: int, asker: int, granted: bool) -> None:
    """5.2: each server votes for at most one candidate in a term, first come first served."""
    replica = Lone(term=1, vote=vote)
    sent = replica.step(MessageType.VOTE, asker, index=0, log_term=0)
    assert [message.reject for message in sent] == [not granted]
    assert replica.log.initial_state()[0].vote == (vote or asker)


def test_the_vote_outlives_a_restart() -> None:
    """5.2 and figure 2: votedFor is persistent; answered only after it is durable."""
    replica = Lone(term=1)
    replica.slow_disk = True
    assert replica.step(MessageType.VOTE, 2) == []
    assert [message.reject for message in replica.finish_writes()] == [False]
    again = Lone(term=1, vote=replica.log.initial_state()[0].vote)
    assert again.step(MessageType.VOTE, 3)[0].reject


@pytest.mark.parametrize("kind", FROM_LEADER)
def test_a_candidate_yields_to_a_leader(kind: MessageType) -> None:
    """5.2: a candidate that hears a leader of a term at least as large as its own returns to follower."""
    replica = _in_role("candidate")
    replica.step(kind, 3, index=0, log_term=0)
    assert replica.node.role == Role.FOLLOWER
    assert replica.node.leader_id == 3


def test_timeouts_are_random() -> None:
    """5.2: election timeouts are chosen randomly from a fixed interval, anew each time."""
    waits = []
    for seed in range(40):
        replica = Lone(pre_vote=False, check_quorum=False, seed=seed)
        for _ in range(3):
            term, ticks = replica.node.term, 0
            while replica.node.term == term:
                replica.tick()
                ticks += 1
            waits.append(ticks)
    assert set(waits) == set(range(10, 20))
    assert max(waits.count(ticks) for ticks in waits) < 30
