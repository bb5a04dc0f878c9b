"""The vocabulary that every layer shares: error codes, limits, ids, clock, operations and stream frames.

Read first: errors (what can go wrong and what it means for the caller), operations (what a client can ask),
stream (how it is asked). Nothing here does I/O, and nothing here imports another part of the store.

Invariant: numbers and field orders in operations, stream and shards are on the wire and on disk: fields are only
added at the end, with a default.
"""
