"""One gossip core under test, and shorthand for what it hears and says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Raw

from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.packet import Ack, Body, Gossip, Packet, Ping, Told, decode, encode, encode_body, encode_told
from kvstore.gossip.settings import GossipSettings
from kvstore.gossip.swim import Event, StreamProbe, Swim

ALIVE, SUSPECT, DEAD, LEFT = MemberState
BUDGET = 1_300


def node_id(number: int) -> str:
    return f"{number:032x}"


def raw_id(number: int) -> bytes:
    return bytes.fromhex(node_id(number))


def member(
    number: int,
    incarnation: int = 5,
    state: MemberState = ALIVE,
    *,
    name: str | None = None,
    labels: dict[str, str] | None = None,
) -> Member:
    return Member(node_id(number), name or f"n{number}", f"10.0.0.{number}:7001", incarnation, state, labels or {}, "1")


def packet(*members: Member, body: Body | None = None, accuser: int | None = None, cargo: Sequence[Raw] = ()) -> bytes:
    who = "" if accuser is None else node_id(accuser)
    return encode(encode_body(body or Gossip()), [encode_told(each, who) for each in members], list(cargo))


@dataclass
class Crate:
    """Cargo that can be looked into."""

    digest_value: int = 0
    waiting: list[Raw] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    parts: list[list[Raw]] = field(default_factory=list)
    asked_about: list[bytes] = field(default_factory=list)

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def digest(self) -> int:
        return self.digest_value

    def take(self, bytes_max: int, *, members: int) -> list[Raw]:
        taken = []
        while self.waiting and len(self.waiting[0]) <= bytes_max:
            bytes_max -= len(self.waiting[0])
            taken.append(self.waiting.pop(0))
        return taken

    def receive(self, items: Sequence[Raw], now: float) -> None:
        self.received += [bytes(item) for item in items]

    def buckets(self) -> bytes:
        return b"buckets"

    def differing(self, buckets: bytes, *, bytes_max: int, packets_max: int) -> list[list[Raw]]:
        self.asked_about.append(buckets)
        return self.parts[:packets_max]


@dataclass
class Sent:
    """A datagram, taken apart."""

    address: str
    packet: Packet

    @property
    def body(self) -> Any:
        return self.packet.body

    @property
    def news(self) -> list[Told]:
        return self.packet.news


class Core:
    """Node 0, and a clock that stands still until it is moved. `answered`: members that live answer its pings."""

    def __init__(
        self, *others: Member, cargo: Crate | None = None, seed: int = 1, answered: bool = False, **settings: Any
    ) -> None:
        self.now = 100.0
        self.answered = answered
        self.events: list[Event] = []
        self.streams: list[StreamProbe] = []
        self.cargo = cargo or Crate()
        self.settings = GossipSettings(**settings)
        self.swim = Swim(
            member(0),
            settings=self.settings,
            rng=random.Random(seed),
            now=self.now,
            cargo=self.cargo,
            budget=BUDGET,
        )
        if others:
            self.swim.pull_state(others, self.now)
        self.swim.take()

    def hear(self, *members: Member, body: Body | None = None, accuser: int | None = None, source: int = 1) -> None:
        self.swim.receive(packet(*members, body=body, accuser=accuser), f"10.0.0.{source}:7001", self.now)

    def advance(self, seconds: float) -> list[Sent]:
        """Let time pass, each timer at its time. What was sent meanwhile."""
        until = self.now + seconds
        sent = self.sent()
        while (at := self.swim.next_at()) <= until:
            self.now = max(at, self.now)
            self.swim.tick(self.now)
            assert self.swim.next_at() > self.now, "a tick leaves nothing undone"
            for each in self.sent():
                sent.append(each)
                if self.answered and isinstance(each.body, Ping):
                    self._answer(each.body)
        self.now = until
        return sent

    @property
    def digest(self) -> int:
        """Of the members: who says the same has missed nothing."""
        return self.swim._rumours.digest

    def ping(self, sender: int, target: int = 0, *, ticket: int = 9, digest: int = 0) -> Ping:
        return Ping(ticket, raw_id(sender), raw_id(target), digest, self.digest)

    def ack(self, ping: Ping, *, digest: int = 0) -> Ack:
        return Ack(ping.ticket, ping.target, digest, self.digest)

    def _answer(self, ping: Ping) -> None:
        target = self.swim.member(ping.target.hex())
        if target is not None and not target.is_gone:
            self.swim.receive(packet(body=self.ack(ping)), target.address, self.now)

    def sent(self) -> list[Sent]:
        """Since the last look; events and requests are kept."""
        output = self.swim.take()
        self.events += output.events
        self.streams += output.probes
        return [Sent(address, decode(payload)) for address, payload in output.datagrams]

    def state(self, number: int) -> MemberState | None:
        known = self.swim.member(node_id(number))
        return None if known is None else known.state


def bodies(sent: Sequence[Sent], kind: type[Any]) -> list[Sent]:
    return [each for each in sent if isinstance(each.body, kind)]
