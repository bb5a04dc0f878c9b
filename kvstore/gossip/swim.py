"""The membership protocol: SWIM with Lifeguard, without sockets and clocks.

Whoever drives it calls `receive` for each packet, `tick` at `next_at`, and after each of its calls does what `take`
says. `now` is one clock's seconds that do not go back. Packets may be lost, late, doubled, forged and nonsense.

Every `probe_seconds` one member is probed (probe.py). News waits in a queue (broadcast.py) and fills the packets that
are sent anyway; while some waits, `gossip_targets` random members get packets of their own each `gossip_seconds`, the
first at once. Comparing whole states (push-pull) is the driver's: `push_pull_peer`, `push_state`, `pull_state`.

Invariant: whatever is received costs bounded memory: members, relays, packets out and events have each their bound.
Invariant: same calls, same seed, same output; nothing here iterates a set or asks the system for anything.
Invariant: a packet is never over the budget.

Source: SWIM (Das, Gupta, Motivala 2002); Lifeguard (Dadgar, Phillips, Currey 2017); memberlist's defaults.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from msgspec import Raw

from kvstore.gossip.awareness import Awareness
from kvstore.gossip.cargo import Cargo
from kvstore.gossip.cargo_sync import CargoSync
from kvstore.gossip.counters import Counters
from kvstore.gossip.events import (
    Event,
    Forgotten,
    MemberChanged,
    MemberView,
    NameConflict,
    Output,
    StreamProbe,
)
from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.outbox import Outbox
from kvstore.gossip.packet import (
    Ack,
    BadPacket,
    Gossip,
    Nack,
    Packet,
    Ping,
    PingRequest,
    Sync,
    decode,
    encode_told,
)
from kvstore.gossip.probe import Prober
from kvstore.gossip.roster import Entry
from kvstore.gossip.rumours import Rumours
from kvstore.gossip.settings import PACKET_BYTES_MIN, GossipSettings

__all__ = [
    "PACKET_BYTES_MIN",
    "Counters",
    "Event",
    "Forgotten",
    "MemberChanged",
    "MemberView",
    "NameConflict",
    "Output",
    "StreamProbe",
    "Swim",
]

CARGO_ITEM_BYTES = 96
"""A guess, for the number of packets that what waits will fill."""


class Swim:
    """One node's part in the protocol. Call `take` after each other call and do what it says."""

    def __init__(
        self, me: Member, *, settings: GossipSettings, rng: random.Random, now: float, cargo: Cargo, budget: int
    ) -> None:
        """`budget`: the bytes that a packet may have. Raises Invalid for a record that others would refuse."""
        self.counters = Counters()
        self._settings = settings
        self._rng = rng
        self._cargo = cargo
        self._awareness = Awareness(settings.health_max)
        self._rumours = Rumours(
            me, settings=settings, rng=rng, now=now, counters=self.counters, awareness=self._awareness
        )
        self._roster = self._rumours.roster
        self._outbox = Outbox(
            budget=budget,
            news=self._rumours.news,
            cargo=cargo,
            roster=self._roster,
            counters=self.counters,
            settings=settings,
        )
        self._my_id = bytes.fromhex(me.node)
        self._prober = Prober(
            self._rumours,
            outbox=self._outbox,
            cargo=cargo,
            awareness=self._awareness,
            counters=self.counters,
            settings=settings,
            rng=rng,
            now=now,
        )
        self._sync = CargoSync(
            self._my_id,
            cargo=cargo,
            outbox=self._outbox,
            roster=self._roster,
            counters=self.counters,
            settings=settings,
        )
        self._ticked = now
        self._gossip_at = now  # the earliest next tick that tells news
        self._sweep_at = now + settings.sweep_seconds
        self._reconnect_at = now + settings.reconnect_seconds

    # --- what is believed

    @property
    def me(self) -> Member:
        return self._rumours.me

    @property
    def health(self) -> int:
        """0: this node keeps up. Each step lengthens its probes and timeouts."""
        return self._awareness.score

    @property
    def waiting(self) -> int:
        """Pieces of news about members that are still being told."""
        return len(self._rumours.news)

    def member(self, node: str) -> Member | None:
        if node == self.me.node:
            return self.me
        entry = self._roster.get(node)
        return None if entry is None else entry.member

    def view(self) -> list[MemberView]:
        """This node first; no event tells of changes to it."""
        me = MemberView(self.me, self._rumours.since, None, None)
        return [me, *(MemberView(each.member, each.since, each.heard, each.rtt) for each in self._roster)]

    # --- packets and time

    def receive(self, payload: bytes, source: str, now: float) -> None:
        """`source`: the HOST:PORT that it came from. Never raises: what is malformed is counted."""
        self.counters.packets_received += 1
        self.counters.bytes_received += len(payload)
        try:
            packet = decode(payload)
        except BadPacket as error:
            self.counters.refuse(str(error))
            return
        for told in packet.news:
            self._rumours.hear(told, now)
        if packet.cargo:
            self._cargo.receive(packet.cargo, now)
        self._on_body(packet, source, now)

    def tick(self, now: float) -> None:
        # News and ends of suspicions may become due by what was just received: that is no lateness.
        late_seconds = now - max(self._timers_at(), self._ticked)
        self._ticked = now
        if late_seconds > self._settings.late_seconds:
            self._wake(late_seconds)
        failed = self._prober.tick(now)
        if failed is not None:
            self._rumours.suspect(failed.entry.member.node, incarnation=failed.incarnation, now=now)
        self._rumours.expire(now)
        if now >= self._reconnect_at:
            self._reconnect_at = now + self._settings.reconnect_seconds
            self._reconnect()
        if now >= self._sweep_at:
            self._sweep_at = now + self._settings.sweep_seconds
            self._sweep(now)
        if self._has_news() and now >= self._gossip_at:
            self._gossip_at = now + self._settings.gossip_seconds
            self._gossip(now)

    def next_at(self) -> float:
        """The earliest time at which `tick` has something to do. Any other call may bring it nearer."""
        at = self._timers_at()
        end = self._rumours.next_end()
        if end is not None and end < at:
            at = end
        return min(at, self._gossip_at) if self._has_news() else at

    def take(self) -> Output:
        return Output(self._outbox.take(), self._rumours.take_events(), self._prober.take_streams())

    def stream_answer(self, ticket: int, ok: bool, now: float) -> None:
        """What became of a StreamProbe."""
        self._prober.stream_answer(ticket, ok)

    # --- push-pull

    def push_pull_peer(self) -> Member | None:
        """With whom to compare everything next: mostly one that lives, now and then one that was declared dead, by
        which two halves of a cluster find each other again."""
        dead = self._dead()
        if dead and self._rng.random() < len(dead) / (len(dead) + self._roster.living + 1):
            return self._rng.choice(dead).member
        drawn = self._roster.sample(1, lambda entry: not entry.member.is_gone)
        return drawn[0].member if drawn else None

    def push_state(self) -> list[Member]:
        return self._rumours.push_state()

    def pull_state(self, members: Sequence[Member], now: float) -> None:
        """Never raises: what is malformed is counted."""
        self._rumours.pull_state(members, now)

    # --- leaving

    def leave(self, now: float) -> None:
        """This node goes on purpose: it says so, accuses nobody any more, and still answers."""
        self._rumours.leave(now)
        self._prober.stop()

    def left_spread(self) -> bool:
        """Whether the leave was told as often as news is, or nobody is there to be told."""
        return self._rumours.leaving and (self.me.node not in self._rumours.news or self._roster.living == 0)

    def declare_left(self, node: str, now: float) -> None:
        """Somebody removed the node for good."""
        self._rumours.declare_left(node, now)

    # --- how packets are answered

    def _on_body(self, packet: Packet, source: str, now: float) -> None:
        body = packet.body
        if isinstance(body, Ping):
            self._on_ping(body, source, now)
        elif isinstance(body, Ack):
            self._on_ack(body, now)
        elif isinstance(body, PingRequest):
            self._prober.on_request(body, source, now)
        elif isinstance(body, Nack):
            self._prober.on_nack(body)
        elif isinstance(body, Sync):
            self._sync.on_sync(body, now)
        else:
            assert isinstance(body, Gossip)

    def _on_ping(self, body: Ping, source: str, now: float) -> None:
        if body.target != self._my_id:
            self.counters.refuse("misdirected")
            return
        node = body.sender.hex()
        entry = self._roster.get(node)
        first: list[Raw] = []
        if entry is not None:
            if entry.member.state in (MemberState.SUSPECT, MemberState.DEAD):
                first.append(encode_told(entry.member))  # it lives, so it should refute
            if self._is_missing_news(body.members):
                first += self._rumours.recent()
        # A stranger gets a bare answer: who forges its address cannot make this node send much to it.
        ack = Ack(body.ticket, self._my_id, self._cargo.digest(), self._rumours.digest)
        self._outbox.send(source, ack, first=first, fill=entry is not None)
        self._sync.on_digest(node, body.digest, now)

    def _on_ack(self, body: Ack, now: float) -> None:
        """Only one that was waited for is looked at further: nobody can ask for more by sending acks."""
        probed = self._prober.on_ack(body, now)
        if probed is None or body.digest is None:
            return
        if self._is_missing_news(body.members):
            self._outbox.send(probed.address, Gossip(), first=self._rumours.recent())
        self._sync.on_digest(probed.node, body.digest, now)

    def _is_missing_news(self, members: int) -> bool:
        """Whether the peer should hear again what changed lately. While news is still being told, digests differ
        everywhere; afterwards somebody has missed some, by loss or by chance: without this it would wait for
        push-pull, half a minute or more."""
        return members != self._rumours.digest and len(self._rumours.news) == 0

    # --- what time brings

    def _timers_at(self) -> float:
        return min(self._prober.next_at(), self._reconnect_at, self._sweep_at)

    def _has_news(self) -> bool:
        return self._roster.living > 0 and (len(self._rumours.news) > 0 or self._cargo.pending > 0)

    def _gossip(self, now: float) -> None:
        recent = now - self._settings.gossip_to_dead_seconds

        def accept(entry: Entry) -> bool:
            member = entry.member
            return not member.is_gone or (member.state == MemberState.DEAD and entry.since > recent)

        waiting = self._rumours.news.bytes_waiting + self._cargo.pending * CARGO_ITEM_BYTES
        packets = min(-(-waiting // self._outbox.cargo_room(Gossip())), self._settings.gossip_packets_max)
        for entry in self._roster.sample(self._settings.gossip_targets, accept):
            for _ in range(packets):
                if self._has_news():
                    self._outbox.send(entry.member.address, Gossip())

    def _reconnect(self) -> None:
        dead = self._dead()
        if dead and not self._rumours.leaving:
            self._prober.ping(self._rng.choice(dead).member)

    def _sweep(self, now: float) -> None:
        self._rumours.forget(now)
        self._sync.sweep(now)
        recent = now - self._settings.gossip_to_dead_seconds
        self._roster.prune_ring(lambda entry: entry.since > recent)

    def _wake(self, seconds: float) -> None:
        """This process slept past its timers. What the others sent meanwhile waits to be received, so nobody is judged
        by it."""
        self.counters.late_ticks += 1
        self._awareness.shift(1)
        self._prober.delay(seconds)
        self._rumours.delay(seconds)

    def _dead(self) -> list[Entry]:
        return [entry for entry in self._roster if entry.member.state == MemberState.DEAD]
