"""Who may connect: the four messages that open every connection between nodes.

    dialer                                   listener
      greeting (hello, purpose, nonce)  ->
                                        <-   greeting (hello, purpose, nonce)
      proof                             ->
                                        <-   proof

Without a secret both proofs are empty. With one, a proof is the HMAC-SHA-256 of the prover's role and of the exact
bytes of both greetings, so it holds for these two nonces, nodes, boots and this purpose only: a recorded one is of no
use again, and neither side's proof can be sent back as the other's. The dialer proves first, since anybody can connect
to a node and must not get something to try secrets on. Several secrets may be accepted (two while they are changed);
the first one is used to prove.

Invariant: nothing of a connection is believed before `greet_as_dialer` or `greet_as_listener` has returned its hello.
Invariant: a refusal closes with a `Fault`, whose name both sides log.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets as random_source
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from kvstore.base.limits import PEER_PROTOCOL
from kvstore.transport.protocol import PeerHello

WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse

NONCE_BYTES = 32
GREETING_BYTES_MAX = 2_048
_PROOF_BYTES = 32
_REASON_BYTES_MAX = 123  # a close frame holds 125 bytes, two of them are the code


class Purpose(StrEnum):
    RAFT = "raft"
    SNAPSHOT = "snapshot"
    GOSSIP = "gossip"


class Fault(IntEnum):
    """Why a connection is refused or ended; the numbers are WebSocket close codes: never reuse one."""

    CLUSTER_MISMATCH = 4001  # the peer belongs to another cluster
    NODE_MISMATCH = 4002  # another node answers at this address
    PROTOCOL_MISMATCH = 4003  # the peer speaks another version
    SECRET_MISMATCH = 4004  # the proof does not fit any accepted secret
    OWN_NODE = 4005  # the node speaks to itself, or to a copy of its directory
    MALFORMED = 4006  # not a hello, or not a frame
    TOO_SLOW = 4007  # the hello took too long
    WRONG_DIALER = 4008  # the other side knows this node and dials it itself
    BUSY = 4009  # too many connections
    REPLACED = 4010  # the same node has connected anew
    LEAVING = 4011  # the node stops, or no longer counts the peer as one
    DUPLICATE_NAME = 4012  # two nodes have one name


class HelloError(Exception):
    """The connection is refused, here (`remote` False) or by the peer."""

    def __init__(self, fault: Fault, text: str, *, remote: bool = False) -> None:
        super().__init__(f"{fault.name}: {text}")
        self.fault = fault
        self.text = text
        self.remote = remote


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this node is, for as long as the process runs."""

    cluster: str
    node: str
    name: str
    boot: str
    address: str = ""  # HOST:PORT, for those who have to find this node when something is wrong


class _Version(msgspec.Struct, array_like=True):
    protocol: int


class _Greeting(msgspec.Struct, array_like=True):
    protocol: int
    cluster: str
    node: str
    to_node: str
    name: str
    boot: str
    purpose: Purpose
    nonce: bytes
    address: str = ""  # fields are only added here, with a default: older nodes skip them


_encode = msgspec.msgpack.Encoder().encode
_decode_version = msgspec.msgpack.Decoder(_Version).decode
_decode_greeting = msgspec.msgpack.Decoder(_Greeting).decode


def encode_greeting(hello: PeerHello, purpose: Purpose, nonce: bytes) -> bytes:
    return _encode(
        _Greeting(
            hello.protocol,
            hello.cluster,
            hello.node,
            hello.to_node,
            hello.name,
            hello.boot,
            purpose,
            nonce,
            hello.address,
        )
    )


def decode_greeting(data: bytes) -> tuple[PeerHello, Purpose]:
    """The checked form of a peer's greeting. Raises HelloError."""
    if len(data) > GREETING_BYTES_MAX:
        raise HelloError(Fault.MALFORMED, f"a greeting of {len(data)} bytes")
    try:
        version = _decode_version(data).protocol
        if version != PEER_PROTOCOL:
            raise HelloError(Fault.PROTOCOL_MISMATCH, f"version {version}; this node speaks {PEER_PROTOCOL}")
        greeting = _decode_greeting(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HelloError(Fault.MALFORMED, f"not a greeting: {error}") from None
    if len(greeting.nonce) != NONCE_BYTES or not greeting.node or not greeting.boot:
        raise HelloError(Fault.MALFORMED, "a greeting without nonce, node or boot id")
    hello = PeerHello(
        cluster=greeting.cluster,
        node=greeting.node,
        to_node=greeting.to_node,
        name=greeting.name,
        boot=greeting.boot,
        protocol=greeting.protocol,
        address=greeting.address,
    )
    return hello, greeting.purpose


def check_hello(hello: PeerHello, identity: Identity, *, expected: str) -> None:
    """Is the peer one of ours, and each of us the one whom the other means? `expected` "" = any. Raises HelloError."""
    if hello.cluster != identity.cluster:
        raise HelloError(Fault.CLUSTER_MISMATCH, "the two nodes belong to different clusters")
    if hello.node == identity.node:
        raise HelloError(Fault.OWN_NODE, "both ends have the same node id")
    if hello.name == identity.name:
        # Both addresses, as each side logs its own fault with what the other one tells.
        raise HelloError(Fault.DUPLICATE_NAME, f"{hello.name} is at {identity.address} and at {hello.address}"[:100])
    if expected and hello.node != expected:
        raise HelloError(Fault.NODE_MISMATCH, f"expected node {expected}, found {hello.node}"[:100])
    if hello.to_node and hello.to_node != identity.node:
        raise HelloError(Fault.NODE_MISMATCH, f"meant for node {hello.to_node}, this is {identity.node}"[:100])


def prove(secret: bytes, role: bytes, dialer: bytes, listener: bytes) -> bytes:
    """`role` is b"dialer" or b"listener"; the others are the greetings' bytes."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (b"kvstore peer hello", role, dialer, listener):
        mac.update(len(part).to_bytes(4, "big"))
        mac.update(part)
    return mac.digest()


def check_proof(proof: bytes, secrets: Sequence[bytes], role: bytes, dialer: bytes, listener: bytes) -> None:
    """Raises HelloError unless the proof fits one of the secrets, or is empty where there is none."""
    if not secrets:
        if proof:
            raise HelloError(Fault.SECRET_MISMATCH, "the peer has a cluster secret, this node has none")
        return
    if len(proof) != _PROOF_BYTES:
        raise HelloError(Fault.SECRET_MISMATCH, "the peer did not prove that it knows the cluster's secret")
    matches = [hmac.compare_digest(proof, prove(secret, role, dialer, listener)) for secret in secrets]
    if not any(matches):
        raise HelloError(Fault.SECRET_MISMATCH, "the peer has another cluster secret")


async def greet_as_dialer(
    socket: WebSocket, identity: Identity, secrets: Sequence[bytes], *, node: str, purpose: Purpose
) -> PeerHello:
    """Open as the side that connected; `node` is whom it wants ("" = any). Raises HelloError, ConnectionError.

    The caller bounds the time, and on HelloError calls `refuse`.
    """
    mine = encode_greeting(_hello(identity, to_node=node), purpose, random_source.token_bytes(NONCE_BYTES))
    await socket.send_bytes(mine)
    theirs = await _receive(socket)
    hello, answered = decode_greeting(theirs)
    check_hello(hello, identity, expected=node)
    if answered is not purpose:
        raise HelloError(Fault.MALFORMED, "the greeting names another purpose")
    await socket.send_bytes(prove(secrets[0], b"dialer", mine, theirs) if secrets else b"")
    check_proof(await _receive(socket), secrets, b"listener", mine, theirs)
    return hello


async def greet_as_listener(
    socket: WebSocket,
    identity: Identity,
    secrets: Sequence[bytes],
    *,
    purpose: Purpose,
    admit: Callable[[PeerHello], None],
) -> PeerHello:
    """Open as the side that was connected to; `admit` may refuse, by HelloError, a dialer that has proved itself.

    Raises as `greet_as_dialer` does.
    """
    theirs = await _receive(socket)
    hello, asked = decode_greeting(theirs)
    check_hello(hello, identity, expected="")
    if asked is not purpose:
        raise HelloError(Fault.MALFORMED, "the greeting names another purpose")
    mine = encode_greeting(_hello(identity, to_node=hello.node), purpose, random_source.token_bytes(NONCE_BYTES))
    await socket.send_bytes(mine)
    check_proof(await _receive(socket), secrets, b"dialer", theirs, mine)
    admit(hello)
    await socket.send_bytes(prove(secrets[0], b"listener", theirs, mine) if secrets else b"")
    return hello


async def refuse(socket: WebSocket, fault: Fault, text: str, *, seconds_max: float) -> None:
    """Close with the fault's name, so that the peer can log it; waits at most so long for its answer."""
    reason = f"{fault.name}: {text}".encode()[:_REASON_BYTES_MAX].decode("utf-8", "ignore").encode()
    try:
        async with asyncio.timeout(seconds_max):
            await socket.close(code=int(fault), message=reason)
    except (TimeoutError, ConnectionError, aiohttp.ClientError):
        pass  # the peer is gone already, or does not listen: the caller cuts the connection anyway


def fault_of(message: aiohttp.WSMessage) -> HelloError | None:
    """The named error of a close frame, None if it carries none of ours."""
    if message.type is not WSMsgType.CLOSE or message.data not in _FAULTS:
        return None
    fault = Fault(message.data)
    text = (message.extra or "").removeprefix(f"{fault.name}: ")
    return HelloError(fault, text, remote=True)


_FAULTS = frozenset(int(fault) for fault in Fault)


def _hello(identity: Identity, *, to_node: str) -> PeerHello:
    return PeerHello(
        cluster=identity.cluster,
        node=identity.node,
        to_node=to_node,
        name=identity.name,
        boot=identity.boot,
        protocol=PEER_PROTOCOL,
        address=identity.address,
    )


async def _receive(socket: WebSocket) -> bytes:
    message = await socket.receive()
    if message.type is WSMsgType.BINARY:
        data: bytes = message.data
        return data
    if (refusal := fault_of(message)) is not None:
        raise refusal
    if message.type is WSMsgType.TEXT:
        raise HelloError(Fault.MALFORMED, "a text message")
    raise ConnectionResetError("the peer closed the connection during the hello")
