"""How nodes talk to each other: Raft messages, evidence that a peer's process is gone, snapshots.

Read first: protocol (the contract), frames (the bytes), hello (who may connect), then connection (one open link),
peer_link (all of them), snapshot_stream. `memory` fulfils the same contract without sockets, for simulation;
tests/transport/test_conformance.py runs on both. docs/peers.md says what goes over the wire.

Invariant: delivery is never promised. What is delivered between two nodes over one connection is in order.
Invariant: every queue, table and task count here has a bound, named in settings.
Invariant: nothing here waits on a peer without a time limit.
If you change a frame or the hello, bump base/limits.PEER_PROTOCOL or add fields at the end with a default, and
keep the golden bytes of tests/transport/test_frames.py.
"""
