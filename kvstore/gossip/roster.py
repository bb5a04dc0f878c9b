"""The members that are known beside this one, whose turn it is to be probed, and who is drawn by lot.

Invariant: the ring holds each member that is neither dead nor gone exactly once, so each is probed once a round; some
    that are gone may still be in it, until they are met.
Invariant: a newcomer gets a place at random in the current round, so that two nodes' rounds do not follow each other.
Invariant: `living` counts those neither dead nor gone; names are indexed, and `digest` is made, of these only.

Source: SWIM, section 4.3 (round-robin probe target selection).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

from kvstore.gossip.member import Member
from kvstore.gossip.suspicion import Suspicion

SMALL_RING = 24
"""Up to here all candidates are listed and drawn from; above, places are drawn until enough fit."""


def mark(member: Member) -> int:
    """64 bits that stand for this incarnation of the node, the same on every node."""
    text = f"{member.node}{member.incarnation}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


class Entry:
    """What this node knows of another one. Only Rumours and Roster change what is believed."""

    __slots__ = ("heard", "hearsay", "in_ring", "mark", "member", "rtt", "since", "suspicion")

    def __init__(self, member: Member, now: float) -> None:
        self.member = member
        self.since = now  # when it entered its state
        self.suspicion: Suspicion | None = None  # exactly while its state is SUSPECT
        self.hearsay = False  # was gone when first heard of: kept, so that old tales do not revive it, but not told
        self.in_ring = False
        self.mark = 0  # its share of the digest; 0 when gone
        self.heard: float | None = None
        self.rtt: float | None = None

    def on_answer(self, seconds: float | None, now: float) -> None:
        """`seconds`: the round trip, where it can be told."""
        self.heard = now
        if seconds is not None:
            self.rtt = seconds if self.rtt is None else self.rtt + (seconds - self.rtt) / 8


class Roster:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._entries: dict[str, Entry] = {}
        self._ring: list[Entry] = []
        self._cursor = 0  # ring[:cursor] were probed in this round
        self._names: dict[str, list[str]] = {}
        self.living = 0
        self.digest = 0  # of who lives at which incarnation, whatever the order in which it was heard

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, node: str) -> Entry | None:
        return self._entries.get(node)

    def put(self, member: Member, now: float) -> Entry:
        """Make this what is known of the node."""
        entry = self._entries.get(member.node)
        if entry is None:
            entry = self._entries[member.node] = Entry(member, now)
        else:
            self._unindex(entry)
            if member.state != entry.member.state:
                entry.since = now
            entry.member = member
        if not member.is_gone:
            self.living += 1
            entry.mark = mark(member)
            self.digest ^= entry.mark
            self._names.setdefault(member.name, []).append(member.node)
            if not entry.in_ring:
                self._enter_ring(entry)
        return entry

    def remove(self, node: str) -> None:
        entry = self._entries.pop(node)
        self._unindex(entry)
        if entry.in_ring:
            self._leave_ring(self._ring.index(entry))

    def namesakes(self, member: Member) -> list[Member]:
        """Others with the name, neither dead nor gone."""
        nodes = self._names.get(member.name, [])
        return [self._entries[node].member for node in nodes if node != member.node]

    def next_to_probe(self) -> Entry | None:
        """Round robin; the order is shuffled before each round."""
        for _ in range(len(self._ring) + 1):
            if self._cursor >= len(self._ring):
                self._shuffle()
                if not self._ring:
                    return None
            entry = self._ring[self._cursor]
            self._cursor += 1
            if not entry.member.is_gone:
                return entry
        return None

    def sample(self, count: int, accept: Callable[[Entry], bool]) -> list[Entry]:
        """Up to so many different ones, each of those that are accepted with the same chance."""
        if len(self._ring) <= SMALL_RING:
            candidates = [entry for entry in self._ring if accept(entry)]
            return self._rng.sample(candidates, min(count, len(candidates)))
        drawn: list[Entry] = []
        for _ in range(count * 8):
            if len(drawn) == count:
                break
            entry = self._ring[self._rng.randrange(len(self._ring))]
            if entry not in drawn and accept(entry):
                drawn.append(entry)
        return drawn

    def prune_ring(self, keep: Callable[[Entry], bool]) -> None:
        """Let those go that are neither living nor to be kept for a while: draws would miss too often."""
        for place in range(len(self._ring) - 1, -1, -1):
            entry = self._ring[place]
            if entry.member.is_gone and not keep(entry):
                self._leave_ring(place)

    def _unindex(self, entry: Entry) -> None:
        member = entry.member
        if member.is_gone:
            return
        self.living -= 1
        self.digest ^= entry.mark
        entry.mark = 0
        nodes = self._names[member.name]
        nodes.remove(member.node)
        if not nodes:
            del self._names[member.name]

    def _enter_ring(self, entry: Entry) -> None:
        place = self._rng.randint(0, len(self._ring))
        self._ring.insert(place, entry)
        entry.in_ring = True
        if place < self._cursor:
            self._cursor += 1

    def _leave_ring(self, place: int) -> None:
        self._ring.pop(place).in_ring = False
        if place < self._cursor:
            self._cursor -= 1

    def _shuffle(self) -> None:
        self._rng.shuffle(self._ring)
        self._cursor = 0
