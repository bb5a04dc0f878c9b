"""One open, authenticated connection to a peer: a bounded queue, a writer that joins what waits, a reader.

`send` only queues. Everything that was queued since the writer last ran leaves as one WebSocket message, so a turn
of the loop in which a hundred groups speak to a peer costs one message.

Invariant: frames are handed to the handler in the order in which the peer queued them, and none after `stop`.
Invariant: at most settings.queue_bytes_max wait; what does not fit is dropped and counted, as Raft repeats it.
Called by: peer_link, which owns the task that `run` is in.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import WSMsgType

from kvstore.base.limits import PEER_MESSAGE_BYTES_MAX
from kvstore.transport.frames import (
    FRAME_MESSAGES_MAX,
    Assembler,
    FrameError,
    Removed,
    cut,
    decode,
    encode,
    message_bytes_max,
)
from kvstore.transport.hello import Fault, HelloError, WebSocket, fault_of, refuse
from kvstore.transport.protocol import GroupMessage, PeerHandler, PeerHello
from kvstore.transport.settings import TransportSettings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LinkStats:
    """Counts since the start of the process, over all connections with one peer. Bytes are of frames."""

    connects: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    messages_dropped: int = 0  # no connection, full queue, too large
    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    frames_refused: int = 0  # malformed ones; each ended its connection
    heard: int = 0  # WebSocket messages: whole frames, parts of large ones, beats


class PeerConnection:
    """`cut` ends the TCP connection at once, whatever is still queued in it."""

    def __init__(
        self,
        websocket: WebSocket,
        hello: PeerHello,
        cut: Callable[[], None],
        settings: TransportSettings,
        stats: LinkStats,
    ) -> None:
        self.hello = hello
        self.queued_bytes = 0
        self.ending: HelloError | None = None  # the named reason, once there is one
        self._websocket = websocket
        self._cut = cut
        self._settings = settings
        self._stats = stats
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._queue: deque[tuple[int, list[GroupMessage]]] = deque()
        self._removed: list[Removed] = []
        self._writer_waits: asyncio.Future[None] | None = None
        self._stopped: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._open = True
        self._sent = False  # something else than a beat, since the last one
        self._heard = True
        self._silent_beats = 0
        self._beat_due = False

    @property
    def open(self) -> bool:
        """False from the first sign of its end, while it still says goodbye."""
        return self._open

    # -- towards the peer

    def send(self, messages: list[GroupMessage]) -> bool:
        """Queue them all, or drop them all and give False."""
        stats = self._stats
        if not self._open:
            stats.messages_dropped += len(messages)
            return False
        sizes = [message_bytes_max(one.message) for one in messages]
        size = sum(sizes)
        if max(sizes, default=0) > PEER_MESSAGE_BYTES_MAX:
            # Raft would repeat it for ever: somebody let an entry grow beyond base.limits.
            log.error("a message of more than %d bytes for %s can't be sent", PEER_MESSAGE_BYTES_MAX, self.hello.name)
            stats.messages_dropped += len(messages)
            return False
        if self.queued_bytes + size > self._settings.queue_bytes_max:
            stats.messages_dropped += len(messages)
            return False
        if size <= self._settings.coalesce_bytes_max and len(messages) <= FRAME_MESSAGES_MAX:
            self._queue.append((size, messages))
        else:
            self._queue.extend((size, [one]) for size, one in zip(sizes, messages, strict=True))
        self.queued_bytes += size
        self._wake_writer()
        return True

    def send_removed(self, group: int, replica_id: int) -> None:
        """Tell of a tombstone; dropped when too many wait (the removed replica asks again)."""
        if self._open and len(self._removed) < self._settings.removed_max:
            self._removed.append(Removed(group, replica_id))
            self._wake_writer()

    def beat(self) -> None:
        """Called each settings.beat_seconds. Counts turns and not time, so that a pause of *this* process, in which
        nothing could be heard, is not taken for the peer's silence."""
        if not self._sent:
            self._beat_due = True
            self._wake_writer()
        self._sent = False
        self._silent_beats = 0 if self._heard else self._silent_beats + 1
        self._heard = False
        if self._silent_beats >= self._settings.silent_beats_max:
            self._open = False
            self._cut()
            self.stop(Fault.TOO_SLOW, "nothing was heard from the peer")

    def stop(self, fault: Fault, text: str) -> None:
        """End it; `run` says goodbye and returns soon."""
        self._open = False
        if not self._stopped.done():
            self.ending = HelloError(fault, text)
            self._stopped.set_result(None)

    async def wait_ended(self) -> None:
        await asyncio.shield(self._ended)

    # -- the life of the connection

    async def run(self, handler: PeerHandler) -> None:
        """Carry messages until either side ends it. Raises only what the handler raised."""
        reader = asyncio.create_task(self._read(handler), name=f"peer-reader {self.hello.name}")
        writer = asyncio.create_task(self._write(), name=f"peer-writer {self.hello.name}")
        try:
            await asyncio.wait((reader, writer, self._stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open = False
            reader.cancel()
            writer.cancel()
            outcomes = await asyncio.gather(reader, writer, return_exceptions=True)
            try:
                if self.ending is not None and not self.ending.remote:
                    await refuse(
                        self._websocket,
                        self.ending.fault,
                        self.ending.text,
                        seconds_max=self._settings.farewell_seconds_max,
                    )
            finally:
                self._cut()
                self._queue.clear()
                self._removed.clear()
                self._ended.set_result(None)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _read(self, handler: PeerHandler) -> None:
        assembler = Assembler()
        receive = self._websocket.receive
        while True:
            message = await receive()
            self._heard = True
            self._stats.heard += 1
            if not self._open:
                return
            if message.type is not WSMsgType.BINARY:
                self._note_end(message)
                return
            try:
                whole = assembler.feed(message.data)
                if whole is not None:
                    self._deliver(whole, handler)
            except FrameError as error:
                self._stats.frames_refused += 1
                self.stop(Fault.MALFORMED, str(error))
                return

    def _deliver(self, data: bytes, handler: PeerHandler) -> None:
        frame = decode(data)
        stats = self._stats
        stats.frames_received += 1
        stats.bytes_received += len(data)
        stats.messages_received += len(frame.messages)
        if frame.messages:
            handler.on_messages(self.hello.node, frame.messages)
        for removed in frame.removed:
            handler.on_removed(self.hello.node, removed.group, removed.replica_id)

    def _note_end(self, message: aiohttp.WSMessage) -> None:
        if (refusal := fault_of(message)) is not None:
            self.ending = refusal
        elif message.type is WSMsgType.TEXT:
            self.stop(Fault.MALFORMED, "a text message")

    async def _write(self) -> None:
        send_bytes = self._websocket.send_bytes
        try:
            while True:
                while not self._queue and not self._removed and not self._beat_due:
                    self._writer_waits = self._loop.create_future()
                    await self._writer_waits
                frame = self._next_frame()
                for part in cut(frame):
                    await send_bytes(part)
        except (ConnectionError, aiohttp.ClientError):
            return

    def _next_frame(self) -> bytes:
        """Everything that waits, up to the size of one frame; an empty frame is a beat."""
        budget = self._settings.coalesce_bytes_max
        queue = self._queue
        messages: list[GroupMessage] = []
        size = 0
        while queue and (not messages or size + queue[0][0] <= budget):
            if len(messages) + len(queue[0][1]) > FRAME_MESSAGES_MAX:
                break
            added, some = queue.popleft()
            size += added
            messages += some
        removed, self._removed = self._removed, []
        self._sent = self._sent or bool(messages) or bool(removed)
        self._beat_due = False
        self.queued_bytes -= size
        frame = encode(messages, removed)
        stats = self._stats
        stats.frames_sent += 1
        stats.bytes_sent += len(frame)
        stats.messages_sent += len(messages)
        return frame

    def _wake_writer(self) -> None:
        waits = self._writer_waits
        if waits is not None:
            self._writer_waits = None
            if not waits.done():
                waits.set_result(None)
