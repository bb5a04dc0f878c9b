"""Gossip on a real network: the pure core, a UDP socket, one timer, and push-pull over the node's HTTP port.

    datagram -> seal.open -> swim.receive --.                       .-> datagrams -> seal.wrap -> UDP
    timer    -> swim.tick ------------------+--> swim.take (flush) -+-> events -> on_event
    tale     -> swim.pull_state ------------'                       '-> probes over TCP -> swim.stream_answer

Invariant: the core is entered by the loop's thread only, and never from inside itself; each way in ends with `_flush`.
Invariant: nothing that comes from the network raises; an error in a handler of events is told to the loop's exception
    handler and stops no timer. Gossip is a hint: nothing that it says, or that it is silent about, can break a promise.
Called by: kvstore/node_gossip.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from aiohttp import web

from kvstore.base.metrics import Metrics
from kvstore.gossip.cargo import Cargo
from kvstore.gossip.endpoint import Endpoint
from kvstore.gossip.events import Event, Forgotten, MemberChanged, MemberView, NameConflict, StreamProbe
from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.push_pull import TALE_VERSION, MakePushPull, PushPull, Tale
from kvstore.gossip.resolver import Target, text_of
from kvstore.gossip.seal import PAYLOAD_BYTES_MAX, Refusal, Seal
from kvstore.gossip.settings import GossipSettings
from kvstore.gossip.swim import Swim
from kvstore.transport.backoff import Backoff
from kvstore.transport.hello import Identity
from kvstore.transport.quiet_log import REPEAT_SECONDS, QuietLog

log = logging.getLogger(__name__)

TIMER_SECONDS_MIN = 0.001  # a core that asks for the same moment again must not keep the loop busy
JOIN_SECONDS_MIN = 0.1
JOIN_SECONDS_MAX = 5.0
SEEDS_AT_ONCE = 4
CARGO_PACKET_BYTES = 64 * 1_024
CARGO_PACKETS_MAX = 32  # 2 MiB of cargo in one exchange; what is left comes with the next one
_TOLD = {
    Refusal.CLUSTER: "it is of another cluster; check --join and --initial-cluster of the node there",
    Refusal.OWN: "it bears this node's own id; does a copy of the data directory run elsewhere?",
    Refusal.UNSIGNED: "it is not signed; the node there has no --cluster-secret-file",
    Refusal.SIGNED: "it is signed, and this node has no --cluster-secret-file",
    Refusal.FORGED: "it is signed with another secret; check --cluster-secret-file there",
    Refusal.VERSION: "it is of another version of the protocol",
}


class GossipDriver:
    """One node's gossip. `start`, use, `leave` when the node stops on purpose, `close`."""

    def __init__(
        self,
        *,
        me: Member,
        cluster: str,
        boot: str,
        boots: int,
        endpoint: Endpoint,
        secrets: Sequence[bytes],
        seeds: Callable[[], Sequence[str]],
        cargo: Cargo,
        rng: random.Random,
        settings: GossipSettings,
        on_event: Callable[[Event], None],
        push_pull: MakePushPull = PushPull,
    ) -> None:
        """`seeds`: HOST:PORT of whoever may be a member, asked again whenever nobody is known to live. `endpoint` is
        taken over; `push_pull` is for simulations. Raises Invalid for a record that is too large to be told."""
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._rng = rng
        self._seeds = seeds
        self._cargo = cargo
        self._on_event = on_event
        self._endpoint = endpoint
        self._seal = Seal(cluster=cluster, node=me.node, boots=boots, secrets=secrets)
        self._swim = Swim(me, settings=settings, rng=rng, now=self.now(), cargo=cargo, budget=PAYLOAD_BYTES_MAX)
        identity = Identity(cluster=cluster, node=me.node, name=me.name, boot=boot, address=me.address)
        self._push_pull = push_pull(identity, self, secrets)
        self._quiet = QuietLog(log)
        self._refused: dict[Refusal, int] = {}
        self._refusal_told: dict[Refusal, float] = {}
        self._changes: Counter[MemberState] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0  # loop time; uvloop's handle of what is due at once can't tell
        self._flushing = False
        self._running = False
        self._left: asyncio.Future[None] | None = None
        self._asked_seeds: set[str] = set()

    # -- life ------------------------------------------------------------------------------------------------------

    def routes(self) -> list[web.RouteDef]:
        """To be added to the node's application."""
        return self._push_pull.routes()

    def start(self) -> None:
        assert not self._running
        self._running = True
        self._endpoint.open(self._on_datagram, self._flush)
        self._push_pull.start()
        self._spawn(self._join(), "gossip-join")
        self._spawn(self._compare(), "gossip-push-pull")
        self._flush()

    async def leave(self, seconds_max: float) -> None:
        """Tell the others that this node goes on purpose, as far as that gets within the time."""
        if not self._running:
            return
        self._left = self._loop.create_future()
        self._swim.leave(self.now())
        self._flush()
        try:
            async with asyncio.timeout(seconds_max):
                await self._left
        except TimeoutError:
            pass  # they find out by themselves

    async def close(self) -> None:
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._push_pull.close()
        await self._endpoint.close()

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """The secrets accepted from now on; the first one signs."""
        self._seal.set_secrets(secrets)
        self._push_pull.set_secrets(secrets)

    # -- what is believed ------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The time that `members` counts in, seconds."""
        return self._loop.time()

    def members(self) -> list[MemberView]:
        """Everybody that is known, this node included, whatever the state."""
        return self._swim.view()

    def member(self, node: str) -> Member | None:
        return self._swim.member(node)

    def alive(self, node: str) -> bool:
        """Whether the node takes part, as far as is known; a suspect does until it is declared dead."""
        member = self._swim.member(node)
        return member is not None and not member.is_gone

    @property
    def health(self) -> int:
        return self._swim.health

    # -- what the node tells it ------------------------------------------------------------------------------------

    def declare_left(self, node: str) -> None:
        """An operator has removed it for good."""
        self._swim.declare_left(node, self.now())
        self._flush()

    def wake(self) -> None:
        """There is new cargo to be told."""
        self._flush()

    # -- datagrams -------------------------------------------------------------------------------------------------

    def _on_datagram(self, datagram: bytes, source: Target) -> None:
        payload = self._seal.open(datagram)
        if isinstance(payload, Refusal):
            self._refuse(payload, source)
        else:
            self._swim.receive(payload, text_of(source), self.now())

    def _refuse(self, reason: Refusal, source: Target) -> None:
        """Count, and tell the log now and then; a flood costs no more than that."""
        self._refused[reason] = self._refused.get(reason, 0) + 1
        if reason not in _TOLD:
            return
        now = self.now()
        if now - self._refusal_told.get(reason, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._refusal_told[reason] = now
            log.warning("a datagram from %s is refused: %s", text_of(source), _TOLD[reason])

    # -- the core --------------------------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self._swim.tick(self.now())
        finally:
            self._flush()

    def _flush(self) -> None:
        """Do what the core wants, until it wants nothing more; then wait for the time that it names."""
        if self._flushing or not self._running:
            return  # a handler of events has called the driver: the flush that called it goes on with that
        self._flushing = True
        try:
            while (output := self._swim.take()).datagrams or output.events or output.probes:
                for address, payload in output.datagrams:
                    self._endpoint.send(address, self._seal.wrap(payload))
                for event in output.events:
                    self._tell(event)
                for probe in output.probes:
                    self._spawn(self._probe(probe), f"gossip-probe {probe.node[:8]}")
        finally:
            self._flushing = False
        if self._left is not None and not self._left.done() and self._swim.left_spread():
            self._left.set_result(None)
        self._arm()

    def _arm(self) -> None:
        """A timer that comes too early does no harm and is let be: most packets put off nothing."""
        due = max(self._swim.next_at(), self.now() + TIMER_SECONDS_MIN)
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)
        self._timer_due = due

    def _tell(self, event: Event) -> None:
        if isinstance(event, MemberChanged):
            if event.old is None or event.old.state != event.new.state:
                self._changes[event.new.state] += 1
        elif isinstance(event, NameConflict):
            self._warn_of_conflict(event)
        elif isinstance(event, Forgotten):
            self._seal.forget(event.node)
        try:
            self._on_event(event)
        except Exception as error:
            _report_bug("an event of gossip could not be handled", error)

    def _warn_of_conflict(self, event: NameConflict) -> None:
        one, other = event.one, event.other
        self._quiet.warn(
            f"conflict {one.node} {other.node}",
            f"DUPLICATE_NAME: two nodes are called {one.name}: {one.node[:8]} at {one.address} and {other.node[:8]} at "
            f"{other.address}; start one of them with another --name",
            now=self.now(),
        )

    async def _probe(self, probe: StreamProbe) -> None:
        """Datagrams may be lost, or not let through, where the node is well."""
        seconds_max = self._settings.probe_seconds
        answers = await self._push_pull.answers(probe.address, node=probe.node, seconds_max=seconds_max)
        self._swim.stream_answer(probe.ticket, answers, self.now())
        self._flush()

    # -- push-pull -------------------------------------------------------------------------------------------------

    def tell(self) -> Tale:
        return Tale(TALE_VERSION, self._swim.push_state(), self._seal.seen(), self._cargo.buckets())

    def hear(self, tale: Tale) -> None:
        if self._seal.hear(tale.seen):
            log.warning("others have seen a later start of this node than its directory tells: was it restored?")
        self._swim.pull_state(tale.members, self.now())
        self._flush()

    def lacking(self, buckets: bytes) -> list[msgspec.Raw]:
        packets = self._cargo.differing(buckets, bytes_max=CARGO_PACKET_BYTES, packets_max=CARGO_PACKETS_MAX)
        return [item for packet in packets for item in packet]

    def hear_cargo(self, items: Sequence[msgspec.Raw]) -> None:
        self._cargo.receive(items, self.now())
        self._flush()

    async def _compare(self) -> None:
        """With one member after the other, for ever."""
        while True:
            others = sum(not view.member.is_gone for view in self._swim.view())
            await asyncio.sleep(self._settings.push_pull_interval(others) * self._rng.uniform(0.8, 1.2))
            peer = self._swim.push_pull_peer()
            if peer is not None:
                await self._push_pull.exchange(peer.address, node=peer.node)

    async def _join(self) -> None:
        """Ask the seeds until each has answered or is known, and all of them again whenever nobody else lives."""
        backoff = Backoff(seconds_min=JOIN_SECONDS_MIN, seconds_max=JOIN_SECONDS_MAX, rng=self._rng)
        while True:
            seeds = self._seeds_to_ask()
            if seeds:
                some = self._rng.sample(seeds, min(len(seeds), SEEDS_AT_ONCE))
                answered = await asyncio.gather(*map(self._push_pull.exchange, some))
                self._asked_seeds.update(seed for seed, yes in zip(some, answered, strict=True) if yes)
            await asyncio.sleep(backoff.next())

    def _seeds_to_ask(self) -> list[str]:
        me = self._swim.me
        seeds = [seed for seed in dict.fromkeys(self._seeds()) if seed != me.address]
        others = [view.member for view in self._swim.view() if view.member.node != me.node]
        if all(other.is_gone for other in others):
            self._asked_seeds.clear()
            return seeds
        known = {other.address for other in others} | self._asked_seeds
        return [seed for seed in seeds if seed not in known]

    # -- tasks and numbers -----------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _report_bug(f"task {task.get_name()} failed", error)

    def add_gauges(self, metrics: Metrics) -> None:
        counters = self._swim.counters
        metrics.add_gauge(
            "kvstore_gossip_packets", lambda: {"sent": counters.packets_sent, "received": counters.packets_received}
        )
        metrics.add_gauge(
            "kvstore_gossip_bytes", lambda: {"sent": counters.bytes_sent, "received": counters.bytes_received}
        )
        metrics.add_gauge("kvstore_gossip_refused", self.refused)
        metrics.add_gauge("kvstore_gossip_send_errors", lambda: dict(self._endpoint.errors))
        metrics.add_gauge("kvstore_gossip_members", self._member_counts)
        metrics.add_gauge("kvstore_gossip_health", lambda: {"score": self._swim.health})
        metrics.add_gauge("kvstore_gossip_events", self._event_counts)

    def refused(self) -> dict[str, float]:
        """Datagrams dropped since the start, by reason: by the seal, and by the core."""
        counts: dict[str, float] = {str(reason): count for reason, count in self._refused.items()}
        for reason, count in self._swim.counters.refused.items():
            counts[reason] = counts.get(reason, 0) + count
        return counts

    def _member_counts(self) -> dict[str, float]:
        counts: dict[str, float] = {state.name.lower(): 0 for state in MemberState}
        for view in self._swim.view():
            counts[view.member.state.name.lower()] += 1
        return counts

    def _event_counts(self) -> dict[str, float]:
        counters = self._swim.counters
        return {
            "probes": counters.probes,
            "probes_failed": counters.probes_failed,
            "refutations": counters.refutations,
            "suspicions": self._changes[MemberState.SUSPECT],
            "deaths": self._changes[MemberState.DEAD],
            "leaves": self._changes[MemberState.LEFT],
            "push_pulls": self._push_pull.done,
            "push_pulls_failed": self._push_pull.failed,
        }


def _report_bug(text: str, error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
