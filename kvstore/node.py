"""One node: the composition root, the one place that knows everybody.

Start: directory, stores, HTTP server (so that founders can ask each other), founding or joining, then the Raft groups,
then gossip.
Stop: hand leaderships over, say goodbye, stop listening, stop the groups, close the stores. A kill at any moment is as
safe.

Invariant: no Raft group runs before `identity.cluster` is durable, and nothing is said to other nodes before
           `identity.boots`, which orders this process among all that have run on the directory.
Invariant: a fatal error (failed commit, broken invariant) sets `fatal` and nothing of the node goes on after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec
from aiohttp import web

from kvstore.base.clock import Clock, SystemClock
from kvstore.base.config import NodeConfig
from kvstore.base.errors import StartRefused
from kvstore.base.ids import random_id
from kvstore.base.limits import FORMAT_VERSION
from kvstore.base.metrics import Metrics
from kvstore.gossip.endpoint import Endpoint, UdpEndpoint, bind_datagrams
from kvstore.node_gossip import NodeGossip
from kvstore.node_http import NodeHttp, bind
from kvstore.placement.coordinator import Coordinator
from kvstore.placement.founding import Founding, founding_shards
from kvstore.placement.office import PlacementOffice
from kvstore.replica.environment import Environment, NodeAddress
from kvstore.replica.host_driver import HostDriver
from kvstore.router.admin import NodeAdmin
from kvstore.router.forward import Forwarder
from kvstore.router.peer_api import PeerClient
from kvstore.router.router import ShardRouter
from kvstore.router.shard_map import ShardMap
from kvstore.storage.directory import DataDirectory, DiskWatch
from kvstore.storage.disk_watch import disk_space
from kvstore.storage.errors import DirectoryLost
from kvstore.storage.log_store import EnvLogStore, LmdbLogStore
from kvstore.storage.protocol import NodeIdentity
from kvstore.storage.state_store import EnvStateStore, LmdbStateStore
from kvstore.transport.connection import LinkStats
from kvstore.transport.hello import Identity
from kvstore.transport.peer_link import WebSocketTransport
from kvstore.transport.protocol import PeerTransport
from kvstore.transport.settings import TransportSettings

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_SECONDS = 0.0002
"""Beside a busy loop a log commit of 0.9 ms took 12 ms at Python's default of 5 ms, and 1.0 ms with this."""
DISK_WATCH_SECONDS = 1.0
DISK_HAND_OVER_SECONDS = 5.0
"""Between two attempts to be rid of leaderships on a full disk; where all are full, they go round at this pace."""


@dataclass(slots=True)
class NodeStores:
    log: EnvLogStore
    state: EnvStateStore
    space: Callable[[], tuple[int, int]]  # (free, total) bytes of the disk
    is_full: Callable[[], bool]


class NodeTransport(PeerTransport, Protocol):
    """What a node needs of its transport beyond what the Raft groups do."""

    def identify(self, identity: Identity) -> None: ...
    def routes(self) -> list[web.RouteDef]: ...
    def set_secrets(self, secrets: Sequence[bytes]) -> None: ...
    def stats(self) -> Mapping[str, LinkStats]: ...
    def queued_bytes(self, node: str) -> int: ...


class NodeServer(Protocol):
    """What answers clients and other nodes; see node_http."""

    def set_secrets(self, secrets: Sequence[bytes]) -> None: ...
    async def serve_founding(self) -> None: ...
    async def serve(
        self,
        router: ShardRouter,
        admin: NodeAdmin,
        peer_routes: Iterable[web.RouteDef],
        *,
        cluster: str,
        fatal: Callable[[BaseException], None],
    ) -> None: ...
    async def close(self) -> None: ...


class Node:
    """A node of the store. `start`, use, `stop`; `fatal` is set when it can't go on."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        listener: socket.socket | None = None,
        datagrams: socket.socket | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`listener`, `datagrams`: sockets for config.listen that listen, or are bound, already (free ports in tests);
        taken over."""
        self.config = config
        self._listener = listener
        self._datagrams = datagrams
        self.clock = clock or SystemClock()
        self.rng = rng or random.SystemRandom()
        self.fatal: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.metrics = Metrics(node=config.name)
        self._stopped = asyncio.Event()
        self.exits = contextlib.AsyncExitStack()  # of what was begun, to be undone in the reverse order
        self._identity: NodeIdentity | None = None
        self._admin: NodeAdmin | None = None
        self._host: HostDriver | None = None
        self._gossip: NodeGossip | None = None
        self._secrets = config.cluster_secrets
        self._on_secrets: list[Callable[[Sequence[bytes]], None]] = []  # whoever signs or checks
        self._stopping = False

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.config.advertise_address

    @property
    def host(self) -> HostDriver:
        assert self._host is not None, "the node has not started"
        return self._host

    @property
    def gossip(self) -> NodeGossip:
        assert self._gossip is not None, "the node has not started"
        return self._gossip

    @property
    def admin(self) -> NodeAdmin:
        assert self._admin is not None, "the node has not started"
        return self._admin

    # -- start -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Until the node takes part in its cluster. Raises StartRefused; whatever was begun is undone then."""
        if not __debug__:
            raise StartRefused("python -O takes away the checks that guard the data; run without it")
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        started_ms = self.clock.boot_ms()
        try:
            await self._start_or_begin_anew(started_ms)
        except BaseException:
            await self.stop()
            raise
        logger.info("node %s serves at %s", self.name, self.address)

    async def _start_or_begin_anew(self, started_ms: int) -> None:
        """A directory that has lost what it voted with is never healed under its old ids: this becomes a new node."""
        try:
            await self._start(started_ms)
        except DirectoryLost as error:
            await self.exits.aclose()
            kept = DataDirectory.set_aside(self.config.data, str(error))
            logger.error("%s; it is kept as %s, and this node begins anew", error, kept)
            self.exits = contextlib.AsyncExitStack()
            self.metrics = Metrics(node=self.name)
            self._listener = self._datagrams = None
            await self._start(started_ms)

    async def _start(self, started_ms: int) -> None:
        stores = self.open_stores()
        self._identity = identity = self._load_identity(stores)
        environment = self._make_environment(stores, identity)
        peers = self.make_peers()
        self.exits.push_async_callback(peers.close)
        transport = self.make_transport()
        self._host = host = HostDriver(environment, on_fatal=self.on_fatal)

        server = self.make_server()
        self.exits.push_async_callback(server.close)
        self._on_secrets = [peers.set_secrets, transport.set_secrets, server.set_secrets]
        server.set_secrets(self._secrets)
        endpoint = self.make_endpoint()
        self.exits.push_async_callback(endpoint.close)
        if not identity.cluster:
            await server.serve_founding()
        self._identity = identity = await self._belong(stores, host, identity, peers)
        transport.identify(
            Identity(
                cluster=identity.cluster,
                node=identity.node,
                name=self.name,
                boot=environment.boot,
                address=self.address,
            )
        )
        for name, node, address in identity.founders:
            if node != identity.node:
                environment.addresses[node] = NodeAddress(name, address)

        self._gossip = gossip = self.make_gossip(identity, environment, host, transport, endpoint)
        shard_map = ShardMap(host.core)
        host.on_routes_anew = shard_map.touch
        shard_map.attach(gossip.hints, gossip.alive)
        gossip.on_members = shard_map.on_members
        router = self._make_router(environment, host, shard_map, peers, started_ms)
        office = self._make_office(environment, host, stores)
        coordinator = self._make_coordinator(environment, host, transport, office)
        host.on_neighbours_anew = gossip.on_address = coordinator.connect
        host.attach(transport)
        host.start()
        self.exits.push_async_callback(host.close)
        await transport.start(host)
        self.exits.push_async_callback(transport.close)
        self._on_secrets.append(gossip.set_secrets)
        gossip.set_secrets(self._secrets)
        routes = [*transport.routes(), *gossip.routes()]
        await server.serve(router, self.admin, routes, cluster=identity.cluster, fatal=self.on_fatal)
        gossip.start()
        self.exits.push_async_callback(gossip.close)
        host.on_leads_anew = partial(_call_each, (host.on_leads_anew, office.wake))
        host.campaign_if_alone()
        self._add_gauges(host, transport, stores)
        self.exits.push_async_callback(office.close)
        self._spawn(coordinator.run(), "coordinator")
        self._spawn(office.report(), "reports")
        self.metrics.add_gauge("kvstore_operators", office.counts)
        self._spawn(self._watch_disk(environment, stores), "disk-watch")

    # -- what a node stands on; a simulation has its own -----------------------------------------------------------

    def open_stores(self) -> NodeStores:
        loop = asyncio.get_running_loop()
        directory = DataDirectory.open(self.config.data, map_bytes=self.config.map_bytes)
        self.exits.callback(directory.close)
        watch = DiskWatch(directory, reserve_bytes=self.config.reserve_bytes)
        log = LmdbLogStore(
            directory.log_path,
            loop=loop,
            on_fatal=self.on_fatal,
            map_bytes=self.config.map_bytes,
            on_commit=self.on_log_commit,
        )
        self.exits.callback(log.close)
        state = LmdbStateStore(directory.state_path, loop=loop, on_fatal=self.on_fatal, map_bytes=self.config.map_bytes)
        self.exits.callback(state.close)
        return NodeStores(log, state, partial(disk_space, directory.path), watch.poll)

    def make_peers(self) -> PeerClient:
        return PeerClient(secrets=self._secrets, clock=self.clock)

    def make_transport(self) -> NodeTransport:
        return WebSocketTransport(
            secrets=self._secrets,
            rng=self.seeded(),
            settings=TransportSettings.for_elections(self.config.election_ms),
        )

    def make_server(self) -> NodeServer:
        listener = self._listener or bind(self.config)
        return NodeHttp(self.config, listener, self.clock, self.metrics, founding_state=self.founding_state)

    def make_endpoint(self) -> Endpoint:
        return UdpEndpoint(self._datagrams or bind_datagrams(self.config.listen))

    def make_gossip(
        self,
        identity: NodeIdentity,
        environment: Environment,
        host: HostDriver,
        transport: NodeTransport,
        endpoint: Endpoint,
    ) -> NodeGossip:
        return NodeGossip(identity, environment, host, transport, endpoint, self.seeded())

    def make_forwarder(self) -> Forwarder:
        return Forwarder()

    # -- what stands on it -----------------------------------------------------------------------------------------

    def _make_environment(self, stores: NodeStores, identity: NodeIdentity) -> Environment:
        environment = Environment(
            config=self.config,
            node=identity.node,
            boot=random_id(self.rng),
            clock=self.clock,
            rng=self.seeded(),
            metrics=self.metrics,
            log_store=stores.log,
            state_store=stores.state,
            perf=time.perf_counter,
        )
        environment.addresses[identity.node] = NodeAddress(self.name, self.address)
        return environment

    def _make_router(
        self, environment: Environment, host: HostDriver, shard_map: ShardMap, peers: PeerClient, started_ms: int
    ) -> ShardRouter:
        """And the administration."""
        assert self._identity is not None
        forwarder = self.make_forwarder()
        self.exits.push_async_callback(forwarder.close)
        router = ShardRouter(host, environment, shard_map, forwarder)
        self._admin = NodeAdmin(
            host,
            environment,
            router,
            peers,
            cluster=self._identity.cluster,
            founders=self._identity.founders,
            gossip=self.gossip.driver,
            started_ms=started_ms,
        )
        return router

    def _make_office(self, environment: Environment, host: HostDriver, stores: NodeStores) -> PlacementOffice:
        placement = self.admin.placement
        office = PlacementOffice(
            host,
            environment,
            placement,
            gossip=self.gossip.driver,
            space=stores.space,
            send=placement.send_report,
        )
        placement.office = office
        return office

    def _make_coordinator(
        self, environment: Environment, host: HostDriver, transport: NodeTransport, office: PlacementOffice
    ) -> Coordinator:
        coordinator = Coordinator(
            host,
            environment,
            self.admin,
            gossip=self.gossip.driver,
            office=office,
            set_peers=transport.set_peers,
            on_refused=self.on_fatal,
        )
        self.admin.coordinator = coordinator
        return coordinator

    def on_log_commit(self, seconds: float, batches: int) -> None:
        self.metrics.fsync_seconds.observe(seconds)
        self.metrics.log_batch_entries.observe(batches)

    def _load_identity(self, stores: NodeStores) -> NodeIdentity:
        identity = stores.log.node_identity()
        if identity is None:
            if stores.state.shards():
                raise StartRefused(
                    f"{self.config.data} holds data but has lost the node's identity and log: move it aside and start "
                    "with an empty directory, as a new node"
                )
            identity = NodeIdentity(format_version=FORMAT_VERSION, node=random_id(self.rng), name=self.name)
        if identity.name != self.name:
            raise StartRefused(f"{self.config.data} belongs to node {identity.name}, not {self.name}: check --data")
        identity = msgspec.structs.replace(identity, boots=identity.boots + 1)
        stores.log.set_node_identity(identity)
        return identity

    async def _belong(
        self, stores: NodeStores, host: HostDriver, identity: NodeIdentity, peers: PeerClient
    ) -> NodeIdentity:
        """Find out which cluster this is, and write the first state of what begins here."""
        if identity.cluster:
            return identity
        identity = await Founding(self.config, identity, peers, self.seeded()).run()
        loop = asyncio.get_running_loop()
        for descriptor, conf_state in founding_shards(identity.founders) if identity.founders else []:
            if descriptor.replica_on(identity.node) is None:
                continue
            written: asyncio.Future[None] = loop.create_future()
            done = partial(written.set_result, None)
            host.lifecycle.found(descriptor, conf_state, done=done)
            await written
        stores.log.set_node_identity(identity)
        logger.info("member of cluster %s", identity.cluster)
        return identity

    def founding_state(self) -> dict[str, object]:
        """What other founders ask for."""
        identity = self._identity
        assert identity is not None
        return {
            "name": identity.name,
            "node": identity.node,
            "cluster": identity.cluster,
            "founders": [list(founder) for founder in identity.founders],
        }

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """The cluster's secrets from now on: each is accepted, the first one signs. Connections stay open. A cluster
        that began without a secret needs a restart to get one."""
        assert bool(secrets) == bool(self._secrets)
        self._secrets = tuple(secrets)
        for set_them in self._on_secrets:
            set_them(secrets)

    def seeded(self) -> random.Random:
        return random.Random(self.rng.getrandbits(64))

    # -- while running ---------------------------------------------------------------------------------------------

    async def _watch_disk(self, environment: Environment, stores: NodeStores) -> None:
        since_hand_over = 0.0
        while True:
            full = stores.is_full()
            since_hand_over += DISK_WATCH_SECONDS
            if full and (not environment.disk_full or since_hand_over >= DISK_HAND_OVER_SECONDS):
                # Before writes are refused: nobody need notice where another node has room. Again now and then: an
                # election may have made this node a leader.
                await self.host.hand_over()
                since_hand_over = 0.0
            if full != environment.disk_full:
                environment.disk_full = full
                logger.warning("the disk is nearly full: writes are refused" if full else "the disk has room again")
            await asyncio.sleep(DISK_WATCH_SECONDS)

    def _add_gauges(self, host: HostDriver, transport: NodeTransport, stores: NodeStores) -> None:
        metrics = self.metrics
        replicas = host.core.replicas
        metrics.add_gauge("kvstore_raft_groups", host.core.role_counts)
        metrics.add_gauge(
            "kvstore_raft_applied_lag",
            lambda: {
                str(group): one.raw.commit - one.state.applied_index for group, one in replicas.items() if one.state
            },
        )
        metrics.add_gauge(
            "kvstore_queue_depth",
            lambda: {
                "staged": sum(len(one.proposals.staged) for one in replicas.values()),
                "proposed": sum(len(one.proposals.proposed) for one in replicas.values()),
                "reads": sum(len(one.reads.waiting) for one in replicas.values()),
            },
        )
        metrics.add_gauge(
            "kvstore_queue_bytes",
            lambda: {
                "log": stores.log.queued_bytes,
                "table": stores.state.table_bytes,
                "peers": sum(transport.queued_bytes(node) for node in transport.stats()),
            },
        )
        metrics.add_gauge("kvstore_members", self.admin.member_counts)
        metrics.add_gauge(
            "kvstore_shards",
            lambda: {
                "here": len(replicas),
                "led": sum(one.is_leader for one in replicas.values()),
                "indivisible": sum(one.is_leader and one.splits.is_indivisible for one in replicas.values()),
            },
        )
        metrics.add_gauge(
            "kvstore_memory_bytes",
            lambda: {
                "tables": stores.state.table_bytes,
                "session_answers": sum(one.state.answer_bytes for one in replicas.values() if one.state),
                "staged": sum(one.proposals.staged_bytes for one in replicas.values()),
            },
        )
        metrics.add_gauge(
            "kvstore_peer_bytes",
            lambda: {
                "sent": sum(stats.bytes_sent for stats in transport.stats().values()),
                "received": sum(stats.bytes_received for stats in transport.stats().values()),
            },
        )
        metrics.add_gauge(
            "kvstore_storage_bytes",
            lambda: (
                {f"log_{kind}": size for kind, size in stores.log.sizes().items()}
                | {f"state_{kind}": size for kind, size in stores.state.sizes().items()}
            ),
        )

    def on_fatal(self, error: BaseException) -> None:
        """A failed commit or a broken invariant: nothing may go on as if it had not happened."""
        logger.critical("fatal: %r", error)
        if not self.fatal.done():
            self.fatal.set_result(error)

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._on_task_done)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self.exits.push_async_callback(end)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.on_fatal(error)

    # -- stop ------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Gracefully: leaderships first, so that clients hardly notice. May be called more than once."""
        if self._stopping:
            await self._stopped.wait()
            return
        self._stopping = True
        try:
            if self._admin is not None and not self.fatal.done():
                await self.host.hand_over()
                if self._gossip is not None:
                    await self._gossip.leave()
        finally:
            try:
                await self.exits.aclose()
            finally:
                for one in (self._listener, self._datagrams):
                    if one is not None:
                        one.close()  # a start that failed early has handed it to nobody
                self._stopped.set()

    async def kill(self) -> None:
        """Stop without handing over: for embedded clusters that want a crash, or end all at once."""
        if self._host is not None:
            self._host.halt()
        if not self.fatal.done():
            self.fatal.cancel()
        await self.stop()

    async def wait_stopped(self) -> None:
        await self._stopped.wait()


def _call_each(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        function()
