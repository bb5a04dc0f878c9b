"""The deterministic state machine of one shard: committed entries in, data and answers out.

Read first: shard (what the replica calls), then apply (what an operation does), sessions and session (exactly-once),
command (the bytes of an entry), shard_meta (the bytes of a shard's image), split (one shard becomes two), stamp (the
leader's clock for entries). docs/state.md tells the rules to a newcomer.

Invariant: the state is a function of the log alone. Nothing in here asks a clock, a random source or a setting of the
           node, and nothing depends on the order of a hash table; two replicas at one index hold the same bytes,
           wherever one of them was restarted, flushed or installed from a snapshot.
Invariant: an operation whose answer is known is never executed again (design: answer known, expired, too far ahead,
           range and epoch, execute - in this order).
Invariant: user input is never asserted: a committed operation of any content gets a result.

If you change an encoding (command, shard_meta, session): raise its version byte, keep reading the old one, and add a
golden blob to tests/state/test_golden.py. If you change what an operation does, or a limit that `apply` or `sessions`
looks at: replicas of both versions will run side by side; limits travel in the shard's meta for that reason.
"""
