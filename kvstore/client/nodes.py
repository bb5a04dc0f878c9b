"""The nodes that the client knows, and the choice of the one to ask.

Invariant: a node that failed and is not connected again is not chosen while another can be; it is dialled in the
           background meanwhile, so that operations do not wait for a dead machine.
Invariant: the endpoints that the user gave are never forgotten; other nodes are, when they are no members that live,
           no route names them and no connection to them is open.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from kvstore.base.errors import KVError
from kvstore.base.shards import Route
from kvstore.client.link import Link


class Nodes:
    def __init__(self, endpoints: tuple[str, ...], *, make: Callable[[str], Link], rng: random.Random) -> None:
        self._make = make
        self._rng = rng
        self._endpoints = endpoints
        self._links: dict[str, Link] = {}  # by HOST:PORT
        self._open: dict[str, Link] = {}  # by node name: an endpoint may be written in another way than in routes
        self.add(endpoints)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def add(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            if address not in self._links:
                self._links[address] = self._make(address)

    def prune(self, addresses: Iterable[str]) -> None:
        """Forget nodes that are neither among the addresses, nor endpoints, nor in use."""
        keep = {*addresses, *self._endpoints}
        for address, link in list(self._links.items()):
            if address not in keep and link.failures > 0 and not link.is_open and not link.queued:
                link.close()
                del self._links[address]

    def on_open(self, link: Link) -> None:
        assert link.node is not None
        self._open[link.node] = link

    def on_lost(self, link: Link) -> None:
        if link.node is not None and self._open.get(link.node) is link:
            del self._open[link.node]

    def leader(self, route: Route) -> Link | None:
        """The link to the leader that the route names, in whatever state; None when none is named."""
        if route.leader is not None and (link := self._open.get(route.leader)) is not None:
            return link
        if route.address is None:
            return None
        if route.address not in self._links:
            self.add((route.address,))
        return self._links[route.address]

    def to_lead(self, route: Route, misses: int) -> Link | None:
        """Whom to ask for the shard's leader to act: the leader, or in turn the others, who may know it."""
        leader = self.leader(route)
        if leader is not None:
            if leader.usable:
                return leader
            leader.wake()
        return self._in_turn(self._others(route, leader), misses)

    def to_read(self, route: Route) -> Link | None:
        """Any replica, for a stale read; a connected one first."""
        replicas = self._others(route, None)
        opened = [link for link in replicas if link.is_open]
        return self._rng.choice(opened) if opened else self._in_turn(replicas, 0)

    def to_ask(self) -> list[Link]:
        """All, in the order in which they should be asked for routes: connected, untried, failed."""
        links = list(self._links.values())
        self._rng.shuffle(links)
        return sorted(links, key=lambda link: (not link.is_open, link.failures))

    def errors(self) -> list[KVError]:
        """Why the nodes that can't be reached can't."""
        return [link.error for link in self._links.values() if link.error is not None and not link.is_open]

    def _others(self, route: Route, leader: Link | None) -> list[Link]:
        """The shard's replicas; when none of them can be used, every node."""
        addresses = [address for _, address, _ in route.replicas]
        if leader is None and route.address is not None:
            addresses.insert(0, route.address)
        self.add(addresses)
        links = list(dict.fromkeys(self._links[address] for address in addresses))
        if any(link.usable for link in links if link is not leader):
            return [link for link in links if link is not leader]
        return [link for link in self._links.values() if link is not leader]

    def _in_turn(self, links: list[Link], turn: int) -> Link | None:
        usable = [link for link in links if link.usable]
        for link in links:
            if not link.usable:
                link.wake()
        return usable[turn % len(usable)] if usable else None
