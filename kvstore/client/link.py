"""The client's link to one node: connects, greets, sends frames, matches answers, notices silence.

A link is made once per address and lives as long as the client knows the address; connections come and go under it.
It decides nothing about operations: what becomes of a frame's operations is the owner's business (dispatcher.py).

Invariant: each frame handed to `submit` is given back exactly once: with an answer (on_results, on_refused), as lost
           (on_lost), or taken out by the owner (`discard`).
Invariant: `submit` is called only while the link is open and has room; what waits for either stands in `queued`.
Invariant: a connection on which nothing is heard for SILENCE_SECONDS (or somewhat more, see `_silence_max`), although
           something is under way and a ping was sent, is given up: a node that is paused or cut off must not hold
           operations until their deadline.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Protocol

from kvstore import __version__
from kvstore.base.errors import Invalid, KVError, Unavailable
from kvstore.base.limits import DEADLINE_MS_MAX, FRAME_OPERATIONS_MAX, KIB, MIB, REQUEST_BYTES_MAX, STREAM_PROTOCOL
from kvstore.base.shards import Route
from kvstore.base.stream import (
    GetRoutes,
    Hello,
    Mutate,
    Ping,
    Pong,
    Read,
    Refused,
    Reply,
    Results,
    Routes,
    Welcome,
    decode_replies,
    encode,
)
from kvstore.client.connection import Connection, ConnectionLost, Connector
from kvstore.client.pending import MUTATION, Pending
from kvstore.client.retry import error_of
from kvstore.client.session import SeqBlock

DIAL_SECONDS_MAX = 1.5  # connection and greeting together
PING_SECONDS = 0.5
SILENCE_SECONDS = 1.5  # below the time of an election, so that the client is ready when a new leader is
SLOW_BYTES_PER_SECOND = 1 * MIB  # a network slower than this may be taken for a silent node
RECONNECT_SECONDS_MIN = 0.02
RECONNECT_SECONDS_MAX = 1.0
FLIGHTS_MAX = 256  # frames under way; far below what a server allows, and more only makes them smaller
FLIGHT_BYTES_MAX = 16 * MIB
FRAME_ENVELOPE_BYTES = 128  # around the operations: at most 11 numbers of 9 bytes and the session
READ_REPLY_BYTES = 4 * MIB  # a frame of reads asks for about this much


class State(Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class Flight:
    """One frame under way and the operations in it, in their order."""

    __slots__ = ("block", "earliest", "id", "mode", "pendings", "route", "size")

    def __init__(
        self, *, pendings: list[Pending], route: Route, mode: int, earliest: float, block: SeqBlock | None
    ) -> None:
        self.id = 0  # given by the link
        self.pendings = pendings
        self.route = route
        self.mode = mode
        self.earliest = earliest  # the first deadline among the operations that still wait
        self.block = block  # set when all are mutations of this block
        self.size = 0


class LinkOwner(Protocol):
    """Called synchronously, on the loop. None of it may await."""

    def on_open(self, link: Link) -> None:
        """There is room: `link.queued` can be sent. Raises ConnectionLost when this node is not to be used."""

    def on_results(self, link: Link, flight: Flight, reply: Results) -> None: ...
    def on_refused(self, link: Link, flight: Flight, reply: Refused) -> None: ...
    def on_lost(self, link: Link, flights: list[Flight], error: KVError) -> None:
        """The connection ended or could not be made; the flights may have been taken or not."""


class Link:
    def __init__(
        self,
        address: str,
        *,
        connector: Connector,
        owner: LinkOwner,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.address = address
        self.node: str | None = None  # its name, once it has welcomed us
        self.state = State.IDLE
        self.failures = 0  # since the last answer
        self.error: KVError | None = None  # of the last failure
        self.queued: list[Pending] = []
        self.flights: dict[int, Flight] = {}
        self.flight_bytes = 0
        self.welcome: Welcome | None = None
        self.request_bytes_max = REQUEST_BYTES_MAX
        self.frame_operations_max = FRAME_OPERATIONS_MAX
        self.deadline_ms_max = DEADLINE_MS_MAX
        self.answer_bytes = 64.0  # of one read, a moving average
        self._connector = connector
        self._owner = owner
        self._loop = loop
        self._rng = rng
        self._spawn = spawn
        self._task: asyncio.Task[None] | None = None
        self._retry_at = 0.0  # loop time
        self._last_id = 0
        self._stamp = 0  # ms, as last heard
        self._stamp_at = 0.0  # loop time of hearing it
        self._outbox: list[tuple[bytes, int]] = []  # encoded frames with their size
        self._wake_writer = asyncio.Event()
        self._asks: dict[int, asyncio.Future[Routes]] = {}
        self._listens: dict[int, asyncio.Future[Routes]] = {}  # asks that wait for a change: silence says nothing
        self._opened: list[asyncio.Future[None]] = []  # of wait_open
        self._heard = 0.0  # loop time of the last message, or of the first frame after a rest
        self._pinged = False  # since then
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = 0.0

    # -- state
    @property
    def is_open(self) -> bool:
        return self.state is State.OPEN

    @property
    def usable(self) -> bool:
        """Open, or worth waiting for: it has not failed yet."""
        return self.state is State.OPEN or (self.failures == 0 and self.state is not State.CLOSED)

    @property
    def has_room(self) -> bool:
        return len(self.flights) < FLIGHTS_MAX and self.flight_bytes < FLIGHT_BYTES_MAX

    def wake(self) -> None:
        """Begin to connect unless it is connected, connecting, or paused after a failure."""
        if self.state is State.IDLE and self._loop.time() >= self._retry_at:
            self.state = State.CONNECTING
            self._task = self._spawn(self._run())

    async def wait_open(self, seconds: float) -> bool:
        """Whether the link opened within that time; False at once when it fails."""
        if self.state is State.OPEN:
            return True
        self.wake()
        if self.state is not State.CONNECTING:
            return False
        future: asyncio.Future[None] = self._loop.create_future()
        self._opened.append(future)
        await asyncio.wait((future,), timeout=seconds)
        if not future.done():
            self._opened.remove(future)
        return self.is_open

    def close(self) -> None:
        """No more connections. The owner cancels the tasks and settles what is queued or under way."""
        self.state = State.CLOSED
        self._stop_watch()
        self._release(Unavailable("the client is closed"))

    # -- requests
    def stamp_ms(self, now: float) -> int:
        """What this node's clock shows by our own reckoning; of use for a shard whose own stamp was not heard yet."""
        return self._stamp + max(0, int((now - self._stamp_at) * 1000))

    @property
    def reads_max(self) -> int:
        """How many single-key reads one frame should carry, by the size of the answers so far."""
        return max(1, min(self.frame_operations_max, int(READ_REPLY_BYTES / self.answer_bytes)))

    def submit(self, flight: Flight, frame: Mutate | Read) -> None:
        """Send the frame; its id is set here."""
        assert self.state is State.OPEN
        frame.id = flight.id = self._next_id()
        encoded = encode(frame)
        flight.size = len(encoded)
        self._expect_answer()
        self.flights[flight.id] = flight
        self.flight_bytes += flight.size
        self._post(encoded)

    def discard(self, flight: Flight) -> None:
        """Nobody waits for this frame any more; its answer, should it come, is dropped."""
        del self.flights[flight.id]
        self.flight_bytes -= flight.size

    async def get_routes(self, seconds: float, *, version: int = 0, wait_ms: int = 0) -> Routes:
        """`version`, `wait_ms`: see GetRoutes. Raises KVError or TimeoutError."""
        if self.state is not State.OPEN:
            raise Unavailable(f"{self.address} is not connected")
        frame = GetRoutes(self._next_id(), version, wait_ms)
        future: asyncio.Future[Routes] = self._loop.create_future()
        if wait_ms:
            asks = self._listens
        else:
            asks = self._asks
            self._expect_answer()
        asks[frame.id] = future
        self._post(encode(frame))
        try:
            async with asyncio.timeout(seconds):
                return await future
        finally:
            asks.pop(frame.id, None)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _post(self, encoded: bytes) -> None:
        self._outbox.append((encoded, len(encoded)))
        self._wake_writer.set()

    # -- the connection
    async def _run(self) -> None:
        """One connection, from dialling to its end. Cancelled, it only closes it: the state is the canceller's."""
        connection: Connection | None = None
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(DIAL_SECONDS_MAX):
                connection = await self._connector.dial(self.address)
                welcome = await self._greet(connection)
            self._open(welcome)
            writer = asyncio.ensure_future(self._write(connection))
            while True:
                self._on_message(await connection.receive())
        except TimeoutError:
            self._fail(Unavailable(f"{self.address} did not answer within {DIAL_SECONDS_MAX} s"))
        except (ConnectionLost, Invalid) as error:
            self._fail(Unavailable(f"{self.address}: {error}"))
        finally:
            if writer is not None:
                writer.cancel()
                await asyncio.wait((writer,))
            if connection is not None:
                await connection.close()

    async def _greet(self, connection: Connection) -> Welcome:
        await connection.send(encode([Hello(STREAM_PROTOCOL, f"kvstore-python/{__version__}")]))
        replies = decode_replies(await connection.receive())
        for reply in replies:
            if type(reply) is Refused:
                raise ConnectionLost(f"the node refused us: {reply.message}")
        if len(replies) != 1 or type(replies[0]) is not Welcome:
            raise ConnectionLost("the node did not begin with a welcome")
        welcome = replies[0]
        if welcome.protocol != STREAM_PROTOCOL:
            raise ConnectionLost(f"the node speaks protocol {welcome.protocol}, this client {STREAM_PROTOCOL}")
        return welcome

    def _open(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self.node = welcome.node
        self.request_bytes_max = max(64 * KIB, welcome.limits.get("request_bytes_max", REQUEST_BYTES_MAX))
        self.frame_operations_max = max(1, welcome.limits.get("frame_operations_max", FRAME_OPERATIONS_MAX))
        self.deadline_ms_max = max(1, welcome.limits.get("deadline_ms_max", DEADLINE_MS_MAX))
        self._set_stamp(welcome.stamp, self._loop.time())
        self.state = State.OPEN
        self._owner.on_open(self)
        self._wake_opened()

    async def _write(self, connection: Connection) -> None:
        """Sends what is in the outbox, many frames a message, each message within the node's limit."""
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer.clear()
                outbox, self._outbox = self._outbox, []
                frames: list[bytes] = []
                size = 0
                for frame, frame_size in outbox:
                    if frames and size + frame_size + 8 > self.request_bytes_max:
                        await connection.send(_message(frames))
                        frames, size = [], 0
                    frames.append(frame)
                    size += frame_size
                if frames:
                    await connection.send(_message(frames))
        except ConnectionLost as error:
            self.drop(str(error))

    def drop(self, reason: str) -> None:
        """Give the connection up; it is closed in the background."""
        if self.state in (State.OPEN, State.CONNECTING):
            task, self._task = self._task, None
            self._fail(Unavailable(f"{self.address}: {reason}"))
            if task is not None:
                task.cancel()

    def _fail(self, error: KVError) -> None:
        """The connection is no more. Tell the owner, and pause before the next."""
        self.state = State.IDLE
        self._task = None
        self.error = error
        pause = min(RECONNECT_SECONDS_MIN * 2.0 ** min(self.failures, 10), RECONNECT_SECONDS_MAX)
        self.failures += 1
        self._retry_at = self._loop.time() + pause * self._rng.uniform(0.5, 1.0)
        self._stop_watch()
        self._outbox.clear()
        flights = list(self.flights.values())
        self.flights.clear()
        self.flight_bytes = 0
        self._release(error)
        self._owner.on_lost(self, flights, error)

    def _release(self, error: KVError) -> None:
        for ask in (*self._asks.values(), *self._listens.values()):
            if not ask.done():
                ask.set_exception(error)
        self._asks.clear()
        self._listens.clear()
        self._wake_opened()

    def _wake_opened(self) -> None:
        for future in self._opened:
            if not future.done():
                future.set_result(None)
        self._opened.clear()

    # -- answers
    def _on_message(self, data: bytes) -> None:
        """Raises Invalid when the node breaks the protocol; the connection ends then."""
        now = self._heard = self._loop.time()
        self._pinged = False
        reads = 0
        for reply in decode_replies(data):
            reads += self._on_reply(reply, now)
        if reads:
            self.answer_bytes += (len(data) / reads - self.answer_bytes) * 0.25
        if self.queued and self.state is State.OPEN and self.has_room:
            self._owner.on_open(self)

    def _on_reply(self, reply: Reply, now: float) -> int:
        """The number of reads that were answered by it."""
        if isinstance(reply, (Results, Refused)):
            flight = self.flights.get(reply.id)
            if flight is None:
                return self._on_stray(reply)
            if isinstance(reply, Results) and len(reply.results) != len(flight.pendings):
                raise Invalid(f"{len(reply.results)} results for {len(flight.pendings)} operations")
            self.failures = 0
            # It leaves the table only afterwards: if the owner fails, its operations are still found there.
            if isinstance(reply, Refused):
                self._owner.on_refused(self, flight, reply)
                self.discard(flight)
                return 0
            self._owner.on_results(self, flight, reply)
            self.discard(flight)
            return len(reply.results) if flight.mode != MUTATION else 0
        if type(reply) is Routes:
            self.failures = 0
            ask = self._ask_of(reply.id)
            if ask is not None:
                ask.set_result(reply)
        elif type(reply) is Pong:
            self._set_stamp(reply.stamp, now)
        else:
            raise Invalid("a second welcome")
        return 0

    def _on_stray(self, reply: Results | Refused) -> int:
        """An answer to a frame that nobody waits for, or the refusal of a request for routes."""
        if type(reply) is Refused:
            ask = self._ask_of(reply.id)
            if ask is not None:
                ask.set_exception(
                    error_of(reply.code, reply.message, definite=reply.definite, retry_after_ms=reply.retry_after_ms)
                )
        return 0

    def _ask_of(self, request: int) -> asyncio.Future[Routes] | None:
        ask = self._asks.get(request) or self._listens.get(request)
        return None if ask is None or ask.done() else ask

    def _set_stamp(self, stamp: int, now: float) -> None:
        if stamp > 0:
            self._stamp = stamp
            self._stamp_at = now

    # -- silence
    def _expect_answer(self) -> None:
        if self._watch is None:
            self._heard = self._loop.time()
            self._pinged = False
            self._arm_watch(self._heard)

    def _arm_watch(self, now: float) -> None:
        self._watch_at = now + PING_SECONDS
        self._watch = self._loop.call_at(self._watch_at, self._on_watch)

    def _on_watch(self) -> None:
        now = self._loop.time()
        late = now - self._watch_at
        self._watch = None
        if not self.flights and not self._asks:
            return
        silence = now - self._heard
        # The loop itself may have stood still: then the answers may be there, unread, and silence says nothing.
        if self._pinged and silence >= self._silence_max() and late < PING_SECONDS:
            self.drop(f"nothing was heard for {silence:.1f} s")
            return
        if silence >= PING_SECONDS * 0.9:
            self._pinged = True
            self._post(encode(Ping(self._next_id())))
        self._arm_watch(now)

    def _silence_max(self) -> float:
        """Seconds. Longer while large requests are on the way, behind which a ping waits too; and on every further
        connection, in case it is large answers that take so long."""
        return SILENCE_SECONDS * (1 + self.failures) + self.flight_bytes / SLOW_BYTES_PER_SECOND

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def _message(frames: list[bytes]) -> bytes:
    """A MessagePack array of frames that are encoded already."""
    count = len(frames)
    if count < 16:
        head = bytes((0x90 | count,))
    elif count < 1 << 16:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(frames)


def timeout_ms(seconds: float, ms_max: int) -> int:
    """A frame's timeout, rounded up, at least 1."""
    return max(1, min(math.ceil(seconds * 1000), ms_max))
