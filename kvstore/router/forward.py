"""The one hop: a frame of REST's goes to the shard's leader over that node's client stream.

Invariant: a frame whose message may have left is never sent again from here; the caller decides by its session.
Invariant: what waits for an answer is bounded by CLIENT_FRAMES_MAX a node; every wait ends with the frame's deadline.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import msgspec

from kvstore.base import stream
from kvstore.base.errors import Invalid, Overloaded, Timeout, Unavailable
from kvstore.base.limits import CLIENT_FRAMES_MAX, STREAM_PROTOCOL, STREAM_REPLY_BYTES_MAX
from kvstore.base.stream import Hello, Mutate, Read, Refused, Results

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 1.0
CLOSE_SECONDS = 0.5  # how long a closing side waits for the other one, which may hang


class Link:
    """One stream connection to another node."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.waiting: dict[int, asyncio.Future[Results | Refused]] = {}
        self.next_id = 1
        self.reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                if message.type != aiohttp.WSMsgType.BINARY:
                    break
                for reply in stream.decode_replies(message.data):
                    if isinstance(reply, Results | Refused):
                        future = self.waiting.pop(reply.id, None)
                        if future is not None and not future.done():
                            future.set_result(reply)
        except (Invalid, aiohttp.ClientError, OSError) as error:
            logger.warning("forwarding stream broke: %s", error)
        finally:
            for future in self.waiting.values():
                if not future.done():
                    future.set_exception(Timeout("the connection to the leader broke; the outcome is unknown"))
            self.waiting.clear()
            await self.socket.close()


class Forwarder:
    """Links to other nodes by HOST:PORT, opened when needed."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._links: dict[str, Link] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._closed = False

    async def ask(self, address: str, frame: Mutate | Read) -> Results | Refused:
        """Send the frame once. Raises Unavailable (not sent, definite) or Timeout (may have happened)."""
        link = await self._link(address)
        if len(link.waiting) >= CLIENT_FRAMES_MAX:
            raise Overloaded("too many requests are being forwarded to the leader")
        frame_id = link.next_id
        link.next_id += 1
        future: asyncio.Future[Results | Refused] = asyncio.get_running_loop().create_future()
        link.waiting[frame_id] = future
        try:
            async with asyncio.timeout(frame.timeout_ms / 1_000 + 0.5):
                await link.socket.send_bytes(stream.encode([msgspec.structs.replace(frame, id=frame_id)]))
                return await future
        except TimeoutError:
            raise Timeout from None
        except (ConnectionError, aiohttp.ClientError) as error:
            raise Timeout(f"the connection to the leader broke: {error}; the outcome is unknown") from None
        finally:
            link.waiting.pop(frame_id, None)

    async def _link(self, address: str) -> Link:
        async with self._opening.setdefault(address, asyncio.Lock()):
            link = self._links.get(address)
            if link is not None and not link.reader.done():
                return link
            if self._closed:
                raise Unavailable("this node stops")  # while requests that came before are still tried again
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    link = await self._open(address)
            except (TimeoutError, OSError, aiohttp.ClientError, Invalid, TypeError) as error:
                # TypeError: aiohttp's way to say that a close frame came instead of bytes
                raise Unavailable(f"the leader at {address} can't be reached: {error!r}") from None
            self._links[address] = link
            return link

    async def _open(self, address: str) -> Link:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        socket = await self._session.ws_connect(
            f"http://{address}/v1/stream",
            max_msg_size=STREAM_REPLY_BYTES_MAX,
            compress=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
        )
        try:
            await socket.send_bytes(stream.encode([Hello(STREAM_PROTOCOL, "kvstore-node")]))
            if not isinstance(stream.decode_replies(await socket.receive_bytes())[0], stream.Welcome):
                raise Invalid("no welcome")
        except BaseException:
            await socket.close()
            raise
        return Link(socket)

    async def close(self) -> None:
        self._closed = True
        for link in self._links.values():
            await link.socket.close()
            link.reader.cancel()
        await asyncio.gather(*(link.reader for link in self._links.values()), return_exceptions=True)
        if self._session is not None:
            await self._session.close()
