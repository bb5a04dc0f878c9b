"""Gathers the operations of one turn of the loop into as few frames as possible.

The two usual operations have lists of their own, so that their path has no branch per operation: new mutations of one
key, and linearizable gets. Everything else (retries, scans, batches, stale reads) goes through `_sort`.

Invariant: an operation is put into a frame of its shard, its mode and its `issued_at`; a mutation that is sent again
           carries the number and the stamp of its first sending.
Invariant: a frame is within the node's limits of operations and bytes.
Called by: client.py (add_*), dispatcher.py (retry), the loop (flush).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from kvstore.base.errors import KVError, TooLarge
from kvstore.base.operations import encode
from kvstore.base.shards import Route
from kvstore.base.stream import LINEARIZABLE, Mutate, Read
from kvstore.client.link import FRAME_ENVELOPE_BYTES, Flight, Link, timeout_ms
from kvstore.client.pending import MUTATION, UNSTAMPED, Pending
from kvstore.client.routes import RouteTable
from kvstore.client.session import SeqBlock, Session


class Placer(Protocol):
    """What the batcher asks of the dispatcher."""

    def place(self, route: Route, pendings: list[Pending], mode: int, now: float) -> Link | None:
        """An open link with room for them; None when the placer has put them elsewhere (a queue, a parking lot)."""

    def on_sent(self, flight: Flight) -> None:
        """A frame is under way; its deadline is to be watched."""

    def on_unrouted(self, pendings: list[Pending]) -> None:
        """No route is known for them."""

    def fail(self, pending: Pending, error: KVError) -> None: ...
    def settle(self, pending: Pending) -> None:
        """Nobody waits for it any more."""


class Batcher:
    def __init__(
        self, *, loop: asyncio.AbstractEventLoop, routes: RouteTable, session: Session, placer: Placer
    ) -> None:
        self.mutations: list[Pending] = []  # never sent, one key each
        self.gets: list[Pending] = []  # never sent, linearizable
        self.others: list[Pending] = []
        self.scheduled = False
        self._loop = loop
        self._routes = routes
        self._session = session
        self._placer = placer

    def schedule(self) -> None:
        """Flush in the next turn: all callers that this turn wakes get into the same frames."""
        if not self.scheduled:
            self.scheduled = True
            self._loop.call_soon(self.flush)

    def take_all(self) -> list[Pending]:
        """Empty the inbox (for closing)."""
        everything = self.mutations + self.gets + self.others
        self.mutations, self.gets, self.others = [], [], []
        return everything

    def flush(self) -> None:
        self.scheduled = False
        now = self._loop.time()
        if self.mutations:
            mutations, self.mutations = self.mutations, []
            self._by_shard(mutations, MUTATION, now)
        if self.gets:
            gets, self.gets = self.gets, []
            self._by_shard(gets, LINEARIZABLE, now)
        if self.others:
            others, self.others = self.others, []
            self._sort(others, now)

    def _by_shard(self, pendings: list[Pending], mode: int, now: float) -> None:
        only = self._routes.only
        if only is not None:
            self._send(only, pendings, mode, UNSTAMPED, now)
            return
        find = self._routes.find
        groups: dict[int, tuple[Route, list[Pending]]] = {}
        unrouted: list[Pending] = []
        for pending in pendings:
            route = find(pending.key)
            if route is None:
                unrouted.append(pending)
            elif (group := groups.get(route.id)) is not None:
                group[1].append(pending)
            else:
                groups[route.id] = (route, [pending])
        for route, group_pendings in groups.values():
            self._send(route, group_pendings, mode, UNSTAMPED, now)
        if unrouted:
            self._placer.on_unrouted(unrouted)

    def _sort(self, pendings: list[Pending], now: float) -> None:
        """The general way: any shape, any mode, retries."""
        groups: dict[tuple[int, int, int, int], tuple[Route, list[Pending]]] = {}
        unrouted: list[Pending] = []
        for pending in pendings:
            if pending.future.done():
                self._placer.settle(pending)
                continue
            shape = pending.shape
            route = self._routes.find(pending.key) if shape is None else shape.find(self._routes)
            if route is None:
                unrouted.append(pending)
                continue
            if shape is not None:
                error = shape.fit(pending.operation, route, uncertain=pending.uncertain)
                if error is not None and not pending.rechecked:
                    pending.rechecked = True
                    unrouted.append(pending)
                    continue
                if error is not None:
                    self._placer.fail(pending, error)
                    continue
            # Retries stay apart: their frame may have to be smaller, and a stale read falls back to the leader.
            apart = pending.crowd_max if pending.attempts else -1
            group_key = (route.id, pending.mode, pending.issued_at, apart)
            if (group := groups.get(group_key)) is not None:
                group[1].append(pending)
            else:
                groups[group_key] = (route, [pending])
        for (_, mode, issued_at, _), (route, group_pendings) in groups.items():
            self._send(route, group_pendings, mode, issued_at, now)
        if unrouted:
            self._placer.on_unrouted(unrouted)

    def _send(self, route: Route, pendings: list[Pending], mode: int, issued_at: int, now: float) -> None:
        link = self._placer.place(route, pendings, mode, now)
        if link is None:
            return
        size = link.frame_operations_max if mode == MUTATION else link.reads_max
        if pendings[0].crowd_max:
            size = min(size, pendings[0].crowd_max)
        if len(pendings) <= size:
            self._frame(link, route, pendings, mode, issued_at, now)
            return
        for position in range(0, len(pendings), size):
            part = pendings[position : position + size]
            if position == 0 or self._placer.place(route, part, mode, now) is link:
                self._frame(link, route, part, mode, issued_at, now)

    def _frame(self, link: Link, route: Route, pendings: list[Pending], mode: int, issued_at: int, now: float) -> None:
        block = None
        if mode == MUTATION and issued_at == UNSTAMPED:
            issued_at = self._session.stamp_ms(route.id, now, link.stamp_ms(now))
            block = self._number(pendings, issued_at)
        encoded = encode([pending.operation for pending in pendings])
        if len(encoded) > link.request_bytes_max - FRAME_ENVELOPE_BYTES:
            self._divide(link, route, pendings, mode, issued_at, now)
            return
        deadlines = [pending.deadline for pending in pendings]
        remaining_ms = timeout_ms(max(deadlines) - now, link.deadline_ms_max)
        operations = msgspec.Raw(encoded)
        frame: Mutate | Read
        if mode == MUTATION:
            session = self._session
            frame = Mutate(0, route.id, route.version, remaining_ms, session.id, session.low(), issued_at, operations)
        else:
            frame = Read(0, route.id, route.version, remaining_ms, mode, operations)
        flight = Flight(pendings=pendings, route=route, mode=mode, earliest=min(deadlines), block=block)
        link.submit(flight, frame)
        self._placer.on_sent(flight)

    def _number(self, pendings: list[Pending], issued_at: int) -> SeqBlock | None:
        """Stamp all, and number those that have no number yet; the block, if it holds exactly these."""
        new = [pending for pending in pendings if pending.block is None]
        for pending in pendings:
            pending.issued_at = issued_at
        if not new:
            return None
        block = self._session.begin(len(new))
        seq = block.first
        for pending in new:
            pending.operation.seq = seq
            pending.block = block
            seq += 1
        return block if len(new) == len(pendings) else None

    def _divide(self, link: Link, route: Route, pendings: list[Pending], mode: int, issued_at: int, now: float) -> None:
        """Too many bytes for one frame: two halves, each with the numbers and stamps already given."""
        if len(pendings) == 1:
            maximum = link.request_bytes_max - FRAME_ENVELOPE_BYTES
            self._placer.fail(pendings[0], TooLarge(f"the request is over the limit of {maximum} bytes"))
            return
        middle = len(pendings) // 2
        self._frame(link, route, pendings[:middle], mode, issued_at, now)
        self._frame(link, route, pendings[middle:], mode, issued_at, now)
