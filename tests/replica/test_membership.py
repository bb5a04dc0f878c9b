"""Descriptors follow from configuration changes; an id tells a coming replica from a removed one."""

from __future__ import annotations

import pytest

from kvstore.base.errors import DamagedRecord
from kvstore.base.shards import Replica, ReplicaRole, ShardDescriptor
from kvstore.replica.membership import (
    FOUNDERS_IDS_MAX,
    ConfContext,
    changed_descriptor,
    decode_context,
    encode_context,
    id_of_addition,
    was_removed,
)
from raft import ConfState


def descriptor(*places: Replica, conf: int = 1) -> ShardDescriptor:
    return ShardDescriptor(id=2, keyspace=1, start=b"\0\0\0\1", end=b"\0\0\0\2", version=3, conf=conf, replicas=places)


FOUNDED = descriptor(Replica("a", 1), Replica("b", 2), Replica("c", 3))
VOTER, LEARNER = ReplicaRole.VOTER, ReplicaRole.LEARNER


@pytest.mark.parametrize(
    ("conf_state", "context", "places"),
    [
        (
            ConfState(voters=(1, 2, 3), learners=(1_050,)),
            {1_050: "d"},
            [("a", 1, VOTER), ("b", 2, VOTER), ("c", 3, VOTER), ("d", 1_050, LEARNER)],
        ),
        (ConfState(voters=(1, 3)), {}, [("a", 1, VOTER), ("c", 3, VOTER)]),
        (  # joint: who leaves still votes
            ConfState(voters=(1, 3), voters_outgoing=(1, 2, 3)),
            {},
            [("a", 1, VOTER), ("b", 2, VOTER), ("c", 3, VOTER)],
        ),
        (  # a voter on its way to being a learner still votes
            ConfState(voters=(1, 3), voters_outgoing=(1, 2, 3), learners_next=(2,)),
            {},
            [("a", 1, VOTER), ("b", 2, VOTER), ("c", 3, VOTER)],
        ),
    ],
)
def test_replicas_are_the_members(
    conf_state: ConfState, context: dict[int, str], places: list[tuple[str, int, ReplicaRole]]
) -> None:
    changed = changed_descriptor(FOUNDED, conf_state, ConfContext(tuple(context.items())))
    assert [(one.node, one.replica_id, one.role) for one in changed.replicas] == places
    assert changed.conf == FOUNDED.conf + 1
    assert (changed.version, changed.start, changed.end) == (FOUNDED.version, FOUNDED.start, FOUNDED.end)


def test_member_without_a_node_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        changed_descriptor(FOUNDED, ConfState(voters=(1, 2, 9)), ConfContext())


def test_context_goes_through_bytes_and_damage_is_named() -> None:
    context = ConfContext(((1_007, "node"),))
    assert decode_context(encode_context(context)) == context
    assert decode_context(b"") == ConfContext()
    for damage in (b"\xc1", b"\x91", b"\x91\x91\x92\x01\xa1\xff", b"\x91\x05"):
        with pytest.raises(DamagedRecord):
            decode_context(damage)


@pytest.mark.parametrize(
    ("replica_id", "applied", "removed"),
    [
        (1, 1, False),  # a member
        (4, 1, True),  # a founder was a member from the beginning
        (FOUNDERS_IDS_MAX, 10, True),
        (id_of_addition(100), 1, False),  # a snapshot of before its addition
        (id_of_addition(100), 99, False),
        (id_of_addition(100), 100, True),
        (id_of_addition(100), 500, True),
    ],
)
def test_replica_that_is_not_yet_a_member_was_not_removed(replica_id: int, applied: int, removed: bool) -> None:
    assert was_removed(replica_id, FOUNDED, applied) is removed
