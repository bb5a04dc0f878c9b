"""The client stream on a real WebSocket: greeting, order of shutdown, close codes, heartbeats, slow clients."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType

from kvstore.api.stream_socket import STREAMS
from kvstore.base import operations as ops
from kvstore.base.errors import Code
from kvstore.base.operations import Found
from kvstore.base.stream import Hello, Ping, Pong, Refused, Reply, Request, Results, Welcome, decode_replies, encode
from tests.api.conftest import Serve, Served
from tests.api.test_stream_session import get, put

Socket = aiohttp.ClientWebSocketResponse


@asynccontextmanager
async def stream(api: Served, *, greet: bool = True, autoping: bool = True) -> AsyncIterator[Socket]:
    async with api.http.ws_connect(f"{api.url}/v1/stream", max_msg_size=0, autoping=autoping) as socket:
        if greet:
            await socket.send_bytes(encode([Hello(1, "test")]))
            (welcome,) = await receive(socket)
            assert isinstance(welcome, Welcome)
        yield socket


async def receive(socket: Socket) -> list[Reply]:
    message = await asyncio.wait_for(socket.receive(), 5)
    assert message.type is WSMsgType.BINARY, message
    return decode_replies(message.data)


async def ask(socket: Socket, *frames: Request) -> list[Reply]:
    """Send in one message; all answers in the order they came."""
    await socket.send_bytes(encode(list(frames)))
    replies: list[Reply] = []
    while len(replies) < len(frames):
        replies += await receive(socket)
    return replies


async def closed(socket: Socket) -> tuple[int, str]:
    """The close code and reason that the server sends next."""
    message = await asyncio.wait_for(socket.receive(), 5)
    assert message.type is WSMsgType.CLOSE, message
    return message.data, message.extra or ""


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until it holds; fails when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # the server has no event for it, nor needs one
            await asyncio.sleep(0.005)


async def test_requests_are_answered(api: Served) -> None:
    async with stream(api) as socket:
        assert await ask(socket, put(1), get(2)) == [
            Results(1, 1_700_000_000_000, [1]),
            Results(2, 1_700_000_000_000, [Found(b"v", 1, 1, 1)]),
        ]
        assert api.metrics.gauge("kvstore_http_connections") == {"open": 1, "stream": 1}
    await until(lambda: api.metrics.gauge("kvstore_http_connections")["stream"] == 0)


async def test_malformed_is_one_refusal_and_a_close_with_the_reason(api: Served) -> None:
    async with stream(api) as socket:
        await socket.send_bytes(b"\xc1")
        (refused,) = await receive(socket)
        assert isinstance(refused, Refused)
        assert (refused.id, refused.code) == (0, Code.INVALID)
        code, reason = await closed(socket)
        assert (code, reason[:17]) == (1002, "malformed message")


async def test_text_is_not_spoken_here(api: Served) -> None:
    async with stream(api, greet=False) as socket:
        await socket.send_str("hello")
        await receive(socket)
        assert (await closed(socket))[0] == 1003


async def test_a_message_just_below_the_limit_is_taken(api: Served) -> None:
    async with stream(api) as socket:
        assert len(await ask(socket, *[put(i, value=bytes(900_000)) for i in range(4)])) == 4


async def handshake(api: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        "GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 101")
    return reader, writer


@pytest.mark.parametrize("length", [(4 << 20) + 1, 4 << 30, (1 << 63) - 1, (1 << 64) - 1])
async def test_a_frame_that_claims_too_much_is_refused_at_its_header(api: Served, length: int) -> None:
    async with stream(api) as other:
        reader, writer = await handshake(api)
        writer.write(b"\x82\xff" + struct.pack(">Q", length) + bytes(4))
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer[:1] == b"\x88"
        assert struct.unpack(">H", answer[2:4])[0] in (1009, 1002)
        writer.close()
        assert isinstance((await ask(other, Ping(1)))[0], Pong)


@pytest.mark.parametrize("frame", [b"\xc2\x80\x00\x00\x00\x00", b"\x83\x80\x00\x00\x00\x00", b"\x09\x80\0\0\0\0"])
async def test_broken_websocket_frames_end_the_stream(api: Served, frame: bytes) -> None:
    reader, writer = await handshake(api)
    writer.write(frame)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert struct.unpack(">H", answer[2:4])[0] == 1002
    writer.close()


async def test_a_client_that_vanishes_leaves_nothing_behind(api: Served) -> None:
    api.router.hold = True
    reader, writer = await handshake(api)
    payload = encode([Hello(1), put(1), get(2)])
    writer.write(b"\x82" + bytes((0x80 | len(payload),)) + bytes(4) + payload)
    await asyncio.wait_for(reader.read(100), 5)
    await until(lambda: len(api.router.held) == 2)
    writer.transport.abort()
    await until(lambda: api.metrics.gauge("kvstore_http_connections")["stream"] == 0)
    api.router.release()
    assert api.metrics.stream_requests[("mutate", "OK")] == 1


async def test_back_pressure_ends_when_answers_flow(api: Served) -> None:
    """More requests than may be under way: the server stops reading, and all are answered in the end."""
    api.router.hold = True
    async with stream(api) as socket:
        for turn in range(4):
            await socket.send_bytes(encode([put(turn * 4_096 + i) for i in range(4_096)]))
        await until(lambda: len(api.router.held) == 4_096)
        await asyncio.sleep(0.02)  # the others must stay unread meanwhile
        assert len(api.router.held) == 4_096
        api.router.release()
        ids: set[int] = set()
        while len(ids) < 4 * 4_096:
            ids |= {reply.id for reply in await receive(socket) if isinstance(reply, Results)}
        assert ids == set(range(4 * 4_096))


async def test_a_client_that_does_not_read_is_cut_off_and_others_do_not_notice(start: Serve) -> None:
    api: Served = await start(stall_seconds=0.2)
    api.router.state.data[b"big"] = Found(bytes(1 << 20), 1, 1, 1)
    reader, writer = await handshake(api)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    payload = encode([Hello(1), *[get(i, *[b"big"] * 8) for i in range(20)]])
    writer.write(b"\x82\xfe" + struct.pack(">H", len(payload)) + bytes(4) + payload)
    async with stream(api) as other:
        for i in range(20):
            assert len(await ask(other, put(i))) == 1
        await until(lambda: api.metrics.connections_cut == 1)
        await until(lambda: api.metrics.gauge("kvstore_http_connections")["stream"] == 1)
        assert len(await ask(other, get(99))) == 1
    writer.transport.abort()
    reader.feed_eof()


async def test_a_silent_client_is_pinged_and_cut_off_when_it_stays_silent(api: Served) -> None:
    api.runner.app[STREAMS]._heartbeat_seconds = 0.05
    async with stream(api, autoping=False) as dead, stream(api) as alive:
        message = await asyncio.wait_for(dead.receive(), 5)
        assert message.type is WSMsgType.PING
        reading = asyncio.create_task(receive(alive))  # aiohttp answers pings only while it reads
        await until(lambda: api.metrics.gauge("kvstore_http_connections")["stream"] == 1)
        await alive.send_bytes(encode([Ping(5)]))
        assert await reading == [Pong(5, 1_700_000_000_000)]


async def test_a_clients_ping_is_answered(api: Served) -> None:
    async with stream(api, autoping=False) as socket:
        await socket.ping(b"x")
        message = await asyncio.wait_for(socket.receive(), 5)
        assert (message.type, message.data) == (WSMsgType.PONG, b"x")


async def test_a_stopping_node_finishes_what_is_under_way(api: Served) -> None:
    api.router.hold = True
    async with stream(api) as socket, stream(api) as idle:
        await socket.send_bytes(encode([put(1)]))
        await until(lambda: api.router.held)
        stopping = asyncio.create_task(api.runner.cleanup())
        assert (await closed(idle))[0] == 1001
        await socket.send_bytes(encode([put(2)]))
        (refused,) = await receive(socket)
        assert isinstance(refused, Refused)
        assert (refused.id, refused.code) == (2, Code.UNAVAILABLE)
        api.router.release()
        (done,) = await receive(socket)
        assert isinstance(done, Results)
        assert done.id == 1
        assert (await closed(socket))[0] == 1001
        await asyncio.wait_for(stopping, 5)


async def test_a_broken_invariant_in_a_request_reaches_the_process(api: Served) -> None:
    def broken(frame: object) -> None:
        raise AssertionError("broken")

    api.router.refuse = broken
    async with stream(api) as socket:
        await socket.send_bytes(encode([put(1)]))
        await until(lambda: api.fatal)
        assert str(api.fatal[0]) == "broken"


async def test_a_stream_needs_an_upgrade(api: Served) -> None:
    assert (await api.problem("GET", "/v1/stream"))["code"] == "INVALID"
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "99"}
    assert (await api.problem("GET", "/v1/stream", headers=headers))["code"] == "INVALID"


async def test_large_operations_travel(api: Served) -> None:
    async with stream(api) as socket:
        value = os.urandom(1 << 20)
        await ask(socket, put(1, value=value))
        (results,) = await ask(socket, get(2))
        assert isinstance(results, Results)
        assert results.results == [Found(value, 1, 1, 1)]
        raw = msgspec.Raw(ops.encode([ops.Put(0, b"k", bytes((1 << 20) + 1))]))
        frame = put(3)
        frame.operations = raw
        (refused,) = await ask(socket, frame)
        assert isinstance(refused, Refused)
        assert refused.code == Code.TOO_LARGE
