"""What the core hands out: datagrams to send, what has changed, and what it would like tried over TCP.

Invariant: an event is told once; nothing here refers to the core's own tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.gossip.member import Member


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """What is believed of a node is another thing than before. `old` is None for one that was not known."""

    old: Member | None
    new: Member


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Two nodes, neither dead nor gone, have one name. Told once for each pair; `one` has the smaller node id."""

    one: Member
    other: Member


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The node has been dead or gone for so long that its record was dropped."""

    node: str


Event = MemberChanged | NameConflict | Forgotten


@dataclass(frozen=True, slots=True)
class StreamProbe:
    """Please see whether the node answers over TCP, and tell `Swim.stream_answer`. No answer is the answer no."""

    node: str
    address: str  # HOST:PORT
    ticket: int


@dataclass(slots=True)
class Output:
    """What is to be done since the last time."""

    datagrams: list[tuple[str, bytes]] = field(default_factory=list)  # (HOST:PORT, payload)
    events: list[Event] = field(default_factory=list)
    probes: list[StreamProbe] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MemberView:
    """What is believed of a node, and since when. Times are those of `now`, in seconds."""

    member: Member
    since: float  # when it entered its state
    heard: float | None  # its last own answer to a probe of this node
    rtt: float | None  # seconds, smoothed
