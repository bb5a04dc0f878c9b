"""Goal: a peer that needs what is compacted gets a snapshot, and goes on from the log. Method: messages by hand
(lone.py). The follower's side: test_durability.py, test_paper_operation.py; transcripts: data/snapshot*.txt."""

from __future__ import annotations

import pytest

from raft import (
    Message,
    MessageType,
    ProgressState,
)
from raft.types import ConfState, SnapshotMeta

from .lone import Lone, only

# -- snapshots, from the leader's side


def _lagging() -> Lone:
    leader = Lone(terms=[1, 1, 1, 1], commit=4, compacted=3)
    leader.become_leader()
    leader.acknowledge(3)
    return leader


def _refuse(leader: Lone) -> list[Message]:
    return leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=4, reject_hint=1, log_term=1)


def test_no_snapshot_now_means_later() -> None:
    leader = _lagging()
    leader.log.offered = None
    assert _refuse(leader) == []
    leader.node.propose(b"x")
    assert {message.to_id for message in leader.drain()} == {3}
    leader.log.offered = SnapshotMeta(4, 1, ConfState(voters=(1, 2, 3)))
    (beat, _) = leader.tick(1)
    (message,) = leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
    assert message.type == MessageType.SNAPSHOT


def test_a_silent_peer_gets_no_snapshot() -> None:
    """It would hold the log on the leader's side and wait for a report in vain."""
    leader = Lone(terms=[1, 1, 1, 1], commit=4)
    leader.become_leader()
    leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=4, reject_hint=1, log_term=1)
    leader.log.offered = SnapshotMeta(4, 1, ConfState(voters=(1, 2, 3)))
    leader.log.compact(4)
    for _ in range(2):
        for _ in range(10):
            sent = leader.tick(1)
            assert only(sent, MessageType.SNAPSHOT) == []
            leader.acknowledge(3)
    leader.node.report_unreachable(2)
    leader.node.propose(b"x")
    assert {message.to_id for message in leader.drain()} == {3}
    (beat, _) = leader.tick(1)
    (message,) = leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
    assert message.type == MessageType.SNAPSHOT


def test_a_refusal_does_not_disturb_a_snapshot_under_way() -> None:
    leader = _lagging()
    _refuse(leader)
    assert _refuse(leader) == []
    assert leader.node.status().progress[2].state == ProgressState.SNAPSHOT


@pytest.mark.parametrize("ok", [True, False])
def test_reports_of_a_snapshot(ok: bool) -> None:
    leader = _lagging()
    (message,) = _refuse(leader)
    assert message.type == MessageType.SNAPSHOT
    assert leader.node.status().progress[2].state == ProgressState.SNAPSHOT
    leader.node.propose(b"x")
    assert {message.to_id for message in leader.drain()} == {3}
    leader.node.report_snapshot(2, ok)
    assert leader.drain() == []
    peer = leader.node.status().progress[2]
    assert (peer.state, peer.next) == (ProgressState.PROBE, 4 if ok else 1)
    (beat, _) = leader.tick(1)
    (again,) = leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
    assert again.type == (MessageType.APPEND if ok else MessageType.SNAPSHOT)
    leader.node.report_snapshot(7, ok)
    leader.node.report_snapshot(3, ok)
    assert leader.node.status().progress[3].state == ProgressState.REPLICATE


def test_a_peer_that_got_it_goes_on_from_the_log() -> None:
    leader = _lagging()
    _refuse(leader)
    (message,) = leader.step(MessageType.APPEND_REPLY, 2, index=3)
    assert (message.type, message.index, len(message.entries)) == (MessageType.APPEND, 3, 2)
    assert leader.node.status().progress[2].state == ProgressState.REPLICATE


def test_unreachable_peers_are_probed() -> None:
    leader = Lone()
    leader.lead_with_commit()
    leader.node.propose(b"x")
    leader.drain()
    leader.node.report_unreachable(2)
    leader.node.report_unreachable(9)
    peer = leader.node.status().progress[2]
    assert (peer.state, peer.match, peer.next, peer.inflight) == (ProgressState.PROBE, 1, 2, 0)
    assert leader.drain() == [], "not at once: that would be a loop"
