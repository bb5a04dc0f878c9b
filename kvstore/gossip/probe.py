"""Whether members answer: one is probed each period, directly, then through others and over TCP.

A period: ping; when `timeout_at` passes without an ack, ask `indirect_probes` other members to ping it and the driver
to try TCP; when `deadline` passes, the probe has failed. A relay that has no answer by 80 % of the timeout says so
(nack): so the prober learns that at least its own packets come and go.

Invariant: one probe at a time is under way here, and `relays_max` on behalf of others.
Invariant: an ack counts once, and only with the ticket of the probe and from the node that was pinged.

Source: SWIM, sections 3.1 and 4.3; Lifeguard, section 4.1.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from kvstore.gossip.awareness import Awareness
from kvstore.gossip.cargo import Cargo
from kvstore.gossip.counters import Counters
from kvstore.gossip.events import StreamProbe
from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.outbox import Outbox
from kvstore.gossip.packet import Ack, Nack, Ping, PingRequest, encode_told
from kvstore.gossip.roster import Entry, Roster
from kvstore.gossip.settings import GossipSettings

STREAMS_MAX = 8
"""Requests for the driver; an older one is answered by time."""


@dataclass(slots=True)
class Probe:
    """Of one member by this node, under way."""

    ticket: int
    entry: Entry
    incarnation: int  # that a failure accuses; one that refuted meanwhile is not suspected by it
    started: float
    timeout_at: float
    deadline: float
    delayed: bool = False  # no round trip can be told from it
    asked: list[bytes] | None = None  # the relays, once the direct ping has timed out
    nacks: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Relay:
    """A ping on behalf of another member."""

    asker: bytes
    address: str  # of the asker
    ticket: int  # the asker's
    answered: bool = False


class Prober:
    def __init__(
        self,
        me: bytes,
        *,
        roster: Roster,
        outbox: Outbox,
        cargo: Cargo,
        awareness: Awareness,
        counters: Counters,
        settings: GossipSettings,
        rng: random.Random,
        now: float,
    ) -> None:
        self._me = me
        self._roster = roster
        self._outbox = outbox
        self._cargo = cargo
        self._awareness = awareness
        self._counters = counters
        self._settings = settings
        self._rng = rng
        self._probe: Probe | None = None
        # At once would make all nodes that start together probe together, period after period.
        self._next_at = now + rng.random() * settings.probe_seconds
        self._streams: deque[StreamProbe] = deque(maxlen=STREAMS_MAX)
        self._relays: dict[int, Relay] = {}  # by this node's own ticket
        self._nacks_due: deque[tuple[float, int]] = deque()
        self._relays_end: deque[tuple[float, int]] = deque()

    def take_streams(self) -> list[StreamProbe]:
        streams = list(self._streams)
        self._streams.clear()
        return streams

    def next_at(self) -> float:
        if self._probe is None:
            at = self._next_at
        else:
            at = self._probe.timeout_at if self._probe.asked is None else self._probe.deadline
        for due in (self._nacks_due, self._relays_end):
            if due:
                at = min(at, due[0][0])
        return at

    def tick(self, now: float) -> Probe | None:
        """A probe that has just failed, if one has."""
        failed = self._tick_probe(now)
        self._tick_relays(now)
        return failed

    def stop(self) -> None:
        """This node leaves: it accuses nobody any more. It still relays."""
        self._probe = None
        self._next_at = float("inf")

    def delay(self, seconds: float) -> None:
        """This process slept so long: the answer to its probe may wait to be received."""
        probe = self._probe
        if probe is not None:
            probe.delayed = True
            probe.timeout_at += seconds
            probe.deadline += seconds

    # --- this node's own probe

    def _tick_probe(self, now: float) -> Probe | None:
        probe = self._probe
        failed = None
        if probe is not None:
            if probe.asked is None and now >= probe.timeout_at:
                self._ask_others(probe)
            if now >= probe.deadline:
                self._probe = None
                failed = self._fail(probe)
        if self._probe is None and now >= self._next_at:
            self._begin(now)
        return failed

    def _begin(self, now: float) -> None:
        settings = self._settings
        entry = self._roster.next_to_probe()
        period = self._awareness.scaled(settings.probe_seconds)
        self._next_at = now + period
        if entry is None:
            return
        self._counters.probes += 1
        ticket = self._ticket()
        timeout_at = now + self._awareness.scaled(settings.probe_timeout_seconds)
        self._probe = Probe(ticket, entry, entry.member.incarnation, now, timeout_at, now + period)
        self.ping(entry.member, ticket)

    def ping(self, member: Member, ticket: int | None = None) -> None:
        """A suspect, or one believed dead, is told so in the same packet: it should refute at once (Lifeguard 4.3)."""
        first = encode_told(member) if member.state in (MemberState.SUSPECT, MemberState.DEAD) else None
        body = Ping(
            self._ticket() if ticket is None else ticket, self._me, bytes.fromhex(member.node), self._cargo.digest()
        )
        self._outbox.send(member.address, body, first=first)

    def _ask_others(self, probe: Probe) -> None:
        self._counters.indirect += 1
        target = bytes.fromhex(probe.entry.member.node)
        relays = self._roster.sample(
            self._settings.indirect_probes,
            lambda entry: entry is not probe.entry and entry.member.state == MemberState.ALIVE,
        )
        probe.asked = [bytes.fromhex(relay.member.node) for relay in relays]
        for relay in relays:
            self._outbox.send(relay.member.address, PingRequest(probe.ticket, self._me, target))
        self._streams.append(StreamProbe(probe.entry.member.node, probe.entry.member.address, probe.ticket))

    def _fail(self, probe: Probe) -> Probe:
        self._counters.probes_failed += 1
        # Relays that neither relayed nor said no: it is this node's packets that are lost or late. Without relays there
        # is nobody to tell, and the blame is shared.
        assert probe.asked is not None
        self._awareness.shift(len(probe.asked) - len(probe.nacks) if probe.asked else 1)
        return probe

    def _succeed(self) -> None:
        self._probe = None
        self._awareness.shift(-1)

    def stream_answer(self, ticket: int, ok: bool) -> None:
        if ok and self._probe is not None and self._probe.ticket == ticket:
            self._counters.stream_saved += 1
            self._succeed()

    # --- what the others send

    def on_ack(self, body: Ack, now: float) -> None:
        relay = self._relays.get(body.ticket)
        probe = self._probe
        if probe is not None and probe.ticket == body.ticket:
            if body.node.hex() != probe.entry.member.node:
                self._counters.refuse("foreign ack")
                return
            if body.digest is not None:
                probe.entry.on_answer(None if probe.delayed else now - probe.started, now)
            self._succeed()
        elif relay is not None and not relay.answered:
            relay.answered = True
            self._outbox.send(relay.address, Ack(relay.ticket, body.node, None))

    def on_nack(self, body: Nack) -> None:
        probe = self._probe
        if probe is None or probe.ticket != body.ticket or probe.asked is None:
            return
        if body.sender in probe.asked and body.sender not in probe.nacks:
            probe.nacks.append(body.sender)

    def on_request(self, body: PingRequest, source: str, now: float) -> None:
        entry = self._roster.get(body.target.hex())
        if self._roster.get(body.sender.hex()) is None:
            self._counters.refuse("stranger")
            return
        if entry is None:
            self._outbox.send(source, Nack(body.ticket, self._me))
            return
        if len(self._relays) >= self._settings.relays_max:
            self._counters.refuse("too many relays")
            return
        ticket = self._ticket()
        self._relays[ticket] = Relay(body.sender, source, body.ticket)
        self._nacks_due.append((now + self._settings.nack_share * self._settings.probe_timeout_seconds, ticket))
        self._relays_end.append((now + self._settings.probe_seconds, ticket))
        self.ping(entry.member, ticket)

    def _tick_relays(self, now: float) -> None:
        while self._nacks_due and self._nacks_due[0][0] <= now:
            relay = self._relays.get(self._nacks_due.popleft()[1])
            if relay is not None and not relay.answered:
                self._outbox.send(relay.address, Nack(relay.ticket, self._me))
        while self._relays_end and self._relays_end[0][0] <= now:
            self._relays.pop(self._relays_end.popleft()[1], None)

    def _ticket(self) -> int:
        """Not to be guessed, so that who cannot see a ping cannot answer it."""
        while True:
            ticket = self._rng.getrandbits(32)
            if ticket not in self._relays and (self._probe is None or self._probe.ticket != ticket):
                return ticket
