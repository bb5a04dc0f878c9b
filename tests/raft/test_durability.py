"""Goal: nothing is told that a crash could take back. Method: a replica whose disk is slow, and messages by hand.

Thesis, 3.8 (what must be persistent before a server answers) and 10.2.1.
"""

from __future__ import annotations

import random

import pytest

from raft import Config, MemoryLog, MessageType, RawNode, Role, SnapshotMeta
from raft.types import AppendAck, ConfChange, ConfChangeKind, ConfChangeSingle, ConfState, Message

from .lone import Lone, entries_of, only


def _slow(**options: object) -> Lone:
    replica = Lone(**options)  # type: ignore[arg-type]
    replica.slow_disk = True
    return replica


def test_an_append_is_acknowledged_when_durable() -> None:
    replica = _slow()
    assert replica.append([1], index=0, log_term=0, term=1) == []
    (reply,) = replica.finish_writes()
    assert (reply.type, reply.index, reply.reject) == (MessageType.APPEND_REPLY, 1, False)
    assert replica.node.durable_index == 1


def test_a_repeated_append_waits_for_the_first_write() -> None:
    """The entries are in the log already, but not on disk: the second answer must not overtake the write."""
    replica = _slow()
    replica.append([1], index=0, log_term=0, term=1)
    assert replica.append([1], index=0, log_term=0, term=1) == []
    assert [bool(ready.entries) for ready in replica.writes] == [True, False]
    assert len(replica.finish_writes(1)) == 1
    assert len(replica.finish_writes(1)) == 1


def test_an_answer_with_nothing_under_way_needs_no_ack() -> None:
    replica = _slow(terms=[1])
    (reply,) = replica.append([], index=1, log_term=1)
    assert not reply.reject
    assert replica.readys[-1].ack is None
    assert replica.readys[-1].after_append == []


def test_a_vote_is_told_when_durable() -> None:
    replica = _slow(terms=[1])
    assert replica.step(MessageType.VOTE, term=2, index=1, log_term=1) == []
    (reply,) = replica.finish_writes()
    assert not reply.reject


def test_votes_are_asked_for_when_the_candidacy_is_durable() -> None:
    """Else a crash could cut the log short, and a second campaign in the same term would count votes that were given
    to the longer log."""
    replica = _slow(terms=[1], check_quorum=False)
    replica.append([1], index=1, log_term=1)
    assert replica.become_candidate() == []
    sent = replica.finish_writes()
    assert [message.type for message in sent] == [MessageType.APPEND_REPLY, MessageType.VOTE, MessageType.VOTE]
    assert sent[-1].index == 2


def test_the_own_vote_counts_when_durable() -> None:
    replica = _slow(voters=(1,))
    replica.become_candidate()
    assert replica.node.role == Role.CANDIDATE
    replica.finish_writes()
    assert replica.node.role == Role.LEADER
    replica = _slow(voters=(1, 2))
    replica.become_candidate()
    replica.step(MessageType.VOTE_REPLY, 2)
    assert replica.node.role == Role.CANDIDATE


def test_an_own_vote_of_an_older_campaign_does_not_count() -> None:
    replica = _slow(voters=(1,))
    replica.become_candidate()
    replica.become_candidate()
    replica.finish_writes(1)
    assert (replica.node.role, replica.node.term) == (Role.CANDIDATE, 2)
    replica.finish_writes(1)
    assert replica.node.role == Role.LEADER


def test_a_heartbeat_is_answered_when_the_term_is_durable() -> None:
    """A promise must be stood by after a restart, and only a replica with a term on disk does that."""
    replica = _slow(lease_reads=True)
    assert replica.step(MessageType.HEARTBEAT, term=1, context=bytes(8), lease=True) == []
    (reply,) = replica.finish_writes()
    assert reply.lease
    (reply,) = replica.step(MessageType.HEARTBEAT, term=1, context=bytes(8), lease=True)
    assert reply.lease, "with the term on disk it answers at once"


def test_a_stale_ack_does_not_count() -> None:
    """A, B, A (see data/append_aba.txt): index 2 is written in term 1, replaced in term 2, and sent again as it was
    in term 1. The ack of the first write names its index and term, and speaks of bytes that B is about to replace."""
    replica = _slow(terms=[1], check_quorum=False)
    replica.append([1], index=1, log_term=1, term=1)  # A
    replica.append([2], index=1, log_term=1, term=2)  # B
    replica.append([1, 3], index=1, log_term=1, term=3)  # A again
    assert replica.terms() == [1, 1, 3]
    assert [ready.ack.term for ready in replica.writes if ready.ack is not None] == [1, 2, 3]
    replica.finish_writes(1)
    assert replica.node.durable_index == 1
    replica.finish_writes(1)
    assert replica.node.durable_index == 1
    (reply,) = replica.finish_writes(1)
    assert replica.node.durable_index == 3
    assert reply.index == 3


def test_an_ack_speaks_for_everything_before() -> None:
    """The ack of an older term is dropped; what it was for is covered by the ack that comes with the new term."""
    replica = _slow(terms=[1], check_quorum=False)
    replica.append([1, 1], index=1, log_term=1)
    replica.step(MessageType.VOTE, 3, term=2, index=0, log_term=0)
    assert [bool(ready.entries) for ready in replica.writes] == [True, False]
    replica.finish_writes(1)
    assert replica.node.durable_index == 1
    replica.finish_writes(1)
    assert replica.node.durable_index == 3


def test_acks_come_in_order() -> None:
    replica = _slow()
    replica.append([1], index=0, log_term=0, term=1)
    replica.append([1], index=1, log_term=1)
    ack = replica.writes[1].ack
    assert ack is not None
    with pytest.raises(AssertionError, match="order"):
        replica.node.on_durable(ack)
    with pytest.raises(AssertionError):
        Lone().node.on_durable(AppendAck(number=1, term=0))


def test_the_commit_index_is_written_with_something_else() -> None:
    """Alone it is not worth a write: it can be learned again."""
    replica = Lone()
    replica.append([1, 1], index=0, log_term=0, term=1)
    replica.readys.clear()
    replica.append([], index=2, log_term=1, commit=2)
    assert all(ready.hard_state is None for ready in replica.readys)
    replica.append([1], index=2, log_term=1, commit=2)
    state = replica.log.initial_state()[0]
    assert (state.commit, replica.node.commit) == (2, 2)


def test_the_commit_index_is_durable_no_later_than_what_rests_on_it() -> None:
    """A second change of the membership is in the log only if the first one is committed; who has the second on disk
    must know that too, or it could campaign with a membership two steps old."""
    replica = Lone()
    replica.append([1, 1], index=0, log_term=0, term=1, commit=2)
    assert replica.log.initial_state()[0].commit == 2


def test_a_ready_is_not_changed_afterwards() -> None:
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    leader.readys.clear()
    for number in range(3):
        leader.node.read_index(b"r%d" % number)
        leader.drain()
        leader.node.propose(b"x")
        leader.drain()
    assert sum(len(ready.read_states) for ready in leader.readys) == 3
    assert sum(len(ready.entries) for ready in leader.readys) == 3
    assert sum(len(ready.committed) for ready in leader.readys) == 3


def test_several_readys_may_be_under_way() -> None:
    leader = _slow(voters=(1,))
    leader.slow_disk = False
    leader.lead_with_commit()
    leader.slow_disk = True
    for number in range(5):
        leader.node.propose(b"%d" % number)
        leader.drain()
    assert [ready.entries[0].index for ready in leader.writes] == [2, 3, 4, 5, 6]
    leader.finish_writes(2)
    assert leader.node.commit == 3
    leader.finish_writes()
    assert leader.node.commit == 6


# -- snapshots


CHANGE = ConfChange((ConfChangeSingle(ConfChangeKind.ADD_LEARNER, 7),))
META = SnapshotMeta(10, 2, ConfState(voters=(1, 2, 3), learners=(8,)))


def test_a_snapshot_counts_when_it_is_installed() -> None:
    """Until then the membership is the old one (changes handed out before are being applied to it), nothing more is
    given to apply, and the replica does not campaign."""
    replica = _slow(terms=[1])
    assert replica.step(MessageType.SNAPSHOT, term=2, snapshot=META) == []
    assert replica.append([2], index=10, log_term=2, commit=11) == []
    assert replica.node.conf_state.learners == ()
    assert replica.node.apply_conf_change(CHANGE).learners == (7,)
    assert replica.committed == []
    assert not replica.node.campaign()
    assert replica.node.durable_index == 0
    sent = replica.finish_writes()
    assert [message.index for message in sent] == [10, 11]
    assert replica.node.conf_state.learners == (8,)
    replica.drain()
    assert [entry.index for entry in replica.committed] == [11]


def test_a_newer_snapshot_takes_the_place_of_one_under_way() -> None:
    replica = _slow(terms=[1])
    replica.step(MessageType.SNAPSHOT, term=2, snapshot=META)
    newer = SnapshotMeta(20, 2, ConfState(voters=(1, 2, 3)))
    replica.step(MessageType.SNAPSHOT, term=2, snapshot=newer)
    replica.finish_writes(1)
    assert replica.node.conf_state == ConfState(voters=(1, 2, 3))
    assert replica.node.durable_index == 0
    replica.finish_writes(1)
    assert replica.node.durable_index == 20
    assert replica.node.applied == 20


# -- restarts


def test_a_restart_takes_up_what_was_durable() -> None:
    replica = Lone(terms=[1, 1, 2, 2], term=3, vote=2, commit=3)
    status = replica.node.status()
    assert (status.term, status.vote, status.commit, status.last_index) == (3, 2, 3, 4)
    assert [entry.index for entry in replica.committed] == [1, 2, 3]
    assert not any(ready.entries or ready.hard_state for ready in replica.readys)


def test_applied_further_than_the_commit_index_on_disk() -> None:
    """The commit index lags on disk; what is applied is committed in any case."""
    log = MemoryLog(conf_state=ConfState(voters=(1,)))
    log.append(entries_of([1, 1, 1]))
    node = RawNode(Config(replica_id=1), log, random.Random(1), applied=2)
    assert (node.commit, node.applied) == (2, 2)


@pytest.mark.parametrize("applied", [0, 6])
def test_an_applied_index_outside_of_the_log_is_a_bug(applied: int) -> None:
    log = MemoryLog(conf_state=ConfState(voters=(1,)))
    log.append(entries_of([1] * 5))
    log.compact(2)
    with pytest.raises(AssertionError):
        RawNode(Config(replica_id=1), log, random.Random(1), applied=applied)


def test_only_what_is_not_applied_is_handed_out_again() -> None:
    log = MemoryLog(conf_state=ConfState(voters=(1,)))
    log.append(entries_of([1] * 5))
    log.compact(2)
    node = RawNode(Config(replica_id=1), log, random.Random(1), applied=3)
    assert not node.has_ready()
    node.campaign()
    for _ in range(2):
        ready = node.ready()
        assert ready.ack is not None
        log.append(ready.entries)
        node.on_durable(ready.ack)
    assert [entry.index for entry in node.ready().committed] == [4, 5, 6]


def test_no_campaign_with_an_outdated_membership() -> None:
    """A committed change that is not applied yet: wait for it."""
    leader = Lone(voters=(1,))
    leader.lead_with_commit()
    leader.node.propose_conf_change(CHANGE)
    leader.drain()
    log = leader.log
    hard_state, _ = log.initial_state()
    log.set_hard_state(type(hard_state)(term=hard_state.term, vote=1, commit=2))
    node = RawNode(Config(replica_id=1), log, random.Random(1))
    assert not node.campaign()
    assert [entry.index for entry in node.ready().committed] == [1, 2]
    node.apply_conf_change(CHANGE)
    assert not node.campaign()
    node.applied_to(2)
    assert node.campaign()


def test_nothing_is_addressed_to_the_sender() -> None:
    leader = Lone()
    sent: list[Message] = leader.become_leader()
    leader.acknowledge(2)
    leader.node.read_index(b"r")
    leader.node.propose(b"x")
    sent += leader.drain() + leader.tick(30)
    assert sent
    assert all(message.to_id != 1 and message.from_id == 1 for message in sent)
    assert only(sent, MessageType.HEARTBEAT)
