"""One test for each claim of the Raft paper (Ongaro and Ousterhout, extended version), the section in its docstring.

Method: one replica, messages written by hand (lone.py); whole conversations are in data/.
"""

from __future__ import annotations

import pytest

from raft import EntryKind, Message, MessageType, NotLeader, Role, SnapshotMeta, decode_change
from raft.types import ConfChange, ConfChangeKind, ConfChangeSingle, ConfState

from .interaction.commands import Environment
from .lone import Lone, entries_of, only

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
    and the followers hear of that."""
    leader = Lone(voters=tuple(range(1, size + 1)))
    leader.lead_with_commit()
    _, index = leader.node.propose(b"x")
    sent = leader.drain()
    for peer in acknowledged:
        sent += leader.acknowledge(peer)
    assert (leader.node.commit == index) == committed
    assert (leader.committed[-1].data == b"x") == committed
    told = {message.to_id for message in sent if message.commit == index}
    assert told == (set(range(2, size + 1)) if committed and size > 1 else set())


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
    _run(
        environment,
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
    _run(
        environment,
        "crash 1\nrestart 1\nprocess 1\ncampaign 1\nstabilize 1 2 3 4\ncampaign 1\nprocess 1\n"
        "deliver to=2,3,4 type=VOTE",
    )
    _run(environment, "process 2\nprocess 3\nprocess 4\ndeliver to=1\nprocess 1")
    assert (cluster[1].node.role, cluster[1].node.term) == (Role.LEADER, 3)
    # 3 lacks 2/1, says so, and gets that one (not the entry of term 3: it fits no more).
    _run(environment, "drop to=2,4,5\ndeliver to=3\nprocess 3\ndeliver to=1\nprocess 1\ndrop to=2,4,5")
    _run(environment, "deliver to=3 max=1\nprocess 3\ndeliver to=1")
    assert [cluster[replica_id].log.term(2) for replica_id in (1, 2, 3)] == [1, 1, 1]
    assert cluster[1].node.commit == 1
    # (d) 1 is cut off. 5 comes back, is elected by 2, 3, 4, and its 2/2 replaces what was on a majority.
    _run(environment, "drop\nrestart 5\nprocess 5")
    _run(environment, "campaign 5\nstabilize 2 3 4 5")  # term 3: they have voted for 1
    _run(environment, "campaign 5\nstabilize 2 3 4 5")
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


def _run(environment: Environment, script: str) -> list[str]:
    lines: list[str] = []
    for line in script.strip().splitlines():
        lines += environment.run(line.strip())
    return lines


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


# -- 6 Cluster membership changes


def _change(*singles: tuple[ConfChangeKind, int]) -> ConfChange:
    return ConfChange(tuple(ConfChangeSingle(kind, replica_id) for kind, replica_id in singles))


def test_a_joint_state_needs_both_majorities() -> None:
    """6: agreement (for elections and entry commitment) requires separate majorities from both configurations."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose_conf_change(
        _change(*((ConfChangeKind.ADD_VOTER, i) for i in (4, 5)), *((ConfChangeKind.REMOVE, i) for i in (2, 3)))
    )
    leader.drain()
    leader.acknowledge(2)
    assert leader.node.conf_state.voters == (1, 4, 5)
    assert leader.node.conf_state.voters_outgoing == (1, 2, 3)
    index = leader.node.last_index
    leader.acknowledge(2)
    leader.acknowledge(3)
    assert leader.node.commit == index - 1, "committed with the old majority alone"
    leader.acknowledge(4)
    assert leader.node.conf_state == ConfState(voters=(1, 4, 5))


def test_the_joint_state_is_left_by_an_entry() -> None:
    """6: once the joint configuration has been committed, the leader creates an entry describing the new one."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose_conf_change(_change((ConfChangeKind.ADD_VOTER, 4), (ConfChangeKind.REMOVE, 3)))
    leader.drain()
    sent = only(leader.acknowledge(2), MessageType.APPEND)
    entry = next(message.entries[-1] for message in sent if message.entries)
    assert entry.kind == EntryKind.CONF_CHANGE
    assert decode_change(entry.data) == ConfChange()


def test_a_leader_that_is_removed_steps_down() -> None:
    """6: the leader steps down (returns to follower state) once it has committed the configuration without it."""
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose_conf_change(_change((ConfChangeKind.REMOVE, 1)))
    leader.drain()
    assert leader.node.role == Role.LEADER
    sent = leader.acknowledge(2)
    assert leader.node.role == Role.FOLLOWER
    assert {message.to_id for message in sent if message.commit == 2} == {2, 3}
    assert leader.tick(50) == []


def test_it_counts_no_more_than_the_others_while_leaving() -> None:
    """6: it replicates log entries but does not count itself in majorities: true from the moment it applies that, so
    it cannot commit anything afterwards."""
    leader = Lone(voters=(1, 2))
    leader.lead_with_commit()
    leader.node.propose_conf_change(_change((ConfChangeKind.REMOVE, 1)))
    leader.drain()
    assert leader.node.commit == 1, "both are needed: the old configuration counts until the change is applied"
    leader.acknowledge(2)
    assert leader.node.commit == 2


def test_votes_are_refused_while_a_leader_is_heard() -> None:
    """6: a request within the minimum election timeout of hearing from a leader changes neither term nor vote."""
    replica = Lone(terms=[1])
    replica.step(MessageType.HEARTBEAT)
    for kind in (MessageType.VOTE, MessageType.PRE_VOTE):
        assert replica.step(kind, 3, term=9, index=9, log_term=9) == []
    assert replica.node.term == 1
    replica.tick(10)
    assert not replica.step(MessageType.VOTE, 3, term=9, index=9, log_term=9)[0].reject


def test_new_servers_catch_up_without_a_vote() -> None:
    """6: new servers join as non-voting members: the leader replicates to them, they are not in majorities."""
    leader = Lone(learners=(4, 5))
    leader.lead_with_commit()
    leader.node.propose(b"x")
    assert {message.to_id for message in leader.drain()} == {2, 3, 4, 5}
    leader.acknowledge(4)
    leader.acknowledge(5)
    assert leader.node.commit == 1


# -- 7 Log compaction


def _snapshot(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(index, term, ConfState(voters=(1, 2, 3), learners=(4,)))


def test_a_snapshot_replaces_the_whole_log() -> None:
    """7: if the snapshot contains new information, the follower discards its entire log."""
    replica = Lone(terms=[1, 1, 1])
    (reply,) = replica.step(MessageType.SNAPSHOT, term=2, snapshot=_snapshot(5, 2))
    assert (reply.type, reply.index, reply.reject) == (MessageType.APPEND_REPLY, 5, False)
    assert (replica.log.first_index(), replica.log.last_index(), replica.log.term(5)) == (6, 5, 2)
    assert replica.node.commit == 5
    assert replica.node.applied == 5
    assert replica.node.conf_state.learners == (4,)


def test_a_snapshot_that_conflicts_replaces_too() -> None:
    """7: also when the log goes further, with uncommitted entries that conflict with the snapshot."""
    replica = Lone(terms=[1, 1, 1, 1, 1, 1])
    replica.step(MessageType.SNAPSHOT, term=2, snapshot=_snapshot(5, 2))
    assert replica.log.last_index() == 5


def test_entries_after_a_known_snapshot_stay() -> None:
    """7: if the snapshot describes a prefix of its log, entries following it are still valid and must be retained."""
    replica = Lone(terms=[1, 1, 1, 1])
    (reply,) = replica.step(MessageType.SNAPSHOT, term=2, snapshot=_snapshot(3, 1))
    assert reply.index == 3
    assert replica.node.commit == 3
    assert replica.terms() == [1, 1, 1, 1]


def test_an_old_snapshot_changes_nothing() -> None:
    """7: (by retransmission or by mistake)."""
    replica = Lone(terms=[1, 1, 1], commit=3)
    (reply,) = replica.step(MessageType.SNAPSHOT, term=1, snapshot=_snapshot(2, 1))
    assert reply.index == 3
    assert replica.terms() == [1, 1, 1]


def test_a_leader_sends_a_snapshot_for_what_is_discarded() -> None:
    """7: when the leader has already discarded the next log entry that it needs to send."""
    leader = Lone(terms=[1, 1, 1, 1], commit=4, compacted=3)
    leader.become_leader()
    (message,) = leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=4, reject_hint=1, log_term=1)
    assert message.type == MessageType.SNAPSHOT
    assert message.snapshot is not None
    assert message.snapshot.index == 3


# -- 8 Client interaction


def test_a_new_leader_commits_an_empty_entry() -> None:
    """8: each leader commits a blank no-op entry into the log at the start of its term."""
    leader = Lone(terms=[1])
    (first, _) = only(leader.become_leader(), MessageType.APPEND)
    assert [(entry.index, entry.term, entry.data) for entry in first.entries] == [(2, 2, b"")]


def test_reads_need_the_confirmation_of_a_majority() -> None:
    """8: a leader exchanges heartbeats with a majority before it responds to a read-only request."""
    leader = Lone(voters=(1, 2, 3, 4, 5))
    leader.lead_with_commit()
    leader.node.read_index(b"r")
    sent = leader.drain()
    assert [message.to_id for message in sent] == [2, 3, 4, 5]
    context = sent[0].context

    def answered() -> int:
        return sum(len(ready.read_states) for ready in leader.readys)

    leader.step(MessageType.HEARTBEAT_REPLY, 2, context=context)
    leader.step(MessageType.HEARTBEAT_REPLY, 2, context=context)
    assert answered() == 0
    leader.step(MessageType.HEARTBEAT_REPLY, 4, context=context)
    assert answered() == 1


def test_reads_wait_for_the_first_commit_of_the_term() -> None:
    """8: a leader must have the latest information on which entries are committed."""
    leader = Lone(terms=[1])
    leader.become_leader()
    leader.node.read_index(b"r")
    assert only(leader.drain(), MessageType.HEARTBEAT) == []
    sent = leader.acknowledge(2)
    assert any(message.context for message in only(sent, MessageType.HEARTBEAT))
