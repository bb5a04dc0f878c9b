"""Goal: memberships change as they may and no other way. Method: every recorded case, random changes against a second
implementation that thinks in roles of members, and the overlap of quorums between one membership and the next."""

from __future__ import annotations

import random
from itertools import chain, combinations
from pathlib import Path

import pytest

from raft.confchange import (
    apply_change,
    decode_change,
    encode_change,
    enter_joint,
    enters_joint,
    is_joint,
    is_leave,
    leave_joint,
    simple,
)
from raft.errors import ConfChangeRefused
from raft.quorum import VoteResult, joint_vote
from raft.tracker import Tracker
from raft.types import ConfChange, ConfChangeKind, ConfChangeSingle, ConfState, ConfTransition

from .interaction import describe
from .interaction.commands import parse_change
from .recorded import CASES, Case, read_cases

PATHS = sorted((CASES / "confchange").glob("*.txt"))


def _changes(words: list[str]) -> tuple[ConfChangeSingle, ...]:
    return parse_change(words).changes if words else ()


def _after(conf: ConfState, case: Case) -> ConfState:
    changes = _changes(" ".join(case.input).split())
    if case.command == "simple":
        return simple(conf, changes)
    if case.command == "enter-joint":
        return enter_joint(conf, changes, auto_leave="autoleave=true" in case.arguments)
    assert case.command == "leave-joint"
    return leave_joint(conf)


def _printed(tracker: Tracker) -> list[str]:
    lines = [describe.conf(tracker.conf)]
    for member, progress in tracker.progress.items():
        role = " learner" if progress.is_learner else ""
        lines.append(f"{member}: StateProbe match={progress.match} next={progress.next}{role}")
    return lines


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recorded(path: Path) -> None:
    tracker = Tracker(self_id=99, inflight_messages_max=10, inflight_bytes_max=1)
    cases = read_cases(path)
    assert cases
    for count, case in enumerate(cases):
        refused = not case.output[0].startswith("voters=")
        where = f"{path.name}:{case.line}"
        if refused:
            before = tracker.conf
            with pytest.raises(ConfChangeRefused):
                _after(tracker.conf, case)
            assert tracker.conf == before, where
        else:
            tracker.adopt(_after(tracker.conf, case), last_index=count)
            assert _printed(tracker) == case.output, where


def _dumb_change(conf: ConfState, change: ConfChange) -> ConfState | None:
    """The same by roles: each member has one in the incoming half and one in the outgoing half. None = refused."""
    old = dict.fromkeys(conf.voters_outgoing, "voter")
    new = dict.fromkeys(conf.voters, "voter") | dict.fromkeys(conf.learners, "learner")
    new |= dict.fromkeys(conf.learners_next, "learner")
    if is_leave(change):
        return _conf_of(new, {}, auto=False) if old else None
    joint = len(change.changes) > 1 or change.transition != ConfTransition.AUTO
    if old:
        return None
    if joint:
        old = {member: role for member, role in new.items() if role == "voter"}
        if not old:
            return None
    before = {member for member, role in new.items() if role == "voter"}
    for single in change.changes:
        if single.replica_id == 0 or single.kind == ConfChangeKind.UPDATE:
            continue
        new.pop(single.replica_id, None)
        if single.kind != ConfChangeKind.REMOVE:
            new[single.replica_id] = "voter" if single.kind == ConfChangeKind.ADD_VOTER else "learner"
    after = {member for member, role in new.items() if role == "voter"}
    if not after or (not joint and len(before ^ after) > 1):
        return None
    return _conf_of(new, old, auto=joint and change.transition != ConfTransition.JOINT_EXPLICIT)


def _conf_of(new: dict[int, str], old: dict[int, str], *, auto: bool) -> ConfState:
    learners = {member for member, role in new.items() if role == "learner"}
    return ConfState(
        voters=tuple(sorted(member for member, role in new.items() if role == "voter")),
        learners=tuple(sorted(learners - old.keys())),
        voters_outgoing=tuple(sorted(old)),
        learners_next=tuple(sorted(learners & old.keys())),
        auto_leave=auto,
    )


def _random_change(rng: random.Random) -> ConfChange:
    if rng.random() < 0.3:
        return ConfChange()
    singles = tuple(
        ConfChangeSingle(rng.choice(list(ConfChangeKind)), rng.randrange(7)) for _ in range(rng.choice((0, 1, 1, 2, 4)))
    )
    return ConfChange(singles, rng.choice(list(ConfTransition)), rng.randbytes(rng.randrange(3)))


def test_against_second_implementation() -> None:
    """Long random walks through memberships; every step agrees, refusals too."""
    applied = joint = 0
    for seed in range(40):
        rng = random.Random(seed)
        conf = ConfState(voters=(1,))
        for _ in range(60):
            change = _random_change(rng)
            expected = _dumb_change(conf, change)
            if expected is None:
                with pytest.raises(ConfChangeRefused):
                    apply_change(conf, change)
            else:
                conf = apply_change(conf, change)
                assert conf == expected
                applied += 1
                joint += is_joint(conf)
    assert applied > 500
    assert joint > 100


def _quorums(conf: ConfState) -> list[set[int]]:
    ids = range(7)
    groups = chain.from_iterable(combinations(ids, count) for count in range(8))
    return [
        set(group)
        for group in groups
        if joint_vote(conf.voters, conf.voters_outgoing, dict.fromkeys(ids, False) | dict.fromkeys(group, True))
        == VoteResult.WON
    ]


def test_a_step_never_leaves_room_for_two_majorities() -> None:
    """Every quorum before a change meets every quorum after it (paper, 6; thesis, 4.1 and 4.3)."""
    rng = random.Random(7)
    conf = ConfState(voters=(1, 2, 3))
    steps = 0
    while steps < 60:
        try:
            after = apply_change(conf, _random_change(rng))
        except ConfChangeRefused:
            continue
        quorums = _quorums(after)
        assert all(first & second for first in _quorums(conf) for second in quorums)
        conf = after
        steps += 1


@pytest.mark.parametrize("seed", range(5))
def test_bytes_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        change = _random_change(rng)
        assert decode_change(encode_change(change)) == change


def test_bytes_are_fixed() -> None:
    """Logs on disk hold them: this may not change without a new format number."""
    change = ConfChange(
        (ConfChangeSingle(ConfChangeKind.ADD_LEARNER, 258), ConfChangeSingle(ConfChangeKind.REMOVE, 3)),
        ConfTransition.JOINT_EXPLICIT,
        b"who",
    )
    recorded = bytes.fromhex("0102000202000000000000010203000000000000000377686f")
    assert encode_change(change) == recorded
    assert decode_change(recorded) == change


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\x00\x00\x00", b"\x01\x00\x00\x01\x01", b"\x01\x09\x00\x00"])
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_change(data)


@pytest.mark.parametrize(
    ("words", "joint", "leave"),
    [
        ("v1", False, False),
        ("u1", False, False),
        ("v1 v2", True, False),
        ("v1 implicit", True, False),
        ("v1 explicit", True, False),
        ("leave", False, True),
    ],
)
def test_which_way_a_change_takes(words: str, joint: bool, leave: bool) -> None:
    change = parse_change(words.split())
    assert enters_joint(change) == joint
    assert is_leave(change) == leave
