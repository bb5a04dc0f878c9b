"""Raft, pure: no input or output, no clock, no threads. A *driver* owns those and follows this contract.

A `RawNode` is one replica of one group. The driver feeds it: `step` for messages of other replicas, `tick` at most
once in `tick_ms`, `propose`, `read_index`, ... None of these does anything but change memory; what is to be done is
then taken as a `Ready`, once for everything that came in one turn:

    ready = node.ready()                        # when node.has_ready()
    1. send ready.messages                      # at once, in parallel with 2: they speak of nothing that is not durable
    2. if ready.ack is not None: put into ONE queue, kept in order over all Readys of this replica:
           ready.snapshot   install it; the log starts anew after it (also write ready.entries and hard_state then)
           ready.entries    store them, truncating whatever lies at and after entries[0].index
           ready.hard_state store it, in the same transaction as the entries
       (all three may be empty: the ack then stands for earlier Readys, and waits for them)
       and when that is durable:
           send ready.after_append
           node.on_durable(ready.ack)           # in the order of the Readys; then look at has_ready again
    3. apply ready.committed in order; a CONF_CHANGE entry: node.apply_conf_change(decode_change(entry.data)), unless
       the driver refuses the change; then node.applied_to(index). May run ahead of 2. With a snapshot: what earlier
       Readys gave to apply comes before it is installed, what later ones give comes after.
    4. answer the reads of ready.read_states once `applied` has reached their index
       A read by the lease instead (faster): only if lease_valid() when the request comes; note `commit` and `term`
       then; wait until `applied` has reached that commit; read the value; only *then*, with a fresh clock, ask whether
       the term is the same and lease_valid() still true (else read_index). Checked before the read only, a pause
       between check and read would make it stale; without the wait, a slow apply would.
    5. ready.role_changed: look at node.role, term, leader_id; reads and proposals of an older term are answered by
       nobody else but the driver

What the driver must keep:
- `propose_conf_change` packs its ConfChange into the entry's data with `encode_change`; `decode_change` takes it out.
- Several Readys may be on their way to the disk; the next one may be taken before the last one is durable.
- Messages may be lost, doubled, reordered. `ready.after_append` is not empty only if there is an ack. No message is
  addressed to the sender itself.
- After a crash the RawNode is built again from what was durable: the log, the hard state, and `applied` with the
  membership at that index. `applied` must not lie beyond the durable log. The commit index on disk may lag behind
  (it is written with other things only); entries are then handed out for applying again once it is known.
- The membership with which a group is founded is in no entry. Found it as if from a snapshot: a log that starts after
  some index >= 1, with that membership. A replica that is added later starts empty and then needs the snapshot; were
  the log complete from index 1, it would take the entries and never hear of the founders.
- SNAPSHOT messages carry the position only. The driver sends the bytes beside and steps the message in on the other
  side when they are there, then tells the sender's node `report_snapshot`: always, also when it failed.
- A message that could not be sent: `report_unreachable`. The process of a leader is gone: `leader_gone`, see there.
- A replica that lost log records is built with campaign_barred, at every start until it is whole again: it answers with
  `lost`, so that the leader sends again what it had acknowledged. Once a read index R asked after the start is
  answered, and in that term `commit` and `durable_index` have reached R, it is whole: `unbar`. A message that an
  earlier process of such a replica has sent must not be stepped any more (connections carry a boot id): it could
  acknowledge what is lost.
- A group without work may `sleep`; while `asleep` it need not be ticked. The nodes are watched in its place: when that
  of its leader is gone or has another process, `leader_gone`; when nothing was heard of it for an election timeout,
  `leader_silent`; when a leader would have no quorum of the nodes that are heard of, or one of them comes back, `wake`.
  Who is `absent` from a sleep is not waited for, and is woken so when it comes back. A leader that is stopped while its
  node goes on: `calls_to_wake`.
- Refusals (raft.errors) are raised before anything has changed. An AssertionError means a broken invariant: stop.

Who may lose what: a proposal is certain only when the entry at (term, index) is handed out as committed; another term
at that index means that it never will be. A read is certain only with its ReadState.

Read in this order: types, this page, tests/raft/data/single_node.txt, raw_node, core, step, then the role modules
election, follower, leader, hibernation; the data structures below them are log, unstable, tracker, progress,
inflights, quorum, confchange, read_only, lease.
If you change what is acknowledged when (send or send_durable), read the invariants of core and election, and run the
simulation; if you change bytes of a configuration change (confchange), old logs must stay readable.
"""

from raft.confchange import decode_change, encode_change, is_joint
from raft.config import Config
from raft.errors import (
    ConfChangeRefused,
    LogCompacted,
    LogUnavailable,
    NotLeader,
    ProposalDropped,
    RaftError,
    StepRefused,
    TransferInProgress,
    UncommittedLimit,
)
from raft.progress import ProgressState
from raft.raw_node import RawNode
from raft.status import PeerStatus, Status
from raft.storage import LogReader, MemoryLog
from raft.types import (
    NO_REPLICA,
    AppendAck,
    ConfChange,
    ConfChangeKind,
    ConfChangeSingle,
    ConfState,
    ConfTransition,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ReadState,
    Ready,
    Role,
    SnapshotMeta,
)

__all__ = [
    "NO_REPLICA",
    "AppendAck",
    "ConfChange",
    "ConfChangeKind",
    "ConfChangeRefused",
    "ConfChangeSingle",
    "ConfState",
    "ConfTransition",
    "Config",
    "Entry",
    "EntryKind",
    "HardState",
    "LogCompacted",
    "LogReader",
    "LogUnavailable",
    "MemoryLog",
    "Message",
    "MessageType",
    "NotLeader",
    "PeerStatus",
    "ProgressState",
    "ProposalDropped",
    "RaftError",
    "RawNode",
    "ReadState",
    "Ready",
    "Role",
    "SnapshotMeta",
    "Status",
    "StepRefused",
    "TransferInProgress",
    "UncommittedLimit",
    "decode_change",
    "encode_change",
    "is_joint",
]
