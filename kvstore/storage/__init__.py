"""The node's disk: durable logs of all groups, and the data of all shards behind an in-memory table.

Read first: protocol (what is promised), then writer (the one place that commits), log_store with group_log, state_store
with tables, memtable and state_jobs; keys and records say what lies on the disk. docs/storage.md tells the whole.

Invariant: nothing is told durable before fsync has returned; a failed commit ends the process.
Invariant: every record carries a checksum that covers its key, and is checked before it is believed.
Invariant: LMDB transactions of writing are the writer threads' own; the loop writes only while it opens something.
"""
