"""How one shard becomes two, the same on every replica: the descriptors of both halves, or why not.

The left half keeps the id, the Raft group and the log; the right half is the child. So a shard's start never changes,
whatever is cut off behind it, and taking the right neighbour in again is the exact reverse. The child's replicas are on
the nodes of the parent's at this index, learners as learners, and are numbered 1, 2, ... in the order of the parent's
replica ids: with the epoch that the command names these are fixed, and no id in the child's group was given before.

Invariant: the halves cover what the shard covered, without gap or overlap, and both have its version + 1.
Invariant: `conf` of the child begins where a founded group's does: its membership has a history of its own.
Invariant: no key group is parted, whoever made the command.
Invariant: refused while the membership is joint: the child would begin with one of two memberships, and neither half
           of a joint configuration alone may decide.
Called by: shard.py only.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kvstore.base.errors import Code
from kvstore.base.ids import DEFAULT_SHARD
from kvstore.base.key_groups import is_legal_cut
from kvstore.base.limits import KEYSPACE_PREFIX_BYTES
from kvstore.base.operations import Failure
from kvstore.base.shards import Replica, ReplicaRole, ShardDescriptor
from kvstore.state.command import Split
from raft.types import ConfState

BORN_CONF = 1
"""Of a founded group, and of a child."""

MOVED: Final = Failure(int(Code.STALE_ROUTE), "The shard has another epoch than the one that the split was made for.")
JOINT: Final = Failure(int(Code.CONFLICT), "A change of the shard's replicas is under way; split it after that.")
OUTSIDE: Final = Failure(int(Code.INVALID), "The key does not divide the shard in two.")
PARTS_GROUP: Final = Failure(int(Code.INVALID), "The key lies inside a key group, which stays in one shard.")


def divide(
    descriptor: ShardDescriptor, conf_state: ConfState, split: Split
) -> tuple[ShardDescriptor, ShardDescriptor] | Failure:
    """(left, right), or why the shard stays whole."""
    if (split.version, split.conf) != (descriptor.version, descriptor.conf):
        return MOVED
    if conf_state.voters_outgoing:
        return JOINT
    if not descriptor.start < split.key < descriptor.end or split.child <= DEFAULT_SHARD:
        return OUTSIDE
    if not is_legal_cut(split.key[KEYSPACE_PREFIX_BYTES:]):
        return PARTS_GROUP
    version = descriptor.version + 1
    left = msgspec.structs.replace(descriptor, end=split.key, version=version)
    places = sorted(descriptor.replicas, key=lambda place: place.replica_id)
    replicas = tuple(Replica(place.node, number, place.role) for number, place in enumerate(places, 1))
    right = msgspec.structs.replace(
        descriptor, id=split.child, start=split.key, version=version, conf=BORN_CONF, replicas=replicas
    )
    return left, right


def first_members(descriptor: ShardDescriptor) -> ConfState:
    """The membership that a child begins with."""
    return ConfState(
        voters=tuple(place.replica_id for place in descriptor.replicas if place.role == ReplicaRole.VOTER),
        learners=tuple(place.replica_id for place in descriptor.replicas if place.role == ReplicaRole.LEARNER),
    )
