"""What the rest of the store asks of its disk. LMDB (`log_store`, `state_store`) and memory (`memory`) fulfil it.

All methods are called on the loop's thread and return at once; work that waits for the disk is queued for the
store's own thread, and its `done` runs on the loop. Queued work is done in the order of its submission.

Invariant: `done` of a log submission runs only after all of it, and all submitted before it, is durable (fsync).
Invariant: a failed commit is never retried: `on_fatal` is called once, no `done` runs any more, the process ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from raft.storage import LogReader
from raft.types import ConfState, Entry, HardState, SnapshotMeta

Done = Callable[[], None]
OnFatal = Callable[[BaseException], None]


class NodeIdentity(msgspec.Struct, array_like=True, frozen=True):
    """Who owns the directory (cluster "" = not yet member of one); written at founding or joining and at each start."""

    format_version: int
    node: str  # NodeId
    name: str
    cluster: str = ""
    founders: tuple[tuple[str, str, str], ...] = ()  # (name, node id, HOST:PORT) when founded by --initial-cluster
    boots: int = 0  # starts of a process on this directory; durable before the process says anything to others


class ReplicaIdentity(msgspec.Struct, array_like=True, frozen=True):
    """Which replica of a group lives here. Written before the replica's first message.

    `tombstone`: the replica was removed; every message for it or a lower replica id is answered REMOVED.
    `damaged_at`: the log's last index when records were found lost; 0 = sound. A damaged replica neither votes nor
    campaigns until healed.
    `parent`, `born_at`: of a split's child, the parent's group and the index of the split in its log. While the child
    has no flushed state, its log goes on from what the parent's replay of that entry makes anew.
    """

    replica_id: int
    tombstone: bool = False
    damaged_at: int = 0
    parent: int = 0
    born_at: int = 0


@dataclass(slots=True)
class LogWrite:
    """What one group wants durable, applied in the order of the fields."""

    group: int
    identity: ReplicaIdentity | None = None
    reset: tuple[int, int] | None = None  # (index, term): drop all entries; the log begins behind index
    entries: Sequence[Entry] = ()  # replace everything at and after entries[0].index
    hard_state: HardState | None = None
    compact_to: int = 0  # drop entries at and below this index (0 = none); its term stays known
    destroy: bool = False  # drop everything but the identity (a tombstone)


class GroupLog(LogReader, Protocol):
    """One group's log. Entries are readable as soon as they are submitted (cached), durable or not."""

    identity: ReplicaIdentity
    conf_state: ConfState  # set by the host from the state store before the Raft core is made

    def set_snapshot(self, snapshot: SnapshotMeta | None) -> None:
        """What `snapshot` answers from now on: the position of the flushed state, which the host can send."""

    def bytes_behind(self, index: int) -> int:
        """About how many bytes of entries lie at and below index: what compaction would free."""


class LogStore(Protocol):
    """The durable logs of all groups of the node, written by one thread, one fsynced transaction at a time."""

    def node_identity(self) -> NodeIdentity | None: ...
    def set_node_identity(self, identity: NodeIdentity) -> None:
        """Blocks until durable; only before the node serves."""

    def groups(self) -> Mapping[int, ReplicaIdentity]:
        """Every group with anything stored, tombstones too."""

    def open_group(self, group: int, *, verify_from: int) -> GroupLog:
        """The group's log (empty for an unknown group). Records above verify_from are checked (CRC, no gap).

        Where records were lost, the log ends before the first bad one and `identity.damaged_at` is set (persisted).
        """

    def submit(self, writes: Sequence[LogWrite], done: Done) -> None:
        """Queue for the next transaction; an empty `writes` is a barrier. What is handed over is not changed any more.

        A group that is not open yet is opened. A commit index never rises above the last entry (asserted).
        """

    @property
    def queued_bytes(self) -> int: ...

    def sizes(self) -> Mapping[str, int]:
        """file_bytes, used_bytes, free_bytes: for metrics; cheap."""

    def close(self) -> None:
        """Finish what is queued, then close. Blocks; no `done` runs any more."""


class Record(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """The latest value of a key."""

    value: bytes
    mod_revision: int
    create_revision: int
    version: int


class ShardImage(msgspec.Struct, frozen=True, array_like=True):
    """Everything about a shard but its data, at one applied index. `meta` is the state machine's own encoding."""

    applied_index: int
    applied_term: int
    conf_state: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]
    meta: bytes  # descriptor, revision, stamp, floor, ... (kvstore/state/shard_meta)


@dataclass(slots=True)
class ShardChange:
    """What a flush writes of one shard. `sessions` are only those that changed; None = forgotten."""

    image: ShardImage
    sessions: Mapping[bytes, bytes | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot is of; the chunks follow."""

    group: int
    image: ShardImage
    start: bytes
    end: bytes


class SnapshotReader(Protocol):
    """A shard as of one LMDB read transaction. Used by one thread at a time; may be a worker thread."""

    header: SnapshotHeader

    def chunk(self, number: int) -> bytes | None:
        """Chunk `number` (0, 1, ...), about SNAPSHOT_CHUNK_BYTES, with its own checksum; None behind the last.

        Chunks are re-readable (resume after a broken connection) until close.
        """

    def close(self) -> None: ...


class StateStore(Protocol):
    """The data of all shards, keyed by full key without the shard: an in-memory table before LMDB.

    Reads see (active table, frozen table, one LMDB read transaction) as one unit.
    """

    # -- data, loop thread, synchronous
    def get(self, key: bytes) -> Record | None: ...
    def put(self, key: bytes, record: Record) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(
        self, start: bytes, end: bytes, *, limit: int, bytes_max: int, reverse: bool = False
    ) -> tuple[list[tuple[bytes, Record]], bool]:
        """Up to `limit` pairs of [start, end) whose keys and values stay within bytes_max (but at least one);
        and whether more follow."""

    # -- shards, loop thread
    def shards(self) -> Mapping[int, ShardImage]:
        """The flushed image of every complete shard, as of the open (and of the flushes since)."""

    def sessions(self, group: int) -> Mapping[bytes, bytes]:
        """All flushed sessions of the shard; read once when the shard is loaded."""

    def create_shard(self, group: int, image: ShardImage, done: Done) -> None:
        """Write a new shard's first image (founding); again after a crash, if need be."""

    # -- flush
    @property
    def table_bytes(self) -> int:
        """Active and frozen tables together."""

    @property
    def table_commands(self) -> int: ...
    @property
    def flushing(self) -> bool: ...
    def freeze(self) -> None:
        """Make the active table the frozen one, at once, for all shards. Not while flushing."""

    def write_frozen(self, changes: Mapping[int, ShardChange], done: Done, *, drop: Sequence[int] = ()) -> None:
        """Write the frozen table and these images in one transaction; then readers move on to it, and `done` runs.

        The caller freezes, collects `changes` in the same step, and calls this once the local log holds all
        that they contain (a log barrier). `changes` are the store's from then on. Those of a shard whose install or
        destruction began after the freeze are left out. `drop`: shards that a merge has ended: image and sessions go.
        """

    # -- snapshots
    def open_snapshot(self, group: int, start: bytes, end: bytes) -> SnapshotReader | None:
        """The shard as last flushed; None while it has no flushed image, or for a moment while a flush ends: ask again.

        `start` and `end` are the range that the *flushed* image (`shards()`) names.
        """

    def install_begin(self, header: SnapshotHeader, done: Done, *, clear_to: bytes = b"") -> None:
        """Forget the shard's tables, mark the range incomplete (fsync), and clear it in bounded steps: up to `clear_to`
        where the shard that was here reached further than the snapshot's."""

    def install_chunk(self, group: int, data: bytes, done: Done) -> None:
        """Raises DamagedRecord at once when the chunk's checksum is wrong."""

    def install_finish(self, header: SnapshotHeader, done: Done, *, drop: Sequence[int] = ()) -> None:
        """The last transaction: the image, and the mark removed. `drop`: shards that this one has absorbed."""

    def destroy_shard(self, group: int, start: bytes, end: bytes, done: Done) -> None:
        """Mark the range dirty, delete in bounded steps, drop image and sessions, remove the mark."""

    def incomplete(self) -> Mapping[int, tuple[bytes, bytes]]:
        """Ranges whose install or destruction has not ended, by group: their data must not be served."""

    def sizes(self) -> Mapping[str, int]: ...
    def close(self) -> None:
        """Finish what is queued, then close. Blocks; no `done` runs any more."""
