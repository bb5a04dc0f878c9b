"""A client's way to a node: the connector on its side, the server on the node's, with the real protocol in between.

Invariant: messages pass as bytes, so that no object is shared, and both codecs are the production ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from jepsen.sim.network import CLIENTS, Host, Network, Stream
from kvstore.api.stream import StreamSession
from kvstore.base.config import NodeConfig
from kvstore.base.errors import KVError, Unavailable
from kvstore.base.metrics import Metrics
from kvstore.client.connection import ConnectionLost
from kvstore.router.admin import NodeAdmin
from kvstore.router.peer_api import ADMIN_PATH, FOUNDING_PATH
from kvstore.router.router import ShardRouter


class SimConnection:
    """The client's side of one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._arrived: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost = False
        self._closed = False
        stream.on_message_at_client = self._on_message
        stream.on_end_at_client = self._on_end

    async def send(self, message: bytes) -> None:
        if self._lost or self._closed:
            raise ConnectionLost("the connection has ended")
        self._stream.send_up(message)

    async def receive(self) -> bytes:
        while not self._arrived:
            if self._lost or self._closed:
                raise ConnectionLost("the node closed the connection")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._arrived.popleft()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._stream.end_by_client()
            self._wake()

    def _on_message(self, message: bytes) -> None:
        if not self._closed:
            self._arrived.append(message)
            self._wake()

    def _on_end(self) -> None:
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SimConnector:
    """Of one client."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def dial(self, address: str) -> SimConnection:
        try:
            host = await self._network.reach(CLIENTS, address)
        except Unavailable as error:
            raise ConnectionLost(error.message) from None
        if host.accept is None:
            raise ConnectionLost(f"{address} refuses connections")
        stream = Stream(self._network, host)
        connection = SimConnection(stream)
        host.process.run(host.accept, stream)
        return connection

    async def close(self) -> None: ...


class _Served:
    """The node's side of one stream: what api/stream_socket is on a WebSocket."""

    def __init__(self, stream: Stream, make: Callable[[Callable[[], None]], StreamSession]) -> None:
        self._stream = stream
        self._arrived: deque[bytes] = deque()
        self._scheduled = False
        self._over = False
        self.session = make(self._wake)
        stream.on_message_at_server = self._on_message
        stream.on_end_at_server = self._on_end

    def _wake(self) -> None:
        if not self._scheduled and not self._over:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._work)

    def _on_message(self, message: bytes) -> None:
        self._arrived.append(message)
        self._wake()

    def _on_end(self) -> None:
        self._over = True
        self.session.lost()

    def _work(self) -> None:
        self._scheduled = False
        session = self.session
        while self._arrived and not session.paused and session.closing is None and not self._over:
            session.receive(self._arrived.popleft())
        while not self._over and (message := session.take()) is not None:
            self._stream.send_down(message)
        if session.closing is not None and not self._over:
            self._over = True
            session.lost()
            self._stream.end_by_server()


class SimServer:
    """What answers clients and other nodes, as node_http does on a real network."""

    def __init__(
        self,
        network: Network,
        host: Host,
        config: NodeConfig,
        metrics: Metrics,
        *,
        founding_state: Callable[[], dict[str, object]],
    ) -> None:
        self._network = network
        self._host = host
        self._config = config
        self._metrics = metrics
        self._founding_state = founding_state
        self._admin: NodeAdmin | None = None
        self._served: list[_Served] = []
        self.gossip: Callable[[str, Any], Any] | None = None  # what answers the questions of other nodes' gossip

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """Nothing is signed here."""

    async def serve_founding(self) -> None:
        self._host.answer = self._answer

    async def serve(
        self,
        router: ShardRouter,
        admin: NodeAdmin,
        peer_routes: Iterable[web.RouteDef],
        *,
        cluster: str,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._admin = admin
        self._host.answer = self._answer

        def session(wake: Callable[[], None]) -> StreamSession:
            return StreamSession(
                router,
                limits=self._config.limits,
                metrics=self._metrics,
                node=self._config.name,
                cluster=cluster,
                wake=wake,
            )

        def accept(stream: Stream) -> None:
            self._served = [one for one in self._served if not one.session.closed]
            self._served.append(_Served(stream, session))

        self._host.accept = accept

    async def _answer(self, path: str, body: Any) -> Any:
        """Raises KVError."""
        if path == FOUNDING_PATH:
            return self._founding_state()
        if path == ADMIN_PATH:
            if self._admin is None:
                raise Unavailable("the node begins")
            wanted: Mapping[str, Any] = msgspec.json.decode(body)
            answer = await self._admin.perform(wanted["operation"], wanted["arguments"])
            return msgspec.json.decode(msgspec.json.encode(answer))
        if self.gossip is None:
            raise Unavailable("the node does not take part in gossip now")
        return self.gossip(path, body)

    async def close(self) -> None:
        """New requests are refused, and the streams end when what is under way has been answered."""
        self._host.accept = None
        for one in self._served:
            if not one.session.closed:
                one.session.drain()


def error_copy(error: KVError) -> KVError:
    """What the other side raised, as it arrives here."""
    return type(error)(error.message)
