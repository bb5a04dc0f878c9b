"""The Raft paper (Ongaro and Ousterhout, extended version), sections 6 to 8: one test for each claim.

Method: one replica, messages written by hand (lone.py); whole conversations are in data/.
"""

from __future__ import annotations

from raft import EntryKind, MessageType, Role, SnapshotMeta, decode_change
from raft.types import ConfChange, ConfChangeKind, ConfChangeSingle, ConfState

from .lone import Lone, only

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
