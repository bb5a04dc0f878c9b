"""The HTTP server's bounds: how many connections, how long for a request head, how long for a client to read.

aiohttp bounds the sizes (request line, headers, WebSocket messages, read buffers) but lets a connection that dribbles
its head, or never reads its answer, live for an hour. Here a connection must have sent its first whole head within
HEADER_SECONDS_MAX, a later one within KEEPALIVE_SECONDS, and a client that takes nothing of what waits for it for
WRITE_STALL_SECONDS is cut off. That holds for REST, streams and peers alike.

Invariant: at most CONNECTIONS_MAX connections are open; one more is closed at once.
Invariant: what is no HTTP gets a problem document and a closed connection, and no traceback in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import struct
import termios
from array import array
from collections.abc import Mapping
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from kvstore.api.problems import problem
from kvstore.api.stream_socket import STREAMS
from kvstore.base.errors import CODES, Code
from kvstore.base.limits import CONNECTIONS_MAX, HEADER_SECONDS_MAX
from kvstore.base.metrics import Metrics

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 75.0  # longer than usual proxies and clients keep an idle connection
WRITE_STALL_SECONDS = 30.0
LINGER_SECONDS = 5.0  # how long the rest of a refused body is read and thrown away, so that its sender sees the answer


def waiting_bytes(transport: asyncio.Transport) -> int:
    """What has been written and the other side has not acknowledged: in our buffer and in the kernel's."""
    in_kernel = array("i", (0,))
    socket = transport.get_extra_info("socket")
    if socket is not None and socket.fileno() >= 0:
        with contextlib.suppress(OSError):  # not every system and not every kind of socket can tell
            fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + in_kernel[0]


def reset(transport: asyncio.Transport) -> None:
    """End the connection and throw away what waits for it; a plain close would let the kernel keep megabytes."""
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with contextlib.suppress(OSError):
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class BoundedHandler(RequestHandler):
    """One connection."""

    __slots__ = ("_head_timer", "_server", "_stall_timer", "_stalled_bytes")

    def __init__(self, server: BoundedServer, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self._server = server
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stalled_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        server = self._server
        if server.live > server.connections_max:
            server.metrics.connections_refused += 1
            self.force_close()
            return
        self._head_timer = self._loop.call_later(server.header_seconds, self._on_head_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _on_head_late(self) -> None:
        self._head_timer = None
        if self._request_count == 0:
            self._cut("no whole request head in time")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _watch_stall(self) -> None:
        transport = self.transport
        if transport is not None:
            self._stalled_bytes = waiting_bytes(transport)
            self._stall_timer = self._loop.call_later(self._server.stall_seconds, self._on_stall)

    def _on_stall(self) -> None:
        """Cut off a client that has read nothing since the last look; one that is slow may go on."""
        self._stall_timer = None
        transport = self.transport
        if transport is None:
            return
        if waiting_bytes(transport) >= self._stalled_bytes:
            self._cut("the client does not read")
        else:
            self._watch_stall()

    def _cut(self, why: str) -> None:
        self._server.metrics.connections_cut += 1
        logger.info("connection from %s closed: %s", self.peername, why)
        transport = self.transport
        self.force_close()
        if transport is not None:
            reset(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp could not parse. (Handlers' own errors never come here: see middleware.)"""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        text = " ".join((message or "malformed HTTP").split())[:200]
        logger.info("malformed request from %s: %s", self.peername, text)
        response = problem(CODES[Code.INVALID], text, status=status)
        response.force_close()
        self._server.metrics.count_http(
            method="other", route="malformed", status=status, code=Code.INVALID.name, seconds=None
        )
        return response


class BoundedServer(web.Server):
    """Makes the handlers of one node's connections, and counts them."""

    def __init__(
        self,
        plain: web.Server,
        *,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        connections_max: int,
        header_seconds: float,
        stall_seconds: float,
        **options: Any,
    ) -> None:
        super().__init__(plain.request_handler, request_factory=plain.request_factory, loop=loop, **options)
        self.metrics = metrics
        self.connections_max = connections_max
        self.header_seconds = header_seconds
        self.stall_seconds = stall_seconds
        self.live = 0
        metrics.add_gauge("kvstore_http_connections", self._gauge)

    def _gauge(self) -> Mapping[str, float]:
        return {"open": self.live}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        self.live += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self.live -= 1
        super().connection_lost(handler, exc)

    def __call__(self) -> RequestHandler:
        return BoundedHandler(self, loop=self._loop, **self._kwargs)


class ApiRunner(web.AppRunner):
    """`web.AppRunner` with this module's bounds. Use it as aiohttp's: `setup`, a `ListeningSite`, `cleanup`."""

    def __init__(
        self,
        app: web.Application,
        *,
        metrics: Metrics,
        connections_max: int = CONNECTIONS_MAX,
        header_seconds: float = HEADER_SECONDS_MAX,
        stall_seconds: float = WRITE_STALL_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
        shutdown_timeout: float = 5.0,
    ) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=shutdown_timeout)
        self._metrics = metrics
        self._linger_seconds = linger_seconds
        self._bounds: dict[str, Any] = {
            "connections_max": connections_max,
            "header_seconds": header_seconds,
            "stall_seconds": stall_seconds,
        }

    async def cleanup(self) -> None:
        """Stop listening, let client streams finish what is under way, then close everything."""
        for site in list(self._sites):
            await site.stop()
        if self._server is not None:
            await self._app[STREAMS].drain()
        await super().cleanup()

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return BoundedServer(
            plain,
            metrics=self._metrics,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=self._linger_seconds,
            auto_decompress=False,  # a value is stored as it was sent; and no compressed bombs
            **self._bounds,
        )
