"""Goal: the lease never outlives the promises it rests on. Method: the pure lease against a list of rounds; promises by
hand; the transcript is data/lease.txt, and the simulation reads by the lease under drifting clocks.

Thesis, 6.4.1. Election timeout 10 ticks of 50 ms: a lease lasts 400 ms.
"""

from __future__ import annotations

import random

import pytest

from raft import Config, MessageType, Role
from raft.config import Config as CoreConfig
from raft.lease import LeaderLease
from raft.types import ConfChange, ConfChangeKind, ConfChangeSingle, Message

from .lone import Lone, only

LEASE_MS = 400


def _leader(**options: object) -> Lone:
    leader = Lone(lease_reads=True, **options)  # type: ignore[arg-type]
    leader.lead_with_commit()
    return leader


def _promise(leader: Lone, peer: int, beat: Message) -> None:
    leader.step(MessageType.HEARTBEAT_REPLY, peer, context=beat.context, lease=True)


def test_it_starts_when_the_round_was_sent() -> None:
    leader = _leader()
    (beat, _) = leader.tick(1)
    assert beat.lease
    leader.node.tick(leader.now_ms + 300)
    leader.drain()
    _promise(leader, 2, beat)
    assert leader.node.lease_valid(50 + LEASE_MS - 1)
    assert not leader.node.lease_valid(50 + LEASE_MS)
    assert leader.node.status().lease_until_ms == 50 + LEASE_MS


def test_it_needs_a_quorum_of_promises() -> None:
    leader = _leader(voters=(1, 2, 3, 4, 5))
    (beat, *_) = leader.tick(1)
    _promise(leader, 2, beat)
    _promise(leader, 2, beat)
    leader.step(MessageType.HEARTBEAT_REPLY, 3, context=beat.context)  # answered, and no promise
    assert not leader.node.lease_valid(leader.now_ms)
    _promise(leader, 4, beat)
    assert leader.node.lease_valid(leader.now_ms)


def test_rounds_of_reads_extend_it() -> None:
    leader = _leader()
    leader.now_ms = 1_000
    leader.node.tick(1_000)
    leader.drain()
    leader.node.read_index(b"r")
    (beat, _) = leader.drain()
    assert beat.lease
    _promise(leader, 3, beat)
    assert leader.node.lease_valid(1_000 + LEASE_MS - 1)


def test_only_with_lease_reads() -> None:
    leader = Lone()
    leader.lead_with_commit()
    (beat, _) = leader.tick(1)
    assert not beat.lease
    _promise(leader, 2, beat)
    assert not leader.node.lease_valid(leader.now_ms)


def test_only_with_an_own_commit() -> None:
    """Without one the leader may not know what is committed."""
    leader = Lone(lease_reads=True)
    leader.become_leader()
    (beat, _) = leader.tick(1)
    _promise(leader, 2, beat)
    assert not leader.node.lease_valid(leader.now_ms)
    leader.acknowledge(2)
    assert leader.node.lease_valid(leader.now_ms)


def test_a_transfer_ends_it() -> None:
    leader = _leader()
    (beat, _) = leader.tick(1)
    _promise(leader, 2, beat)
    leader.node.propose(b"x")  # so that 3 is not up to date, and TIMEOUT_NOW not sent yet
    leader.drain()
    leader.node.transfer_leader(3)
    assert not leader.node.lease_valid(leader.now_ms)
    assert not leader.tick(1)[0].lease


def test_after_timeout_now_there_is_none_in_that_term() -> None:
    leader = _leader()
    leader.node.transfer_leader(3)
    leader.drain()
    for _ in range(25):
        for beat in only(leader.tick(1), MessageType.HEARTBEAT):
            _promise(leader, beat.to_id, beat)
            assert not beat.lease
    assert leader.node.status().transfer_target == 0
    assert not leader.node.lease_valid(leader.now_ms)


def test_a_deposed_leader_has_none() -> None:
    leader = _leader()
    (beat, _) = leader.tick(1)
    _promise(leader, 2, beat)
    leader.step(MessageType.HEARTBEAT, 3, term=9)
    assert not leader.node.lease_valid(leader.now_ms)


def test_another_membership_needs_its_own_quorum() -> None:
    """The promises are counted anew: those of a quorum of the old membership may be too few in the new one."""
    leader = _leader()
    (beat, _) = leader.tick(1)
    _promise(leader, 2, beat)
    change = ConfChange(
        tuple(ConfChangeSingle(ConfChangeKind.ADD_VOTER, replica_id) for replica_id in (4, 5, 6)),
    )
    leader.node.propose_conf_change(change)
    leader.drain()
    leader.acknowledge(3)
    assert leader.node.conf_state.voters_outgoing == (1, 2, 3)
    assert not leader.node.lease_valid(leader.now_ms)
    _promise(leader, 4, beat)
    _promise(leader, 5, beat)
    assert leader.node.lease_valid(leader.now_ms)


# -- the follower's side


def test_a_promise_lasts_longer_than_the_lease() -> None:
    """Counted in own ticks, of which the first may come right after it was given."""
    replica = Lone(terms=[1], lease_reads=True, seed=3)
    replica.tick(11)  # what it might have promised before its start
    (reply,) = replica.step(MessageType.HEARTBEAT, context=bytes(8), lease=True)
    assert reply.lease
    for _ in range(10):
        replica.tick(1)
        assert not replica.node.campaign()
        assert not replica.node.leader_gone(2)
        assert replica.step(MessageType.VOTE, 3, term=2, index=9, log_term=9) == []
    replica.tick(1)
    assert not replica.step(MessageType.VOTE, 3, term=2, index=9, log_term=9)[0].reject


def test_a_promise_is_given_only_in_lease_mode() -> None:
    """A replica in index mode does not refuse votes after a restart, so it must not promise."""
    replica = Lone(terms=[1])
    (reply,) = replica.step(MessageType.HEARTBEAT, context=bytes(8), lease=True)
    assert not reply.lease
    replica.node.set_lease_reads(True)
    (reply,) = replica.step(MessageType.HEARTBEAT, context=bytes(8), lease=True)
    assert reply.lease


def test_a_promise_is_given_only_when_asked() -> None:
    replica = Lone(terms=[1], lease_reads=True)
    replica.tick(11)
    (reply,) = replica.step(MessageType.HEARTBEAT, context=bytes(8))
    assert not reply.lease
    assert replica.node.leader_gone(2)


@pytest.mark.parametrize(("lease_reads", "term", "refuses"), [(True, 3, True), (False, 3, False), (True, 0, False)])
def test_a_restart_in_lease_mode_refuses_votes(lease_reads: bool, term: int, refuses: bool) -> None:
    """For one election timeout; not if it never had a term, since then it cannot have answered any leader."""
    replica = Lone(term=term, lease_reads=lease_reads)
    assert (replica.node.status().promise_ticks > 0) == refuses
    sent = replica.step(MessageType.VOTE, 3, term=term + 1, index=9, log_term=9)
    assert (sent == []) == refuses
    if refuses:
        assert not replica.node.campaign()
        replica.tick(11)
        assert not replica.step(MessageType.VOTE, 3, term=term + 1, index=9, log_term=9)[0].reject


def test_the_leader_s_chosen_one_is_let_through() -> None:
    """Its lease is over, so the promise does not bind any more."""
    replica = Lone(terms=[1], lease_reads=True)
    replica.step(MessageType.HEARTBEAT, context=bytes(8), lease=True)
    (reply,) = replica.step(MessageType.VOTE, 3, term=2, index=1, log_term=1, transfer=True)
    assert not reply.reject
    target = Lone(terms=[1], lease_reads=True)
    target.step(MessageType.HEARTBEAT, context=bytes(8), lease=True)
    target.step(MessageType.TIMEOUT_NOW)
    assert target.node.role == Role.CANDIDATE


def test_evidence_waits_for_the_promise() -> None:
    """And takes effect then by itself, soon: the driver's hint was refused and is not repeated."""
    replica = Lone(terms=[1], lease_reads=True, heartbeat_ticks=2, seed=7)
    replica.tick(11)
    replica.step(MessageType.HEARTBEAT, context=bytes(8), lease=True)
    assert not replica.node.leader_gone(2)
    assert replica.node.leader_id == 2
    replica.tick(10)
    assert replica.node.leader_id == 2
    replica.tick(1)
    assert replica.node.leader_id == 0
    replica.tick(2)
    assert replica.node.role == Role.PRE_CANDIDATE


def test_a_heartbeat_clears_the_evidence() -> None:
    replica = Lone(terms=[1])
    replica.step(MessageType.HEARTBEAT)
    assert replica.node.leader_gone(2)
    replica.step(MessageType.HEARTBEAT)
    assert replica.node.leader_id == 2
    assert not replica.node.hasten()


# -- the pure part


def test_against_a_list_of_rounds() -> None:
    rng = random.Random(11)
    config = CoreConfig(replica_id=1, election_ticks=10)
    for _ in range(200):
        lease = LeaderLease(config)
        rounds: list[tuple[int, int]] = []
        now_ms = promised = 0
        for number in range(1, 40):
            now_ms += rng.choice((0, 0, 50, 50, 400))
            lease.on_round(number=number, now_ms=now_ms)
            rounds.append((number, now_ms))
            if rng.random() < 0.4:
                promised = max(promised, rng.randrange(number + 1))
                lease.confirm(promised)
                starts = [at_ms for sent, at_ms in rounds if sent == promised]
                assert lease.start_ms == (starts[0] if starts else None)
                for probe_ms in (now_ms, now_ms + LEASE_MS):
                    assert lease.valid(probe_ms) == bool(starts and probe_ms < starts[0] + LEASE_MS)


def test_an_older_quorum_may_know_no_time_any_more() -> None:
    """After a change of the membership the quorum's round can be older than what is kept: then there is no lease."""
    lease = LeaderLease(Config(replica_id=1))
    for number in range(1, 5):
        lease.on_round(number=number, now_ms=number * 100)
    lease.confirm(4)
    assert lease.start_ms == 400
    lease.confirm(2)
    assert lease.start_ms is None
