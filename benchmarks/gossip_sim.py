"""Many gossip cores on one virtual clock, with a network that loses, delays, reorders, doubles and cuts.

Used by the tests (what must hold under faults) and by the benchmark (how long news takes).

Invariant: everything follows from the seed. Nothing here reads a clock; no set is iterated.
Invariant: a node is called at its own times only: when a packet reaches it and when its timer is due. While it is
    paused neither happens; what reached it waits in a buffer of the size of a socket's.
Called by: tests/gossip/test_swim_sim.py, benchmarks/gossip.py.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
from msgspec import Raw

from kvstore.gossip.events import Event
from kvstore.gossip.member import INCARNATIONS_PER_BOOT, Member, MemberState
from kvstore.gossip.seal import PAYLOAD_BYTES_MAX
from kvstore.gossip.settings import GossipSettings
from kvstore.gossip.swim import Swim

SOCKET_PACKETS_MAX = 256
"""What a paused process's socket holds: 212,992 bytes (Linux's default), a small packet counting as ~800."""


class NoCargo:
    """Gossip that carries members only."""

    pending = 0

    def digest(self) -> int:
        return 0

    def take(self, bytes_max: int, *, members: int) -> list[Raw]:
        return []

    def receive(self, items: Sequence[Raw], now: float) -> None:
        pass

    def buckets(self) -> bytes:
        return b""

    def differing(self, buckets: bytes, *, bytes_max: int, packets_max: int) -> list[list[Raw]]:
        return []


@dataclass(kw_only=True)
class Network:
    """Seconds and chances. May be changed while the world runs."""

    loss: float = 0.0  # of a datagram, each way
    delay_min: float = 0.000_2
    delay_max: float = 0.002  # drawn evenly, so packets overtake each other
    doubled: float = 0.0
    streams: bool = True  # whether TCP gets through where datagrams may (push-pull and probes)


@dataclass(eq=False)
class SimNode:
    """One process, and what the world knows about it."""

    name: str
    node: str
    address: str
    swim: Swim
    rng: random.Random
    boots: int = 1
    up: bool = True
    paused: bool = False
    leaving: bool = False
    deaf: bool = False  # nothing reaches it
    slow_seconds: float = 0.0  # it handles everything so much later
    group: int = 0  # only nodes of one group reach each other
    wake_at: float = float("inf")
    buffer: list[tuple[str, bytes]] = field(default_factory=list)
    generation: int = 0  # what was scheduled for an earlier process is void

    @property
    def runs(self) -> bool:
        return self.up and not self.paused


Listener = Callable[[float, SimNode, Event], None]


class World:
    """Nodes, the network, and the one queue of what happens next."""

    def __init__(
        self,
        *,
        seed: int,
        settings: GossipSettings | None = None,
        network: Network | None = None,
        budget: int = PAYLOAD_BYTES_MAX,
        transcript: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.settings = settings or GossipSettings()
        self.network = network or Network()
        self.budget = budget
        self.now = 0.0
        self.nodes: list[SimNode] = []
        self.by_address: dict[str, SimNode] = {}
        self.by_id: dict[str, SimNode] = {}
        self.listeners: list[Listener] = []
        self.lost = 0
        self.push_pull_bytes = 0  # as MessagePack, both ways, without what TCP and HTTP add
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._hash = hashlib.blake2b() if transcript else None

    # --- setting the scene

    def add(self, name: str, *, address: str | None = None, labels: dict[str, str] | None = None) -> SimNode:
        """A process that knows nobody yet."""
        place = len(self.nodes)
        node = f"{self.rng.getrandbits(128):032x}"
        address = address or f"10.{place >> 16 & 255}.{place >> 8 & 255}.{place & 255}:7001"
        member = Member(node, name, address, INCARNATIONS_PER_BOOT, MemberState.ALIVE, labels or {}, "0.1.0")
        rng = random.Random(self.rng.getrandbits(64))
        each = SimNode(name, node, address, self._swim(member, rng), rng)
        self.nodes.append(each)
        self.by_address[address] = self.by_id[node] = each
        self._settle(each)
        self._later(rng.random() * self._push_pull_seconds(each), self._push_pull_of(each))
        return each

    def found(self, count: int) -> list[SimNode]:
        """So many nodes that know each other already."""
        nodes = [self.add(f"n{place}") for place in range(count)]
        members = [each.swim.me for each in nodes]
        for each in nodes:
            each.swim.pull_state(members, self.now)
            each.swim.take()
            self._settle(each)
        return nodes

    def join(self, node: SimNode, *seeds: SimNode) -> None:
        """As the driver does it: one seed each second, until each has answered or is known; any while nobody lives."""
        generation = node.generation
        answered: list[SimNode] = []

        def attempt() -> None:
            if node.generation != generation:
                return
            living = [each.member.node for each in node.swim.view()[1:] if not each.member.is_gone]
            left = [seed for seed in seeds if seed not in answered and seed.node not in living]
            candidates = left if living else list(seeds)
            if candidates:
                seed = self.rng.choice(candidates)
                if self._exchange(node, seed):
                    answered.append(seed)
                self._later(1.0, attempt)

        attempt()

    # --- faults

    def crash(self, node: SimNode) -> None:
        node.up = False
        node.generation += 1
        node.buffer.clear()

    def restart(self, node: SimNode, *seeds: SimNode) -> None:
        """The same node, another process: it remembers its id and how often it started."""
        assert not node.up
        node.boots += 1
        node.up, node.paused, node.leaving, node.wake_at = True, False, False, float("inf")
        me = node.swim.me
        member = Member(
            me.node, me.name, me.address, node.boots * INCARNATIONS_PER_BOOT, MemberState.ALIVE, me.labels, me.version
        )
        node.swim = self._swim(member, node.rng)
        self._settle(node)
        self._later(0.0, self._push_pull_of(node))
        if seeds:
            self.join(node, *seeds)

    def leave(self, node: SimNode) -> None:
        node.leaving = True
        node.swim.leave(self.now)
        self._settle(node)

    def pause(self, node: SimNode, seconds: float) -> None:
        node.paused = True
        generation = node.generation
        self._later(seconds, lambda: self._resume(node, generation))

    def stutter(self, node: SimNode, *, pause_seconds: float, run_seconds: float) -> None:
        """Stopped and running in turn, from a moment at random on: Lifeguard's model of a starved process."""

        def turn() -> None:
            self.pause(node, pause_seconds)
            self._later(pause_seconds + run_seconds, turn)

        self._later(self.rng.random() * (pause_seconds + run_seconds), turn)

    def partition(self, *groups: Sequence[SimNode]) -> None:
        """Those in no group stay with the first."""
        self.heal()
        for number, group in enumerate(groups):
            for each in group:
                each.group = number

    def heal(self) -> None:
        for each in self.nodes:
            each.group = 0

    # --- what holds

    def disagreements(self) -> list[str]:
        """What nodes that run believe otherwise than it is, in words; empty when all agree."""
        found = []
        for each in self.nodes:
            if not each.runs or each.leaving:
                continue
            for other in self.nodes:
                belief = each.swim.member(other.node)
                lives = other.up and not other.leaving
                if lives and (belief is None or belief != other.swim.me):
                    found.append(f"{each.name} believes {belief} of {other.name}, which says {other.swim.me}")
                elif not lives and belief is not None and not belief.is_gone:
                    found.append(f"{each.name} believes {belief} of {other.name}, which is gone")
        return found

    def fingerprint(self) -> str:
        """Of all that was sent and believed since the start, in order."""
        assert self._hash is not None
        return self._hash.hexdigest()

    # --- time

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        queue = self._queue
        while queue and queue[0][0] <= until:
            at, _, action = heapq.heappop(queue)
            assert at >= self.now
            self.now = at
            action()
        self.now = until

    def run_until(self, reached: Callable[[], bool], *, seconds_max: float, step: float = 0.05) -> bool:
        """Whether it came true in time, looked at each `step`."""
        deadline = self.now + seconds_max
        while not reached():
            if self.now >= deadline:
                return False
            self.run(min(step, deadline - self.now))
        return True

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + seconds, self._sequence, action))

    # --- the machinery

    def _swim(self, member: Member, rng: random.Random) -> Swim:
        return Swim(member, settings=self.settings, rng=rng, now=self.now, cargo=NoCargo(), budget=self.budget)

    def _settle(self, node: SimNode) -> None:
        """After each call to a core: carry out what it wants, and set its alarm."""
        output = node.swim.take()
        for address, payload in output.datagrams:
            self._send(node, address, payload)
        for event in output.events:
            self._note(node, event)
        for probe in output.probes:
            self._stream_probe(node, probe.address, probe.node, probe.ticket)
        at = max(node.swim.next_at(), self.now)
        if at < node.wake_at:
            node.wake_at = at
            generation = node.generation
            self._later(at - self.now + node.slow_seconds, lambda: self._wake(node, at, generation))

    def _note(self, node: SimNode, event: Event) -> None:
        if self._hash is not None:
            self._hash.update(repr((self.now, node.name, event)).encode())
        for listener in self.listeners:
            listener(self.now, node, event)

    def _wake(self, node: SimNode, at: float, generation: int) -> None:
        if node.generation != generation or node.wake_at != at:
            return
        if node.paused:
            return  # it wakes when it runs again
        node.wake_at = float("inf")
        node.swim.tick(self.now)
        self._settle(node)

    def _send(self, sender: SimNode, address: str, payload: bytes) -> None:
        network = self.network
        if self._hash is not None:
            self._hash.update(repr((self.now, sender.address, address)).encode() + payload)
        receiver = self.by_address.get(address)
        if receiver is None:
            return
        copies = 1 + (network.doubled > 0 and self.rng.random() < network.doubled)
        for _ in range(copies):
            if network.loss and self.rng.random() < network.loss:
                self.lost += 1
                continue
            delay = self.rng.uniform(network.delay_min, network.delay_max) + receiver.slow_seconds
            self._later(delay, partial(self._deliver, receiver, sender.address, payload))

    def _deliver(self, receiver: SimNode, source: str, payload: bytes) -> None:
        if not receiver.up or not self._reaches(self.by_address[source], receiver):
            return
        if receiver.paused:
            if len(receiver.buffer) < SOCKET_PACKETS_MAX:
                receiver.buffer.append((source, payload))
            return
        receiver.swim.receive(payload, source, self.now)
        self._settle(receiver)

    def _reaches(self, sender: SimNode, receiver: SimNode) -> bool:
        return sender.group == receiver.group and not receiver.deaf

    def _resume(self, node: SimNode, generation: int) -> None:
        """Its timers first, as if the loop looked at them before the socket: the harder case."""
        if node.generation != generation:
            return
        node.paused = False
        node.wake_at = float("inf")
        node.swim.tick(self.now)
        self._settle(node)
        buffer, node.buffer = node.buffer, []
        for source, payload in buffer:
            node.swim.receive(payload, source, self.now)
            self._settle(node)

    def _stream_probe(self, prober: SimNode, address: str, node: str, ticket: int) -> None:
        """TCP: three packets for the connection, then a request and its answer, none lost, or it takes too long."""
        target = self.by_address.get(address)
        generation = prober.generation
        loss = self.network.loss
        late = any(self.rng.random() < loss for _ in range(4))
        delay = 4 * self.network.delay_max

        def answer() -> None:
            if prober.generation != generation or not prober.runs:
                return
            ok = target is not None and target.node == node and self._connects(prober, target) and not late
            prober.swim.stream_answer(ticket, ok, self.now)
            self._settle(prober)

        self._later(delay, answer)

    def _connects(self, one: SimNode, other: SimNode) -> bool:
        both_run = one.runs and other.runs
        return self.network.streams and both_run and self._reaches(one, other) and self._reaches(other, one)

    def _push_pull_seconds(self, node: SimNode) -> float:
        members = sum(not view.member.is_gone for view in node.swim.view()) if len(self.nodes) < 64 else len(self.nodes)
        return self.settings.push_pull_interval(members)

    def _push_pull_of(self, node: SimNode) -> Callable[[], None]:
        generation = node.generation

        def action() -> None:
            if node.generation != generation:
                return
            peer = node.swim.push_pull_peer() if node.runs and not node.leaving else None
            if peer is not None:
                self._exchange(node, self.by_address[peer.address])
            self._later(self._push_pull_seconds(node), action)

        return action

    def _exchange(self, one: SimNode, other: SimNode) -> bool:
        if not self._connects(one, other):
            return False
        mine, theirs = one.swim.push_state(), other.swim.push_state()
        self.push_pull_bytes += len(msgspec.msgpack.encode(mine)) + len(msgspec.msgpack.encode(theirs))
        other.swim.pull_state(mine, self.now)
        one.swim.pull_state(theirs, self.now)
        self._settle(one)
        self._settle(other)
        return True
