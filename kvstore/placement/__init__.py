"""Who is in the cluster and where replicas live: founding, members, repair, and changes of one shard's replicas.

The cluster's own records (members, ...) are keys of the system keyspace, whose shard is the meta group (shard 1), so
they are replicated, flushed and sent in snapshots like all other data.

Read members (the records), founding (how a cluster begins), repair (what should be changed, pure), replica_change (how
one change is carried out).

What must stay true: placement proposes, only Raft decides; losing the meta group stops changes, never reads and writes.
"""
