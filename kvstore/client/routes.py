"""Which shard holds a key and who leads it, as far as this client has heard.

Routes come from GetRoutes and from refusals, late and in any order. They are hints: a wrong one costs a redirect,
never a wrong answer, because the node checks the shard and its version.

Invariant: the routes held do not overlap and stand in key order; gaps are possible (then the client asks).
Invariant: a route is only replaced by one with a higher (version, term), or by one that knows more at the same.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import msgspec

from kvstore.base.shards import Route


class RouteTable:
    """The routes of one keyspace."""

    def __init__(self) -> None:
        self.keyspace: int | None = None  # number; None until a node has told it
        self.only: Route | None = None  # set when one shard is the whole keyspace: saves the search
        self._starts: list[bytes] = []  # of _routes, for bisect
        self._routes: list[Route] = []
        self._by_id: dict[int, Route] = {}

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def get(self, shard: int) -> Route | None:
        return self._by_id.get(shard)

    def find(self, key: bytes) -> Route | None:
        """The route whose range holds the key."""
        position = bisect_right(self._starts, key) - 1
        if position < 0:
            return None
        route = self._routes[position]
        return route if not route.end or key < route.end else None

    def find_below(self, end: bytes) -> Route | None:
        """The route that holds the keys just below `end`; b"" = the last of the keyspace."""
        position = (bisect_left(self._starts, end) if end else len(self._starts)) - 1
        if position < 0:
            return None
        route = self._routes[position]
        if not route.end:
            return route
        return route if end and end <= route.end else None

    def merge(self, routes: Iterable[Route]) -> bool:
        """Take over what is newer. True when anything was."""
        changed = False
        for route in routes:
            if route.keyspace == self.keyspace:
                changed |= self._merge_one(route)
        if changed:
            self._check()
        return changed

    def deny(self, shard: int, *, address: str, node: str | None) -> Route | None:
        """This node says that it does not lead the shard: do not ask it again on this route. The route as it is now."""
        route = self._by_id.get(shard)
        if route is None or (route.address != address and (route.leader is None or route.leader != node)):
            return route
        denied = msgspec.structs.replace(route, leader=None, address=None)
        self._routes[self._routes.index(route)] = denied
        self._by_id[shard] = denied
        self._check()
        return denied

    def addresses(self) -> dict[str, None]:
        """HOST:PORT of every node that holds a replica or leads, in key order (a dict keeps the order)."""
        found: dict[str, None] = {}
        for route in self._routes:
            if route.address:
                found[route.address] = None
            for _, address, _ in route.replicas:
                found[address] = None
        return found

    def _merge_one(self, new: Route) -> bool:
        known = self._by_id.get(new.id)
        if known == new:
            return False
        first, last = self._overlap(new)
        for old in self._routes[first:last]:
            if old.version > new.version or (old.version == new.version and not _same_but_newer(old, new)):
                return False
        if known is not None and known.version > new.version:
            return False
        for old in self._routes[first:last]:
            del self._by_id[old.id]
        self._routes[first:last] = [new]
        self._starts[first:last] = [new.start]
        if new.id in self._by_id:  # the shard's older range did not even touch the new one
            position = self._routes.index(self._by_id[new.id])
            del self._routes[position], self._starts[position]
        self._by_id[new.id] = new
        return True

    def _overlap(self, new: Route) -> tuple[int, int]:
        """[first, last) positions of the routes that overlap the new one, or where it belongs if none does."""
        first = bisect_right(self._starts, new.start) - 1
        if first < 0 or (self._routes[first].end and self._routes[first].end <= new.start):
            first += 1
        last = bisect_left(self._starts, new.end) if new.end else len(self._starts)
        return first, max(first, last)

    def _check(self) -> None:
        """Renew `only`, and look that the invariant holds."""
        whole = len(self._routes) == 1 and not self._routes[0].start and not self._routes[0].end
        self.only = self._routes[0] if whole else None
        for left, right in zip(self._routes, self._routes[1:], strict=False):
            assert left.end
            assert left.end <= right.start


def _same_but_newer(old: Route, new: Route) -> bool:
    """Whether `new` says more about the same shard at the same version."""
    if old.id != new.id:
        return False
    if new.term != old.term:
        return new.term > old.term
    if (new.leader is None) != (old.leader is None):
        return new.leader is not None
    return new.conf > old.conf
