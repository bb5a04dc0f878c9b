"""Who the members are and how each of them is: the meta group's records, joined with what gossip believes.

Invariant: the records say who is a member: a name that is bound is listed even if gossip has never heard of its node
           (then it counts as dead), and a node that was removed for good is not.
Invariant: gossip says how a member is, and nothing that it says is more than a hint.
Called by: coordinator, router/admin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kvstore.gossip.events import MemberView
from kvstore.gossip.member import Member, MemberState
from kvstore.placement.members import MemberRecord, Records


class Gossip(Protocol):
    """What placement asks of gossip; `gossip.driver.GossipDriver` fulfils it."""

    def now(self) -> float:
        """The clock of `members`, seconds."""

    def members(self) -> list[MemberView]:
        """All that are known, this node included, whatever their state."""

    def member(self, node: str) -> Member | None: ...
    def alive(self, node: str) -> bool:
        """Whether the node takes part, as far as is known; a suspect does."""

    def declare_left(self, node: str) -> None:
        """It was removed for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """One member, as GET /v1/members tells it. None: not known, or (times) the node that answers is meant."""

    name: str
    node_id: str
    address: str
    state: str  # alive, suspect, dead, left
    incarnation: int | None
    labels: dict[str, str]
    version: str
    round_trip_ms: float | None  # smoothed
    state_age_ms: int | None  # since it is believed to be in this state
    heard_age_ms: int | None  # since its last own answer to a probe of the node that tells


def census(records: Records | None, views: Iterable[MemberView], now: float) -> list[MemberStatus]:
    """The members by name. `records` None: nobody could be asked; then it is whom gossip knows, dead ones and such that
    may have been removed included. Of nodes without a record only those are told that live: they are just joining."""
    known = {view.member.node: view for view in views}
    bound = [] if records is None else [member.record for member in records.members]
    rows = [_of_record(record, known.pop(record.node, None), now) for record in bound]
    rows += [
        _of_view(view, now)
        for view in known.values()
        if records is None or not (view.member.is_gone or view.member.node in records.removed)
    ]
    return sorted(rows, key=lambda row: (row.name, row.node_id))


def count_states(rows: Iterable[MemberStatus]) -> dict[str, float]:
    counted = Counter(row.state for row in rows)
    return {state.name.lower(): counted[state.name.lower()] for state in MemberState}


def _of_record(record: MemberRecord, view: MemberView | None, now: float) -> MemberStatus:
    if view is not None:
        return _of_view(view, now)
    return MemberStatus(
        name=record.name,
        node_id=record.node,
        address=record.address,
        state=MemberState.DEAD.name.lower(),
        incarnation=None,
        labels=record.labels,
        version=record.version,
        round_trip_ms=None,
        state_age_ms=None,
        heard_age_ms=None,
    )


def _of_view(view: MemberView, now: float) -> MemberStatus:
    member = view.member
    return MemberStatus(
        name=member.name,
        node_id=member.node,
        address=member.address,
        state=member.state.name.lower(),
        incarnation=member.incarnation,
        labels=member.labels,
        version=member.version,
        round_trip_ms=None if view.rtt is None else round(view.rtt * 1_000, 3),
        state_age_ms=_age_ms(view.since, now),
        heard_age_ms=None if view.heard is None else _age_ms(view.heard, now),
    )


def _age_ms(then: float, now: float) -> int:
    return max(0, round((now - then) * 1_000))
