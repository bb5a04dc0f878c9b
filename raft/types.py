"""The values that the Raft core takes in and gives out. They hold data and no behaviour.

Invariant: a value is never changed once it has been handed to `step` or taken from a `Ready`.
Who uses it: everything in `raft/`, and the driver that turns messages into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

NO_REPLICA = 0
"""The replica id that nobody has: no leader known, no vote given."""


class EntryKind(IntEnum):
    NORMAL = 0
    CONF_CHANGE = 1


class MessageType(IntEnum):
    """What travels between replicas of one group. The numbers are on the wire: never reuse one."""

    APPEND = 1  # leader -> peer: entries after (index, log_term); empty entries probe or carry the commit index
    APPEND_REPLY = 2  # index = last index that is durable and matches; or reject with (reject_hint, log_term)
    VOTE = 3  # (index, log_term) of the candidate's last entry; transfer = sent because the leader asked for it
    VOTE_REPLY = 4
    PRE_VOTE = 5  # term is the one that the sender *would* campaign at
    PRE_VOTE_REPLY = 6
    HEARTBEAT = 7  # commit = min(match, commit); lease = promise asked; context = the round, none = no answer wanted
    HEARTBEAT_REPLY = 8  # echoes context; lease = promise given
    SNAPSHOT = 9  # snapshot metadata; the bytes travel beside, the driver steps this in once they are installed-ready
    TIMEOUT_NOW = 10  # leader -> transfer target: campaign at once
    READ_INDEX = 11  # follower -> leader (forwarded read), context is the asker's
    READ_INDEX_REPLY = 12  # index = the read index for context
    SLEEP = 13  # leader -> peer: nothing is going on at (index, commit); stop the timers; context = the sleep round
    SLEEP_REPLY = 14  # echoes context; reject = true where something is pending here
    WAKE = 15  # member -> leader: I am awake, so be you; or a leader that was stopped -> member: do not count on me


@dataclass(slots=True)
class Entry:
    term: int
    index: int
    kind: EntryKind = EntryKind.NORMAL
    data: bytes = b""


@dataclass(slots=True)
class HardState:
    """What must be durable before a message that depends on it may leave (paper, figure 2)."""

    term: int = 0
    vote: int = NO_REPLICA
    commit: int = 0


@dataclass(slots=True)
class ConfState:
    """The membership of a group; joint while `voters_outgoing` is not empty (paper, section 6; thesis, 4.3).

    `learners_next` are voters of the outgoing half that turn into learners when the joint state is left.
    All tuples are sorted and free of duplicates.
    """

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


@dataclass(slots=True)
class SnapshotMeta:
    """The log position that a snapshot stands for, and the membership at it. `index` 0 means no snapshot."""

    index: int = 0
    term: int = 0
    conf_state: ConfState = field(default_factory=ConfState)


class ConfChangeKind(IntEnum):
    ADD_VOTER = 1
    ADD_LEARNER = 2
    REMOVE = 3
    UPDATE = 4  # nothing changes but the context that the driver attached


@dataclass(slots=True)
class ConfChangeSingle:
    kind: ConfChangeKind
    replica_id: int


class ConfTransition(IntEnum):
    """How a change is carried out. AUTO takes the simple way for one change and an auto-leaving joint one for more."""

    AUTO = 0
    JOINT_IMPLICIT = 1  # joint, left by itself as soon as it is committed
    JOINT_EXPLICIT = 2  # joint, left by an empty change that the driver proposes


@dataclass(slots=True)
class ConfChange:
    """The payload of a CONF_CHANGE entry. No changes and transition AUTO = leave the joint state."""

    changes: tuple[ConfChangeSingle, ...] = ()
    transition: ConfTransition = ConfTransition.AUTO
    context: bytes = b""  # the driver's own (who runs the new replica, ...), opaque here


@dataclass(slots=True)
class Message:
    """One Raft message. Which fields mean something depends on the type, see MessageType.

    `from_id` and `to_id` are replica ids. `term` is the sender's term (PRE_VOTE: the one to be).
    """

    type: MessageType
    to_id: int
    from_id: int = NO_REPLICA
    term: int = 0
    log_term: int = 0
    index: int = 0
    commit: int = 0
    entries: tuple[Entry, ...] = ()
    reject: bool = False
    reject_hint: int = 0
    transfer: bool = False
    lease: bool = False
    context: bytes = b""
    snapshot: SnapshotMeta | None = None
    lost: int = 0  # not 0: the sender has lost log records; index = what is durable there; a nonce of its start


class Role(IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


@dataclass(slots=True)
class ReadState:
    """Reads asked with `context` may be served once `applied >= index`; only in `term` (a new context per attempt)."""

    context: bytes
    index: int
    term: int


@dataclass(slots=True)
class AppendAck:
    """What the driver gives back once everything that a Ready asked to persist is durable.

    Carries the position *and* term of the last entry, so that an ack for bytes that a later append has
    replaced is told apart (the ABA problem of asynchronous log writes).
    """

    number: int  # of the Ready; acks come back in this order
    term: int  # the core's term when the Ready was made
    last_index: int = 0  # last appended entry, 0 = none
    last_term: int = 0
    snapshot_index: int = 0  # 0 = none


@dataclass(slots=True)
class Ready:
    """Everything that a group wants done now. See the package docstring for the order in which to do it."""

    messages: list[Message]  # may leave now, before anything here is durable
    after_append: list[Message]  # may leave only once hard_state, entries and snapshot of this Ready are durable
    hard_state: HardState | None  # to persist when not None
    entries: list[Entry]  # to persist; overwrite whatever is stored at and after entries[0].index
    snapshot: SnapshotMeta | None  # to install, before the entries; the log starts anew after it
    committed: list[Entry]  # to apply, in order; may not be durable here yet, but is so on a majority
    read_states: list[ReadState]
    ack: AppendAck | None  # hand it to `on_durable` once persisted; None = nothing to persist
    role_changed: bool  # role, term or leader differ from the last Ready
