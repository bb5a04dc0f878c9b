"""From one membership to the next: pure functions on ConfState, and the bytes of a change in the log.

Invariant: a simple change alters at most one voter, so that old and new majorities share a replica.
Invariant: anything more goes through a joint state, in which both halves must agree.
Invariant: no half is ever left without a voter; a replica is never voter and learner of one half.
Invariant: a voter that is demoted in a joint state stays a voter of the outgoing half, and becomes a learner
           (`learners_next`) only when that half is left.
Called by: raft/leader.py before a proposal, raft/core.py when one is applied.   Paper: 6.   Thesis: 4.1-4.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from raft.errors import ConfChangeRefused
from raft.types import (
    NO_REPLICA,
    ConfChange,
    ConfChangeKind,
    ConfChangeSingle,
    ConfState,
    ConfTransition,
)


def is_joint(conf: ConfState) -> bool:
    return bool(conf.voters_outgoing)


def is_leave(change: ConfChange) -> bool:
    """The change that ends a joint state."""
    return not change.changes and change.transition == ConfTransition.AUTO


def enters_joint(change: ConfChange) -> bool:
    return not is_leave(change) and (change.transition != ConfTransition.AUTO or len(change.changes) > 1)


def apply_change(conf: ConfState, change: ConfChange) -> ConfState:
    """The membership after `change`. Raises ConfChangeRefused."""
    if is_leave(change):
        return leave_joint(conf)
    if enters_joint(change):
        auto_leave = change.transition != ConfTransition.JOINT_EXPLICIT
        return enter_joint(conf, change.changes, auto_leave=auto_leave)
    return simple(conf, change.changes)


def simple(conf: ConfState, changes: Iterable[ConfChangeSingle]) -> ConfState:
    """At most one voter more, less or else. Raises ConfChangeRefused."""
    if is_joint(conf):
        raise ConfChangeRefused("a simple change is not possible in a joint configuration")
    after = _alter(conf, changes)
    if len(set(conf.voters) ^ set(after.voters)) > 1:
        raise ConfChangeRefused("more than one voter would change without a joint configuration")
    return _checked(after)


def enter_joint(conf: ConfState, changes: Iterable[ConfChangeSingle], *, auto_leave: bool) -> ConfState:
    """The joint state with the present voters as outgoing half. Raises ConfChangeRefused."""
    if is_joint(conf):
        raise ConfChangeRefused("the configuration is joint already")
    if not conf.voters:
        raise ConfChangeRefused("a configuration without voters cannot become joint")
    joint = replace(conf, voters_outgoing=conf.voters, auto_leave=auto_leave)
    return _checked(_alter(joint, changes))


def leave_joint(conf: ConfState) -> ConfState:
    """Only the incoming half is left. Raises ConfChangeRefused."""
    if not is_joint(conf):
        raise ConfChangeRefused("the configuration is not joint")
    learners = tuple(sorted({*conf.learners, *conf.learners_next}))
    return _checked(ConfState(voters=conf.voters, learners=learners))


def _alter(conf: ConfState, changes: Iterable[ConfChangeSingle]) -> ConfState:
    """Carry the changes out on the incoming half, in order."""
    voters, learners, learners_next = set(conf.voters), set(conf.learners), set(conf.learners_next)
    for single in changes:
        replica_id = single.replica_id
        if replica_id == NO_REPLICA or single.kind == ConfChangeKind.UPDATE:
            continue
        voters.discard(replica_id)
        learners.discard(replica_id)
        learners_next.discard(replica_id)
        if single.kind == ConfChangeKind.ADD_VOTER:
            voters.add(replica_id)
        elif single.kind == ConfChangeKind.ADD_LEARNER:
            # As a voter of the outgoing half it cannot be a learner at the same time.
            (learners_next if replica_id in conf.voters_outgoing else learners).add(replica_id)
    if not voters:
        raise ConfChangeRefused("no voter would be left")
    return replace(
        conf,
        voters=tuple(sorted(voters)),
        learners=tuple(sorted(learners)),
        learners_next=tuple(sorted(learners_next)),
    )


def _checked(conf: ConfState) -> ConfState:
    learners = set(conf.learners)
    assert conf.voters
    assert not learners.intersection(conf.voters)
    assert not learners.intersection(conf.voters_outgoing)
    assert set(conf.learners_next) <= set(conf.voters_outgoing)
    assert not set(conf.learners_next).intersection(conf.voters)
    assert is_joint(conf) or not (conf.learners_next or conf.auto_leave)
    return conf


# -- bytes: format (1) | transition (1) | count (2) | count * (kind (1) | replica id (8)) | context, big-endian

FORMAT = 1
_HEAD_BYTES = 4
_SINGLE_BYTES = 9


def encode_change(change: ConfChange) -> bytes:
    parts = [bytes((FORMAT, change.transition)), len(change.changes).to_bytes(2, "big")]
    for single in change.changes:
        parts.append(bytes((single.kind,)))
        parts.append(single.replica_id.to_bytes(8, "big"))
    parts.append(change.context)
    return b"".join(parts)


def decode_change(data: bytes) -> ConfChange:
    """The change that a CONF_CHANGE entry carries. Raises ValueError."""
    if len(data) < _HEAD_BYTES or data[0] != FORMAT:
        raise ValueError("not a configuration change of a known format")
    end = _HEAD_BYTES + _SINGLE_BYTES * int.from_bytes(data[2:4], "big")
    if len(data) < end:
        raise ValueError("the configuration change is cut off")
    changes = tuple(
        ConfChangeSingle(ConfChangeKind(data[at]), int.from_bytes(data[at + 1 : at + _SINGLE_BYTES], "big"))
        for at in range(_HEAD_BYTES, end, _SINGLE_BYTES)
    )
    return ConfChange(changes=changes, transition=ConfTransition(data[1]), context=data[end:])
