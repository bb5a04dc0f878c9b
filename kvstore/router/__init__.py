"""From a key to the replica that answers: locally, by one forwarded hop, or by telling the caller where to go.

Read protocol (what the API may ask), router (how), forward (the one hop), admin (status and membership).

What must stay true: a request is answered once and within its deadline; a forwarded write without a session is never
sent twice; a stream request is never forwarded.
"""
