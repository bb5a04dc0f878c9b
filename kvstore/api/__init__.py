"""The HTTP side of a node: REST, the client stream, OpenAPI, health, limits and metrics, on one port.

Read first: app (what is where), problems (how errors look), kv (the path of one request), stream (the hot path:
`StreamSession` is the protocol without I/O, stream_socket puts it on a WebSocket), server (what bounds connections).

Invariant: nothing here decides about data. A request becomes operations of base/operations, the router executes them.
Invariant: whatever a client sends ends in a typed error (base/errors.CODES) or a closed connection, with bounded
           memory and time; no other client notices.
Invariant: an AssertionError or StorageFault is never turned into an answer: it reaches the node's `fatal` hook.

If you add a route: app.py (the table), openapi.py (its description; a test compares both), docs/http.md.
If you add an error code: base/errors.py alone; problems and OpenAPI follow.
"""
