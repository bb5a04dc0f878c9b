"""The replicas of a node: many Raft groups, one loop, one log transaction and one message batch a turn.

Read in this order: requests, proposals, reads (what waits), replica (one group), host_core (all groups, pure),
host_driver (the loop), then lifecycle, births with splits, flush, snapshots, healing, membership.

What must stay true:
- Nothing awaits inside a state change: a turn is decided in synchronous code, and the driver performs its effects.
- What an answer promises is durable on a majority: answers are given by applying committed entries, never earlier.
- Messages that speak of the disk leave only after the disk has spoken (`Ready.after_append`).
- A flush contains only what the local log holds durably; the log is compacted only up to a flush.

If you change the order of effects in `host_driver._turn`, read raft/__init__.py again, and run the crash test.
"""
