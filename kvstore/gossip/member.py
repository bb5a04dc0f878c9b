"""What is told of a node, and how two tales about the same node are merged.

Invariant: only the owner of a record raises its incarnation; whatever else the record says (address, labels, version)
    changes only with it.
Invariant: `merged` is the join of a semilattice, in fact of a total order: by incarnation, then state, then content
    (which differs only where two processes claim one incarnation, or somebody forges). Commutative, associative,
    idempotent; so all members that have heard the same tales, in any order and any number of times, believe the same.
Invariant: a record that `check` lets pass fits a packet, whoever accuses it.

Source: SWIM (Das, Gupta, Motivala 2002), section 4.2.
"""

from __future__ import annotations

import re
from enum import IntEnum

import msgspec

INCARNATIONS_PER_BOOT = 1_000_000
"""An incarnation is the durable count of the process's starts times this, plus the refutations since: it rises with
each restart, whatever the clock says and however much was forgotten."""

INCARNATION_MAX = 2**53 - 1
"""What every reader of JSON still takes for a whole number."""
NAME_LENGTH_MAX = 64
ADDRESS_LENGTH_MAX = 261  # a host name has up to 253 characters
VERSION_LENGTH_MAX = 64
LABELS_MAX = 16
LABEL_LENGTH_MAX = 64
RECORD_BYTES_MAX = 512
"""Of a record in MessagePack. One fits every packet beside the head of a probe, two in one of 1,400 bytes."""

_NODE = re.compile(r"[0-9a-f]{32}")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})")


class MemberState(IntEnum):
    """In the order in which a tale of the same incarnation overrides another one."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Member(msgspec.Struct, array_like=True, frozen=True):
    """One node, as it is told from node to node."""

    node: str  # NodeId, 32 hexadecimal digits
    name: str
    address: str  # HOST:PORT, of TCP and UDP
    incarnation: int
    state: MemberState = MemberState.ALIVE
    labels: dict[str, str] = {}
    version: str = ""

    @property
    def rank(self) -> tuple[int, MemberState]:
        """What decides which of two tales stands."""
        return self.incarnation, self.state

    @property
    def is_gone(self) -> bool:
        return self.state >= MemberState.DEAD


def merged(one: Member, other: Member) -> Member:
    """The tale that stands. Both are about the same node."""
    assert one.node == other.node
    return other if overrides(other, one) else one


def overrides(new: Member, old: Member) -> bool:
    if new.incarnation != old.incarnation:
        return new.incarnation > old.incarnation
    if new.state != old.state:
        return new.state > old.state
    return new != old and _content(new) > _content(old)


def check(member: Member) -> str | None:
    """What is wrong with a record that this process made or that came from elsewhere; None when nothing is."""
    if not _NODE.fullmatch(member.node):
        return "node is not 32 hexadecimal digits"
    if not 1 <= len(member.name) <= NAME_LENGTH_MAX or not member.name.isprintable():
        return f"name is not 1 to {NAME_LENGTH_MAX} printable characters"
    if not is_address(member.address):
        return f"address is not HOST:PORT of at most {ADDRESS_LENGTH_MAX} characters"
    if not 0 <= member.incarnation <= INCARNATION_MAX:
        return "incarnation is out of range"
    if len(member.version) > VERSION_LENGTH_MAX or not member.version.isprintable():
        return f"version is not at most {VERSION_LENGTH_MAX} printable characters"
    if len(member.labels) > LABELS_MAX:
        return f"more than {LABELS_MAX} labels"
    for key, value in member.labels.items():
        if not 1 <= len(key) <= LABEL_LENGTH_MAX or len(value) > LABEL_LENGTH_MAX:
            return f"a label is longer than {LABEL_LENGTH_MAX} characters, or has no name"
        if not key.isprintable() or not value.isprintable():
            return "a label is not printable"
    if len(msgspec.msgpack.encode(member)) > RECORD_BYTES_MAX:
        return f"name, address, labels and version together are over {RECORD_BYTES_MAX} bytes"
    return None


def is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text) if len(text) <= ADDRESS_LENGTH_MAX else None
    return match is not None and int(match[1]) <= 0xFFFF


def _content(member: Member) -> tuple[str, str, str, list[tuple[str, str]]]:
    return member.name, member.address, member.version, sorted(member.labels.items())
