"""What becomes of each operation: where it goes, what its answer means, when it is tried again, when it ends.

There is no task and no timer per operation. An operation ends by its answer, by an error that no retry can help, by
its deadline (one timer for all: `_sweep`), or because its caller went away.

Invariant: each operation is counted in `waiting` from `admit` until `settle`, and settled exactly once.
Invariant: a mutation that was in a frame which was lost, or was refused as not definite, is `uncertain` from then on;
           an uncertain mutation ends with an answer from the store or with an outcome that is told as unknown.
Called by: client.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from kvstore.base.errors import Code, KVError, NotFound, Overloaded, Unavailable
from kvstore.base.limits import BATCH_OPERATIONS_MAX, REQUEST_BYTES_MAX
from kvstore.base.operations import Failure
from kvstore.base.shards import Route
from kvstore.base.stream import LINEARIZABLE, Refused, Results, Routes
from kvstore.client.batcher import Batcher
from kvstore.client.connection import ConnectionLost, Connector
from kvstore.client.link import Flight, Link
from kvstore.client.nodes import Nodes
from kvstore.client.pending import MUTATION, UNSTAMPED, Pending
from kvstore.client.retry import Pace, Verdict, backoff_seconds, error_of, final_error, judge
from kvstore.client.route_keeper import RouteKeeper
from kvstore.client.routes import RouteTable
from kvstore.client.session import Session

SWEEP_SECONDS_MIN = 0.005
DIVISOR = 8  # a refused frame of 4,096 operations is taken apart into single ones in four rounds


class StaleAnswer:
    """The raw answer to a read that allowed staleness."""

    __slots__ = ("age_ms", "applied", "result")

    def __init__(self, result: Any, applied: int, age_ms: int) -> None:
        self.result = result
        self.applied = applied
        self.age_ms = age_ms


class Parked:
    """Operations that wait for a moment to be tried again."""

    __slots__ = ("pendings", "timer")

    def __init__(self, pendings: list[Pending]) -> None:
        self.pendings = pendings
        self.timer: asyncio.TimerHandle | None = None


class Dispatcher:
    def __init__(
        self,
        endpoints: tuple[str, ...],
        *,
        keyspace: str,
        connector: Connector,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        waiting_max: int,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.routes = RouteTable()
        self.waiting = 0
        self.value_bytes_max = REQUEST_BYTES_MAX  # until a node has told its limits; it checks anyway
        self.batch_operations_max = BATCH_OPERATIONS_MAX
        self._waiting_max = waiting_max
        self._keyspace = keyspace
        self._rng = rng
        self._loop = loop
        self._spawn = spawn
        self._members: list[str] = []  # HOST:PORT of all nodes that are alive, as last told
        self._cluster: str | None = None  # id of the first node that welcomed us; a client never mixes two clusters

        def make(address: str) -> Link:
            return Link(address, connector=connector, owner=self, loop=loop, rng=rng, spawn=spawn)

        self.nodes = Nodes(endpoints, make=make, rng=rng)
        self._session = Session(rng)
        self.batcher = Batcher(loop=loop, routes=self.routes, session=self._session, placer=self)
        self._paces: dict[int, Pace] = {}  # by shard, while its leader is looked for
        self._unrouted: list[Pending] = []
        self._parked: set[Parked] = set()
        self._keeper = RouteKeeper(self.nodes, loop=loop, rng=rng, spawn=spawn, learn=self._on_routes)
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_at = float("inf")
        self.closed = False

    # -- in and out
    def admit(self) -> None:
        """Count one more operation. Raises Overloaded when too many wait."""
        if self.waiting >= self._waiting_max:
            raise Overloaded(f"{self.waiting} operations of this client are waiting already", definite=True)
        self.waiting += 1

    def settle(self, pending: Pending) -> None:
        """It is over, whatever became of it."""
        self.waiting -= 1
        assert self.waiting >= 0
        if pending.block is not None:
            pending.block.remaining -= 1
            assert pending.block.remaining >= 0

    def fail(self, pending: Pending, error: KVError) -> None:
        """End it with the error, or with an unknown outcome if an attempt may have taken effect."""
        if not pending.future.done():
            pending.future.set_exception(final_error(error, uncertain=pending.uncertain))
        self.settle(pending)

    def close(self, error: KVError) -> None:
        """Ends every operation. The owner cancels the tasks."""
        for pending in self._stop():
            self.fail(pending, error)
        assert self.waiting == 0

    def abandon(self, error: KVError) -> None:
        """As `close`, after an error of our own: the books may be wrong, but no caller may be left waiting."""
        for pending in self._stop():
            if not pending.future.done():
                pending.future.set_exception(final_error(error, uncertain=pending.uncertain))

    def _stop(self) -> list[Pending]:
        """No more connections, no more timers; all operations, wherever they are."""
        self.closed = True
        self._keeper.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        doomed = self.batcher.take_all() + self._unrouted
        self._unrouted = []
        for parked in self._parked:
            if parked.timer is not None:
                parked.timer.cancel()
            doomed += parked.pendings
        self._parked.clear()
        for link in self.nodes:
            link.close()
            doomed += link.queued
            link.queued = []
            for flight in list(link.flights.values()):
                link.discard(flight)
                doomed += self._doubt(flight)
        return doomed

    # -- placing (the batcher's Placer)
    def place(self, route: Route, pendings: list[Pending], mode: int, now: float) -> Link | None:
        pace = self._paces.get(route.id)
        if pace is not None and pace.not_before > now:
            self._park(pendings, pace.not_before - now)
            return None
        if mode >= 0 and pendings[0].attempts == 0:
            link = self.nodes.to_read(route)
        else:
            link = self.nodes.to_lead(route, pace.misses if pace is not None else 0)
        if link is None:
            self._miss(route, pendings, now, news=False)
            return None
        if link.is_open and link.has_room:
            return link
        link.queued += pendings
        self._watch_deadlines(pendings)
        link.wake()
        return None

    def on_sent(self, flight: Flight) -> None:
        if not self._keeper.used:
            self._keeper.on_use()
        if flight.earliest < self._sweep_at:
            self._arm_sweep(flight.earliest)

    def on_unrouted(self, pendings: list[Pending]) -> None:
        self._unrouted += pendings
        self._watch_deadlines(pendings)
        self.refresh()

    def _park(self, pendings: list[Pending], delay: float) -> None:
        parked = Parked(pendings)
        parked.timer = self._loop.call_later(delay, self._unpark, parked)
        self._parked.add(parked)
        self._watch_deadlines(pendings)

    def _unpark(self, parked: Parked) -> None:
        self._parked.discard(parked)
        self._again(parked.pendings)

    def _again(self, pendings: list[Pending]) -> None:
        """Into the next flush."""
        if pendings:
            self.batcher.others += pendings
            self.batcher.schedule()

    def _miss(self, route: Route, pendings: list[Pending], now: float, *, news: bool) -> None:
        """The shard's leader was not there."""
        pace = self._paces.get(route.id)
        if pace is None:
            pace = self._paces[route.id] = Pace()
        delay = pace.miss(now, news=news, rng=self._rng)
        for pending in pendings:
            if pending.error is None:
                pending.error = self._unreachable()
        if delay > 0:
            self._park(pendings, delay)
        else:
            self._again(pendings)

    def _unreachable(self) -> KVError:
        reasons = "; ".join(error.message for error in self.nodes.errors()[:3])
        return Unavailable(reasons or "no leader was found")

    # -- answers (the links' LinkOwner)
    def on_open(self, link: Link) -> None:
        assert link.welcome is not None
        if self._cluster is None:
            self._cluster = link.welcome.cluster
        elif self._cluster != link.welcome.cluster:
            raise ConnectionLost(f"it belongs to another cluster ({link.welcome.cluster}, not {self._cluster})")
        limits = link.welcome.limits
        self.value_bytes_max = limits.get("value_bytes_max", self.value_bytes_max)
        self.batch_operations_max = limits.get("batch_operations_max", self.batch_operations_max)
        self.nodes.on_open(link)
        if link.queued:
            queued, link.queued = link.queued, []
            self._again(queued)

    def on_results(self, link: Link, flight: Flight, reply: Results) -> None:
        results: list[Any] = reply.results
        if flight.mode >= 0:
            results = [
                result if type(result) is Failure else StaleAnswer(result, reply.applied, reply.age_ms)
                for result in results
            ]
        failures: list[tuple[Pending, Failure]] = []
        for pending, result in zip(flight.pendings, results, strict=True):
            if type(result) is Failure:
                failures.append((pending, result))
            elif not pending.future.done():
                pending.future.set_result(result)
        self._session.heard(flight.route.id, reply.stamp, self._loop.time())
        if self._paces and len(failures) < len(results):
            self._paces.pop(flight.route.id, None)
        if not failures:
            self._settle_all(flight)
        else:
            self._on_failures(flight, failures)

    def _settle_all(self, flight: Flight) -> None:
        count = len(flight.pendings)
        if flight.mode != MUTATION:
            self.waiting -= count
        elif flight.block is not None:
            self.waiting -= count
            flight.block.remaining -= count
            assert flight.block.remaining >= 0
        else:
            for pending in flight.pendings:
                self.settle(pending)

    def _on_failures(self, flight: Flight, failures: list[tuple[Pending, Failure]]) -> None:
        refused = {id(pending) for pending, _ in failures}
        for pending in flight.pendings:
            if id(pending) not in refused:
                self.settle(pending)
        groups: dict[tuple[int, bool], list[Pending]] = {}
        messages: dict[tuple[int, bool], str] = {}
        for pending, failure in failures:
            groups.setdefault((failure.code, failure.definite), []).append(pending)
            messages.setdefault((failure.code, failure.definite), failure.message)
        for (code, definite), pendings in groups.items():
            error = error_of(code, messages[code, definite], definite=definite)
            if code in (Code.NOT_LEADER, Code.STALE_ROUTE):
                self.refresh()  # a single operation's refusal carries no routes
            self._on_refusal(flight, pendings, error, news=False, crowd=0)

    def on_refused(self, link: Link, flight: Flight, reply: Refused) -> None:
        self._learn(reply.routes)
        before = flight.route
        error = error_of(reply.code, reply.message, definite=reply.definite, retry_after_ms=reply.retry_after_ms)
        after = self.routes.get(before.id)
        same = after is not None and after.version <= before.version
        if same and reply.code in (Code.NOT_LEADER, Code.STALE_ROUTE):
            after = self.routes.deny(before.id, address=link.address, node=link.node)
        if same and reply.code == Code.STALE_ROUTE:
            self.refresh()
        news = not same or (after is not None and self._elsewhere(after, link))
        self._on_refusal(flight, flight.pendings, error, news=news, crowd=len(flight.pendings))

    def _elsewhere(self, route: Route, link: Link) -> bool:
        """Whether the route names a leader that can be asked now, and it is not this node."""
        leader = self.nodes.leader(route)
        return leader is not None and leader is not link and leader.usable

    def _on_refusal(self, flight: Flight, pendings: list[Pending], error: KVError, *, news: bool, crowd: int) -> None:
        """Sort the operations by what the table of codes says. `crowd`: how many shared what was refused; 0 = each
        was refused for itself."""
        now = self._loop.time()
        reroute: list[Pending] = []
        backoff: list[Pending] = []
        again: list[Pending] = []
        for pending in pendings:
            pending.attempts += 1
            pending.error = error
            if not error.definite and pending.mode == MUTATION:
                pending.uncertain = True
            if pending.future.done():
                self.settle(pending)
                continue
            applied = crowd == 0 and pending.mode == MUTATION
            match judge(error.code, uncertain=pending.uncertain, crowd=crowd > 1, applied=applied):
                case Verdict.RAISE:
                    self.fail(pending, error)
                case Verdict.RESTAMP:
                    pending.issued_at = UNSTAMPED
                    (again if pending.attempts <= 2 else backoff).append(pending)
                case Verdict.DIVIDE:
                    pending.crowd_max = max(1, crowd // DIVISOR)
                    again.append(pending)
                case Verdict.REROUTE:
                    reroute.append(pending)
                case Verdict.BACKOFF:
                    backoff.append(pending)
        self._again(again)
        if reroute:
            self._miss(flight.route, reroute, now, news=news)
        if backoff:
            self._back_off(backoff, error, now)

    def _back_off(self, pendings: list[Pending], error: KVError, now: float) -> None:
        """Wait for the time that the server asked for. Who can't wait that long is told at once, if the outcome is
        certain; who must find it out asks once more before the deadline."""
        delay = backoff_seconds(max(pending.attempts for pending in pendings), error.retry_after_ms, self._rng)
        patient: list[Pending] = []
        for pending in pendings:
            remaining = pending.deadline - now
            if delay < remaining:
                patient.append(pending)
            elif pending.uncertain:
                self._park([pending], max(remaining, 0.0) / 2)
            else:
                self.fail(pending, error)
        if patient:
            self._park(patient, delay)

    def on_lost(self, link: Link, flights: list[Flight], error: KVError) -> None:
        self.nodes.on_lost(link)
        assert not self.closed or not flights
        if self.closed:
            return
        lost = [pending for flight in flights for pending in self._doubt(flight)]
        queued, link.queued = link.queued, []
        for pending in lost + queued:
            pending.error = error
        self._again(lost + queued)

    def _doubt(self, flight: Flight) -> list[Pending]:
        """A frame's operations after nobody can tell what became of it."""
        for pending in flight.pendings:
            pending.attempts += 1
            pending.uncertain = pending.uncertain or flight.mode == MUTATION
        return flight.pendings

    # -- routes
    async def fresh_routes(self, seconds: float) -> list[Route]:
        """The routes as some node knows them now. Raises Unavailable or NotFound."""
        if not await self._keeper.wait(seconds):
            raise self._unreachable()
        if self.routes.keyspace is None:
            raise NotFound(f"there is no keyspace {self._keyspace!r}")
        return list(self.routes)

    def refresh(self) -> None:
        if not self.closed:
            self._keeper.refresh()

    def _on_routes(self, answer: Routes) -> bool:
        """Whether they are of use: a keeper's answer."""
        if not answer.whole:
            self._on_news(answer)
            return True
        if not answer.keyspaces or (not answer.routes and self._keyspace in answer.keyspaces):
            return False  # a node that has just started, or has no replica and was not told yet where the shards are
        number = answer.keyspaces.get(self._keyspace)
        unrouted, self._unrouted = self._unrouted, []
        if number is None:
            error = NotFound(f"there is no keyspace {self._keyspace!r}")
            for pending in unrouted:
                self.fail(pending, error)
            return True
        self.routes.keyspace = number
        self._on_news(answer)
        self._again(unrouted)
        return True

    def _on_news(self, answer: Routes) -> None:
        """The routes that are told, and the nodes if they are."""
        if not answer.routes and not answer.nodes:
            return
        if answer.nodes:
            self._members = [address for _, address in answer.nodes]
            self.nodes.add(self._members)
        self._learn(tuple(answer.routes))
        self.nodes.prune([*self.routes.addresses(), *self._members])
        for shard in [shard for shard in self._paces if self.routes.get(shard) is None]:
            del self._paces[shard]
        self._session.forget_stamps({route.id for route in self.routes})

    def _learn(self, routes: tuple[Route, ...]) -> None:
        if routes and self.routes.merge(routes):
            self.nodes.add(self.routes.addresses())

    # -- deadlines
    def _watch_deadlines(self, pendings: list[Pending]) -> None:
        if pendings:
            earliest = min(pending.deadline for pending in pendings)
            if earliest < self._sweep_at:
                self._arm_sweep(earliest)

    def _arm_sweep(self, at: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = at
        self._sweeper = self._loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        """End what is past its deadline, and set the timer for the next."""
        now = self._loop.time()
        self._sweeper = None
        self._sweep_at = float("inf")
        next_at = float("inf")
        for link in self.nodes:
            next_at = min(next_at, self._sweep_flights(link, now))
            link.queued, at = self._sweep_list(link.queued, now)
            next_at = min(next_at, at)
        for parked in list(self._parked):
            parked.pendings, at = self._sweep_list(parked.pendings, now)
            next_at = min(next_at, at)
            if not parked.pendings:
                self._parked.discard(parked)
                if parked.timer is not None:
                    parked.timer.cancel()
        self._unrouted, at = self._sweep_list(self._unrouted, now)
        next_at = min(next_at, at)
        if next_at < float("inf"):
            self._arm_sweep(max(next_at, now + SWEEP_SECONDS_MIN))

    def _sweep_list(self, pendings: list[Pending], now: float) -> tuple[list[Pending], float]:
        """Those that still wait, and their first deadline. They are not in a frame, so an end here is as certain as
        their last attempt."""
        kept: list[Pending] = []
        earliest = float("inf")
        for pending in pendings:
            if pending.future.done():
                self.settle(pending)
            elif pending.deadline <= now:
                self.fail(pending, self._too_late(pending))
            else:
                kept.append(pending)
                earliest = min(earliest, pending.deadline)
        return kept, earliest

    def _sweep_flights(self, link: Link, now: float) -> float:
        first = float("inf")
        for flight in list(link.flights.values()):
            if flight.earliest <= now:
                self._sweep_flight(link, flight, now)
            first = min(first, flight.earliest)
        return first

    def _sweep_flight(self, link: Link, flight: Flight, now: float) -> None:
        """Operations that end here stay in the flight, so that answers keep their places; they are settled with it."""
        flight.earliest = float("inf")
        for pending in flight.pendings:
            if pending.future.done():
                continue
            if pending.deadline <= now:
                uncertain = flight.mode == MUTATION or pending.uncertain
                pending.future.set_exception(final_error(self._too_late(pending), uncertain=uncertain))
            else:
                flight.earliest = min(flight.earliest, pending.deadline)
        if flight.earliest == float("inf"):
            link.discard(flight)
            for pending in flight.pendings:
                self.settle(pending)

    def _too_late(self, pending: Pending) -> KVError:
        error = pending.error
        if error is not None:
            return error
        if pending.mode != MUTATION and pending.mode != LINEARIZABLE:
            return Unavailable("no replica answered within the deadline")
        if pending.block is None:
            return self._unreachable()
        return Unavailable("no answer within the deadline")
