"""Snapshots between nodes: each on a connection of its own, rate-limited, resumed after a break.

The receiver says where to begin, and again after each break, so nothing is taken in twice. A chunk counts as taken
when the receiving handler asks for the next one; the sender keeps at most a window of chunks that were not taken, so
a slow receiver slows the sender down and neither holds more than the window.

Invariant: a handler is never cancelled by a broken connection: its chunk iterator raises ConnectionError, and only
    when it has ended does a new connection for the same snapshot ask for the resume point. (Cancelling would leave
    it unknown whether a chunk has been written.)
Invariant: at most settings.snapshot_streams_max streams each way, and snapshot_waiting_max that wait.
Called by: peer_link, after the hello.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from kvstore.base.limits import SNAPSHOT_CHUNK_BYTES
from kvstore.transport.dial import Dialed
from kvstore.transport.hello import HelloError, WebSocket
from kvstore.transport.protocol import PeerHandler, SnapshotRefused
from kvstore.transport.rate_limit import TokenBucket
from kvstore.transport.settings import TransportSettings
from kvstore.transport.snapshot_wire import (
    HEADER_BYTES_MAX,
    Begin,
    Chunk,
    End,
    Installed,
    Refused,
    Resume,
    SnapshotSocket,
    StreamBroken,
    Taken,
    chunk,
    refused,
)

log = logging.getLogger(__name__)

ReadChunk = Callable[[int], Awaitable[bytes | None]]
_BURST_SECONDS = 0.05


class _Outgoing:
    """One snapshot on its way, over all its connections."""

    def __init__(self, header: bytes, read_chunk: ReadChunk, bucket: TokenBucket, settings: TransportSettings) -> None:
        self.taken = 0  # the receiver has everything before it
        self._header = header
        self._read_chunk = read_chunk
        self._bucket = bucket
        self._settings = settings
        self._progress = asyncio.Event()

    async def run(self, socket: SnapshotSocket) -> None:
        """Once over one connection. Returns when installed; raises SnapshotRefused, StreamBroken."""
        await socket.send(Begin(self._header))
        try:
            async with asyncio.timeout(self._settings.snapshot_answer_seconds_max):
                answer = await socket.read_from_receiver()
        except TimeoutError:
            raise StreamBroken("the receiver does not answer") from None
        if type(answer) is Refused:
            raise SnapshotRefused(answer.reason)
        if type(answer) is not Resume:
            raise StreamBroken("the receiver did not say where to begin")
        self.taken = answer.at
        reading = asyncio.create_task(self._read_answers(socket), name="snapshot-answers")
        pumping = asyncio.create_task(self._pump(socket, answer.at, answer.window), name="snapshot-chunks")
        try:
            await asyncio.wait((reading, pumping), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and not _failed_otherwise(pumping):
                # The receiver may have told why it closed before the pump ran into the closed connection.
                await asyncio.wait((reading,))
            await (reading if reading.done() else pumping)
        finally:
            reading.cancel()
            pumping.cancel()
            await asyncio.gather(reading, pumping, return_exceptions=True)

    async def _pump(self, socket: SnapshotSocket, number: int, window: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while number - self.taken >= window:
                self._progress.clear()
                await self._progress.wait()
            data = await self._read_chunk(number)
            if data is None:
                await socket.send(End(number))
                return
            delay = self._bucket.reserve(len(data), now=loop.time())
            if delay > 0:
                await asyncio.sleep(delay)
            await socket.send(chunk(number, data))
            number += 1

    async def _read_answers(self, socket: SnapshotSocket) -> None:
        while True:
            match await socket.read_from_receiver():
                case Taken(next=taken):
                    if taken < self.taken:
                        raise StreamBroken("the receiver takes back what it has taken")
                    self.taken = taken
                    self._progress.set()
                case Installed():
                    return
                case Refused(reason=reason):
                    raise SnapshotRefused(reason)
                case Resume():
                    raise StreamBroken("the receiver asked twice where to begin")


def _failed_otherwise(pumping: asyncio.Task[None]) -> bool:
    """Did reading a chunk fail? Then nothing is to be waited for."""
    error = pumping.exception()
    return error is not None and not isinstance(error, StreamBroken)


class SnapshotSender:
    """All outgoing snapshots of a node. `dial_to` opens a connection to a node; raises HelloError, ConnectionError."""

    def __init__(
        self, settings: TransportSettings, dial_to: Callable[[str], AbstractAsyncContextManager[Dialed]]
    ) -> None:
        self._settings = settings
        self._dial_to = dial_to
        rate = settings.snapshot_bytes_per_second
        self._bucket = TokenBucket(rate=rate, burst=max(rate * _BURST_SECONDS, min(rate, 2 * SNAPSHOT_CHUNK_BYTES)))
        self._slots = asyncio.Semaphore(settings.snapshot_streams_max)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def send(self, node: str, header: bytes, read_chunk: ReadChunk) -> None:
        """See PeerTransport.send_snapshot. What `read_chunk` raises comes out here."""
        settings = self._settings
        if len(header) > HEADER_BYTES_MAX - 64:
            raise SnapshotRefused(f"the snapshot's header has {len(header)} bytes")
        if len(self._tasks) >= settings.snapshot_streams_max + settings.snapshot_waiting_max:
            raise SnapshotRefused("this node sends too many snapshots already")
        if self._closed:
            raise ConnectionError("the transport is closed")
        task = asyncio.create_task(self._send(node, header, read_chunk), name=f"snapshot to {node[:8]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()  # nothing to a task that is done
            await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            raise ConnectionError("the transport was closed")
        task.result()

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, node: str, header: bytes, read_chunk: ReadChunk) -> None:
        try:
            async with asyncio.timeout(self._settings.snapshot_seconds_max), self._slots:
                await self._send_resuming(node, _Outgoing(header, read_chunk, self._bucket, self._settings))
        except TimeoutError:
            raise ConnectionError(f"the snapshot took longer than {self._settings.snapshot_seconds_max} s") from None

    async def _send_resuming(self, node: str, outgoing: _Outgoing) -> None:
        settings, attempt, best = self._settings, 0, 0
        while True:
            try:
                async with self._dial_to(node) as dialed:
                    await outgoing.run(SnapshotSocket(dialed.websocket))
                    return
            except (ConnectionError, HelloError) as error:
                attempt = 1 if outgoing.taken > best else attempt + 1
                best = max(best, outgoing.taken)
                if attempt >= settings.snapshot_attempts_max:
                    raise ConnectionError(f"the snapshot was given up at chunk {best}: {error}") from error
                log.info("a snapshot for node %s is resumed: %s", node[:8], error)
            await asyncio.sleep(settings.snapshot_backoff_seconds * min(2 ** (attempt - 1), 10))


class _Incoming(AsyncIterator[tuple[int, bytes]]):
    """One connection's chunks, between the reader of the connection and the handler, who iterates over it."""

    def __init__(self, socket: SnapshotSocket, *, at: int, window: int) -> None:
        self._socket = socket
        self._window = window
        self._next = at  # to be received
        self._taken = at  # by the handler
        self._in_hand = False  # the handler works on one
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._ended = False
        self._error: ConnectionError | None = None
        self._changed = asyncio.Event()

    async def read(self) -> None:
        """Until the connection ends or breaks a rule, which it tells the iterator of. Never returns normally."""
        try:
            while True:
                self._take(await self._socket.read_from_sender())
                self._changed.set()
        except ConnectionError as error:
            self.fail(error)
            raise

    def fail(self, error: ConnectionError) -> None:
        self._error = self._error or error
        self._changed.set()

    def _take(self, message: Begin | Chunk | End) -> None:
        match message:
            case Chunk(number=number, data=data):
                if number != self._next or self._ended:
                    raise StreamBroken(f"chunk {number} came where {self._next} was due")
                if self._next - self._taken >= self._window:
                    raise StreamBroken("the sender exceeds the window")
                self._waiting.append((number, data))
                self._next += 1
            case End(count=count):
                if count != self._next or self._ended:
                    raise StreamBroken(f"the end came after chunk {self._next}, and claims {count}")
                self._ended = True
            case Begin():
                raise StreamBroken("a snapshot begins inside another one")

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        """The handler's next chunk; raises ConnectionError when the connection broke before the end.

        Not a generator: one that is left half-way is closed by a task of its own, later than we could wait for.
        """
        if self._in_hand:
            self._in_hand = False
            self._taken += 1
            try:
                await self._socket.send(Taken(self._taken))
            except ConnectionError as error:
                self.fail(error)
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        self._in_hand = True
        return self._waiting.popleft()  # even after a break: what came whole need not come again


class SnapshotReceiver:
    """All incoming snapshots of a node."""

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.snapshot_streams_max)
        self._active: dict[tuple[str, bytes], tuple[_Incoming, asyncio.Task[None]]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def serve(self, websocket: WebSocket, node: str, handler: PeerHandler) -> None:
        """One authenticated connection, to its end."""
        task = asyncio.create_task(self._serve(SnapshotSocket(websocket), node, handler), name="snapshot-receiver")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            task.result()

    async def close(self) -> None:
        """Cancels the handlers too; what they have half written is theirs to find again."""
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, socket: SnapshotSocket, node: str, handler: PeerHandler) -> None:
        settings = self._settings
        try:
            async with asyncio.timeout(settings.hello_seconds_max):
                begin = await socket.read_from_sender()
            if type(begin) is not Begin:
                raise StreamBroken("a snapshot must begin with its header")
            if len(self._serving) > settings.snapshot_streams_max + settings.snapshot_waiting_max:
                await socket.send(refused("the node takes in too many snapshots already"))
                return
            if not await self._free(node, begin.header):
                await socket.send(refused("busy with other snapshots, try later"))
                return
        except (TimeoutError, ConnectionError) as error:
            log.debug("a snapshot from node %s did not begin: %s", node[:8], error)
            return
        try:
            await self._receive(socket, node, begin.header, handler)
        finally:
            self._slots.release()

    async def _free(self, node: str, header: bytes) -> bool:
        """End an older connection of the same snapshot and get a slot. False = not within the time."""
        try:
            async with asyncio.timeout(self._settings.snapshot_wait_seconds_max):
                while (older := self._active.get((node, header))) is not None:
                    incoming, installing = older
                    incoming.fail(StreamBroken("the sender has connected anew"))
                    await asyncio.wait((installing,))
                await self._slots.acquire()
                return True
        except TimeoutError:
            return False

    async def _receive(self, socket: SnapshotSocket, node: str, header: bytes, handler: PeerHandler) -> None:
        at = handler.snapshot_resume_at(node, header)
        incoming = _Incoming(socket, at=at, window=self._settings.snapshot_window)
        installing = asyncio.create_task(_install(handler, node, header, incoming), name="snapshot-install")
        reading = asyncio.create_task(incoming.read(), name="snapshot-reader")
        self._active[node, header] = incoming, installing
        try:
            await socket.send(Resume(at, self._settings.snapshot_window))
            await asyncio.wait((installing, reading), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((installing,))  # ends by itself when the connection broke
            await self._answer(socket, installing)
            async with asyncio.timeout(self._settings.farewell_seconds_max):
                await asyncio.wait((reading,))  # the sender closes
        except (TimeoutError, ConnectionError) as error:
            incoming.fail(StreamBroken(str(error)))
            await asyncio.wait((installing,))
        finally:
            installing.cancel()
            reading.cancel()
            await asyncio.gather(installing, reading, return_exceptions=True)
            del self._active[node, header]

    async def _answer(self, socket: SnapshotSocket, installing: asyncio.Task[None]) -> None:
        """Tell the sender. Raises StreamBroken, and AssertionError of the handler, which must not be hidden."""
        error = installing.exception()
        if error is None:
            await socket.send(Installed())
        elif isinstance(error, SnapshotRefused):
            await socket.send(refused(str(error)))
        elif not isinstance(error, ConnectionError):
            if not isinstance(error, AssertionError):
                log.error("a snapshot could not be installed", exc_info=error)
            await socket.send(refused(f"the installation failed: {type(error).__name__}"))
        if isinstance(error, AssertionError):
            raise error


async def _install(handler: PeerHandler, node: str, header: bytes, incoming: _Incoming) -> None:
    await handler.on_snapshot(node, header, incoming)
