"""The one loop that drives all replicas of a node: timers, the pump, the disk's answers, the network's messages.

A turn: everything that arrived marks replicas dirty and schedules one pump; the pump sends messages, hands one
transaction to the log thread, and then applies what is committed while disk and peers work.

Invariant: at most one pump is scheduled at a time, and it never runs inside a handler.
Invariant: two ticks of a replica are never closer than tick_ms, however late the loop runs (a lease promise counts
           ticks as time that has really passed).
Called by: kvstore/node.py.   Read first: host_core.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator

from kvstore.base.errors import Unavailable
from kvstore.replica.environment import Environment
from kvstore.replica.flush import Flusher
from kvstore.replica.haste import CAMPAIGNS_PER_STEP, STEP_MS, Campaign, Haste, Reason
from kvstore.replica.host_core import HostCore, Outbox, Persisted, removal_linger_ms
from kvstore.replica.lifecycle import Lifecycle
from kvstore.replica.replica import Replica
from kvstore.replica.requests import Request
from kvstore.replica.snapshots import Snapshots
from kvstore.transport.protocol import GroupMessage, PeerTransport
from raft import Role

logger = logging.getLogger(__name__)

TRANSFER_SECONDS_MAX = 3.0


class HostDriver:
    """Runs a HostCore on the current event loop. It is the node's PeerHandler."""

    def __init__(self, environment: Environment, *, on_fatal: Callable[[BaseException], None]) -> None:
        self.environment = environment
        self.core = HostCore(environment)
        self.lifecycle = Lifecycle(self.core, environment)
        self.flusher = Flusher(self.core, environment)
        self.snapshots = Snapshots(self.core, environment, self.lifecycle, self.flusher, self.schedule_pump)
        self.on_fatal = on_fatal
        self.on_leads_anew: Callable[[], None] = lambda: None  # what is led here has changed
        self.on_routes_anew: Callable[[], None] = lambda: None  # `core.routes_anew` holds something
        self.on_neighbours_anew: Callable[[], None] = lambda: None  # there is a node to be connected with
        self._haste = Haste(environment.rng)
        self._haste_handle: asyncio.TimerHandle | None = None
        self._watchers: list[asyncio.Future[None]] = []  # who waits for something that a turn may bring
        self._loop = asyncio.get_running_loop()
        self._pump_scheduled = False
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._closed = False
        self._transport: PeerTransport | None = None

    # -- start and end ---------------------------------------------------------------------------------------------

    def attach(self, transport: PeerTransport) -> None:
        self._transport = transport
        self.snapshots.transport = transport

    def start(self) -> None:
        """Load what the disk holds and begin to tick."""
        self.lifecycle.load_all()
        self._schedule_tick()
        self.schedule_pump()

    def campaign_if_alone(self) -> None:
        """A group whose only voter is here need not wait for an election timeout."""
        for replica in self.core.replicas.values():
            if replica.raw.conf_state.voters == (replica.replica_id,) and not replica.raw.conf_state.voters_outgoing:
                replica.raw.campaign()
                self.core.mark(replica)
        self.schedule_pump()

    async def hand_over(self) -> None:
        """Before a graceful stop: give every leadership away, and wait until it is taken (bounded)."""
        handed: list[Replica] = []
        for replica in list(self.core.replicas.values()):
            if replica.transfer_away():
                handed.append(replica)
                self.core.mark(replica)
        self.schedule_pump()
        with contextlib.suppress(TimeoutError, Unavailable):  # Unavailable: the node ends already
            async with asyncio.timeout(TRANSFER_SECONDS_MAX):
                await self.until(lambda: all(map(_is_taken, handed)))

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it holds, looking after every turn. Raises what `true` raises; Unavailable at the node's stop."""
        while not true():
            if self._closed:
                raise Unavailable("the node is stopping")
            watcher: asyncio.Future[None] = self._loop.create_future()
            self._watchers.append(watcher)
            await watcher

    def halt(self) -> None:
        """Do nothing any more, from this moment on (a crash, as far as others can tell)."""
        self._closed = True
        self.flusher.close()
        self._wake_watchers()
        for handle in (self._tick_handle, self._haste_handle):
            if handle is not None:
                handle.cancel()

    async def close(self) -> None:
        """Stop ticking and pumping. Requests that wait are answered. The stores are closed by who opened them."""
        self.halt()
        await self.snapshots.close()
        for replica in self.core.replicas.values():
            replica.stop("the node is stopping")

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Around every way into the core. What breaks off half way has broken an invariant of all groups: the node
        ends, at once and told, where an event loop would only log the error and go on without its next tick."""
        try:
            yield
        except BaseException as error:
            self.halt()
            self.on_fatal(error)
            raise

    def _wake_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    # -- the pump --------------------------------------------------------------------------------------------------

    def schedule_pump(self) -> None:
        if not self._pump_scheduled and not self._closed:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def mark(self, replica: Replica) -> None:
        """The replica has something to do."""
        self.core.mark(replica)
        self.schedule_pump()

    def track(self, request: Request) -> None:
        """Bound the request's stay by its deadline."""
        self.core.deadlines.add(request)

    def _pump(self) -> None:
        self._pump_scheduled = False
        if self._closed:
            return
        with self._whole():
            self._turn()

    def _turn(self) -> None:
        effects = self.core.pump()
        self._send(effects.outbox)
        if effects.writes:
            persisted = effects.persisted
            self.environment.log_store.submit(effects.writes, lambda: self._on_durable(persisted))
        for node, group, replica_id in effects.removed:
            assert self._transport is not None
            self._transport.send_removed(node, group, replica_id)
        self.core.apply(effects)
        self._bear()
        for replica, message in effects.snapshots:
            self.snapshots.send(replica, message)
        self._admit_strangers()
        self._rebuild_rotten()
        leaders, self.core.leaders = self.core.leaders, {}
        for group, term in leaders.items():
            self.snapshots.on_leader(group, term)
        if self.core.leads_anew:
            self.core.leads_anew = False
            self.on_leads_anew()
        if self.core.routes_anew:
            self.on_routes_anew()
        if self.core.neighbours.anew:
            self.on_neighbours_anew()
        if self.core.dirty:
            self.schedule_pump()
        self._wake_watchers()

    def _bear(self) -> None:
        """Make the children of the splits that were applied in this turn."""
        births, self.environment.births = self.environment.births, []
        for birth in births:
            try:
                child = self.lifecycle.births.bear(birth, self.mark)
            except AssertionError as error:  # it would be so again on the next start: as with a failure to apply
                logger.exception("group %d: the child of its split can't be made", birth.parent.group)
                birth.parent.fail(f"split at {birth.index}: {error!r}")
                continue
            if child is not None and child.raw.role == Role.CANDIDATE:
                self._haste.on_undecided(Campaign(child.group, Reason.EVIDENCE), now=self._loop.time())
        if births:
            self._schedule_haste(0.0)

    def _on_durable(self, persisted: list[Persisted]) -> None:
        if self._closed:
            return
        with self._whole():
            self._send(self.core.on_durable(persisted))
        self.schedule_pump()

    def _send(self, outbox: Outbox) -> None:
        transport = self._transport
        if transport is None:
            return
        metrics = self.environment.metrics
        for node, messages in outbox.items():
            if transport.send(node, messages):
                metrics.raft_messages_sent += len(messages)
            else:
                metrics.raft_messages_dropped += len(messages)

    def _admit_strangers(self) -> None:
        strangers, self.core.strangers = self.core.strangers, []
        for node, envelope in strangers:
            self.lifecycle.births.on_stranger(node, envelope)

    def _destroy_removed(self, now_ms: int) -> None:
        """Not at once, see `removal_linger_ms`."""
        linger_ms = removal_linger_ms(self.environment.config)
        over = [
            replica
            for replica in self.core.removed.values()
            if replica.removed and not replica.is_leader and now_ms - replica.removed_at_ms >= linger_ms
        ]
        for replica in over:
            if not self.lifecycle.births.unflushed_of(replica.group):
                self.lifecycle.destroy(replica)

    def _rebuild_rotten(self) -> None:
        curable, self.core.curable = self.core.curable, []
        for replica in curable:
            if self.core.replicas.get(replica.group) is replica:
                self.lifecycle.rebuild(replica)

    # -- time ------------------------------------------------------------------------------------------------------

    def _schedule_tick(self) -> None:
        delay = self.environment.config.tick_ms / 1_000
        self._tick_due = self._loop.time() + delay
        self._tick_handle = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if self._closed:
            return
        self.environment.metrics.loop_stall_seconds.observe(max(0.0, self._loop.time() - self._tick_due))
        now_ms = self.environment.clock.boot_ms()
        heard = self._transport.heard if self._transport is not None else _nothing_heard
        with self._whole():
            silent = self.core.tick(now_ms, heard)
            self.flusher.tick(now_ms)
            self._destroy_removed(now_ms)
        for node in silent:
            logger.info("nothing is heard from %s", self._name(node))
        self._schedule_tick()  # counted from now: a late tick is not made up for
        self.schedule_pump()

    # -- the network (PeerHandler) ---------------------------------------------------------------------------------

    def on_messages(self, node: str, messages: list[GroupMessage]) -> None:
        if self._closed:
            return
        with self._whole():
            self.core.on_messages(node, messages)
        self.schedule_pump()

    def on_removed(self, node: str, group: int, replica_id: int) -> None:
        """A replica id is no member any more, for good: a peer has buried the one that we wrote to (Raft's own answer,
        none, is enough for safety), or has applied the removal of ours, which was not listening then."""
        replica = self.core.replicas.get(group)
        if self._closed or replica is None or replica.replica_id != replica_id:
            logger.info("group %d: replica %d is gone from node %s", group, replica_id, node)
        elif not replica.removed:
            logger.info("group %d: %s says that replica %d was removed", group, self._name(node), replica_id)
            replica.on_removed()
            self.mark(replica)

    def on_peer_up(self, node: str, boot: str) -> None:
        logger.info("connected with %s", self._name(node))
        if self._closed:
            return
        with self._whole():
            orphans = self.core.peer_up(node, boot)
            founded = self.core.founded()
        self._haste.on_founded(founded, now=self._loop.time())
        self._hasten_later(orphans, node)

    def on_peer_gone(self, node: str) -> None:
        if self._closed:
            return
        with self._whole():
            orphans = self.core.peer_gone(node)
        self._hasten_later(orphans, node)

    def _hasten_later(self, orphans: list[tuple[int, int]], node: str) -> None:
        if orphans:
            logger.info("%s, which leads %d groups, is gone", self._name(node), len(orphans))
            self._haste.on_evidence(orphans, now=self._loop.time())
        self._schedule_haste(0.0)
        self.schedule_pump()

    def _schedule_haste(self, seconds_min: float) -> None:
        due = self._haste.next_due
        if self._haste_handle is not None:
            self._haste_handle.cancel()
            self._haste_handle = None
        if due is not None:
            self._haste_handle = self._loop.call_at(max(due, self._loop.time() + seconds_min), self._hasten)

    def _hasten(self) -> None:
        """Begin some of the campaigns that are due."""
        if self._closed:
            return
        now = self._loop.time()
        begun = 0
        with self._whole():
            while begun < CAMPAIGNS_PER_STEP and self.core.turns.has_room:
                campaign = self._haste.pop_due(now)
                if campaign is None:
                    break
                if self.core.hasten(campaign):
                    begun += 1
                    self._haste.on_undecided(campaign, now=now)
        self._schedule_haste(STEP_MS / 1_000)
        self.schedule_pump()

    async def on_snapshot(self, node: str, header: bytes, chunks: AsyncIterator[tuple[int, bytes]]) -> None:
        await self.snapshots.receive(node, header, chunks)

    def snapshot_resume_at(self, node: str, header: bytes) -> int:
        return self.snapshots.resume_at(header)

    def _name(self, node: str) -> str:
        place = self.environment.address_of(node)
        return place.name if place is not None else node

    # -- what there is ---------------------------------------------------------------------------------------------

    def leads(self, group: int) -> bool:
        replica = self.core.replicas.get(group)
        return replica is not None and replica.is_leader


def _nothing_heard(_node: str) -> int:
    return 0


def _is_taken(handed: Replica) -> bool:
    """Whether the leadership that was handed over has been taken, or was kept. To have stepped down is not enough: the
    successor may need the vote of this very replica."""
    if handed.is_leader:
        return not handed.raw.status().transfer_target
    return bool(handed.failed or handed.removed or handed.raw.leader_id)
