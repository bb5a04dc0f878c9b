"""Every bound of the store with its reason. HARD ones are baked into files and frames; SOFT ones may be tuned.

Invariant: the relations asserted at the end hold whenever the store runs.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# HARD: changing one makes old data or old clients wrong.
KEY_BYTES_MAX = 480  # LMDB holds keys of 511 bytes; the keyspace number, a prefix and 26 spare bytes go in front
KEYSPACE_PREFIX_BYTES = 4
SESSION_BYTES = 16
FORMAT_VERSION = 1  # of the files on disk
STREAM_PROTOCOL = 1  # of the client stream
PEER_PROTOCOL = 1  # between nodes

# SOFT: the same on each node of a cluster is wise, different is safe.
VALUE_BYTES_MAX = 1 * MIB  # one value must not stall the loop: 1 MiB takes about 1 ms to copy, check and write
REQUEST_BYTES_MAX = 4 * MIB  # one HTTP body or stream message
STREAM_REPLY_BYTES_MAX = 16 * MIB  # one stream message to a client
BATCH_OPERATIONS_MAX = 1_000  # one atomic batch
FRAME_OPERATIONS_MAX = 4_096  # operations of one stream frame: bounds the time of one synchronous step
SCAN_KEYS_MAX = 1_000
SCAN_BYTES_MAX = 1 * MIB
DELETE_RANGE_KEYS_MAX = 1_000

ENTRY_BYTES_MAX = 1 * MIB  # staged commands are cut into entries of about this size
STAGED_BYTES_MAX = 32 * MIB  # commands that wait for their proposal, a replica; then OVERLOADED
UNCOMMITTED_BYTES_MAX = 64 * MIB  # proposed and not committed, a replica; then OVERLOADED
PENDING_READS_MAX = 100_000  # reads that wait for their read index, a replica
MEMTABLE_BYTES_MAX = 64 * MIB  # applied and not flushed, a node; then OVERLOADED
MEMTABLE_COMMANDS_MAX = 200_000
SESSION_ANSWERS_MAX = 200_000  # remembered answers, a shard; the oldest go first and raise the floor
SESSION_WINDOW_MS = 600_000  # how long an answer is kept, and how old a stamp may be
STAMP_AHEAD_MS_MAX = 5_000  # how far in the future a mutation may have been issued

LOG_KEEP_BYTES = 64 * MIB  # log kept behind the flushed index for slow followers, a replica
LOG_CACHE_BYTES = 16 * MIB  # recent entries held in memory, a replica
LOG_QUEUE_BYTES_MAX = 128 * MIB  # entries handed to the log thread and not durable yet
SNAPSHOT_CHUNK_BYTES = 256 * KIB
SNAPSHOT_LOG_KEEP_BYTES = 256 * MIB  # log kept for a snapshot under way; past it the snapshot is abandoned
SNAPSHOT_SECONDS_MAX = 600
SNAPSHOT_BYTES_PER_SECOND = 64 * MIB

PEER_MESSAGE_BYTES_MAX = 16 * MIB  # one WebSocket message between nodes
PEER_QUEUE_BYTES_MAX = 32 * MIB  # waiting for one peer; then Raft messages are dropped (Raft repeats them)
CLIENT_OUT_BYTES_MAX = 32 * MIB  # answers waiting for one slow client; then its requests are not read any more
CLIENT_FRAMES_MAX = 4_096  # requests of one stream connection that wait for an answer
CONNECTIONS_MAX = 10_000
HEADER_SECONDS_MAX = 10.0  # a connection that has not sent a whole request head by then is closed

DEADLINE_MS_DEFAULT = 5_000
DEADLINE_MS_MAX = 60_000
ROUTES_WAIT_MS_MAX = 30_000  # how long one request may wait for a change of the routes; proxies give up after a minute

DISK_RESERVE_BYTES = 256 * MIB  # a file that is given up so that compaction can run on a full disk
DISK_FREE_FRACTION_MIN = 0.05
DISK_FREE_BYTES_MIN = 1 * GIB
LMDB_MAP_BYTES = 256 * GIB  # sparse; only address space


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits that a client may want to know; served at GET /v1/limits and in the stream's welcome."""

    key_bytes_max: int = KEY_BYTES_MAX
    value_bytes_max: int = VALUE_BYTES_MAX
    request_bytes_max: int = REQUEST_BYTES_MAX
    batch_operations_max: int = BATCH_OPERATIONS_MAX
    frame_operations_max: int = FRAME_OPERATIONS_MAX
    scan_keys_max: int = SCAN_KEYS_MAX
    scan_bytes_max: int = SCAN_BYTES_MAX
    delete_range_keys_max: int = DELETE_RANGE_KEYS_MAX
    deadline_ms_max: int = DEADLINE_MS_MAX
    session_window_ms: int = SESSION_WINDOW_MS

    def __post_init__(self) -> None:
        assert 0 < self.value_bytes_max <= self.request_bytes_max - 64 * KIB
        assert self.request_bytes_max <= PEER_MESSAGE_BYTES_MAX // 2


assert KEY_BYTES_MAX + KEYSPACE_PREFIX_BYTES + 1 <= 511
assert SCAN_BYTES_MAX + VALUE_BYTES_MAX < STREAM_REPLY_BYTES_MAX
assert ENTRY_BYTES_MAX <= UNCOMMITTED_BYTES_MAX // 4
assert LOG_CACHE_BYTES <= LOG_KEEP_BYTES
