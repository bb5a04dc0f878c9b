"""Goal: a sender or receiver that breaks the rules costs the other end a typed error and a connection, no more.

Method: one end is a raw WebSocket that says what it likes after an honest hello.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from kvstore.transport.frames import PART_BYTES_MAX
from kvstore.transport.hello import Identity, Purpose, greet_as_dialer, greet_as_listener
from kvstore.transport.protocol import SnapshotRefused
from kvstore.transport.snapshot_wire import (
    Begin,
    Chunk,
    End,
    FromReceiver,
    FromSender,
    Installed,
    Refused,
    Resume,
    SnapshotSocket,
    StreamBroken,
    Taken,
    chunk,
)
from tests.transport.rig import CLUSTER, FAST, IDS, Node

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
encode = msgspec.msgpack.Encoder().encode


@pytest.fixture
async def receiver() -> AsyncIterator[Node]:
    node = Node("n2")
    await node.start()
    yield node
    await node.stop()


@asynccontextmanager
async def sender(node: Node) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://{node.address}/v1/peer/snapshot", timeout=aiohttp.ClientWSTimeout(ws_close=1)
        ) as socket,
    ):
        identity = Identity(cluster=CLUSTER, node=IDS["n1"], name="n1", boot="raw")
        await greet_as_dialer(socket, identity, (), node=node.node, purpose=Purpose.SNAPSHOT)
        yield socket


BROKEN: dict[str, list[FromSender | bytes]] = {
    "garbage": [Begin(b"h"), b"garbage"],
    "no beginning": [chunk(0, b"x")],
    "a second beginning": [Begin(b"h"), Begin(b"h")],
    "a gap": [Begin(b"h"), chunk(0, b"x"), chunk(2, b"x")],
    "the same chunk again": [Begin(b"h"), chunk(0, b"x"), chunk(0, b"x")],
    "a damaged chunk": [Begin(b"h"), Chunk(0, 12345, b"x")],
    "a wrong count": [Begin(b"h"), chunk(0, b"x"), End(5)],
    "a chunk behind the end": [Begin(b"h"), chunk(0, b"x"), End(1), chunk(1, b"x")],
    "a receiver's message": [Begin(b"h"), encode(Installed())],
    "a frame inside a frame": [Begin(b"h"), b"\xc1\x00abc", chunk(0, b"x")],
    "a broken part": [Begin(b"h"), b"\xc1"],
    "over the limit": [Begin(b"h"), bytes(2 * PART_BYTES_MAX)],
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_sender_that_breaks_the_rules_is_cut_off(receiver: Node, name: str) -> None:
    receiver.handler.install_gate.clear()
    async with sender(receiver) as socket, asyncio.timeout(5):
        for message in BROKEN[name]:
            await socket.send_bytes(message if isinstance(message, bytes) else encode(message))
        await asyncio.sleep(0)
        if name == "a chunk behind the end":
            # The handler has all it needs: what comes behind is told to nobody, and the snapshot is good.
            receiver.handler.install_gate.set()
        answers = await answers_of(socket)
    assert Installed() not in answers or name == "a chunk behind the end"
    assert receiver.handler.installing == 0
    assert (IDS["n1"], b"h") not in receiver.handler.snapshots or name == "a chunk behind the end"


async def answers_of(socket: aiohttp.ClientWebSocketResponse) -> list[FromReceiver]:
    answers: list[FromReceiver] = []
    while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
        answers.append(msgspec.msgpack.decode(message.data, type=FromReceiver))
    return answers


async def test_a_sender_that_ignores_the_window_is_cut_off(receiver: Node) -> None:
    receiver.handler.gate.clear()
    async with sender(receiver) as socket, asyncio.timeout(5):
        await socket.send_bytes(encode(Begin(b"h")))
        await receiver.handler.until_event("snapshot", IDS["n1"])
        for number in range(FAST.snapshot_window + 2):
            await socket.send_bytes(encode(chunk(number, b"x")))
        receiver.handler.gate.set()
        await receiver.handler.until_event("snapshot broken", IDS["n1"])
        await answers_of(socket)
    assert len(receiver.handler.partial[IDS["n1"], b"h"]) == FAST.snapshot_window


async def test_a_sender_that_says_nothing_is_cut_off() -> None:
    node = Node("n2", settings=replace(FAST, hello_seconds_max=0.2))
    await node.start()
    async with sender(node) as socket, asyncio.timeout(5):
        assert await answers_of(socket) == []
    await node.stop()


# -- a receiver that breaks the rules

Script = Callable[[web.WebSocketResponse], Awaitable[None]]


@asynccontextmanager
async def receiver_that(script: Script) -> AsyncIterator[Node]:
    """A node n1 whose peer n2 is a server that greets honestly and then follows the script."""

    async def serve(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(timeout=0.2)
        await socket.prepare(request)
        identity = Identity(cluster=CLUSTER, node=IDS["n2"], name="n2", boot="raw")
        await greet_as_listener(socket, identity, (), purpose=Purpose.SNAPSHOT, admit=lambda _: None)
        await socket.receive()  # Begin
        await script(socket)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/v1/peer/snapshot", serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    node = Node("n1")
    await node.start({IDS["n2"]: f"127.0.0.1:{runner.addresses[0][1]}"})
    yield node
    await node.stop()
    await runner.cleanup()


def says(*messages: FromReceiver | bytes) -> Script:
    async def script(socket: web.WebSocketResponse) -> None:
        for message in messages:
            await socket.send_bytes(message if isinstance(message, bytes) else encode(message))

    return script


async def read_ten(number: int) -> bytes | None:
    return b"x" if number < 10 else None


@pytest.mark.parametrize(
    "messages",
    [
        [b"garbage"],
        [Taken(0)],
        [Installed()],
        [Resume(0, 4), Resume(0, 4)],
        [Resume(3, 4), Taken(2)],
        [encode([1, 0, 1_000_000])],
        [encode([1, -1, 4])],
        [Resume(0, 4), b""],
        [],
    ],
)
async def test_a_receiver_that_breaks_the_rules_is_a_connection_error(messages: list[FromReceiver | bytes]) -> None:
    async with receiver_that(says(*messages)) as node:
        with pytest.raises(ConnectionError, match="given up"):
            await node.transport.send_snapshot(IDS["n2"], b"h", read_ten)


async def test_a_refusal_at_any_time_ends_it() -> None:
    for messages in ([Refused("no")], [Resume(0, 4), Refused("no")], [Resume(0, 4), Taken(2), Refused("no")]):
        async with receiver_that(says(*messages)) as node:
            with pytest.raises(SnapshotRefused, match="no"):
                await node.transport.send_snapshot(IDS["n2"], b"h", read_ten)


async def test_a_receiver_that_has_everything_already_needs_no_chunk() -> None:
    async with receiver_that(says(Resume(0, 4), Installed())) as node:
        await node.transport.send_snapshot(IDS["n2"], b"h", read_ten)


class Bytes:
    """A WebSocket that receives what it is given."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive(self) -> aiohttp.WSMessage:
        return aiohttp.WSMessage(aiohttp.WSMsgType.BINARY, self.data, "")


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_a_broken_stream(data: bytes) -> None:
    for read in (SnapshotSocket.read_from_sender, SnapshotSocket.read_from_receiver):
        socket = SnapshotSocket(Bytes(data))  # type: ignore[arg-type]
        coroutine = read(socket)
        if data[:2] == b"\xc1\x00" and len(data) > 2:
            coroutine.close()  # a part: it would wait for the next one
            continue
        try:
            coroutine.send(None)
        except (StopIteration, StreamBroken):
            pass
