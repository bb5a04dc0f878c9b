"""A node of the store on simulated ground: the production composition (kvstore.node), with another disk and network.

    LMDB                     MemoryLogStore, MemoryStateStore on a MemoryDisk
    WebSockets to peers      MemoryTransport
    HTTP                     wire.SimServer, Network.ask
    UDP, push-pull           Network.send_datagram, Network.ask

Everything else runs as it is: founding, Raft, state, router, gossip's core and driver, placement, administration.

Invariant: what outlives a process is the disk alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from jepsen.sim.loop import Process
from jepsen.sim.network import Host, Network
from jepsen.sim.wire import SimServer, error_copy
from kvstore.base.config import NodeConfig
from kvstore.base.errors import KVError, Unavailable
from kvstore.base.stream import Mutate, Read, Refused, Results
from kvstore.gossip.push_pull import PushPull, Tale, Teller
from kvstore.gossip.resolver import Target
from kvstore.node import Node, NodeStores
from kvstore.node_gossip import NodeGossip
from kvstore.replica.environment import Environment
from kvstore.replica.host_driver import HostDriver
from kvstore.router.forward import Forwarder
from kvstore.router.peer_api import PeerClient
from kvstore.storage.memory import MemoryDisk, MemoryLogStore, MemoryStateStore
from kvstore.storage.protocol import NodeIdentity
from kvstore.transport.connection import LinkStats
from kvstore.transport.hello import Identity
from kvstore.transport.memory import MemoryTransport

DISK_BYTES = 100 << 30
_TALE_PATH, _CARGO_PATH, _GREET_PATH = "gossip/tale", "gossip/cargo", "gossip/greet"
_encode = msgspec.msgpack.Encoder().encode
_decode_tale = msgspec.msgpack.Decoder(Tale).decode
_decode_cargo = msgspec.msgpack.Decoder(tuple[bytes, list[msgspec.Raw]]).decode
_decode_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class SimClock:
    """A machine's clocks. The rate is the loop's; the wall clock may be wrong, and jump."""

    def __init__(self, loop: asyncio.AbstractEventLoop, offset_ms: int) -> None:
        self._loop = loop
        self.offset_ms = offset_ms

    def boot_ms(self) -> int:
        return int(self._loop.time() * 1_000)

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.boot_ms() + self.offset_ms


class SimNode(Node):
    """One life of a node."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        network: Network,
        disk: MemoryDisk,
        process: Process,
        clock: SimClock,
        rng: random.Random,
    ) -> None:
        super().__init__(config, clock=clock, rng=rng)
        self._network = network
        self._disk = disk
        self._process = process
        self._host_on_network: Host | None = None
        self._server: SimServer | None = None
        self.transport: SimTransport | None = None

    @property
    def net(self) -> Host:
        assert self._host_on_network is not None
        return self._host_on_network

    def open_stores(self) -> NodeStores:
        loop = asyncio.get_running_loop()
        log = MemoryLogStore(self._disk, loop=loop, on_fatal=self.on_fatal, on_commit=self.on_log_commit)
        self.exits.callback(log.close)
        state = MemoryStateStore(self._disk, loop=loop, on_fatal=self.on_fatal)
        self.exits.callback(state.close)
        identity = log.node_identity()
        address = self.config.advertise_address
        # A node that has none yet is known by its address: nobody cuts it off before it has told its id.
        node = identity.node if identity is not None else address
        self._host_on_network = self._network.host(node, address, self._process)
        return NodeStores(log, state, lambda: (DISK_BYTES, DISK_BYTES), lambda: False)

    def make_peers(self) -> PeerClient:
        return SimPeers(self._network, self.net, self.clock)

    def make_transport(self) -> SimTransport:
        identity = Identity(cluster="", node="", name=self.name, boot="", address=self.address)
        self.transport = SimTransport(self._network.raft, identity, self.address)
        return self.transport

    def make_server(self) -> SimServer:
        self._server = SimServer(self._network, self.net, self.config, self.metrics, founding_state=self.founding_state)
        return self._server

    def make_endpoint(self) -> SimEndpoint:
        return SimEndpoint(self._network, self.net)

    def make_gossip(  # type: ignore[override]
        self,
        identity: NodeIdentity,
        environment: Environment,
        host: HostDriver,
        transport: SimTransport,
        endpoint: SimEndpoint,
    ) -> NodeGossip:
        self.net.node = identity.node

        def make(mine: Identity, teller: Teller, secrets: Sequence[bytes]) -> SimPushPull:
            assert self._server is not None
            return SimPushPull(mine, teller, secrets, self._network, self._server)

        return NodeGossip(identity, environment, host, transport, endpoint, self.seeded(), push_pull=make)

    def make_forwarder(self) -> Forwarder:
        return NoForwarder()


class SimTransport(MemoryTransport):
    """With what a node asks of a transport that has sockets."""

    def identify(self, identity: Identity) -> None:
        self.identity = identity

    def routes(self) -> list[web.RouteDef]:
        return []

    def set_secrets(self, secrets: Sequence[bytes]) -> None: ...

    def stats(self) -> Mapping[str, LinkStats]:
        return {}

    def queued_bytes(self, node: str) -> int:
        return 0


class SimPeers(PeerClient):
    """Questions go over the simulated network."""

    def __init__(self, network: Network, host: Host, clock: Any) -> None:
        super().__init__(secrets=(), clock=clock)
        self._network = network
        self._host = host

    async def _request(self, address: str, method: str, path: str, body: bytes, *, seconds: float) -> dict[str, Any]:
        try:
            answer = await self._network.ask(self._host.node, address, path, body, seconds=seconds)
        except KVError as error:
            raise error_copy(error) from None
        assert isinstance(answer, dict)
        return answer


class SimEndpoint:
    """Fulfils gossip.endpoint.Endpoint."""

    def __init__(self, network: Network, host: Host) -> None:
        self.errors: dict[str, int] = {}
        self._network = network
        self._host = host
        self._on_datagram: Callable[[bytes, Target], None] | None = None
        self._on_batch: Callable[[], None] | None = None

    def open(self, on_datagram: Callable[[bytes, Target], None], on_batch: Callable[[], None]) -> None:
        self._on_datagram, self._on_batch = on_datagram, on_batch
        self._host.on_datagram = self._on_arrival

    def send(self, address: str, datagram: bytes) -> None:
        self._network.send_datagram(self._host, address, datagram)

    async def close(self) -> None:
        self._host.on_datagram = None

    def _on_arrival(self, datagram: bytes, source: str) -> None:
        assert self._on_datagram is not None
        assert self._on_batch is not None
        host, _, port = source.rpartition(":")
        self._on_datagram(datagram, (host, int(port)))
        self._on_batch()


class SimPushPull(PushPull):
    """The exchange of push_pull in two questions: tale for tale, cargo for cargo."""

    def __init__(
        self, identity: Identity, teller: Teller, secrets: Sequence[bytes], network: Network, server: SimServer
    ) -> None:
        super().__init__(identity, teller, secrets)
        self._network = network
        self._node = identity.node
        self._own = teller
        self._server = server

    def start(self) -> None:
        super().start()
        self._server.gossip = self._on_question

    async def exchange(self, address: str, *, node: str = "") -> bool:
        try:
            tale = _decode_tale(await self._ask(address, _TALE_PATH, _encode(self._own.tell())))
            self._own.hear(tale)
            cargo = _encode((self._own.tell().buckets, self._own.lacking(tale.buckets)))
            self._own.hear_cargo(_decode_items(await self._ask(address, _CARGO_PATH, cargo)))
        except KVError:
            self.failed += 1
            return False
        self.done += 1
        return True

    async def answers(self, address: str, *, node: str, seconds_max: float) -> bool:
        try:
            return bool(await self._ask(address, _GREET_PATH, node, seconds=seconds_max))
        except KVError:
            return False

    async def _ask(self, address: str, path: str, body: Any, *, seconds: float = 5.0) -> Any:
        return await self._network.ask(self._node, address, path, body, seconds=seconds)

    def _on_question(self, path: str, body: Any) -> Any:
        if path == _GREET_PATH:
            return body == self._node
        if path == _TALE_PATH:
            own = _encode(self._own.tell())
            self._own.hear(_decode_tale(body))
            return own
        assert path == _CARGO_PATH
        buckets, items = _decode_cargo(body)
        lacking = _encode(self._own.lacking(buckets))
        self._own.hear_cargo(items)
        return lacking


class NoForwarder(Forwarder):
    """Clients of a simulation speak to the leader themselves; nobody comes by REST."""

    async def ask(self, address: str, frame: Mutate | Read) -> Results | Refused:
        raise Unavailable("nothing is forwarded here")
