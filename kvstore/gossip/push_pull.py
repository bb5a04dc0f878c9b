"""Two members tell each other everything, over TCP: what datagrams may have lost, and where a new member begins.

    dialer                                listener            (behind the hello, purpose GOSSIP)
      tale                             ->
                                       <-  tale
      cargo that the listener lacks    ->
                                       <-  cargo that the dialer lacks

A tale holds all members, the highest numbers of datagrams seen (gossip/seal), and the digests of the cargo's parts. A
connection that is closed behind the hello is a question whether this node lives, put where datagrams go unanswered.

Invariant: nothing of a peer is taken over before its hello has proved who it is.
Invariant: an exchange is bounded in time, and their number at once each way; one that breaks off has merged less, and
    nothing wrong.
Called by: driver.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Protocol

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from kvstore.gossip.member import Member
from kvstore.gossip.seal import BOOTS_MAX
from kvstore.transport.dial import PATHS, dial, set_socket_options
from kvstore.transport.frames import WEBSOCKET_BYTES_MAX, Assembler, FrameError, cut
from kvstore.transport.hello import (
    Fault,
    HelloError,
    Identity,
    Purpose,
    WebSocket,
    fault_of,
    greet_as_listener,
    refuse,
)
from kvstore.transport.protocol import PeerHello
from kvstore.transport.quiet_log import QuietLog
from kvstore.transport.settings import TransportSettings
from kvstore.transport.upgrade import GONE_STATUS, upgrade

log = logging.getLogger(__name__)

TALE_VERSION = 1
EXCHANGE_SECONDS_MAX = 5.0
SERVED_MAX = 64  # connections at once, most of which only ask whether this node lives
EXCHANGES_MAX = 16  # of these; each may hold a tale of some MiB
DIALS_MAX = 8
CARGO_ITEMS_MAX = 65_536
_ADVICE = {
    Fault.DUPLICATE_NAME: "start one of the two with another --name; `kvctl node remove NAME` frees the name of a node "
    "that is gone for good",
    Fault.CLUSTER_MISMATCH: "that address is another cluster's: check --join and --initial-cluster",
    Fault.SECRET_MISMATCH: "check --cluster-secret-file on both nodes",
}
_ORDINARY = (Fault.NODE_MISMATCH, Fault.OWN_NODE, Fault.LEAVING, Fault.BUSY)
"""An address has passed to another node; a seed's name means this node, too; the peer stops, or has much to do."""
SETTINGS = TransportSettings(hello_seconds_max=3.0, farewell_seconds_max=0.3)

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Boots = Annotated[int, msgspec.Meta(ge=0, le=BOOTS_MAX)]
_Node = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Tale(msgspec.Struct, array_like=True):
    """All that a member knows."""

    version: int
    members: Annotated[list[Member], msgspec.Meta(max_length=16_384)]
    seen: Annotated[list[tuple[_Node, _Boots, _Count]], msgspec.Meta(max_length=16_384)] = []
    buckets: Annotated[bytes, msgspec.Meta(max_length=4_096)] = b""  # of the cargo


class Teller(Protocol):
    """Whose knowledge it is."""

    def tell(self) -> Tale: ...
    def hear(self, tale: Tale) -> None: ...
    def lacking(self, buckets: bytes) -> list[msgspec.Raw]:
        """The cargo that a node with these digests lacks, as far as one message may hold."""

    def hear_cargo(self, items: Sequence[msgspec.Raw]) -> None: ...


_encode = msgspec.msgpack.Encoder().encode
_decode_tale = msgspec.msgpack.Decoder(Tale).decode
_decode_cargo = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=CARGO_ITEMS_MAX)]).decode
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, FrameError)


class PushPull:
    """Both ends of it, for one node."""

    def __init__(self, identity: Identity, teller: Teller, secrets: Sequence[bytes]) -> None:
        self._identity = identity
        self._teller = teller
        self._secrets = tuple(secrets)
        self._quiet = QuietLog(log)
        self._served: dict[asyncio.Task[Any], web.Request] = {}
        self._dialing = 0
        self._exchanging = 0  # of those served
        self._open = False
        self.done = 0
        self.failed = 0

    def routes(self) -> list[web.RouteDef]:
        """To be added to the node's application before it starts. Until `start` they answer 503."""
        return [web.get(PATHS[Purpose.GOSSIP], self._serve)]

    def start(self) -> None:
        self._open = True

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        self._secrets = tuple(secrets)

    async def close(self) -> None:
        """End what is under way; dials are the caller's tasks."""
        self._open = False
        tasks = list(self._served)
        for request in self._served.values():
            _abort(request)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- as the side that connects

    async def exchange(self, address: str, *, node: str = "") -> bool:
        """With the member at HOST:PORT, which must be `node` ("" = any). Whether it came to its end."""
        try:
            async with asyncio.timeout(EXCHANGE_SECONDS_MAX), self._dialed(address, node) as websocket:
                await _send(websocket, _encode(self._teller.tell()))
                tale = await _receive_tale(websocket)
                self._teller.hear(tale)
                await _send(websocket, _encode(self._teller.lacking(tale.buckets)))
                self._teller.hear_cargo(await _receive_cargo(websocket))
        except HelloError as error:
            self._log_refusal(error, address)
        except (ConnectionError, aiohttp.ClientError, TimeoutError) as error:
            log.debug("no exchange with %s: %s", address, error or type(error).__name__)
        else:
            self.done += 1
            self._quiet.forget(address)
            return True
        self.failed += 1
        return False

    async def answers(self, address: str, *, node: str, seconds_max: float) -> bool:
        """Whether this very node is there and greets."""
        try:
            async with asyncio.timeout(seconds_max), self._dialed(address, node):
                return True
        except HelloError as error:
            self._log_refusal(error, address)
        except (ConnectionError, aiohttp.ClientError, TimeoutError):
            pass
        return False

    @asynccontextmanager
    async def _dialed(self, address: str, node: str) -> AsyncIterator[WebSocket]:
        if self._dialing >= DIALS_MAX:
            raise ConnectionError("too many exchanges at once")
        self._dialing += 1
        try:
            async with dial(
                address,
                node=node,
                purpose=Purpose.GOSSIP,
                identity=self._identity,
                secrets=self._secrets,
                settings=SETTINGS,
            ) as dialed:
                yield dialed.websocket
        finally:
            self._dialing -= 1

    # -- as the side that is connected to

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if not self._open or len(self._served) >= SERVED_MAX:
            raise web.HTTPServiceUnavailable(text="the node does not take part in gossip now")
        websocket = web.WebSocketResponse(
            compress=False, max_msg_size=WEBSOCKET_BYTES_MAX, timeout=SETTINGS.farewell_seconds_max
        )
        if not await upgrade(websocket, request):
            return web.Response(status=GONE_STATUS)
        task = asyncio.current_task()
        assert task is not None
        self._served[task] = request
        try:
            set_socket_options(websocket)
            async with asyncio.timeout(EXCHANGE_SECONDS_MAX):
                await greet_as_listener(
                    websocket, self._identity, self._secrets, purpose=Purpose.GOSSIP, admit=self._admit
                )
                await self._answer(websocket)
        except TimeoutError:
            await self._refuse(websocket, request, HelloError(Fault.TOO_SLOW, "the exchange took too long"))
        except HelloError as error:
            await self._refuse(websocket, request, error)
        except (ConnectionError, aiohttp.ClientError):
            pass  # the other side has broken off; it tries again with somebody
        finally:
            del self._served[task]
            _abort(request)
        return websocket

    async def _answer(self, websocket: WebSocket) -> None:
        part = await _receive_part(websocket)  # more than this is not taken until it is its turn
        if self._exchanging >= EXCHANGES_MAX:
            raise HelloError(Fault.BUSY, "too many exchanges at once")
        self._exchanging += 1
        try:
            tale = await _receive_tale(websocket, part)
            await _send(websocket, _encode(self._teller.tell()))
            self._teller.hear(tale)
            items = await _receive_cargo(websocket)
            await _send(websocket, _encode(self._teller.lacking(tale.buckets)))
            self._teller.hear_cargo(items)
            await websocket.receive()  # the dialer closes, when it has all
        finally:
            self._exchanging -= 1

    def _admit(self, _: PeerHello) -> None:
        if not self._open:
            raise HelloError(Fault.LEAVING, "the node stops")

    async def _refuse(self, websocket: web.WebSocketResponse, request: web.Request, error: HelloError) -> None:
        self._log_refusal(error, f"a connection from {request.remote}")
        if not error.remote:
            await refuse(websocket, error.fault, error.text, seconds_max=SETTINGS.farewell_seconds_max)

    def _log_refusal(self, error: HelloError, whom: str) -> None:
        """Once a minute: what is misconfigured is tried again and again."""
        if error.fault in _ORDINARY:
            log.debug("%s: %s", whom, error)
            return
        me = f"{self._identity.name} at {self._identity.address}"
        said = f"{whom} refused this node ({me})" if error.remote else f"this node ({me}) refused {whom}"
        advice = _ADVICE.get(error.fault)
        text = f"gossip: {said}: {error}" + (f"; {advice}" if advice else "")
        self._quiet.warn(f"{whom} {error.fault}", text, now=asyncio.get_running_loop().time())


MakePushPull = Callable[[Identity, Teller, Sequence[bytes]], PushPull]


async def _send(websocket: WebSocket, message: bytes) -> None:
    for part in cut(message):
        await websocket.send_bytes(part)


async def _receive_part(websocket: WebSocket) -> bytes:
    """Raises ConnectionError at the end of the connection, HelloError for a named one."""
    message = await websocket.receive()
    if message.type is WSMsgType.BINARY:
        part: bytes = message.data
        return part
    if (refusal := fault_of(message)) is not None:
        raise refusal
    raise ConnectionResetError("the peer has closed the connection")


async def _receive(websocket: WebSocket, part: bytes | None = None) -> bytes:
    """The next whole message, of which `part` has come already."""
    assembler = Assembler()
    while True:
        try:
            whole = assembler.feed(await _receive_part(websocket) if part is None else part)
        except FrameError as error:
            raise HelloError(Fault.MALFORMED, str(error)) from None
        if whole is not None:
            return whole
        part = None


async def _receive_tale(websocket: WebSocket, part: bytes | None = None) -> Tale:
    try:
        tale = _decode_tale(await _receive(websocket, part))
    except _MALFORMED as error:
        raise HelloError(Fault.MALFORMED, f"not a tale: {error}"[:100]) from None
    if tale.version != TALE_VERSION:
        raise HelloError(Fault.PROTOCOL_MISMATCH, f"a tale of version {tale.version}")
    return tale


async def _receive_cargo(websocket: WebSocket) -> list[msgspec.Raw]:
    try:
        items: list[msgspec.Raw] = _decode_cargo(await _receive(websocket))
    except _MALFORMED as error:
        raise HelloError(Fault.MALFORMED, f"not cargo: {error}"[:100]) from None
    return items


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
