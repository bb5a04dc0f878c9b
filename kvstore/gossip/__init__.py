"""Who is there, and who leads: SWIM gossip with Lifeguard.

Gossip is a hint, always: no promise of the store depends on it. A member is known by its node id; what is told of it is
merged by (incarnation, state), so that news wins over rumours in whatever order they come.

Read in this order: member (what is told of a node, and the merge), swim (the pure core), hint (what is told of a shard,
and which tale stands), leader_hints (how such tales spread), driver (UDP, push-pull, timers).

Invariant: everything but driver, endpoint, resolver and push_pull is pure: time and randomness come in as arguments.
"""
