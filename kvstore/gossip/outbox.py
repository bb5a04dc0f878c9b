"""Packets on their way out: each is filled with the news that is due, then with cargo.

Invariant: no packet is over `budget`.
Invariant: at most `outbox_max` packets wait; what is over that is dropped and counted, as the network might have done.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw

from kvstore.gossip.broadcast import Broadcasts
from kvstore.gossip.cargo import Cargo
from kvstore.gossip.counters import Counters
from kvstore.gossip.packet import Body, encode, encode_body, room
from kvstore.gossip.roster import Roster
from kvstore.gossip.settings import PACKET_BYTES_MIN, GossipSettings


class Outbox:
    def __init__(
        self,
        *,
        budget: int,
        news: Broadcasts,
        cargo: Cargo,
        roster: Roster,
        counters: Counters,
        settings: GossipSettings,
    ) -> None:
        assert budget >= PACKET_BYTES_MIN
        self.budget = budget
        self._news = news
        self._cargo = cargo
        self._roster = roster
        self._counters = counters
        self._settings = settings
        self._ready: list[tuple[str, bytes]] = []

    def send(self, address: str, body: Body, *, first: Sequence[Raw] = (), fill: bool = True) -> None:
        """`first`: news that this packet carries before what is due, as far as it fits; one piece always does. `fill`
        false: nothing beside it."""
        if self._is_full():
            return
        head = encode_body(body)
        left = room(head, self.budget)
        news: list[Raw] = []
        for each in first:
            if len(each) > left:
                break
            news.append(each)
            left -= len(each)
        assert news or not first
        cargo: list[Raw] = []
        if fill:
            members = self._roster.living + 1
            due = self._news.take(left, limit=self._settings.retransmits(members))
            left -= sum(map(len, due))
            news += due
            if self._cargo.pending:
                cargo = self._cargo.take(left, members=members)
        self._put(address, encode(head, news, cargo))

    def send_cargo(self, address: str, body: Body, items: list[Raw]) -> None:
        """Just these items, which fit (see `cargo_room`)."""
        if not self._is_full():
            self._put(address, encode(encode_body(body), [], items))

    def cargo_room(self, body: Body) -> int:
        return room(encode_body(body), self.budget)

    def take(self) -> list[tuple[str, bytes]]:
        ready, self._ready = self._ready, []
        return ready

    def _is_full(self) -> bool:
        if len(self._ready) < self._settings.outbox_max:
            return False
        self._counters.refuse("outbox full")
        return True

    def _put(self, address: str, payload: bytes) -> None:
        assert len(payload) <= self.budget
        self._ready.append((address, payload))
        self._counters.packets_sent += 1
        self._counters.bytes_sent += len(payload)
