"""What the client needs of a network, and the WebSocket that fulfils it.

A connection carries whole messages both ways, in order, until it ends. Nothing above this file knows of HTTP, so
that a simulated network (or a test) plugs in by giving the client another `Connector`.

Invariant: every failure of the network leaves this file as `ConnectionLost`; a message is delivered whole or not at
           all, and never after a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import aiohttp

from kvstore.base.limits import MIB, STREAM_REPLY_BYTES_MAX

STREAM_PATH = "/v1/stream"
CLOSE_SECONDS_MAX = 0.5  # a peer that does not answer the closing handshake is cut off then


class ConnectionLost(Exception):
    """The connection could not be made, or has ended. The text is one line for people."""


class Connection(Protocol):
    """One stream of messages to one node, used by one reader and one writer."""

    async def send(self, message: bytes) -> None:
        """Returns when there is room for more; raises ConnectionLost."""

    async def receive(self) -> bytes:
        """The next message; raises ConnectionLost at the end of the stream."""

    async def close(self) -> None:
        """Never raises, takes at most CLOSE_SECONDS_MAX; a second call does nothing."""


class Connector(Protocol):
    """Makes connections; owned and closed by one client."""

    async def dial(self, address: str) -> Connection:
        """`address` is HOST:PORT. Raises ConnectionLost. The caller bounds the time by cancelling."""

    async def close(self) -> None: ...


class WebSocketConnection:
    """A binary WebSocket of aiohttp."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, message: bytes) -> None:
        try:
            await self._socket.send_bytes(message)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ConnectionLost(f"sending failed: {error}") from error

    async def receive(self) -> bytes:
        try:
            message = await self._socket.receive()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ConnectionLost(f"receiving failed: {error}") from error
        if message.type is aiohttp.WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is aiohttp.WSMsgType.TEXT:
            raise ConnectionLost("the node sent text where binary messages belong")
        if message.type is aiohttp.WSMsgType.ERROR:
            raise ConnectionLost(f"the connection broke: {message.data}")
        raise ConnectionLost(f"the node closed the connection (code {self._socket.close_code})")

    async def close(self) -> None:
        try:
            await self._socket.close()
        except (aiohttp.ClientError, OSError, RuntimeError):
            return  # it is gone; that is what was wanted


class WebSocketConnector:
    """Dials `ws://HOST:PORT/v1/stream`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None  # made on the loop that dials

    async def dial(self, address: str) -> WebSocketConnection:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10))
        try:
            socket = await self._session.ws_connect(
                f"ws://{address}{STREAM_PATH}",
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS_MAX),
                max_msg_size=STREAM_REPLY_BYTES_MAX + MIB,  # the bound is on results; their envelope comes on top
                compress=0,
                autoping=True,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise ConnectionLost(f"the node refused the stream: HTTP {error.status}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ConnectionLost(f"cannot connect: {error}") from error
        return WebSocketConnection(socket)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def parse_address(endpoint: str) -> str:
    """HOST:PORT of an endpoint written as HOST:PORT or http://HOST:PORT. Raises ValueError."""
    text = endpoint.strip()
    if text.startswith("http://"):
        text = text[len("http://") :]
    text = text.rstrip("/")
    host, colon, port = text.rpartition(":")
    if not colon or not host or "/" in text or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"an endpoint is HOST:PORT or http://HOST:PORT, not {endpoint!r}")
    return text


def parse_endpoints(endpoints: str | Sequence[str]) -> tuple[str, ...]:
    """Addresses in the order given, without repetition; a string may hold several, separated by commas."""
    parts = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    addresses = tuple(dict.fromkeys(parse_address(part) for part in parts if part.strip()))
    if not addresses:
        raise ValueError("at least one endpoint is needed")
    return addresses
