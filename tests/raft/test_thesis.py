"""One test for each claim of Ongaro's thesis that goes beyond the paper, the section in its docstring.

Method: one replica, messages written by hand (lone.py); whole conversations are in data/.
"""

from __future__ import annotations

import pytest

from raft import MessageType, NotLeader, Role, StepRefused, TransferInProgress
from raft.types import ConfChange, ConfChangeKind, ConfChangeSingle

from .lone import Lone, only

# -- 3.10 Leadership transfer extension


def test_the_old_leader_stops_taking_requests() -> None:
    """3.10, step 1: the prior leader stops accepting new client requests."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.transfer_leader(2)
    with pytest.raises(TransferInProgress):
        leader.node.propose(b"x")
    with pytest.raises(TransferInProgress):
        leader.node.propose_conf_change(ConfChange((ConfChangeSingle(ConfChangeKind.ADD_LEARNER, 4),)))


def test_the_target_is_brought_up_to_date_first() -> None:
    """3.10, step 2: it updates the target's log to match its own; step 3: then it sends a TimeoutNow request."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose(b"x")
    leader.node.transfer_leader(3)
    sent = leader.drain()
    assert only(sent, MessageType.TIMEOUT_NOW) == []
    assert [message.to_id for message in only(sent, MessageType.APPEND) if message.entries] == [2, 3]
    assert only(leader.acknowledge(2), MessageType.TIMEOUT_NOW) == []
    (message,) = only(leader.acknowledge(3), MessageType.TIMEOUT_NOW)
    assert message.to_id == 3


def test_a_target_that_is_up_to_date_campaigns_at_once() -> None:
    """3.10: TimeoutNow has the same effect as the target's election timer firing; no PreVote, the leader wants it."""
    replica = Lone(terms=[1])
    replica.step(MessageType.HEARTBEAT)
    sent = replica.step(MessageType.TIMEOUT_NOW)
    assert replica.node.role == Role.CANDIDATE
    assert [(message.type, message.to_id, message.transfer) for message in sent] == [
        (MessageType.VOTE, 2, True),
        (MessageType.VOTE, 3, True),
    ]


def test_a_transfer_is_given_up_after_an_election_timeout() -> None:
    """3.10: if leadership transfer does not complete after about an election timeout, the prior leader aborts and
    resumes accepting client requests."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.transfer_leader(2)
    leader.tick(9)
    with pytest.raises(TransferInProgress):
        leader.node.propose(b"x")
    leader.tick(1)
    leader.node.propose(b"x")


@pytest.mark.parametrize("target", [4, 9])
def test_only_voters_can_take_over(target: int) -> None:
    """3.10: and nothing has changed after the refusal."""
    leader = Lone(learners=(4,))
    leader.lead_with_commit()
    with pytest.raises(StepRefused):
        leader.node.transfer_leader(target)
    leader.node.propose(b"x")


def test_a_transfer_to_itself_calls_it_off() -> None:
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose(b"x")
    leader.drain()
    leader.node.transfer_leader(2)
    leader.node.transfer_leader(1)
    leader.node.propose(b"y")
    assert only(leader.acknowledge(2), MessageType.TIMEOUT_NOW) == []


def test_a_transfer_ends_when_the_target_is_removed() -> None:
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose_conf_change(ConfChange((ConfChangeSingle(ConfChangeKind.REMOVE, 3),)))
    leader.node.transfer_leader(3)
    leader.drain()
    leader.acknowledge(2)
    assert leader.node.status().transfer_target == 0


# -- 4.1 Safety (of membership changes)


def test_appends_of_an_unknown_leader_are_taken() -> None:
    """4.1: a server accepts AppendEntries requests from a leader that is not part of its latest configuration."""
    replica = Lone()
    (reply,) = replica.step(MessageType.APPEND, 7, term=1, index=0, log_term=0)
    assert not reply.reject
    assert replica.node.leader_id == 7


@pytest.mark.parametrize("learner", [False, True])
def test_a_vote_does_not_ask_for_the_membership(learner: bool) -> None:
    """4.1: it grants its vote to a candidate that is not part of its latest configuration; also when it thinks that it
    is none of the voters itself, since its configuration may be old."""
    replica = Lone(voters=(2, 3), learners=(1,)) if learner else Lone()
    (reply,) = replica.step(MessageType.VOTE, 7, term=1, index=0, log_term=0)
    assert not reply.reject


def test_a_learner_counts_for_nothing() -> None:
    """4.2.1: new servers are non-voting members: neither votes, nor entries, nor answers to reads count."""
    leader = Lone(learners=(4, 5))
    leader.become_candidate()
    leader.step(MessageType.VOTE_REPLY, 4)
    leader.step(MessageType.VOTE_REPLY, 5)
    assert leader.node.role == Role.CANDIDATE
    leader = Lone(learners=(4, 5))
    leader.lead_with_commit()
    leader.node.propose(b"x")
    leader.node.read_index(b"r")
    beats = only(leader.drain(), MessageType.HEARTBEAT)
    assert [message.to_id for message in beats] == [2, 3]
    for learner in (4, 5):
        leader.acknowledge(learner)
        leader.step(MessageType.HEARTBEAT_REPLY, learner, context=beats[0].context)
    assert leader.node.commit == 1
    assert not any(ready.read_states for ready in leader.readys)
    leader.tick(10)
    for _ in range(10):
        for learner in (4, 5):
            leader.step(MessageType.HEARTBEAT_REPLY, learner, context=b"")
        if leader.node.role == Role.LEADER:
            leader.tick(1)
    assert leader.node.role == Role.FOLLOWER, "learners do not keep a leader either"


def test_a_learner_never_campaigns() -> None:
    """4.2.1: not by the timer, not when asked to, not by TimeoutNow."""
    replica = Lone(voters=(2, 3), learners=(1,))
    replica.step(MessageType.HEARTBEAT, term=1)
    assert replica.step(MessageType.TIMEOUT_NOW) == []
    assert replica.tick(100) == []
    assert not replica.node.campaign()


# -- 4.2.3 Disruptive servers


def test_the_leader_lets_its_chosen_one_through() -> None:
    """4.2.3: requests of a leadership transfer carry a flag: I have permission to disrupt the leader, it told me to."""
    voter = Lone(terms=[1])
    voter.step(MessageType.HEARTBEAT)
    assert voter.step(MessageType.VOTE, 3, term=2, index=1, log_term=1) == []
    (reply,) = voter.step(MessageType.VOTE, 3, term=2, index=1, log_term=1, transfer=True)
    assert not reply.reject
    leader = Lone()
    leader.lead_with_commit()
    assert leader.step(MessageType.VOTE, 3, term=2, index=1, log_term=1) == []
    assert leader.node.role == Role.LEADER
    (reply,) = leader.step(MessageType.VOTE, 3, term=2, index=1, log_term=1, transfer=True)
    assert not reply.reject


# -- 4.3 Arbitrary configuration changes using joint consensus (the rules of confchange: test_confchange.py)


def test_one_change_at_a_time() -> None:
    """4.1 and 4.3: no second change until the first one is committed; here: until it is applied."""
    leader = Lone()
    leader.lead_with_commit()
    change = ConfChange((ConfChangeSingle(ConfChangeKind.ADD_LEARNER, 4),))
    leader.node.propose_conf_change(change)
    with pytest.raises(Exception, match="under way"):
        leader.node.propose_conf_change(change)
    leader.drain()
    leader.acknowledge(2)
    leader.node.propose_conf_change(change)


def test_a_new_leader_waits_for_what_it_found() -> None:
    """4.1 (the bug in single-server changes): no change before an entry of the own term is committed, as the log may
    hold a change that is not committed yet."""
    leader = Lone(terms=[1, 1])
    leader.become_leader()
    change = ConfChange((ConfChangeSingle(ConfChangeKind.ADD_LEARNER, 4),))
    with pytest.raises(Exception, match="under way"):
        leader.node.propose_conf_change(change)
    leader.acknowledge(2)
    leader.node.propose_conf_change(change)


# -- 6.4 Processing read-only queries more efficiently


def _answers(replica: Lone) -> list[tuple[bytes, int]]:
    return [(state.context, state.index) for ready in replica.readys for state in ready.read_states]


def test_the_read_index_is_the_commit_index_of_the_round() -> None:
    """6.4, steps 2-4: readIndex is saved, then a round of heartbeats; what is committed meanwhile does not matter."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.read_index(b"r")
    (beat, _) = leader.drain()
    leader.node.propose(b"x")
    leader.drain()
    leader.acknowledge(2)
    assert leader.node.commit == 2
    leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
    assert _answers(leader) == [(b"r", 1)]


def test_an_earlier_round_confirms_nothing_later() -> None:
    """6.4, step 3: the round must begin after the read was asked."""
    leader = Lone()
    leader.lead_with_commit()
    (old, _) = leader.tick(1)
    leader.node.read_index(b"r")
    leader.drain()
    leader.step(MessageType.HEARTBEAT_REPLY, 2, context=old.context)
    leader.step(MessageType.HEARTBEAT_REPLY, 3, context=old.context)
    assert _answers(leader) == []


def test_a_round_serves_many_reads() -> None:
    """6.4: the leader may use a single round of heartbeats for any number of read-only queries it has accumulated."""
    leader = Lone()
    leader.lead_with_commit()
    for number in range(50):
        leader.node.read_index(b"r%d" % number)
    sent = leader.drain()
    assert len(sent) == 2
    leader.step(MessageType.HEARTBEAT_REPLY, 3, context=sent[0].context)
    assert len(_answers(leader)) == 50


def test_rounds_of_another_term_confirm_nothing() -> None:
    """6.4: a round is bound to the term in which it was sent."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.read_index(b"r")
    (beat, _) = leader.drain()
    leader.step(MessageType.VOTE_REPLY, 2, term=2, reject=True)
    assert leader.node.role == Role.FOLLOWER
    leader.become_leader()
    leader.acknowledge(2)
    leader.node.read_index(b"s")
    leader.drain()
    leader.step(MessageType.HEARTBEAT_REPLY, 2, term=1, context=beat.context)
    assert _answers(leader) == []


def test_a_follower_asks_the_leader() -> None:
    """6.4: followers can help offload: the follower asks the leader for a current readIndex, and reads itself."""
    replica = Lone(terms=[1])
    with pytest.raises(NotLeader):
        replica.node.read_index(b"r")
    replica.step(MessageType.HEARTBEAT)
    replica.node.read_index(b"r")
    (asked,) = replica.drain()
    assert (asked.type, asked.to_id, asked.context) == (MessageType.READ_INDEX, 2, b"r")
    replica.step(MessageType.READ_INDEX_REPLY, 2, index=7, context=b"r")
    assert _answers(replica) == [(b"r", 7)]


def test_a_leader_answers_a_follower() -> None:
    """6.4: the same round, the same index; the answer goes to who asked."""
    leader = Lone()
    leader.lead_with_commit()
    (beat, *_) = leader.step(MessageType.READ_INDEX, 3, context=b"r")
    (answer,) = leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
    assert (answer.type, answer.to_id, answer.index, answer.context) == (
        MessageType.READ_INDEX_REPLY,
        3,
        1,
        b"r",
    )


def test_a_single_voter_answers_at_once() -> None:
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    leader.node.read_index(b"r")
    leader.drain()
    assert _answers(leader) == [(b"r", 1)]


def test_rounds_without_answer_are_bounded() -> None:
    """6.4: a leader that is cut off collects reads; they share the rounds that there are, and all are answered."""
    leader = Lone()
    leader.lead_with_commit()
    for number in range(200):
        leader.node.read_index(b"r%d" % number)
        leader.drain()
    assert len(leader.node._core.leading.read_only.rounds) == 64  # type: ignore[union-attr]
    for _ in range(2):
        (beat, _) = leader.tick(1)[-2:]
        leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
    assert len(_answers(leader)) == 200


# -- 9.6 Preventing disruptions when a server rejoins the cluster


def test_a_pre_vote_changes_nothing() -> None:
    """9.6: a candidate increments its term only if it learned that a majority would grant it their votes."""
    replica = Lone(terms=[1])
    replica.readys.clear()
    sent = replica.tick(20)
    assert only(sent, MessageType.VOTE) == []
    assert {message.term for message in only(sent, MessageType.PRE_VOTE)} == {2}
    assert replica.node.term == 1
    assert all(ready.hard_state is None for ready in replica.readys)
    sent = replica.step(MessageType.PRE_VOTE_REPLY, 2, term=2)
    assert [message.term for message in only(sent, MessageType.VOTE)] == [2, 2]
    assert replica.node.term == 2


def test_a_pre_vote_is_answered_without_a_trace() -> None:
    """9.6: the receiver changes neither term nor vote, so it can say yes to several."""
    replica = Lone(terms=[1])
    for asker in (2, 3, 2):
        (reply,) = replica.step(MessageType.PRE_VOTE, asker, term=5, index=1, log_term=1)
        assert (reply.type, reply.reject, reply.term) == (MessageType.PRE_VOTE_REPLY, False, 5)
    assert replica.node.term == 1
    assert replica.log.initial_state()[0].vote == 0


@pytest.mark.parametrize(("index", "log_term", "term"), [(1, 1, 3), (2, 1, 3), (9, 9, 1), (2, 2, 2)])
def test_a_pre_vote_is_refused_as_a_vote_would_be(index: int, log_term: int, term: int) -> None:
    """9.6: log not up to date, or no newer term than ours (in which we have voted)."""
    replica = Lone(terms=[1, 2], term=2, vote=3)
    (reply,) = replica.step(MessageType.PRE_VOTE, 2, term=term, index=index, log_term=log_term)
    assert reply.reject
    assert reply.term == 2


def test_a_pre_vote_is_refused_while_a_leader_is_heard() -> None:
    """9.6: if they have not received heartbeats from a valid leader for at least a baseline election timeout."""
    replica = Lone(terms=[1])
    replica.step(MessageType.HEARTBEAT)
    replica.tick(9)
    assert replica.step(MessageType.PRE_VOTE, 3, term=2, index=1, log_term=1) == []
    replica.tick(1)
    assert not replica.step(MessageType.PRE_VOTE, 3, term=2, index=1, log_term=1)[0].reject


def test_an_answer_to_an_older_pre_vote_does_not_count() -> None:
    """9.6: it said yes to another term."""
    replica = Lone(terms=[1])
    replica.node.campaign()
    replica.drain()
    replica.step(MessageType.PRE_VOTE_REPLY, 3, term=5, reject=True)
    replica.node.campaign()
    replica.drain()
    replica.step(MessageType.PRE_VOTE_REPLY, 2, term=2)
    replica.step(MessageType.PRE_VOTE_REPLY, 2, term=5)
    assert replica.node.role == Role.PRE_CANDIDATE
    replica.step(MessageType.PRE_VOTE_REPLY, 2, term=6)
    assert replica.node.role == Role.CANDIDATE


# -- 10.2.1 Writing to the leader's disk in parallel


def test_the_leader_sends_before_its_own_disk_is_done() -> None:
    """10.2.1: the leader can write to its disk in parallel with replicating to the followers."""
    leader = Lone()
    leader.lead_with_commit()
    leader.slow_disk = True
    leader.node.propose(b"x")
    assert len(only(leader.drain(), MessageType.APPEND)) == 2
    assert leader.writes


def test_the_leader_counts_itself_only_when_it_is() -> None:
    """10.2.1: its own match index is what its disk has."""
    leader = Lone()
    leader.lead_with_commit()
    leader.slow_disk = True
    leader.node.propose(b"x")
    leader.drain()
    leader.acknowledge(2)
    assert leader.node.commit == 1
    leader.finish_writes()
    assert leader.node.commit == 2


def test_a_majority_of_followers_commits_without_it() -> None:
    """10.2.1: an entry may even be committed before it is on the leader's own disk."""
    leader = Lone()
    leader.lead_with_commit()
    leader.slow_disk = True
    leader.node.propose(b"x")
    leader.drain()
    leader.acknowledge(2)
    leader.acknowledge(3)
    assert leader.node.commit == 2
    assert leader.committed[-1].data == b"x"
    assert leader.node.durable_index == 1


# -- what a refused vote tells (not in the thesis; see election.learn_commit)


@pytest.mark.parametrize("term", [1, 2, 3])
def test_a_refusal_tells_what_is_committed(term: int) -> None:
    """Of whatever term it is: that an entry is committed is true in all of them. Only if we have that very entry."""
    replica = Lone(terms=[1, 1, 1], term=2)
    replica.node.campaign()
    replica.drain()
    replica.step(MessageType.PRE_VOTE_REPLY, 2, term=term, reject=True, commit=3, log_term=9)
    assert replica.node.commit == 0
    replica.step(MessageType.PRE_VOTE_REPLY, 2, term=term, reject=True, commit=2, log_term=1)
    assert replica.node.commit == 2
    replica.step(MessageType.PRE_VOTE_REPLY, 2, term=term, reject=True, commit=4, log_term=1)
    assert replica.node.commit == 2


def test_a_refusal_does_not_move_a_leader() -> None:
    """It commits by counting, and nothing of its own term can be committed elsewhere before."""
    leader = Lone(terms=[1])
    leader.become_leader()
    leader.step(MessageType.VOTE_REPLY, 3, reject=True, commit=1, log_term=1)
    assert leader.node.commit == 0


def test_a_refusal_goes_with_what_we_know() -> None:
    voter = Lone(terms=[1, 1], term=2, commit=2)
    (reply,) = voter.step(MessageType.VOTE, term=3, index=1, log_term=1)
    assert (reply.reject, reply.commit, reply.log_term) == (True, 2, 1)
