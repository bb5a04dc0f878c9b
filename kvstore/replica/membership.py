"""How a configuration change turns into a new shard descriptor, the same on every replica.

The entry carries, in its context, on which node each new replica lives; roles follow from the Raft conf state.

Invariant: the descriptor's replicas are exactly the members of the conf state, and `conf` rises by one a change.
"""

from __future__ import annotations

import msgspec

from kvstore.base.shards import Replica as ReplicaPlace
from kvstore.base.shards import ReplicaRole, ShardDescriptor
from kvstore.storage.protocol import ShardImage
from raft import ConfState


class ConfContext(msgspec.Struct, array_like=True, frozen=True):
    """The driver's part of a configuration change: the nodes of the replicas that it adds."""

    nodes: tuple[tuple[int, str], ...] = ()  # (replica id, node id)


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(ConfContext)


def encode_context(context: ConfContext) -> bytes:
    return _encode(context)


def decode_context(data: bytes) -> ConfContext:
    return _decoder.decode(data) if data else ConfContext()


def changed_descriptor(descriptor: ShardDescriptor, conf_state: ConfState, context: ConfContext) -> ShardDescriptor:
    """The descriptor after a change that led to `conf_state`."""
    nodes = {place.replica_id: place.node for place in descriptor.replicas}
    nodes.update(dict(context.nodes))
    voters = set(conf_state.voters) | set(conf_state.voters_outgoing)
    members = sorted(voters | set(conf_state.learners))
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
