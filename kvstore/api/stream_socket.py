"""The client stream on an aiohttp WebSocket: GET /v1/stream.

Each connection has a reader (the request's handler) and a sender; both block on their own client only. The sender
wakes at most once a turn of the loop and sends what has gathered as one message.

Invariant: a client from which nothing was heard for two heartbeats, although it was pinged and nothing of ours holds
           it up, is cut off. (One that reads nothing is cut off by server.BoundedHandler.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from aiohttp import WSMsgType, web

from kvstore.api.stream import CloseCode, StreamSession
from kvstore.base.limits import Limits
from kvstore.base.metrics import Metrics
from kvstore.router.protocol import Router
from kvstore.transport.upgrade import GONE_STATUS, upgrade

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
CLOSE_SECONDS = 2.0  # how long a closing client may take to agree
DRAIN_SECONDS = 5.0  # how long a stopping node goes on answering; the default deadline


class StreamEndpoint:
    """All client streams of a node."""

    def __init__(
        self,
        router: Router,
        *,
        limits: Limits,
        metrics: Metrics,
        node: str,
        cluster: str,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._router = router
        self._limits = limits
        self._metrics = metrics
        self._node = node
        self._cluster = cluster
        self._heartbeat_seconds = heartbeat_seconds
        self._open: dict[_Connection, None] = {}  # in the order of their coming
        metrics.add_gauge("kvstore_http_connections", self._gauge)

    def _gauge(self) -> Mapping[str, float]:
        return {"stream": len(self._open)}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        socket: web.WebSocketResponse = web.WebSocketResponse(
            timeout=CLOSE_SECONDS, autoping=False, compress=False, max_msg_size=self._limits.request_bytes_max
        )
        if not await upgrade(socket, request):
            return web.Response(status=GONE_STATUS)
        connection = _Connection(request, socket, self._heartbeat_seconds)
        connection.session = StreamSession(
            self._router,
            limits=self._limits,
            metrics=self._metrics,
            node=self._node,
            cluster=self._cluster,
            wake=connection.wake,
        )
        self._open[connection] = None
        try:
            await connection.run()
        finally:
            del self._open[connection]
        return socket

    async def drain(self) -> None:
        """Refuse new requests, answer what is under way for up to DRAIN_SECONDS, close all streams. Whoever waits for a
        change of the routes, here or by REST, is answered now."""
        self._router.end_watches()
        for connection in self._open:
            connection.session.drain()
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while self._open:
            left = deadline - asyncio.get_running_loop().time()
            connections = list(self._open)
            if left <= 0:
                for connection in connections:
                    connection.abort()
                return
            await asyncio.wait([connection.finished for connection in connections], timeout=left)


STREAMS = web.AppKey("streams", StreamEndpoint)


class _Connection:
    """One WebSocket and its session."""

    session: StreamSession

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, heartbeat_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = request
        self._socket = socket
        self._heartbeat_seconds = heartbeat_seconds
        self._sender_waiter: asyncio.Future[None] | None = None
        self._reader_waiter: asyncio.Future[None] | None = None
        self._heard = True  # since the last beat
        self._pinged = False  # and not heard since
        self._ping_due = False
        self.finished: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        """From the session: something may be taken, or reading may go on, or it wants to close."""
        waiter = self._sender_waiter
        if waiter is not None:
            self._sender_waiter = None
            if not waiter.done():
                waiter.set_result(None)
        waiter = self._reader_waiter
        if waiter is not None and not (self.session.paused and self.session.closing is None):
            self._reader_waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def abort(self) -> None:
        transport = self._request.transport
        if transport is not None:
            transport.abort()

    async def run(self) -> None:
        sender = self._loop.create_task(self._send())
        self._beat = self._loop.call_later(self._heartbeat_seconds, self._on_beat)
        try:
            await self._read()
        finally:
            self._beat.cancel()
            if self.session.closing is None:  # the client has gone: nobody reads what the sender has
                self.session.lost()
                sender.cancel()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await sender
            self.session.lost()
            if not self.finished.done():
                self.finished.set_result(None)

    async def _read(self) -> None:
        socket = self._socket
        session = self.session
        while True:
            message = await socket.receive()
            self._heard = True
            if message.type is WSMsgType.BINARY:
                session.receive(message.data)
                while session.paused and session.closing is None:
                    self._reader_waiter = self._loop.create_future()
                    await self._reader_waiter
            elif message.type is WSMsgType.PING:
                with contextlib.suppress(ConnectionError):
                    await socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                session.fail(CloseCode.UNSUPPORTED, "the stream carries binary messages")
            elif message.type is not WSMsgType.PONG:
                return  # closed, or an error for which aiohttp has sent the close code (1002, 1007, 1009)
            if session.closing is not None:
                return

    async def _send(self) -> None:
        try:
            await self._send_until_closed()
        except BaseException:
            self.abort()  # the reader must not wait for a client that gets no answers
            raise

    async def _send_until_closed(self) -> None:
        socket = self._socket
        session = self.session
        while True:
            message = session.take()
            if message is not None:
                await socket.send_bytes(message)
            elif self._ping_due:
                self._ping_due = False
                await socket.ping()
            elif session.closing is not None:
                code, reason = session.closing
                if code is not CloseCode.GOING_AWAY:
                    logger.info("stream of %s closed: %s", self._request.remote, reason)
                await socket.close(code=code, message=reason.encode())
                return
            else:
                self._sender_waiter = self._loop.create_future()
                await self._sender_waiter

    def _on_beat(self) -> None:
        """Once a heartbeat: ping who was silent, cut off who stayed silent."""
        self._beat = self._loop.call_later(self._heartbeat_seconds, self._on_beat)
        if self._heard or self.session.paused or self._request.protocol.writing_paused:
            self._heard = self._pinged = False
        elif self._pinged:
            logger.info("stream of %s closed: no answer to a ping", self._request.remote)
            self.abort()
        else:
            self._pinged = self._ping_due = True
            self.wake()
