"""The client stream's protocol without I/O: messages of frames in, messages of replies out (docs/protocol.md).

A driver (stream_socket on a WebSocket, or a simulated network) gives each message to `receive`, stops giving while
`paused`, and sends what `take` returns; `wake` tells it that there is something to take, or that `closing` was set,
or that `paused` has ended. Replies gather between two calls of `take`, so that a turn of the loop makes one message.

Invariant: a request is answered exactly once, unless the connection ends first.
Invariant: at most 2 * CLIENT_FRAMES_MAX requests wait for an answer, and at most 2 * CLIENT_OUT_BYTES_MAX plus one
           reply wait to be taken: over the first half reading stops, over that reads are refused, at the end a
           client that does not read its answers is cut off.
Invariant: one request at most waits for a change of the routes; it holds nothing else up.
Invariant: nothing that a client sends raises here; it gets one Refused with id 0, and the connection closes.
Hot path: no task, no future and no closure for a frame, none for an operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from enum import IntEnum

from kvstore.base.errors import CODES, Code, Invalid, Overloaded
from kvstore.base.limits import (
    CLIENT_FRAMES_MAX,
    CLIENT_OUT_BYTES_MAX,
    ROUTES_WAIT_MS_MAX,
    SCAN_BYTES_MAX,
    STREAM_PROTOCOL,
    STREAM_REPLY_BYTES_MAX,
    Limits,
)
from kvstore.base.metrics import Metrics
from kvstore.base.operations import Found, Page, Result
from kvstore.base.stream import (
    GetRoutes,
    Hello,
    Mutate,
    Ping,
    Pong,
    Read,
    Refused,
    Reply,
    Request,
    Results,
    Routes,
    Welcome,
    decode_requests,
    encode,
)
from kvstore.router.protocol import Router

FRAMES_PER_MESSAGE_MAX = CLIENT_FRAMES_MAX  # bounds one synchronous step; 4 MiB could hold a million pings
_REPLY_BYTES_MAX = STREAM_REPLY_BYTES_MAX - 5  # less the array header around the replies
_CODE_NAMES = {int(code): code.name for code in Code}


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455, 7.4.1) as this protocol uses them."""

    GOING_AWAY = 1001  # the node stops
    PROTOCOL_ERROR = 1002  # malformed, no Hello first, another protocol version
    UNSUPPORTED = 1003  # a text message
    TOO_SLOW = 1008  # the client does not read its answers
    TOO_BIG = 1009  # a message over request_bytes_max


class StreamSession:
    """One connection of one client."""

    __slots__ = (
        "_cluster",
        "_draining",
        "_greeted",
        "_limits",
        "_metrics",
        "_mutated",
        "_node",
        "_out",
        "_out_bytes",
        "_read_done",
        "_router",
        "_unanswered",
        "_wake",
        "_watch",
        "client",
        "closed",
        "closing",
    )

    def __init__(
        self,
        router: Router,
        *,
        limits: Limits,
        metrics: Metrics,
        node: str,
        cluster: str,
        wake: Callable[[], None],
    ) -> None:
        self._router = router
        self._limits = limits
        self._metrics = metrics
        self._node = node
        self._cluster = cluster
        self._wake = wake
        self._greeted = False
        self._draining = False
        self._unanswered = 0  # requests handed to the router
        self._watch: tuple[GetRoutes, Callable[[], None]] | None = None  # who waits for a change, and its end
        self._out: list[bytes] = []  # encoded replies, not taken yet
        self._out_bytes = 0  # of them
        self._mutated = self._on_mutated  # bound once: a bound method is an allocation
        self._read_done = self._on_read
        self.client = ""  # as it called itself
        self.closing: tuple[CloseCode, str] | None = None  # to be closed, after what can still be taken
        self.closed = False  # the connection is gone

    @property
    def paused(self) -> bool:
        """Whether the driver must not call `receive` now."""
        return self._unanswered >= CLIENT_FRAMES_MAX or self._out_bytes >= CLIENT_OUT_BYTES_MAX

    @property
    def unanswered(self) -> int:
        return self._unanswered

    @property
    def out_bytes(self) -> int:
        return self._out_bytes

    # -- from the driver

    def receive(self, message: bytes) -> None:
        """One message from the client."""
        if self.closing is not None or self.closed:
            return
        self._metrics.stream_bytes_received += len(message)
        try:
            if frame_count(message) > FRAMES_PER_MESSAGE_MAX:
                raise Invalid(f"a message carries at most {FRAMES_PER_MESSAGE_MAX} frames")
            frames = decode_requests(message)
        except Invalid as error:
            self.fail(CloseCode.PROTOCOL_ERROR, error.message)
            return
        router = self._router
        for frame in frames:
            kind = type(frame)
            if not self._greeted or self._draining:
                self._on_unusual(frame)
                if self.closing is not None:
                    return
            elif kind is Mutate:
                self._unanswered += 1
                router.mutate(frame, self._mutated)  # type: ignore[arg-type]  # narrowed by type()
            elif kind is Read:
                self._unanswered += 1
                router.read(frame, self._read_done)  # type: ignore[arg-type]
            else:
                self._on_simple(frame)
                if self.closing is not None:
                    return

    def take(self) -> bytes | None:
        """The next message to send, of everything that waits and fits; None = nothing waits."""
        out = self._out
        if not out:
            return None
        was_paused = self.paused
        if self._out_bytes <= _REPLY_BYTES_MAX:
            self._out = []
            size = self._out_bytes
        else:
            count = size = 0
            for data in out:
                if size + len(data) > _REPLY_BYTES_MAX and count:
                    break
                count += 1
                size += len(data)
            self._out = out[count:]
            out = out[:count]
        self._out_bytes -= size
        message = b"".join((array_header(len(out)), *out))
        self._metrics.stream_bytes_sent += len(message)
        if self._out or (was_paused and not self.paused):
            self._wake()
        return message

    def drain(self) -> None:
        """The node stops: refuse what comes from now on, answer what is under way, then close."""
        self._draining = True
        self._end_watch()
        self._maybe_leave()

    def lost(self) -> None:
        """The connection is gone; answers that still come are dropped."""
        self.closed = True
        if self._watch is not None:
            self._watch[1]()
            self._watch = None
        self._out.clear()
        self._out_bytes = 0

    def fail(self, code: CloseCode, reason: str) -> None:
        """Tell the client what was wrong with what it sent, and close."""
        if self.closing is not None or self.closed:
            return
        self._metrics.stream_malformed += 1
        self._refuse(0, Code.INVALID, reason)
        self._close(code, reason)

    # -- frames

    def _on_unusual(self, frame: Request) -> None:
        """A frame before the greeting is done, or after the node has begun to stop."""
        if self._greeted:
            if type(frame) is Mutate or type(frame) is Read:
                self._metrics.count_stream(_kind_of(frame), Code.UNAVAILABLE.name)
                self._refuse(frame.id, Code.UNAVAILABLE, "the node is stopping; ask another")
            else:
                self._on_simple(frame)
            return
        if type(frame) is not Hello:
            self.fail(CloseCode.PROTOCOL_ERROR, "the first frame must be Hello")
        elif frame.protocol != STREAM_PROTOCOL:
            self.fail(CloseCode.PROTOCOL_ERROR, f"this node speaks protocol {STREAM_PROTOCOL}, not {frame.protocol}")
        else:
            self._greeted = True
            self.client = frame.client[:128]
            self._push(
                Welcome(STREAM_PROTOCOL, self._node, self._cluster, self._router.stamp_ms(), asdict(self._limits))
            )

    def _on_simple(self, frame: Request) -> None:
        """A frame that is answered here and now."""
        if type(frame) is Ping:
            self._push(Pong(frame.id, self._router.stamp_ms()))
        elif type(frame) is GetRoutes:
            self._on_get_routes(frame)
        else:
            self.fail(CloseCode.PROTOCOL_ERROR, "Hello may be sent once")

    # -- routes

    def _on_get_routes(self, frame: GetRoutes) -> None:
        if self._out_bytes > CLIENT_OUT_BYTES_MAX:  # a message may hold thousands of these, and an answer megabytes
            self._metrics.count_stream("routes", Code.OVERLOADED.name)
            self._refuse(frame.id, Code.OVERLOADED, "earlier answers have not been read")
            return
        routes = self._router.routing(frame.version)
        if frame.wait_ms <= 0 or routes.version != frame.version or self._draining:
            self._push_routes(frame, routes)
            return
        self._end_watch()
        seconds = min(frame.wait_ms, ROUTES_WAIT_MS_MAX) / 1_000
        try:
            cancel = self._router.watch_routes(frame.version, self._on_watched, seconds=seconds)
        except Overloaded as error:
            self._metrics.count_stream("routes", error.code.name)
            self._push(self._refusal(frame.id, error.code, error.message))
            return
        self._watch = (frame, cancel)

    def _on_watched(self) -> None:
        assert self._watch is not None
        frame, _ = self._watch
        self._watch = None
        self._push_routes(frame, self._router.routing(frame.version))

    def _end_watch(self) -> None:
        """Answer who waits for a change: nothing more will come of it."""
        if self._watch is not None:
            self._watch[1]()
            self._on_watched()

    def _push_routes(self, frame: GetRoutes, routes: Routes) -> None:
        routes.id = frame.id
        data = encode(routes)
        code = Code.TOO_LARGE if len(data) > _REPLY_BYTES_MAX else None
        self._metrics.count_stream("routes", code.name if code else "OK")
        self._push_encoded(data if code is None else encode(self._refusal(frame.id, code, "too many shards")))

    # -- answers from the router

    def _on_mutated(self, reply: Results | Refused) -> None:
        was_paused = self._settle("mutate", reply)
        if self.closed:
            return
        data = encode(reply)
        if len(data) > _REPLY_BYTES_MAX:  # values that failed conditions or batched gets carry
            data = encode(self._refusal(reply.id, Code.TOO_LARGE, "done, but the answer is too large", definite=False))
        if self._out_bytes + len(data) > 2 * CLIENT_OUT_BYTES_MAX:
            self._close(CloseCode.TOO_SLOW, "answers are not being read")
            return
        self._push_encoded(data)
        self._after_answer(was_paused)

    def _on_read(self, reply: Results | Refused) -> None:
        was_paused = self._settle("read", reply)
        if self.closed:
            return
        if self._out_bytes > CLIENT_OUT_BYTES_MAX:
            data = encode(self._refusal(reply.id, Code.OVERLOADED, "earlier answers have not been read"))
        elif type(reply) is Results and result_bytes(reply.results, self._limits) > _REPLY_BYTES_MAX:
            data = b""
        else:
            data = encode(reply)
        if not data or len(data) > _REPLY_BYTES_MAX:
            data = encode(self._refusal(reply.id, Code.TOO_LARGE, "the values are too large for one answer"))
        self._push_encoded(data)
        self._after_answer(was_paused)

    def _settle(self, kind: str, reply: Results | Refused) -> bool:
        """Count the answer. Returns whether reading was paused before it."""
        was_paused = self.paused
        self._unanswered -= 1
        assert self._unanswered >= 0, "a request was answered twice"
        metrics = self._metrics
        if type(reply) is Results:
            metrics.stream_operations += len(reply.results)
            metrics.count_stream(kind, "OK")
        else:
            assert type(reply) is Refused
            metrics.count_stream(kind, _CODE_NAMES.get(reply.code, "OTHER"))
        return was_paused

    def _after_answer(self, was_paused: bool) -> None:
        if was_paused and not self.paused:
            self._wake()
        if self._draining:
            self._maybe_leave()

    # -- out

    def _push(self, reply: Reply) -> None:
        self._push_encoded(encode(reply))

    def _push_encoded(self, data: bytes) -> None:
        if self.closing is not None or self.closed:
            return
        out = self._out
        out.append(data)
        self._out_bytes += len(data)
        if len(out) == 1:
            self._wake()

    def _refusal(self, request: int, code: Code, message: str, *, definite: bool | None = None) -> Refused:
        info = CODES[code]
        return Refused(
            id=request,
            stamp=self._router.stamp_ms(),
            code=code,
            message=message,
            definite=info.definite if definite is None else definite,
            retry_after_ms=info.retry_after_ms,
        )

    def _refuse(self, request: int, code: Code, message: str) -> None:
        self._push(self._refusal(request, code, message))

    def _close(self, code: CloseCode, reason: str) -> None:
        if self.closing is None:
            self.closing = (code, reason[:120])  # a close frame holds 123 bytes
            self._wake()

    def _maybe_leave(self) -> None:
        if self._unanswered == 0 and not self.closed:
            self._close(CloseCode.GOING_AWAY, "the node is stopping")


def _kind_of(frame: Mutate | Read) -> str:
    return "mutate" if type(frame) is Mutate else "read"


def frame_count(message: bytes) -> int:
    """How many elements the MessagePack array says it has; 0 when it is no array (decoding will tell)."""
    first = message[0] if message else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if first == 0xDC:
        return int.from_bytes(message[1:3], "big")
    if first == 0xDD:
        return int.from_bytes(message[1:5], "big")
    return 0


def array_header(count: int) -> bytes:
    """The MessagePack header of an array."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def result_bytes(results: list[Result], limits: Limits) -> int:
    """About how long the values of the results are, summed only when they might be over the limit of a reply."""
    if len(results) * (SCAN_BYTES_MAX + limits.value_bytes_max) <= _REPLY_BYTES_MAX:
        return 0
    total = 0
    for one in results:
        if type(one) is Found:
            total += len(one.value)
        elif type(one) is Page:
            total += sum(len(item.key) + len(item.value) for item in one.items)
    return total
