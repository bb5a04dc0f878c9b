"""A shard's route, as a client needs it, from its descriptor and the leader that a replica knows.

Invariant: a route without a leader names no term: it hides nothing that others know of one.
Called by: replica.
"""

from __future__ import annotations

from kvstore.base.shards import Route, ShardDescriptor, user_bounds
from kvstore.replica.environment import Environment, NodeAddress


def route_of(descriptor: ShardDescriptor, leader: NodeAddress | None, term: int, environment: Environment) -> Route:
    """`term`: of the replica that knows the leader."""
    start, end = user_bounds(descriptor)
    places = tuple(
        (place.name, place.address, int(replica.role))
        for replica in descriptor.replicas
        if (place := environment.address_of(replica.node)) is not None
    )
    return Route(
        id=descriptor.id,
        keyspace=descriptor.keyspace,
        start=start,
        end=end,
        version=descriptor.version,
        conf=descriptor.conf,
        term=term if leader else 0,
        leader=leader.name if leader else None,
        address=leader.address if leader else None,
        replicas=places,
    )
