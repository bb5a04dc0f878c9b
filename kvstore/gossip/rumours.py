"""What is believed of every node, and how tales change it: merge, suspicion, death, refutation, leave, forgetting.

Invariant: what is believed of a node is the join (member.merged) of all tales heard of it, as long as it is not
    forgotten. Only push-pull weakens a tale first: a *dead* that comes in a copy of somebody's whole state may be old
    news, so it is taken as a suspicion, which the member can refute.
Invariant: this node never believes itself suspect or dead: it refutes with a higher incarnation. Once it leaves, it
    stays LEFT, whatever is told.
Invariant: a change is told on (Broadcasts) and handed out (MemberChanged) once, in the order in which it happened.
Invariant: who was gone when first heard of is kept (`hearsay`) so that old tales do not revive it, but is not told on:
    otherwise nodes would remind each other for ever of members that all had forgotten once.

Source: SWIM, section 4.2; Lifeguard, sections 4.2 and 4.3; the weaker *dead* in push-pull is memberlist's.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import msgspec

from kvstore.base.errors import Invalid
from kvstore.gossip.awareness import Awareness
from kvstore.gossip.broadcast import Broadcasts
from kvstore.gossip.counters import Counters
from kvstore.gossip.events import Event, Forgotten, MemberChanged, NameConflict
from kvstore.gossip.member import INCARNATION_MAX, Member, MemberState, check, overrides
from kvstore.gossip.packet import Told, encode_told
from kvstore.gossip.roster import Entry, Roster, mark
from kvstore.gossip.settings import GossipSettings
from kvstore.gossip.suspicion import Suspicion

HEAP_SLACK = 64
"""The heap of suspicions' ends is rebuilt when it has so many more entries than there may be valid ones."""
RECENT_MAX = 8
"""Changes that are told again to a peer whose digest differs: what it missed is mostly among the last few."""


class Rumours:
    def __init__(
        self,
        me: Member,
        *,
        settings: GossipSettings,
        rng: random.Random,
        now: float,
        counters: Counters,
        awareness: Awareness,
    ) -> None:
        """Raises Invalid for a record that would not be taken elsewhere."""
        wrong = check(me)
        if wrong is not None:
            raise Invalid(f"This node cannot be told to others: {wrong}.")
        self.me = me
        self.my_id = bytes.fromhex(me.node)
        self.since = now
        self.leaving = me.state == MemberState.LEFT
        self.roster = Roster(rng)
        self.news = Broadcasts()
        self._settings = settings
        self._counters = counters
        self._awareness = awareness
        self._events: list[Event] = []
        self._ends: list[tuple[float, str]] = []  # heap of (when the suspicion ends, node); old ones stay until popped
        self._suspected = 0  # entries with a suspicion
        self._conflicts: dict[tuple[str, str], None] = {}
        self._gone = 0
        self._recent: dict[str, None] = {me.node: None}  # nodes, the latest change last
        self.news.put(me.node, encode_told(me))

    @property
    def members(self) -> int:
        """Neither dead nor gone, this node included."""
        return self.roster.living + 1

    @property
    def digest(self) -> int:
        """Of who lives at which incarnation. Two nodes that differ should tell each other their `recent`."""
        return self.roster.digest if self.leaving else self.roster.digest ^ mark(self.me)

    def recent(self) -> list[msgspec.Raw]:
        """The latest changes told from here, as they stand now, the latest first."""
        members = [self.me if node == self.me.node else self._known(node) for node in reversed(self._recent)]
        return [encode_told(each) for each in members if each is not None]

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # --- tales from elsewhere

    def hear(self, told: Told, now: float) -> None:
        """A tale from a packet."""
        if told.node == self.my_id:
            self._hear_of_me(told.member())
            return
        member = told.member()
        entry = self.roster.get(member.node)
        accuser = told.accuser.hex() if told.state == MemberState.SUSPECT and len(told.accuser) == 16 else ""
        self._merge(entry, member, accuser, now, tell=True)

    def push_state(self) -> list[Member]:
        return [self.me, *(entry.member for entry in self.roster if not entry.hearsay)]

    def pull_state(self, members: Sequence[Member], now: float) -> None:
        """A copy of what another node believes."""
        # Who knows nobody yet has all of it from members that know it already: there is no news in it.
        tell = len(self.roster) > 0
        for member in members[: self._settings.members_max]:
            wrong = check(member)
            if wrong is not None:
                self._counters.refuse("bad record")
            elif member.node == self.me.node:
                self._hear_of_me(member)
            else:
                entry = self.roster.get(member.node)
                accuser = ""
                if entry is not None and member.state == MemberState.DEAD:
                    member = _with(member, state=MemberState.SUSPECT)
                if member.state == MemberState.SUSPECT:
                    accuser = self.me.node
                self._merge(entry, member, accuser, now, tell=tell)

    def _merge(self, entry: Entry | None, member: Member, accuser: str, now: float, *, tell: bool) -> None:
        if entry is not None:
            old = entry.member
            if member.state == MemberState.SUSPECT and member.rank == old.rank:
                self._confirm(entry, accuser)
            if not overrides(member, old):
                return
        if check(member) is not None:
            self._counters.refuse("bad record")
            return
        if entry is None and not self._make_room(member):
            return
        self._accept(entry, member, accuser, now, tell=tell)

    def _accept(self, entry: Entry | None, member: Member, accuser: str, now: float, *, tell: bool) -> None:
        old = entry.member if entry is not None else None
        entry = self.roster.put(member, now)
        entry.hearsay = member.is_gone and (old is None or entry.hearsay)
        self._gone += member.is_gone - (old is not None and old.is_gone)
        self._renew_suspicion(entry, old, accuser, now)
        if tell and not entry.hearsay:
            self.news.put(member.node, encode_told(member, accuser))
            self._note_recent(member.node)
        elif old is not None:
            self.news.drop(member.node)
        self._tell(MemberChanged(old, member))
        if not member.is_gone:
            self._look_for_namesakes(member)

    def _known(self, node: str) -> Member | None:
        entry = self.roster.get(node)
        return None if entry is None else entry.member

    def _note_recent(self, node: str) -> None:
        self._recent.pop(node, None)
        self._recent[node] = None
        if len(self._recent) > RECENT_MAX:
            del self._recent[next(iter(self._recent))]

    # --- suspicion

    def suspect(self, node: str, *, incarnation: int, now: float) -> None:
        """This node's own probe of that incarnation failed."""
        entry = self.roster.get(node)
        if entry is None or entry.member.incarnation != incarnation:
            return
        if entry.member.state == MemberState.ALIVE:
            self._accept(entry, _with(entry.member, state=MemberState.SUSPECT), self.me.node, now, tell=True)
        elif entry.member.state == MemberState.SUSPECT:
            self._confirm(entry, self.me.node)

    def _renew_suspicion(self, entry: Entry, old: Member | None, accuser: str, now: float) -> None:
        """An equal rank keeps the time that it has; a suspicion of a new incarnation starts anew."""
        suspect = entry.member.state == MemberState.SUSPECT
        if suspect and old is not None and old.rank == entry.member.rank:
            return
        self._suspected += suspect - (entry.suspicion is not None)
        entry.suspicion = None
        if suspect:
            self._counters.suspicions += 1
            entry.suspicion = Suspicion.begin(accuser, members=self.members, settings=self._settings, now=now)
            self._push_end(entry)

    def _confirm(self, entry: Entry, accuser: str) -> None:
        assert entry.suspicion is not None
        if accuser and entry.suspicion.confirm(accuser):
            self._push_end(entry)
            # The others should count this accuser, too.
            self.news.put(entry.member.node, encode_told(entry.member, accuser))

    def next_end(self) -> float | None:
        """When a suspicion may run out."""
        return self._ends[0][0] if self._ends else None

    def expire(self, now: float) -> None:
        """Declare dead who did not refute in time."""
        while self._ends and self._ends[0][0] <= now:
            ends_at, node = heapq.heappop(self._ends)
            entry = self.roster.get(node)
            # The suspicion may be over, or shorter than this end said: then another entry stands for it.
            if entry is None or entry.suspicion is None or entry.suspicion.ends_at != ends_at:
                continue
            self._counters.deaths += 1
            self._accept(entry, _with(entry.member, state=MemberState.DEAD), "", now, tell=True)

    def delay(self, seconds: float) -> None:
        """This process slept so long: suspects could not refute meanwhile, as nobody listened here."""
        for entry in self.roster:
            if entry.suspicion is not None:
                entry.suspicion.began += seconds
        self._rebuild_ends()

    def _push_end(self, entry: Entry) -> None:
        assert entry.suspicion is not None
        heapq.heappush(self._ends, (entry.suspicion.ends_at, entry.member.node))
        if len(self._ends) > HEAP_SLACK + 2 * self._suspected:
            self._rebuild_ends()

    def _rebuild_ends(self) -> None:
        self._ends = [
            (entry.suspicion.ends_at, entry.member.node) for entry in self.roster if entry.suspicion is not None
        ]
        heapq.heapify(self._ends)

    # --- this node itself

    def _hear_of_me(self, told: Member) -> None:
        if not overrides(told, self.me):
            return
        if self.leaving:
            # A higher incarnation than mine was made up elsewhere; my leave has to outrank it.
            self._change_me(incarnation=told.incarnation)
            return
        if told.incarnation >= INCARNATION_MAX:
            self._counters.refuse("incarnation used up")
            return
        self._counters.refutations += 1
        if told.state in (MemberState.SUSPECT, MemberState.DEAD):
            self._awareness.shift(1)
        self._change_me(incarnation=told.incarnation + 1)

    def leave(self, now: float) -> None:
        if not self.leaving:
            self.leaving = True
            self.since = now
            self._change_me(state=MemberState.LEFT)

    def _change_me(self, *, incarnation: int | None = None, state: MemberState | None = None) -> None:
        self.me = _with(self.me, incarnation=incarnation, state=state)
        self.news.put(self.me.node, encode_told(self.me))
        self._note_recent(self.me.node)

    # --- those that are gone

    def declare_left(self, node: str, now: float) -> None:
        """Somebody removed the node for good. One that is not known needs no telling."""
        entry = self.roster.get(node)
        if entry is not None and entry.member.state != MemberState.LEFT:
            self._accept(entry, _with(entry.member, state=MemberState.LEFT), "", now, tell=True)

    def forget(self, now: float) -> None:
        """Drop who has been gone for so long that no old tale of it can be about any more."""
        if self._gone == 0:
            return
        before = now - self._settings.forget_seconds
        for node in [e.member.node for e in self.roster if e.member.is_gone and e.since <= before]:
            self._drop(node)

    def _drop(self, node: str) -> None:
        self.roster.remove(node)
        self._gone -= 1
        self.news.drop(node)
        self._conflicts = {pair: None for pair in self._conflicts if node not in pair}
        self._tell(Forgotten(node))

    def _make_room(self, newcomer: Member) -> bool:
        """Whether a newcomer may be taken in: where all places are taken, one that lives replaces the longest gone."""
        if len(self.roster) + 1 < self._settings.members_max:
            return True
        if newcomer.is_gone or self._gone == 0:
            self._counters.refuse("too many members")
            return False
        oldest = min((entry for entry in self.roster if entry.member.is_gone), key=lambda entry: entry.since)
        self._drop(oldest.member.node)
        return True

    # --- events

    def _look_for_namesakes(self, member: Member) -> None:
        others = self.roster.namesakes(member)
        if member.name == self.me.name and not self.me.is_gone:
            others.append(self.me)
        for other in others:
            one, two = sorted((member, other), key=lambda each: each.node)
            pair = (one.node, two.node)
            if pair in self._conflicts:
                continue
            if len(self._conflicts) >= self._settings.conflicts_max:
                self._counters.refuse("too many name conflicts")
                return
            self._conflicts[pair] = None
            self._tell(NameConflict(one, two))

    def _tell(self, event: Event) -> None:
        if len(self._events) >= self._settings.events_max:
            self._counters.refuse("too many events")
            return
        self._events.append(event)


def _with(member: Member, *, incarnation: int | None = None, state: MemberState | None = None) -> Member:
    return msgspec.structs.replace(
        member,
        incarnation=member.incarnation if incarnation is None else incarnation,
        state=member.state if state is None else state,
    )
