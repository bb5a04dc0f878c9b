"""Which shard holds a key and who leads it: from the replicas here, and from what other nodes told.

Both are merged into one table as hints are (gossip/hint): by (version, term, conf), and what a higher version covers
is dropped. A replica here that knows no leader counts as term 0, so it does not hide what others say of one.

Nothing is built anew for a look-up. What may have changed is noted where it changes (HostCore.routes_anew, the hints'
and the addresses' callbacks) and looked at when somebody asks next, or shortly after where somebody waits.

Invariant: the routes shown do not overlap and stand in key order.
Invariant: no route names this node as the leader unless the replica here leads, nor another one that led before a
           term which the replica here has seen begin.
Invariant: `version` rises with each change of what is shown, and with nothing else. It begins at a random place, so
           versions of two nodes, or of two starts of one, are equal only by a chance of one in 2^32.
Invariant: at most WATCHERS_MAX wait for a change.
Called by: router, api (over router).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from kvstore.base.errors import Overloaded
from kvstore.base.ids import DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME, SYSTEM_KEYSPACE
from kvstore.base.limits import CONNECTIONS_MAX
from kvstore.base.shards import (
    Replica,
    ReplicaRole,
    Route,
    ShardDescriptor,
    keyspace_prefix,
    keyspace_range,
    user_bounds,
)
from kvstore.gossip.hint import Hint
from kvstore.gossip.hint_table import HintTable
from kvstore.gossip.leader_hints import LeaderHints
from kvstore.replica.environment import NodeAddress
from kvstore.replica.host_core import HostCore

KEYSPACES = {DEFAULT_KEYSPACE_NAME: int(DEFAULT_KEYSPACE)}
WATCHERS_MAX = CONNECTIONS_MAX
WAKE_SECONDS = 0.02  # what many elections change at once is told once
WAKES_MAX = 500  # in one turn of the loop: each writes an answer
TOLD_MAX = 64
DENIED_MS = 1_000  # a leader that could not be reached is not named to the router again before
_COUNT_BITS = 20  # of a version; with 32 random bits above, readers of JSON take it for a whole number


@dataclass(frozen=True, slots=True)
class Known:
    """A shard as somebody saw it. Node ids are as in descriptors."""

    id: int
    start: bytes
    end: bytes
    descriptor: ShardDescriptor
    term: int  # 0 = without a leader
    leader: str | None  # node id

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.descriptor.version, self.term, self.descriptor.conf

    def is_on(self, nodes: Collection[str]) -> bool:
        return self.leader in nodes or any([one.node in nodes for one in self.descriptor.replicas])


@dataclass(frozen=True, slots=True)
class Routing:
    """What is shown at a version."""

    version: int
    routes: Sequence[Route]  # in key order; of the users' keyspaces
    nodes: Sequence[NodeAddress]  # that are alive, by name; empty where `whole` is not set and they are the same
    whole: bool  # or only what has changed since the version that was asked about


class ShardMap:
    """All shards that this node knows of."""

    def __init__(self, core: HostCore) -> None:
        environment = core.environment
        self._core = core
        self._environment = environment
        self._alive: Callable[[], Iterable[NodeAddress]] = environment.addresses.values
        self._table: HintTable[Known] = HintTable(_overrides)
        self._routes: dict[int, Route] = {}  # by shard; what is shown of each in the table
        self._sorted: list[Route] | None = None  # those of the users' keyspaces
        self._nodes: list[NodeAddress] = []
        self._stale: dict[int, None] = {}  # shards whose route may be another one
        self._renamed: dict[str, None] = {}  # nodes whose name or address is another one
        self._nodes_stale = True
        base = environment.rng.getrandbits(32) << _COUNT_BITS
        self._first = self._version = base + 1
        self._changed_at: dict[int, int] = {}  # version at which the shard's route became what it is
        self._nodes_changed_at = self._first
        self._told: dict[int, Routing] = {}  # what has changed since some earlier versions; those who wait ask alike
        self._denied: dict[int, tuple[str, int]] = {}  # shard -> (address of a leader, boot clock until when)
        self._watchers: dict[int, tuple[int, Callable[[], None]]] = {}  # with the version that was seen
        self._watch_count = 0
        self._waking: asyncio.TimerHandle | None = None
        self._closed = False
        core.routes_anew |= dict.fromkeys(core.replicas)
        environment.addresses.on_change = self._on_address

    # -- what others tell ------------------------------------------------------------------------------------------

    def attach(self, hints: LeaderHints, alive: Callable[[], Iterable[NodeAddress]]) -> None:
        """Take over what gossip carries, from now on. `alive`: the nodes to tell clients of; until now, all that are
        known by name. Whoever knows of a change there calls `on_members`."""
        self._alive = alive
        self._nodes_stale = True
        hints.on_change = self._on_hints
        self._on_hints(hints.table())

    def _on_hints(self, hints: Sequence[Hint]) -> None:
        for hint in hints:
            self._merge(_known_by_hint(hint))
        self.touch()

    def learn(self, routes: Iterable[Route]) -> None:
        """Merge what another node said in an answer. Leaders whose names are not known here are not learned."""
        by_name = {place.name: node for node, place in self._environment.addresses.items()}
        for route in routes:
            known = _known_by_route(route, by_name)
            if known.leader is not None:
                self._denied.pop(known.id, None)
            self._merge(known)
        self.touch()

    def forget_leader(self, shard: int, address: str) -> None:
        """Nobody answers there: for a while, do not send more there because of what another node once told."""
        self._denied[shard] = (address, self._environment.clock.boot_ms() + DENIED_MS)

    def _on_address(self, node: str) -> None:
        self._renamed[node] = None
        self._nodes_stale = True
        self.touch()

    def on_members(self) -> None:
        """Others are alive than before."""
        self._nodes_stale = True
        self.touch()

    def _merge(self, known: Known) -> None:
        out = self._table.merge(known)
        if out is not None:
            self._stale[known.id] = None
            self._stale |= {one.id: None for one in out}

    # -- what there is ---------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        self._refresh()
        return self._version

    def routing(self, since: int = 0) -> Routing:
        """What is shown, or what of it has changed since a version of this map."""
        self._refresh()
        if not self._first <= since <= self._version:
            return Routing(self._version, self._shown(), self._nodes, whole=True)
        routing = self._told.get(since)
        if routing is None:
            routes: Sequence[Route] = ()
            if since < self._version:
                routes = [route for route in self._shown() if self._changed_at[route.id] > since]
            nodes = self._nodes if self._nodes_changed_at > since else ()
            routing = Routing(self._version, routes, nodes, whole=False)
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told[since] = routing
        return routing

    def find(self, keyspace: int, key: bytes) -> Route | None:
        """The route of the shard that holds the user's key."""
        self._refresh()
        known = self._table.find(keyspace_prefix(keyspace) + key)
        return None if known is None or keyspace == SYSTEM_KEYSPACE else self._without_denied(self._routes[known.id])

    def get(self, shard: int) -> Route | None:
        """The route of a shard, one of the system keyspace, too."""
        self._refresh()
        return self._routes.get(shard)

    def _shown(self) -> list[Route]:
        if self._sorted is None:
            self._sorted = [
                self._routes[known.id] for known in self._table if known.descriptor.keyspace != SYSTEM_KEYSPACE
            ]
        return self._sorted

    def _without_denied(self, route: Route) -> Route:
        if not self._denied:
            return route
        address, until_ms = self._denied.get(route.id, ("", 0))
        if self._environment.clock.boot_ms() >= until_ms:
            self._denied.pop(route.id, None)
        elif route.address == address:
            return msgspec.structs.replace(route, term=0, leader=None, address=None)
        return route

    # -- looking at what may have changed --------------------------------------------------------------------------

    def _refresh(self) -> None:
        anew = self._core.routes_anew
        if anew:
            self._core.routes_anew = {}
            for group in anew:
                self._stale[group] = None
                known = self._known_here(group)
                if known is not None:
                    self._merge(known)
        if self._renamed:
            renamed, self._renamed = self._renamed, {}
            self._stale |= {known.id: None for known in self._table if known.is_on(renamed)}
        if not self._stale and not self._nodes_stale:
            return
        stale, self._stale = self._stale, {}
        version = self._version + 1
        if sum([self._renew(shard, version) for shard in stale]) + self._renew_nodes(version):
            self._version = version
            self._told.clear()
            self.touch()

    def _known_here(self, group: int) -> Known | None:
        replica = self._core.replicas.get(group)
        if replica is None or replica.state is None:
            return None
        descriptor = replica.state.descriptor
        leader = replica.leader_node
        term = 0 if leader is None else replica.raw.term
        return Known(descriptor.id, descriptor.start, descriptor.end, descriptor, term, leader)

    def _renew(self, shard: int, version: int) -> bool:
        """Whether what is shown has changed."""
        known = self._table.get(shard)
        old = self._routes.get(shard)
        new = None if known is None else self._route(known)
        if new == old:
            return False
        if new is None:
            assert old is not None
            del self._routes[shard]
            self._changed_at.pop(shard, None)
        else:
            self._routes[shard] = new
            self._changed_at[shard] = version
        self._sorted = None
        return (new or old).keyspace != SYSTEM_KEYSPACE  # type: ignore[union-attr]  # they differ, so one is there

    def _renew_nodes(self, version: int) -> bool:
        if not self._nodes_stale:
            return False
        self._nodes_stale = False
        nodes = sorted(self._alive(), key=lambda place: (place.name, place.address))
        if nodes == self._nodes:
            return False
        self._nodes = nodes
        self._nodes_changed_at = version
        return True

    def _route(self, known: Known) -> Route:
        descriptor = known.descriptor
        address_of = self._environment.address_of
        leader = known.leader
        replica = self._core.replicas.get(known.id)
        if leader == self._environment.node:
            if replica is None or not replica.is_leader:
                leader = None  # it has been, and others may not have heard of the next one
        elif replica is not None and replica.leader_node is None and replica.raw.term > known.term:
            leader = None  # there has been an election since
        place = address_of(leader)
        start, end = user_bounds(descriptor)
        return Route(
            id=known.id,
            keyspace=descriptor.keyspace,
            start=start,
            end=end,
            version=descriptor.version,
            conf=descriptor.conf,
            term=known.term if place else 0,
            leader=place.name if place else None,
            address=place.address if place else None,
            replicas=tuple(
                (one.name, one.address, int(replica.role))
                for replica in descriptor.replicas
                if (one := address_of(replica.node)) is not None
            ),
        )

    # -- waiting for a change --------------------------------------------------------------------------------------

    def watch(self, version: int, wake: Callable[[], None], *, seconds: float) -> Callable[[], None]:
        """`wake` is called once: shortly after `version` has become another one than this, after so long, or at the
        node's end, whichever comes first. The result cancels it. Raises Overloaded."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise Overloaded(f"{WATCHERS_MAX} requests wait for a change of the routes already", retry_after_ms=5_000)
        self._watch_count += 1
        number = self._watch_count

        def cancel() -> None:
            timer.cancel()
            self._watchers.pop(number, None)

        def end() -> None:
            cancel()
            wake()

        timer = asyncio.get_running_loop().call_later(seconds, end)
        self._watchers[number] = (version, end)
        if self._closed or version != self._version:
            self.touch()
        return cancel

    async def wait_changed(self, version: int, seconds: float) -> None:
        """Until the version is another one than this, for so long at most. Raises Overloaded."""
        if self.version != version or self._closed:
            return
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        cancel = self.watch(version, lambda: None if changed.done() else changed.set_result(None), seconds=seconds)
        try:
            await changed
        finally:
            cancel()

    def touch(self) -> None:
        """Something may have changed: whoever waits must not wait for the next look-up."""
        if self._watchers and self._waking is None:
            self._waking = asyncio.get_running_loop().call_later(WAKE_SECONDS, self._wake)

    def _wake(self) -> None:
        version = self.version
        self._waking = None
        due = [number for number, (seen, _) in self._watchers.items() if seen != version or self._closed]
        for number in due[:WAKES_MAX]:
            watcher = self._watchers.get(number)
            if watcher is not None:  # one that was woken may cancel others
                watcher[1]()
        if len(due) > WAKES_MAX:
            self._waking = asyncio.get_running_loop().call_later(0, self._wake)

    def close(self) -> None:
        """The node stops: nobody waits any more."""
        self._closed = True
        if self._waking is not None:
            self._waking.cancel()
        self._wake()


def _overrides(new: Known, old: Known) -> bool:
    if new.rank != old.rank:
        return new.rank > old.rank
    # A hint may lack the replicas; else all say the same, unless somebody errs: then any of them, but always the same.
    return new != old and _content(new) > _content(old)


def _content(known: Known) -> tuple[object, ...]:
    replicas = [(one.replica_id, one.node, int(one.role)) for one in known.descriptor.replicas]
    return replicas, known.leader or "", known.id, known.start, known.end


def _known_by_hint(hint: Hint) -> Known:
    return Known(hint.id, hint.start, hint.end, hint.descriptor, hint.term, hint.leader.hex())


def _known_by_route(route: Route, by_name: dict[str, str]) -> Known:
    """`by_name`: node ids."""
    leader = None if route.leader is None else by_name.get(route.leader)
    prefix = keyspace_prefix(route.keyspace)
    descriptor = ShardDescriptor(
        id=route.id,
        keyspace=route.keyspace,
        start=prefix + route.start,
        end=prefix + route.end if route.end else keyspace_range(route.keyspace)[1],
        version=route.version,
        conf=route.conf,
        replicas=tuple(
            Replica(by_name[name], 0, ReplicaRole.VOTER if role == ReplicaRole.VOTER else ReplicaRole.LEARNER)
            for name, _, role in route.replicas
            if name in by_name
        ),
    )
    term = 0 if leader is None else route.term
    return Known(route.id, descriptor.start, descriptor.end, descriptor, term, leader)
