"""Two ways to a fake cluster: in memory (for the virtual loop), and real WebSockets on a local port."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import WSMsgType, web

from kvstore.client.connection import ConnectionLost
from tests.client.fake_cluster import Cluster, Node, Peer

LATENCY_SECONDS = 0.001


class MemoryConnection:
    """Both directions are FIFO and take the connector's latency."""

    def __init__(self, node: Node, connector: MemoryConnector) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector
        self._out: deque[bytes] = deque()
        self._in: deque[bytes] = deque()
        self._arrived: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._peer = Peer(node, self._send_back, self._end)

    async def send(self, message: bytes) -> None:
        if self._ended:
            raise ConnectionLost("closed")
        self._out.append(message)
        self._loop.call_later(self._connector.latency, self._deliver)

    async def receive(self) -> bytes:
        while not self._arrived:
            if self._ended:
                raise ConnectionLost("closed by the node")
            self._wake.clear()
            await self._wake.wait()
        return self._arrived.popleft()

    async def close(self) -> None:
        self._peer.close()

    def _deliver(self) -> None:
        message = self._out.popleft()
        self._peer.receive(message)

    def _send_back(self, message: bytes) -> None:
        self._in.append(message)
        self._loop.call_later(self._connector.latency, self._arrive)

    def _arrive(self) -> None:
        message = self._in.popleft()
        if not self._ended:
            self._arrived.append(message)
            self._wake.set()

    def _end(self) -> None:
        """Answers on the way are lost with the connection."""
        self._ended = True
        self._wake.set()


class MemoryConnector:
    def __init__(self, cluster: Cluster, *, latency: float = LATENCY_SECONDS) -> None:
        self._cluster = cluster
        self.latency = latency  # seconds, one way
        self.black_holes: set[str] = set()  # addresses that never answer a dial
        self.closed = False

    async def dial(self, address: str) -> MemoryConnection:
        await asyncio.sleep(self.latency)
        if address in self.black_holes:
            await asyncio.Event().wait()
        for node in self._cluster.nodes.values():
            if node.address == address and node.up:
                return MemoryConnection(node, self)
        raise ConnectionLost("refused")

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def serve(cluster: Cluster) -> AsyncIterator[list[str]]:
    """The cluster's nodes on real ports; their addresses become those."""
    runners: list[web.AppRunner] = []
    try:
        for node in cluster.nodes.values():
            runner = web.AppRunner(_application(node), shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            node.address = f"127.0.0.1:{runner.addresses[0][1]}"
        yield [node.address for node in cluster.nodes.values()]
    finally:
        for runner in runners:
            await runner.cleanup()


def _application(node: Node) -> web.Application:
    async def stream(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=node.cluster.limits.request_bytes_max, compress=False)
        await socket.prepare(request)
        out: asyncio.Queue[bytes | None] = asyncio.Queue()
        peer = Peer(node, out.put_nowait, lambda: out.put_nowait(None))

        async def write() -> None:
            while (message := await out.get()) is not None:
                await socket.send_bytes(message)
            await socket.close()

        writer = asyncio.create_task(write())
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    peer.receive(message.data)
        finally:
            peer.close()
            await writer
        return socket

    application = web.Application()
    application.router.add_get("/v1/stream", stream)
    return application
