"""Who is in the cluster and where replicas live: founding, members, the placement driver, changes of shards.

The cluster's own records (members, drains, settings) are keys of the system keyspace, whose shard is the meta group
(shard 1), so they are replicated, flushed and sent in snapshots like all other data.

Read members and wishes (the records), founding (how a cluster begins), coordinator (what every node does). Of the
driver: view (what it knows), schedulers (what it wants), operators and board (what is under way), driver (the three
together), office and reports (where it is, and what it hears), replica_change (how one change is carried out). view,
operators, moves, filters, shares, safety, board and schedulers are pure. docs/placement.md tells how it goes.

What must stay true: placement proposes, only Raft decides; losing the meta group stops changes, never reads and writes.
"""
