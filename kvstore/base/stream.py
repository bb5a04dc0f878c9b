"""The frames of the client stream, as docs/protocol.md specifies them for other languages.

A WebSocket message is a MessagePack array of frames; a frame is an array that begins with its tag. Many requests may
be under way; answers come in any order and carry the request's `id`.

Invariant: `decode_requests` gives frames or raises Invalid, whatever the bytes.
"""

from __future__ import annotations

import msgspec

from kvstore.base.errors import Invalid
from kvstore.base.limits import SESSION_BYTES
from kvstore.base.operations import Result
from kvstore.base.shards import Route

LINEARIZABLE = -1
"""`Read.max_staleness_ms` of a read that sees every write that was answered before it began."""


class Hello(msgspec.Struct, array_like=True, tag=1, gc=False):
    """The first frame of a client."""

    protocol: int
    client: str = ""  # name and version, for logs


class Mutate(msgspec.Struct, array_like=True, tag=2, gc=False):
    """Mutations of one shard, each a command of its own, taken together or refused together before the proposal."""

    id: int
    shard: int
    version: int  # epoch version that the caller believes in
    timeout_ms: int
    session: bytes  # 16 bytes, or empty: no exactly-once
    low: int  # lowest seq that this session still waits for
    issued_at: int  # ms stamp of the first sending
    operations: msgspec.Raw


class Read(msgspec.Struct, array_like=True, tag=3, gc=False):
    id: int
    shard: int
    version: int
    timeout_ms: int
    max_staleness_ms: int  # LINEARIZABLE, or how old the answer may be
    operations: msgspec.Raw


class GetRoutes(msgspec.Struct, array_like=True, tag=4, gc=False):
    """With a version that this node has told: what has changed since. With wait_ms, too: answered only when something
    has, or after that time. A connection waits once; a second one that waits has the first one answered."""

    id: int
    version: int = 0  # 0 = none
    wait_ms: int = 0  # at most ROUTES_WAIT_MS_MAX


class Ping(msgspec.Struct, array_like=True, tag=5, gc=False):
    id: int


Request = Hello | Mutate | Read | GetRoutes | Ping


class Welcome(msgspec.Struct, array_like=True, tag=1):
    """The server's answer to Hello."""

    protocol: int
    node: str
    cluster: str
    stamp: int  # ms; what issued_at is counted from
    limits: dict[str, int]


class Results(msgspec.Struct, array_like=True, tag=2):
    """One result per operation, in their order. applied and age_ms are told for stale reads."""

    id: int
    stamp: int
    results: list[Result]
    applied: int = 0
    age_ms: int = 0


class Refused(msgspec.Struct, array_like=True, tag=3):
    """The whole frame was refused. `definite` = none of its operations has or will have an effect."""

    id: int
    stamp: int
    code: int
    message: str
    definite: bool
    retry_after_ms: int
    routes: tuple[Route, ...] = ()


class Routes(msgspec.Struct, array_like=True, tag=4):
    id: int
    version: int  # of this node since its start; only good for being told to it again
    keyspaces: dict[str, int]
    routes: list[Route]
    nodes: tuple[tuple[str, str], ...] = ()  # (name, HOST:PORT) of all members that are alive
    whole: bool = True  # or only what has changed: then an empty `nodes` says that they are the same


class Pong(msgspec.Struct, array_like=True, tag=5):
    id: int
    stamp: int


Reply = Welcome | Results | Refused | Routes | Pong

_requests = msgspec.msgpack.Decoder(list[Request])
_replies = msgspec.msgpack.Decoder(list[Reply])
encode = msgspec.msgpack.Encoder().encode


def decode_requests(data: bytes) -> list[Request]:
    """The frames of one message from a client. Raises Invalid."""
    try:
        frames = _requests.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"malformed message: {error}") from None
    for frame in frames:
        if type(frame) is Mutate and len(frame.session) not in (0, SESSION_BYTES):
            raise Invalid(f"a session has {SESSION_BYTES} bytes, or none")
    return frames


def decode_replies(data: bytes) -> list[Reply]:
    """The frames of one message from a server. Raises Invalid."""
    try:
        return _replies.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"malformed message: {error}") from None
