"""How a configuration change turns into a new shard descriptor, the same on every replica.

The entry carries, in its context, on which node each new replica lives; roles follow from the Raft conf state.

Invariant: the descriptor's replicas are exactly the members of the conf state, and `conf` rises by one a change.
Invariant: a replica id is one of the founders', or FOUNDERS_IDS_MAX plus the log index of the change that adds it: an
           index is used once, so ids are unique in their group, rise, and are never given again. From an id alone
           follows whether a membership without it is one of before its time or of after its removal.
"""

from __future__ import annotations

import msgspec

from kvstore.base.errors import DamagedRecord
from kvstore.base.shards import Replica as ReplicaPlace
from kvstore.base.shards import ReplicaRole, ShardDescriptor
from kvstore.storage.protocol import ShardImage
from raft import ConfState

FOUNDERS_IDS_MAX = 1_000


def id_of_addition(index: int) -> int:
    """The id of the replica that a change at this index of the log adds."""
    return FOUNDERS_IDS_MAX + index


def was_removed(replica_id: int, descriptor: ShardDescriptor, applied_index: int) -> bool:
    """Whether this replica is no member any more. One that is being added gets a snapshot of before its addition, in
    which it is no member yet; taken for removed, it would be buried and could never rise again."""
    if any(place.replica_id == replica_id for place in descriptor.replicas):
        return False
    return replica_id <= FOUNDERS_IDS_MAX or applied_index >= replica_id - FOUNDERS_IDS_MAX


class ConfContext(msgspec.Struct, array_like=True, frozen=True):
    """The driver's part of a configuration change: the nodes of the replicas that it adds."""

    nodes: tuple[tuple[int, str], ...] = ()  # (replica id, node id)


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(ConfContext)


def encode_context(context: ConfContext) -> bytes:
    return _encode(context)


def decode_context(data: bytes) -> ConfContext:
    """Raises DamagedRecord."""
    try:
        return _decoder.decode(data) if data else ConfContext()
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"the context of a configuration change cannot be decoded: {error}") from None


def changed_descriptor(descriptor: ShardDescriptor, conf_state: ConfState, context: ConfContext) -> ShardDescriptor:
    """The descriptor after a change that led to `conf_state`."""
    nodes = {place.replica_id: place.node for place in descriptor.replicas}
    nodes.update(dict(context.nodes))
    voters = set(conf_state.voters) | set(conf_state.voters_outgoing)
    members = sorted(voters | set(conf_state.learners))
    assert nodes.keys() >= set(members), "a replica was added without its node"
    replicas = tuple(
        ReplicaPlace(
            node=nodes[replica_id],
            replica_id=replica_id,
            role=ReplicaRole.VOTER if replica_id in voters else ReplicaRole.LEARNER,
        )
        for replica_id in members
    )
    return msgspec.structs.replace(descriptor, conf=descriptor.conf + 1, replicas=replicas)


def image_conf_state(image: ShardImage) -> ConfState:
    """The conf state of a flushed image, as the core wants it."""
    voters, learners, voters_outgoing, learners_next, auto_leave = image.conf_state
    return ConfState(voters, learners, voters_outgoing, learners_next, auto_leave)
