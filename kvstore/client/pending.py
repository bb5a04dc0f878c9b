"""One operation that a caller waits for, and the shapes of those that are more than one key.

Invariant: a pending operation is at every moment in exactly one place: the batcher's inbox, a link's queue, a frame
           under way, a parking lot (dispatcher.py), or the list of those without a route. Whoever takes it out puts it
           somewhere else or settles it.
Invariant: `operation.seq`, `issued_at` and `block` of a mutation are set when it is first put into a frame and stay,
           except that a mutation which certainly did not happen may be stamped anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from kvstore.base.errors import Invalid, KVError
from kvstore.base.operations import DeleteRange, Mutation, ReadOperation, Scan
from kvstore.base.shards import Route
from kvstore.client.routes import RouteTable
from kvstore.client.session import SeqBlock

MUTATION = -2
"""`Pending.mode` of a mutation; a read has its `max_staleness_ms` there, stream.LINEARIZABLE (-1) included."""

UNSTAMPED = -1
"""`Pending.issued_at` of a mutation that was not sent yet, or is to be stamped anew."""


class Shape(Protocol):
    """How an operation on more than one key finds its shard and is fitted to it."""

    def find(self, routes: RouteTable) -> Route | None: ...

    def fit(self, operation: Any, route: Route, *, uncertain: bool) -> KVError | None:
        """Change the operation to what lies in the shard; an error when that can't be."""


class Pending(msgspec.Struct, eq=False):
    future: asyncio.Future[Any]  # gets the raw result; a cancelled one is not sent again
    operation: Mutation | ReadOperation
    key: bytes  # finds the shard when there is no shape
    deadline: float  # loop time
    mode: int
    shape: Shape | None = None
    issued_at: int = UNSTAMPED  # ms stamp of the first sending
    block: SeqBlock | None = None
    attempts: int = 0  # refused or lost so far
    uncertain: bool = False  # some attempt may have taken effect
    crowd_max: int = 0  # how many may share its frame, after a frame was refused that more shared; 0 = any number
    rechecked: bool = False  # did not fit its shard, and the routes were asked for again because of it
    error: KVError | None = None  # the last thing heard


class ScanSpan:
    """A page of a scan: begins at the shard that holds the cursor, and ends where the shard ends."""

    __slots__ = ("end", "reverse", "route", "start")

    def __init__(self, start: bytes, end: bytes, *, reverse: bool) -> None:
        self.start = start
        self.end = end  # exclusive; b"" = no bound
        self.reverse = reverse
        self.route: Route | None = None  # of the last sending: the page was made in this very range

    def find(self, routes: RouteTable) -> Route | None:
        return routes.find_below(self.end) if self.reverse else routes.find(self.start)

    def fit(self, operation: Scan, route: Route, *, uncertain: bool) -> KVError | None:
        self.route = route
        operation.start = max(self.start, route.start)
        operation.end = lower_end(self.end, route.end)
        return None

    def rest(self, cursor: bytes | None) -> tuple[bytes, bytes] | None:
        """The range still to be read after a page; None = all is done."""
        route = self.route
        assert route is not None
        if self.reverse:
            end = cursor if cursor is not None else route.start
            return (self.start, end) if end > self.start else None
        start = cursor if cursor is not None else route.end
        if not start or (self.end and start >= self.end):
            return None
        return start, self.end


class DeleteSpan:
    """A page of a delete-range. Its end may only come nearer from one sending to the next.

    Why: the answer to a retry may be that of an earlier attempt. Were the range widened in between (after a merge),
    "done" would be taken for more than was done. Narrowed (after a split) it only makes us look twice at a part.
    """

    __slots__ = ("end", "sent_end", "start")

    def __init__(self, start: bytes, end: bytes) -> None:
        self.start = start
        self.end = end
        self.sent_end: bytes | None = None  # of the last sending

    def find(self, routes: RouteTable) -> Route | None:
        return routes.find(self.start)

    def fit(self, operation: DeleteRange, route: Route, *, uncertain: bool) -> KVError | None:
        end = self.sent_end if uncertain and self.sent_end is not None else self.end
        self.sent_end = operation.end = lower_end(end, route.end)
        return None

    def rest(self, cursor: bytes | None) -> tuple[bytes, bytes] | None:
        """The range still to be deleted after a page; None = all is done."""
        assert self.sent_end is not None
        start = cursor if cursor is not None else self.sent_end
        if not start or (self.end and start >= self.end):
            return None
        return start, self.end


class KeySet:
    """A batch: all keys must lie in one shard."""

    __slots__ = ("keys",)

    def __init__(self, keys: Sequence[bytes]) -> None:
        assert keys
        self.keys = keys

    def find(self, routes: RouteTable) -> Route | None:
        return routes.find(self.keys[0])

    def fit(self, operation: Any, route: Route, *, uncertain: bool) -> KVError | None:
        for key in self.keys:
            if key < route.start or (route.end and key >= route.end):
                return Invalid(
                    f"a batch is atomic in one shard, but {self.keys[0]!r} and {key!r} lie in different ones"
                )
        return None


def lower_end(one: bytes, other: bytes) -> bytes:
    """The lower of two exclusive upper bounds, of which b"" means none."""
    if not one or not other:
        return one or other
    return min(one, other)
