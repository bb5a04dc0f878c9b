"""Open a connection to a peer: TCP, WebSocket, hello; and cut it for certain when it is no longer wanted.

Invariant: when the `async with` is left nothing of the connection is left, whether the peer answers or not.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from kvstore.transport.frames import WEBSOCKET_BYTES_MAX
from kvstore.transport.hello import HelloError, Identity, Purpose, greet_as_dialer, refuse
from kvstore.transport.protocol import PeerHello
from kvstore.transport.settings import TransportSettings

PATHS = {
    Purpose.RAFT: "/v1/peer/raft",
    Purpose.SNAPSHOT: "/v1/peer/snapshot",
    Purpose.GOSSIP: "/v1/peer/gossip",
}
_UNACKNOWLEDGED_MS_MAX = 10_000  # then the kernel gives up what is still to be sent; a close would linger for minutes


@dataclass(slots=True)
class Dialed:
    websocket: aiohttp.ClientWebSocketResponse
    hello: PeerHello
    sockets: list[socket.socket]

    def cut(self) -> None:
        """End the connection now; what is still queued in the kernel is lost."""
        _shut(self.sockets)


@asynccontextmanager
async def dial(
    address: str,
    *,
    node: str,
    purpose: Purpose,
    identity: Identity,
    secrets: Sequence[bytes],
    settings: TransportSettings,
    heartbeat: float | None = None,
) -> AsyncIterator[Dialed]:
    """An authenticated connection to `node` at HOST:PORT. Raises HelloError, ConnectionError; the latter also when
    it takes longer than settings.hello_seconds_max."""
    sockets: list[socket.socket] = []

    def make_socket(info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        made = socket.socket(info[0], info[1], info[2])
        sockets.append(made)
        return made

    connector = aiohttp.TCPConnector(limit=1, force_close=True, use_dns_cache=False, socket_factory=make_socket)
    session = aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)
    )
    websocket: aiohttp.ClientWebSocketResponse | None = None
    try:
        try:
            async with asyncio.timeout(settings.hello_seconds_max):
                websocket = await session.ws_connect(
                    f"http://{address}{PATHS[purpose]}",
                    max_msg_size=WEBSOCKET_BYTES_MAX,
                    timeout=aiohttp.ClientWSTimeout(ws_close=settings.farewell_seconds_max),
                    heartbeat=heartbeat,
                )
                set_socket_options(websocket)
                try:
                    hello = await greet_as_dialer(websocket, identity, secrets, node=node, purpose=purpose)
                except HelloError as error:
                    if not error.remote:
                        await refuse(websocket, error.fault, error.text, seconds_max=settings.farewell_seconds_max)
                    raise
        except TimeoutError:
            raise ConnectionError(f"{address} did not finish the hello in {settings.hello_seconds_max} s") from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise ConnectionError(f"{address}: {error}") from error
        yield Dialed(websocket, hello, sockets)
    finally:
        _shut(sockets)
        if websocket is not None:
            await websocket.close()  # without a socket it only lets go of the connection
        await session.close()


def set_socket_options(websocket: aiohttp.ClientWebSocketResponse | aiohttp.web.WebSocketResponse) -> None:
    """TCP_NODELAY, since a message must not wait for the answer to the last one; bounded lingering."""
    raw = websocket.get_extra_info("socket")
    if raw is None or raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS_MAX)
    except OSError:
        pass  # closed already; the next use says so


def _shut(sockets: list[socket.socket]) -> None:
    """The raw sockets, as neither loop nor WebSocket offers a way to drop what is queued."""
    for one in sockets:
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed, or never connected
