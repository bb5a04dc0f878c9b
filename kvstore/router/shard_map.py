"""Which shard holds a key, from the replicas here and from what other nodes told.

Invariant: of two routes of a shard the one with the higher (version, conf, term) stands.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kvstore.base.ids import DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME, SYSTEM_KEYSPACE
from kvstore.base.shards import Route
from kvstore.replica.host_core import HostCore

KEYSPACES = {DEFAULT_KEYSPACE_NAME: int(DEFAULT_KEYSPACE)}


class ShardMap:
    """All shards that this node knows of."""

    def __init__(self, core: HostCore) -> None:
        self._core = core
        self._remote: dict[int, Route] = {}
        self._version = 0
        self._last: list[Route] = []

    def learn(self, routes: Iterable[Route]) -> None:
        """Merge what another node said; only a hint."""
        for route in routes:
            known = self._remote.get(route.id)
            if known is None or _age(route) >= _age(known):
                self._remote[route.id] = route

    def forget_leader(self, shard: int, address: str) -> None:
        """Nobody answers there: do not send more there because of what another node once told."""
        known = self._remote.get(shard)
        if known is not None and known.address == address:
            self._remote[shard] = msgspec.structs.replace(known, term=0, leader=None, address=None)

    def routes(self) -> tuple[int, list[Route]]:
        """(version, routes of the users' keyspaces in key order); the version rises when anything changes."""
        merged = dict(self._remote)
        for replica in self._core.replicas.values():
            route = replica.route()
            if route is None:
                continue
            known = merged.get(route.id)
            if known is None or _age(route) >= _age(known) or known.leader is None:
                merged[route.id] = route
        routes = sorted(
            (route for route in merged.values() if route.keyspace != SYSTEM_KEYSPACE),
            key=lambda route: (route.keyspace, route.start),
        )
        if routes != self._last:
            self._last = routes
            self._version += 1
        return self._version, routes

    def find(self, keyspace: int, key: bytes) -> Route | None:
        """The route of the shard that holds the user's key."""
        for route in self.routes()[1]:
            if route.keyspace == keyspace and route.start <= key and (not route.end or key < route.end):
                return route
        return None


def _age(route: Route) -> tuple[int, int, int]:
    return route.version, route.conf, route.term
