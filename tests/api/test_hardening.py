"""Bad input over raw sockets. Goal: a typed error or a closed connection, bounded memory, and nobody else notices.

Each test ends (or runs all the while) with another client that is served as if nothing were.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import time
from pathlib import Path

import pytest

from kvstore.api.body import BodyReader
from kvstore.base.operations import Found
from tests.api.conftest import Serve, Served, read_to_end
from tests.api.test_stream_socket import until

HEAD = b"PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\n"


async def others_are_served(api: Served) -> None:
    started = time.monotonic()
    response, _ = await api.call("PUT", "/v1/kv/default/other", data=b"v")
    assert response.status == 200
    assert time.monotonic() - started < 2.0


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/kv/default/\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5, 6\r\n\r\nhello",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_problem_or_a_closed_connection(
    api: Served, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await api.raw(data)
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[1][:1] == b"4", head
        assert b"application/problem+json" in head
        assert json.loads(body)["code"] in ("INVALID", "TOO_LARGE")
    assert not api.router.state.data
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    await others_are_served(api)


async def test_a_body_longer_than_declared_is_not_part_of_the_value(api: Served) -> None:
    request = HEAD + b"Content-Length: 5\r\n\r\nhello"
    answer = await api.raw(request + b" and more")  # in one packet: refused as a whole
    assert answer.split()[1] == b"400"
    assert not api.router.state.data
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(request)
    await until(lambda: api.router.state.data)
    writer.write(b" and more")
    answer = await read_to_end(reader)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b" 400 Bad Request" in answer  # the rest is no request
    assert api.router.state.data[b"k"].value == b"hello"
    await others_are_served(api)


async def test_a_body_shorter_than_declared_changes_nothing(api: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(HEAD + b"Content-Length: 50\r\n\r\nhello")
    writer.write_eof()
    await asyncio.sleep(0)
    writer.close()
    assert await read_to_end(reader) == b""
    await others_are_served(api)
    assert b"k" not in api.router.state.data


async def test_a_chunked_body_is_taken_and_bounded(api: Served) -> None:
    chunk = b"%x\r\n" % 100_000 + bytes(100_000) + b"\r\n"
    head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await api.raw(head + chunk * 3 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(api.router.state.data[b"k"].value) == 300_000
    answer = await api.raw(head + chunk * 11 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    await others_are_served(api)


async def test_a_declared_length_over_the_limit_is_refused_without_reading(api: Served) -> None:
    answer = await api.raw(HEAD + b"Content-Length: 4294967296\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"Connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "TOO_LARGE"
    await others_are_served(api)


async def test_a_client_that_waits_for_permission_is_told_no_at_once(api: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(HEAD + b"Content-Length: 4294967296\r\nExpect: 100-continue\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(HEAD + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 100")
    writer.write(b"hello")
    await until(lambda: b"k" in api.router.state.data)
    writer.close()


async def test_compressed_bodies_are_not_taken(api: Served) -> None:
    answer = await api.raw(HEAD + b"Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Content-Encoding" in answer


async def test_a_thousand_half_open_connections_are_closed_in_time(start: Serve) -> None:
    api: Served = await start(header_seconds=1.0)
    before = resident_mib()
    with contextlib.ExitStack() as sockets:
        for i in range(1_000):
            one = sockets.enter_context(socket.socket())
            one.connect(("127.0.0.1", api.port))  # the kernel accepts, at once
            one.setblocking(False)
            with contextlib.suppress(OSError):  # on a slow machine it may be cut off already
                one.send((b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")[i % 3])
            if i % 50 == 0:
                await others_are_served(api)
        await until(lambda: api.metrics.gauge("kvstore_http_connections")["open"] + api.metrics.connections_cut > 1_000)
        await others_are_served(api)
        assert resident_mib() - before < 100
        await until(lambda: api.metrics.connections_cut == 1_000, 10)
        await others_are_served(api)
        await until(lambda: api.metrics.gauge("kvstore_http_connections")["open"] == 1)


async def test_a_head_that_dribbles_is_cut_off(start: Serve) -> None:
    api: Served = await start(header_seconds=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)

    async def dribble() -> None:
        for byte in HEAD * 10:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(dribble())
    assert await read_to_end(reader) == b""
    task.cancel()
    writer.close()
    assert api.metrics.connections_cut == 1


async def test_a_body_that_dribbles_is_given_up(start: Serve) -> None:
    api: Served = await start(bodies=BodyReader(seconds_max=0.2))
    answer = await api.raw(HEAD + b"Content-Length: 50\r\n\r\nhel")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"did not arrive" in answer
    await others_are_served(api)


async def test_unfinished_bodies_have_a_budget(start: Serve) -> None:
    bodies = BodyReader(bytes_total_max=1_000_000)
    api: Served = await start(bodies=bodies)
    writers = []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(HEAD + b"Content-Length: 400000\r\n\r\nx")
        writers.append(writer)
    await until(lambda: bodies.reserved_bytes == 800_000)
    answer = await api.raw(HEAD + b"Content-Length: 400000\r\n\r\nx")
    assert answer.startswith(b"HTTP/1.1 429")
    await others_are_served(api)  # small bodies need no reservation
    for writer in writers:
        writer.transport.abort()
    await until(lambda: bodies.reserved_bytes == 0)


async def test_a_reader_that_stops_is_cut_off(start: Serve) -> None:
    api: Served = await start(stall_seconds=0.2)
    api.router.state.data[b"big"] = Found(bytes(1 << 20), 1, 1, 1)
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /v1/kv/default/big HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    await until(lambda: api.metrics.connections_cut == 1)
    await others_are_served(api)
    writer.transport.abort()


async def test_a_slow_reader_may_go_on(start: Serve) -> None:
    """It takes 0.8 MB/s; its kernel opens the window every 0.1 s or so."""
    api: Served = await start(stall_seconds=0.3)
    api.router.state.data[b"big"] = Found(bytes(1 << 20), 1, 1, 1)
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # else the kernel alone takes everything
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", api.port))
    reader, writer = await asyncio.open_connection(sock=own, limit=16_384)
    writer.write(b"GET /v1/kv/default/big HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    for _ in range(50):  # three times as long as it may stand still
        assert await reader.read(16_384)
        await asyncio.sleep(0.02)
    size = 50 * 16_384
    while size < 10 << 20:
        size += len(await reader.read(1 << 20))
    assert api.metrics.connections_cut == 0
    writer.close()


async def test_connections_are_bounded(start: Serve) -> None:
    api: Served = await start(connections_max=3)
    await others_are_served(api)  # holds one
    writers = [(await asyncio.open_connection("127.0.0.1", api.port))[1] for _ in range(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    assert await read_to_end(reader) == b""
    assert api.metrics.connections_refused == 1
    await others_are_served(api)
    for one in (*writers, writer):
        one.close()
    await until(lambda: api.metrics.gauge("kvstore_http_connections")["open"] == 1)


async def test_pipelined_requests_are_answered_in_order(api: Served) -> None:
    requests = b"".join(
        b"PUT /v1/kv/default/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % (i, i % 10) for i in range(100)
    )
    answer = await api.raw(requests + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 101
    assert len(api.router.state.data) == 100


async def test_hostile_load_leaves_memory_bounded(api: Served) -> None:
    """200 connections push values over the limit; what the server keeps is far less than what they send."""
    await others_are_served(api)
    before = resident_mib()
    request = HEAD + b"Content-Length: 1048577\r\n\r\n" + bytes((1 << 20) + 1)

    async def push() -> None:
        answer = await api.raw(request)
        assert answer[9:12] in (b"413", b"")  # b"": refused and reset before all was sent

    for _ in range(10):
        await asyncio.gather(*[push() for _ in range(20)])
        await others_are_served(api)
    assert resident_mib() - before < 150
    assert b"k" not in api.router.state.data
