"""The Raft paper (Ongaro and Ousterhout, extended version), sections 5.3 to 5.5: one test for each claim.

Method: one replica, messages written by hand (lone.py); whole conversations are in data/.
"""

from __future__ import annotations

import pytest

from raft import Message, MessageType, NotLeader, Role

from .interaction.commands import Environment
from .lone import Lone, entries_of, only

# -- 5.3 Log replication


def test_a_leader_replicates_a_proposal() -> None:
    """5.3: the leader appends the command to its log as a new entry, then sends it to each of the other servers."""
    leader = Lone()
    leader.lead_with_commit()
    assert leader.node.propose(b"x") == (1, 2)
    sent = leader.drain()
    assert [(message.type, message.to_id, message.index, message.log_term) for message in sent] == [
        (MessageType.APPEND, 2, 1, 1),
        (MessageType.APPEND, 3, 1, 1),
    ]
    assert all(message.entries[0].data == b"x" for message in sent)


def test_only_a_leader_takes_proposals() -> None:
    """5.3 (and 8): who does not lead refuses, and tells who does."""
    replica = Lone(term=1)
    replica.step(MessageType.HEARTBEAT, 3)
    with pytest.raises(NotLeader) as refusal:
        replica.node.propose(b"x")
    assert refusal.value.leader_id == 3


@pytest.mark.parametrize(
    ("size", "acknowledged", "committed"),
    [
        (1, [], True),
        (3, [], False),
        (3, [2], True),
        (3, [3], True),
        (5, [2], False),
        (5, [2, 4], True),
        (5, [2, 2], False),
    ],
)
def test_a_majority_commits(size: int, acknowledged: list[int], committed: bool) -> None:
    """5.3: an entry is committed once the leader that created it has replicated it on a majority; then it is applied,
    and followers hear of that: those that have it at once, the others when they do."""
    leader = Lone(voters=tuple(range(1, size + 1)))
    leader.lead_with_commit()
    _, index = leader.node.propose(b"x")
    sent = leader.drain()
    for peer in acknowledged:
        sent += leader.acknowledge(peer)
    assert (leader.node.commit == index) == committed
    assert (leader.committed[-1].data == b"x") == committed
    told = {message.to_id for message in sent if message.commit == index}
    assert told == (set(acknowledged) if committed else set())
    if committed:
        for peer in range(2, size + 1):
            late = leader.acknowledge(peer)
            assert [message.to_id for message in late if message.commit == index] == [peer] * (peer not in told)


@pytest.mark.parametrize("terms", [[], [2], [1, 2], [1]])
def test_a_commit_takes_all_before_with_it(terms: list[int]) -> None:
    """5.3: this also commits all preceding entries in the leader's log, including those of previous leaders."""
    leader = Lone(terms=terms, term=2)
    leader.lead_with_commit()
    _, index = leader.node.propose(b"x")
    leader.drain()
    leader.acknowledge(2)
    assert [entry.index for entry in leader.committed] == list(range(1, index + 1))


def test_a_follower_applies_in_log_order() -> None:
    """5.3: once a follower learns that an entry is committed, it applies it, in log order."""
    replica = Lone()
    replica.append([1, 1, 1], index=0, log_term=0, commit=1, term=1)
    assert [entry.index for entry in replica.committed] == [1]
    replica.append([], index=3, log_term=1, commit=3)
    assert [entry.index for entry in replica.committed] == [1, 2, 3]


def test_a_follower_commits_no_more_than_it_was_sent() -> None:
    """Figure 2, AppendEntries 5: commitIndex = min(leaderCommit, index of last new entry): leftovers do not count."""
    replica = Lone(terms=[1, 1, 1, 1])
    replica.append([2], index=1, log_term=1, commit=4, term=2)
    assert replica.node.commit == 2
    other = Lone(terms=[1, 1, 1, 1])
    other.append([], index=2, log_term=1, commit=4, term=2)
    assert other.node.commit == 2


@pytest.mark.parametrize(
    ("index", "log_term", "accepted"),
    [(0, 0, True), (1, 1, True), (2, 2, True), (1, 2, False), (2, 1, False), (3, 3, False)],
)
def test_the_consistency_check(index: int, log_term: int, accepted: bool) -> None:
    """5.3: if the follower has no entry with that index and term, it refuses the new entries."""
    replica = Lone(terms=[1, 2])
    (reply,) = replica.append([], index=index, log_term=log_term)
    assert reply.reject == (not accepted)
    assert reply.index == index
    if not accepted:
        assert reply.reject_hint <= min(index, 2)


@pytest.mark.parametrize(
    ("index", "log_term", "terms", "after", "written"),
    [
        (2, 2, [3], [1, 2, 3], [3]),
        (1, 1, [3, 4], [1, 3, 4], [3, 4]),
        (0, 0, [1], [1, 2], []),
        (0, 0, [3], [3], [3]),
        (1, 1, [2], [1, 2], []),
        (1, 1, [2, 4], [1, 2, 4], [4]),
    ],
)
def test_conflicting_entries_are_replaced(
    index: int, log_term: int, terms: list[int], after: list[int], written: list[int]
) -> None:
    """5.3 and figure 2: an existing entry that conflicts is deleted with all that follow it; others stay."""
    replica = Lone(terms=[1, 2], term=4)
    replica.readys.clear()
    replica.append(terms, index=index, log_term=log_term)
    assert replica.terms() == after
    assert [entry.term for ready in replica.readys for entry in ready.entries] == written


@pytest.mark.parametrize(
    "terms",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
)
def test_figure_7(terms: list[int]) -> None:
    """5.3, figure 7: the leader of term 8 brings any of these logs to duplicate its own, with one question for each
    term in which they differ."""
    leader_terms = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    leader = Lone(terms=leader_terms, term=7)
    sent = only(leader.become_leader(), MessageType.APPEND)
    follower = Lone(terms=terms, term=7)
    refusals = 0
    for _ in range(10):
        if not sent:
            break
        answers: list[Message] = []
        for message in sent:
            if message.to_id == 2:
                follower.node.step(Message(**_to_follower(message)))
                answers += follower.drain()
        sent = []
        for answer in answers:
            refusals += answer.reject
            sent += only(leader.step(answer.type, 2, **_fields(answer)), MessageType.APPEND)
    assert follower.terms() == [*leader_terms, 8]
    assert refusals <= 2


def _fields(message: Message) -> dict[str, object]:
    names = ("term", "index", "log_term", "commit", "entries", "reject", "reject_hint")
    return {name: getattr(message, name) for name in names}


def _to_follower(message: Message) -> dict[str, object]:
    return {"type": message.type, "to_id": 1, "from_id": 2, **_fields(message)}


# -- 5.4 Safety


@pytest.mark.parametrize(
    ("terms", "index", "log_term", "granted"),
    [
        ([1], 1, 1, True),
        ([1], 2, 1, True),
        ([1, 1], 1, 1, False),
        ([1], 1, 2, True),
        ([1, 1], 1, 2, True),
        ([2], 1, 1, False),
        ([2], 2, 1, False),
        ([1, 2], 2, 1, False),
    ],
)
def test_a_vote_needs_an_up_to_date_log(terms: list[int], index: int, log_term: int, granted: bool) -> None:
    """5.4.1: the voter denies its vote if its own log is more up-to-date: by the last term, then by length."""
    replica = Lone(terms=terms, term=2)
    (reply,) = replica.step(MessageType.VOTE, term=3, index=index, log_term=log_term)
    assert reply.reject == (not granted)


def test_a_candidate_tells_its_last_entry() -> None:
    """5.4.1: the request includes information about the candidate's log."""
    replica = Lone(terms=[1, 2, 2])
    sent = replica.become_candidate()
    assert [(message.to_id, message.index, message.log_term) for message in sent] == [(2, 3, 2), (3, 3, 2)]


@pytest.mark.parametrize(("index", "commit"), [(1, 0), (2, 0), (3, 3)])
def test_older_terms_are_not_committed_by_counting(index: int, commit: int) -> None:
    """5.4.2: only entries from the leader's current term are committed by counting replicas."""
    leader = Lone(terms=[1, 2])
    leader.become_leader()
    leader.acknowledge(2, index)
    leader.acknowledge(3, index)
    assert leader.node.commit == commit


def test_figure_8() -> None:
    """5.4.2, figure 8: an entry of an old term is on a majority, and yet another leader overwrites it: it was not
    committed by being there."""
    environment = Environment()
    environment.run_all(
        """
        cluster voters=1,2,3,4,5 pre_vote=off check_quorum=off append_bytes_max=1
        campaign 1
        stabilize quietly
        propose 1 a
        process 1
        deliver to=2
        process 2
        drop
        campaign 5
        process 5
        deliver to=3,4
        process 3
        process 4
        deliver to=5
        process 5
        drop
        crash 5
        """,
    )
    cluster = environment.cluster
    # (b) 1 and 2 have 2/1, and 5, the leader of term 2, has 2/2 in its place. It crashes. (c) 1 leads term 3.
    assert cluster[5].log.term(2) == 2
    environment.run_all(
        "crash 1\nrestart 1\nprocess 1\ncampaign 1\nstabilize 1 2 3 4\ncampaign 1\nprocess 1\n"
        "deliver to=2,3,4 type=VOTE",
    )
    environment.run_all("process 2\nprocess 3\nprocess 4\ndeliver to=1\nprocess 1")
    assert (cluster[1].node.role, cluster[1].node.term) == (Role.LEADER, 3)
    # 3 lacks 2/1, says so, and gets that one (not the entry of term 3: it fits no more).
    environment.run_all("drop to=2,4,5\ndeliver to=3\nprocess 3\ndeliver to=1\nprocess 1\ndrop to=2,4,5")
    environment.run_all("deliver to=3 max=1\nprocess 3\ndeliver to=1")
    assert [cluster[replica_id].log.term(2) for replica_id in (1, 2, 3)] == [1, 1, 1]
    assert cluster[1].node.commit == 1
    # (d) 1 is cut off. 5 comes back, is elected by 2, 3, 4, and its 2/2 replaces what was on a majority.
    environment.run_all("drop\nrestart 5\nprocess 5")
    environment.run_all("campaign 5\nstabilize 2 3 4 5")  # term 3: they have voted for 1
    environment.run_all("campaign 5\nstabilize 2 3 4 5")
    assert cluster[5].node.role == Role.LEADER
    assert [cluster[replica_id].log.term(2) for replica_id in (2, 3, 4, 5)] == [2, 2, 2, 2]


def test_figure_8_the_other_way() -> None:
    """5.4.2, figure 8 (e): with an entry of its own term on a majority, the older one is safe: 5 cannot win."""
    leader = Lone(voters=(1, 2, 3, 4, 5), terms=[1, 2], term=3)
    leader.become_leader()
    leader.acknowledge(2)
    leader.acknowledge(3)
    assert leader.node.commit == 3
    voter = Lone(voters=(1, 2, 3, 4, 5), terms=[1, 2, 4], term=4)
    assert voter.step(MessageType.VOTE, 5, term=5, index=2, log_term=3)[0].reject


def test_committing_below_commit_is_impossible() -> None:
    """5.4.3, leader completeness: an append that would replace a committed entry means a broken promise: stop."""
    replica = Lone(terms=[1, 1, 1])
    replica.append([], index=3, log_term=1, commit=3)
    with pytest.raises(AssertionError, match="overwritten"):
        replica.node._core.log.append(entries_of([2], first=3))


def test_two_leaders_in_one_term_stop_a_leader() -> None:
    """5.2, election safety: at most one leader in a term; whoever sees two, stops."""
    leader = Lone()
    leader.become_leader()
    with pytest.raises(AssertionError, match="two leaders"):
        leader.step(MessageType.APPEND, 2, index=0, log_term=0)


# -- 5.5 Follower and candidate crashes


def test_requests_may_come_twice() -> None:
    """5.5: requests are idempotent: a follower that has the entries ignores them and answers again."""
    replica = Lone()
    first = replica.append([1, 1], index=0, log_term=0, term=1)
    again = replica.append([1, 1], index=0, log_term=0, term=1)
    assert first == again
    assert replica.terms() == [1, 1]
    earlier = replica.append([1], index=0, log_term=0, term=1)
    assert earlier[0].index == 1
    assert replica.terms() == [1, 1]


def test_an_append_of_what_is_committed_is_old() -> None:
    """5.5, 5.3: it is answered with how far the log is known to be right."""
    replica = Lone()
    replica.append([1, 1, 1], index=0, log_term=0, term=1, commit=3)
    (reply,) = replica.append([1], index=1, log_term=1)
    assert (reply.reject, reply.index) == (False, 3)
    assert replica.terms() == [1, 1, 1]


def test_old_refusals_are_ignored() -> None:
    """5.5: by a leader that has gone on since: one that probes takes only the answer to its last question, and one that
    replicates none about what it never sent."""
    leader = Lone(terms=[1, 1, 1])
    leader.become_leader()
    assert leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=1, reject_hint=0) == []
    assert leader.node.status().progress[2].next == 4
    leader.acknowledge(2)
    assert leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=9, reject_hint=8, log_term=1) == []
    assert leader.node.status().progress[2].next == 5
