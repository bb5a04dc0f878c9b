"""Goal: every queue has a bound, and a full one refuses or waits, and never blocks for ever. Units: payload bytes."""

from __future__ import annotations

import random

import pytest

from raft import MessageType, ProgressState, Role, UncommittedLimit
from raft.inflights import WINDOW_MIN, Inflights
from raft.types import ConfChange, ConfChangeKind, ConfChangeSingle

from .lone import Lone, only

# -- what is proposed and not committed


def test_proposals_are_refused_beyond_the_limit() -> None:
    leader = Lone(uncommitted_bytes_max=10)
    leader.lead_with_commit()
    leader.node.propose(b"x" * 6)
    with pytest.raises(UncommittedLimit):
        leader.node.propose(b"x" * 5)
    leader.node.propose(b"x" * 4)
    assert leader.node.status().uncommitted_bytes == 10
    assert leader.node.last_index == 3, "nothing of the refused one is in the log"
    leader.drain()
    leader.acknowledge(2, 2)
    assert leader.node.status().uncommitted_bytes == 4
    leader.node.propose(b"x" * 6)


def test_a_refused_batch_leaves_nothing() -> None:
    leader = Lone(uncommitted_bytes_max=10)
    leader.lead_with_commit()
    leader.node.propose(b"x")
    with pytest.raises(UncommittedLimit):
        leader.node.propose_many([b"x" * 5, b"x" * 5])
    assert leader.node.last_index == 2


def test_one_larger_than_the_limit_passes_alone() -> None:
    leader = Lone(uncommitted_bytes_max=10)
    leader.lead_with_commit()
    leader.node.propose(b"x" * 100)
    with pytest.raises(UncommittedLimit):
        leader.node.propose(b"x")
    leader.drain()
    leader.acknowledge(2)
    leader.node.propose(b"x" * 100)


def test_the_leader_s_own_entries_pass_in_any_case() -> None:
    """The no-op, changes of the membership: they are few, and needed to get out of trouble."""
    leader = Lone(uncommitted_bytes_max=1)
    leader.become_leader()
    leader.node.propose(b"xx")
    leader.acknowledge(2)
    leader.node.propose(b"xx")
    leader.node.propose_conf_change(ConfChange((ConfChangeSingle(ConfChangeKind.ADD_LEARNER, 4),)))


def test_a_new_term_counts_anew() -> None:
    leader = Lone(uncommitted_bytes_max=10, check_quorum=False)
    leader.lead_with_commit()
    leader.node.propose(b"x" * 10)
    leader.drain()
    leader.step(MessageType.HEARTBEAT, 2, term=5)
    leader.become_leader()
    assert leader.node.status().uncommitted_bytes == 0
    leader.node.propose(b"x" * 10)
    leader.acknowledge(2)
    assert leader.node.status().uncommitted_bytes == 0


# -- what is on its way to a peer


def _appends(leader: Lone) -> list[list[int]]:
    """The indexes of the entries in each append to 2 that is due."""
    return [
        [entry.index for entry in message.entries]
        for message in only(leader.drain(), MessageType.APPEND)
        if message.to_id == 2
    ]


def test_appends_are_cut_by_bytes() -> None:
    """After the entry that reaches the limit, but at least one."""
    leader = Lone(voters=(1, 2), append_bytes_max=10)
    leader.lead_with_commit()
    leader.node.propose_many([b"x" * size for size in (4, 4, 4, 30, 1, 9, 1)])
    assert _appends(leader) == [[2, 3, 4], [5], [6, 7], [8]]


def test_inflight_messages_are_bounded() -> None:
    leader = Lone(voters=(1, 2), append_bytes_max=1, inflight_messages_max=3)
    leader.lead_with_commit()
    leader.node.propose_many([b"x"] * 6)
    assert _appends(leader) == [[2], [3], [4]]
    assert leader.node.status().progress[2].inflight == 3
    leader.node.propose(b"x")
    assert _appends(leader) == []
    sent = leader.acknowledge(2, 3)
    assert [message.entries[0].index for message in sent if message.entries] == [5, 6]
    assert leader.node.status().progress[2].inflight == 3


def test_inflight_bytes_are_bounded() -> None:
    """By what was sent before: one may overshoot, else a large one never could be sent."""
    leader = Lone(voters=(1, 2), append_bytes_max=1, inflight_bytes_max=10)
    leader.lead_with_commit()
    leader.node.propose_many([b"x" * 6] * 4)
    assert _appends(leader) == [[2], [3]]
    assert leader.node.status().progress[2].inflight_bytes == 12
    sent = leader.acknowledge(2, 2)
    assert [message.entries[0].index for message in sent if message.entries] == [4]


def test_a_full_pipeline_is_probed_when_nothing_comes_back() -> None:
    """All of it may be lost: two heartbeats that are answered while no append is lead to an empty one."""
    leader = Lone(voters=(1, 2), append_bytes_max=1, inflight_messages_max=2)
    leader.lead_with_commit()
    leader.node.propose_many([b"x"] * 6)
    assert _appends(leader) == [[2], [3]]
    answers = []
    for _ in range(3):
        (beat,) = leader.tick(1)
        answers.append(leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context))
    assert [[(message.index, message.entries) for message in sent] for sent in answers] == [[], [(3, ())], [(3, ())]]
    sent = leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=3, reject_hint=1, log_term=1)
    assert [message.entries[0].index for message in sent] == [2]


def test_a_pipeline_that_moves_is_not_probed() -> None:
    """Appends are answered by the disk and heartbeats at once: being behind a little is no sign of a loss."""
    leader = Lone(voters=(1, 2))
    leader.lead_with_commit()
    for number in range(20):
        leader.node.propose(b"x")
        leader.drain()
        (beat,) = leader.tick(1)
        sent = leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
        assert only(sent, MessageType.APPEND) == []
        leader.acknowledge(2, 2 + number)


def test_reads_do_not_resume_a_probe() -> None:
    """Only the heartbeats of the tick do: rounds of reads are many."""
    leader = Lone(voters=(1, 2, 3))
    leader.become_leader()
    leader.acknowledge(3)
    leader.node.read_index(b"r")
    (beat, _) = leader.drain()
    assert leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context) == []
    (beat, _) = leader.tick(1)
    sent = leader.step(MessageType.HEARTBEAT_REPLY, 2, context=beat.context)
    assert [message.index for message in only(sent, MessageType.APPEND)] == [0]


def test_the_window_halves_and_grows() -> None:
    """Refusals in a row make the pipeline short, acknowledgements make it long again."""
    inflights = Inflights(messages_max=64, bytes_max=100)
    windows = []
    for _ in range(6):
        inflights.shrink()
        windows.append(inflights.window)
    assert windows == [32, 16, 8, WINDOW_MIN, WINDOW_MIN, WINDOW_MIN]
    for index in range(100):
        inflights.free_to(index)
    assert inflights.window == 64
    small = Inflights(messages_max=2, bytes_max=100)
    small.shrink()
    assert small.window == 2


def test_inflights_against_a_list() -> None:
    rng = random.Random(5)
    for _ in range(50):
        inflights = Inflights(messages_max=5, bytes_max=40)
        model: list[tuple[int, int]] = []
        last = 0
        for _ in range(60):
            if rng.random() < 0.6 and not inflights.full:
                last += rng.randrange(1, 4)
                size = rng.randrange(20)
                inflights.add(last_index=last, size=size)
                model.append((last, size))
            else:
                index = rng.randrange(last + 2)
                inflights.free_to(index)
                model = [sent for sent in model if sent[0] > index]
            assert list(inflights.queue) == model
            assert inflights.bytes == sum(size for _, size in model)
            assert inflights.full == (len(model) >= 5 or inflights.bytes >= 40)


def test_sending_past_the_limit_is_a_bug() -> None:
    inflights = Inflights(messages_max=1, bytes_max=1)
    inflights.add(last_index=1, size=0)
    with pytest.raises(AssertionError):
        inflights.add(last_index=2, size=0)


def test_a_storm_of_refusals_begins_the_pipeline_once() -> None:
    """One append is lost, sixty behind it are refused: one question, not sixty pipelines."""
    leader = Lone(voters=(1, 2), append_bytes_max=1)
    leader.lead_with_commit()
    leader.node.propose_many([b"x"] * 60)
    assert len(_appends(leader)) == 60
    sent = []
    for index in range(3, 62):
        sent += leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=index, reject_hint=1, log_term=1)
    assert [message.entries[0].index for message in sent] == [2]
    again = leader.acknowledge(2, 2)
    assert len(only(again, MessageType.APPEND)) <= 33
    # What is left of the old refusals comes late: 2 has acknowledged more since.
    late = leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=10, reject_hint=1, log_term=1)
    assert late == []


# -- what is given to apply


def test_committed_entries_are_cut_by_bytes() -> None:
    leader = Lone(voters=(1,), committed_bytes_max=10)
    leader.lead_with_commit()
    leader.readys.clear()
    leader.node.propose_many([b"x" * 6] * 5)
    leader.drain()
    assert [len(ready.committed) for ready in leader.readys if ready.committed] == [2, 2, 1]


def test_no_more_is_given_to_apply_until_some_is_applied() -> None:
    """A slow state machine does not make a queue of everything that is committed."""
    replica = Lone(committed_bytes_max=10)
    node = replica.node
    replica._apply = lambda ready: None  # type: ignore[method-assign]
    replica.append([1] * 9, index=0, log_term=0, term=1, commit=9)  # three bytes each
    assert [entry.index for ready in replica.readys for entry in ready.committed] == [1, 2, 3, 4]
    assert not node.has_ready()
    node.applied_to(1)
    assert not node.has_ready(), "room is made batch by batch"
    node.applied_to(4)
    assert [entry.index for entry in node.ready().committed] == [5, 6, 7, 8]
    with pytest.raises(AssertionError):
        node.applied_to(9)


def test_a_leader_without_a_quorum_holds_no_more_than_the_limit() -> None:
    """For as long as it takes it to step down."""
    leader = Lone(uncommitted_bytes_max=100)
    leader.lead_with_commit()
    taken = 0
    while leader.node.role == Role.LEADER:
        try:
            leader.node.propose(b"x" * 10)
            taken += 1
        except UncommittedLimit:
            leader.tick(1)
    assert taken == 10


def test_old_acknowledgements_do_not_begin_the_pipeline() -> None:
    """Where messages are reordered and doubled, a refusal makes the leader probe; an acknowledgement that it has had
    already is no answer to that, and would begin the pipeline, of which the next refusal makes a probe, and so on."""
    leader = Lone(voters=(1, 2), append_bytes_max=1)
    leader.lead_with_commit()
    leader.node.propose_many([b"x"] * 20)
    leader.drain()
    leader.acknowledge(2, 2)
    sent = 0
    for _ in range(20):
        sent += len(leader.step(MessageType.APPEND_REPLY, 2, reject=True, index=9, reject_hint=2, log_term=1))
        sent += len(leader.acknowledge(2, 2))
    assert sent == 1
    assert leader.node.status().progress[2].state == ProgressState.PROBE
