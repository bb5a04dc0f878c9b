"""Whether members answer: one is probed each period, directly, then through others and over TCP.

A period: ping; when `timeout_at` passes without an ack, ask `indirect_probes` other members to ping it and the driver
to try TCP; when `deadline` passes, the probe has failed. A relay that has no answer by 80 % of the timeout says so
(nack): so the prober learns that at least its own packets come and go.

Until an ack comes, the ping is sent again each `ping_again_seconds` (or two round trips, where they are longer), and
the first time after the timeout as many others again are asked. SWIM pings once: where a fifth of the packets is lost,
one probe in 14 of a live member fails, each failure is news for every node, and what a node has to tell grows with the
cluster. Eight pings and six relays make it one in 80,000. That costs nothing where nothing is lost, and where much is,
it saves more packets of relays than it sends.

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
from kvstore.gossip.roster import Entry
from kvstore.gossip.rumours import Rumours
from kvstore.gossip.settings import GossipSettings

STREAMS_MAX = 8
"""Requests for the driver; an older one is answered by time."""


@dataclass(slots=True)
class Probe:
    """Of one member by this node, under way."""

    ticket: int  # that relays and TCP answer with
    entry: Entry
    incarnation: int  # that a failure accuses; one that refuted meanwhile is not suspected by it
    again_seconds: float
    again_at: float
    timeout_at: float
    deadline: float
    sent: dict[int, float]  # each direct ping's own ticket -> when; so each ack tells its round trip
    delayed: bool = False  # this process slept: no round trip can be told
    asked: list[Entry] = field(default_factory=list)  # relays
    nacks_expected: int | None = None  # of the relays asked first; None until the timeout
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
        rumours: Rumours,
        *,
        outbox: Outbox,
        cargo: Cargo,
        awareness: Awareness,
        counters: Counters,
        settings: GossipSettings,
        rng: random.Random,
        now: float,
    ) -> None:
        self._me = rumours.my_id
        self._rumours = rumours
        self._roster = rumours.roster
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
        probe = self._probe
        at = self._next_at if probe is None else min(probe.again_at, probe.deadline)
        if probe is not None and probe.nacks_expected is None:
            at = min(at, probe.timeout_at)
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
            probe.again_at += seconds
            probe.timeout_at += seconds
            probe.deadline += seconds

    # --- this node's own probe

    def _tick_probe(self, now: float) -> Probe | None:
        probe = self._probe
        failed = None
        if probe is not None:
            if now >= probe.deadline:
                self._probe = None
                failed = self._fail(probe)
            else:
                self._try_again(probe, now)
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
        again_seconds = self._awareness.scaled(max(settings.ping_again_seconds, 2 * (entry.rtt or 0.0)))
        self._probe = Probe(
            ticket,
            entry,
            entry.member.incarnation,
            again_seconds,
            now + again_seconds,
            now + self._awareness.scaled(settings.probe_timeout_seconds),
            now + period,
            {ticket: now},
        )
        self.ping(entry.member, ticket)

    def _try_again(self, probe: Probe, now: float) -> None:
        first = probe.nacks_expected is None and now >= probe.timeout_at
        again = now >= probe.again_at
        if again:
            probe.again_at = now + probe.again_seconds
            ticket = self._ticket()
            probe.sent[ticket] = now
            self.ping(probe.entry.member, ticket)
        if first or (again and len(probe.asked) == probe.nacks_expected):
            self._ask_others(probe)
        if first:
            self._counters.indirect += 1
            probe.nacks_expected = len(probe.asked)
            self._streams.append(StreamProbe(probe.entry.member.node, probe.entry.member.address, probe.ticket))

    def ping(self, member: Member, ticket: int | None = None) -> None:
        """A suspect, or one believed dead, is told so in the same packet: it should refute at once (Lifeguard 4.3)."""
        first = [encode_told(member)] if member.state in (MemberState.SUSPECT, MemberState.DEAD) else []
        ticket = self._ticket() if ticket is None else ticket
        target = bytes.fromhex(member.node)
        body = Ping(ticket, self._me, target, self._cargo.digest(), self._rumours.digest)
        self._outbox.send(member.address, body, first=first)

    def _ask_others(self, probe: Probe) -> None:
        def accept(entry: Entry) -> bool:
            return entry.member.state == MemberState.ALIVE and entry is not probe.entry and entry not in probe.asked

        target = bytes.fromhex(probe.entry.member.node)
        for relay in self._roster.sample(self._settings.indirect_probes, accept):
            probe.asked.append(relay)
            self._outbox.send(relay.member.address, PingRequest(probe.ticket, self._me, target))

    def _fail(self, probe: Probe) -> Probe:
        self._counters.probes_failed += 1
        # Relays that neither relayed nor said no: it is this node's packets that are lost or late. Without relays
        # nobody can tell, and the blame is shared. Relays that were asked again late had no time to say no.
        expected = probe.nacks_expected or 0
        self._awareness.shift(max(0, expected - len(probe.nacks)) if expected else 1)
        return probe

    def _succeed(self) -> None:
        self._probe = None
        self._awareness.shift(-1)

    def stream_answer(self, ticket: int, ok: bool) -> None:
        if ok and self._probe is not None and self._probe.ticket == ticket:
            self._counters.stream_saved += 1
            self._succeed()

    # --- what the others send

    def on_ack(self, body: Ack, now: float) -> Member | None:
        """Who was probed by this node, if this is its answer."""
        relay = self._relays.get(body.ticket)
        probe = self._probe
        if probe is not None and body.ticket in probe.sent:
            if body.node.hex() != probe.entry.member.node:
                self._counters.refuse("foreign ack")
                return None
            if body.digest is not None:
                probe.entry.on_answer(None if probe.delayed else now - probe.sent[body.ticket], now)
            self._succeed()
            return probe.entry.member
        if relay is not None and not relay.answered:
            relay.answered = True
            self._outbox.send(relay.address, Ack(relay.ticket, body.node, None, 0))
        return None

    def on_nack(self, body: Nack) -> None:
        probe = self._probe
        if probe is None or probe.ticket != body.ticket or body.sender in probe.nacks:
            return
        if any(bytes.fromhex(relay.member.node) == body.sender for relay in probe.asked):
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
            if ticket not in self._relays and (self._probe is None or ticket not in self._probe.sent):
                return ticket
