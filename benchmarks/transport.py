"""What the transport costs: the codec alone, and two nodes' links in one process over loopback.

Run: python benchmarks/transport.py [seconds]
Prints µs per message and messages a second; nothing is asserted. One process plays both ends, so a real node pays
about half of what the link lines say.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import uvloop
from aiohttp import web

from kvstore.base.limits import KIB, MIB
from kvstore.transport.frames import decode, encode, message_bytes_max
from kvstore.transport.hello import Identity
from kvstore.transport.peer_link import WebSocketTransport
from kvstore.transport.protocol import GroupMessage
from raft.types import Entry, Message, MessageType

SHAPES = [(0, 0), (1, 256), (1, 10 * KIB), (1, 50 * KIB), (50, 200), (50, KIB)]


def append(entries: int, size: int, group: int = 2) -> GroupMessage:
    payload = os.urandom(size)
    run = tuple(Entry(5, 1_000_000 + number, data=payload) for number in range(entries))
    return GroupMessage(group, Message(MessageType.APPEND, 2, 1, 5, 5, 999_999, 999_990, run))


def sizes(messages: list[GroupMessage]) -> int:
    return sum([message_bytes_max(one.message) for one in messages])


def microseconds(work: Callable[[], object], seconds: float = 0.2) -> float:
    """The best of five rounds."""
    best, rounds = float("inf"), 5
    count = 1
    while True:
        began = time.perf_counter()
        for _ in range(count):
            work()
        took = time.perf_counter() - began
        if took > seconds / rounds:
            break
        count *= 2
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - began) / count)
    return best * 1e6


def bench_codec() -> None:
    print(f"{'codec':34} {'bytes':>8} {'size µs':>8} {'encode µs':>10} {'decode µs':>10}")
    cases = [(f"{count} entries of {size}", [append(count, size)]) for count, size in SHAPES]
    heartbeats = [
        GroupMessage(n, Message(MessageType.HEARTBEAT, 2, 1, 5, commit=9, context=b"12345678")) for n in range(100)
    ]
    cases.append(("heartbeats of 100 groups", heartbeats))
    for name, messages in cases:
        data = encode(messages)
        size = microseconds(partial(sizes, messages))
        encoding = microseconds(partial(encode, messages))
        decoding = microseconds(partial(decode, data))
        print(f"{name:34} {len(data):8} {size:8.2f} {encoding:10.2f} {decoding:10.2f}")


class Echo:
    """Counts, and answers each call with one small message as a follower does."""

    def __init__(self, transport: WebSocketTransport, *, answers: bool) -> None:
        self.transport = transport
        self.answers = answers
        self.messages = 0
        self.up = asyncio.Event()
        self.window = asyncio.Event()

    def on_messages(self, node: str, messages: list[GroupMessage]) -> None:
        self.messages += len(messages)
        self.window.set()
        if self.answers:
            replies = [
                GroupMessage(one.group, Message(MessageType.APPEND_REPLY, 1, 2, 5, index=one.message.index))
                for one in messages
            ]
            self.transport.send(node, replies)

    def on_removed(self, node: str, group: int, replica_id: int) -> None: ...
    def on_peer_gone(self, node: str) -> None: ...
    def on_peer_up(self, node: str, boot: str) -> None:
        self.up.set()

    async def on_snapshot(self, node: str, header: bytes, chunks: AsyncIterator[tuple[int, bytes]]) -> None:
        async for _ in chunks:
            pass

    def snapshot_resume_at(self, node: str, header: bytes) -> int:
        return 0


async def start_node(node: str, *, answers: bool) -> tuple[WebSocketTransport, Echo, web.AppRunner, str]:
    transport = WebSocketTransport(
        rng=random.Random(1), identity=Identity(cluster="bench", node=node, name=node, boot="1")
    )
    app = web.Application()
    app.add_routes(transport.routes())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    await web.SockSite(runner, listener).start()
    return transport, Echo(transport, answers=answers), runner, address


async def bench_link(count: int, size: int, seconds: float, *, dialer_sends: bool, in_flight: int = 8) -> None:
    """`in_flight` messages on their way, each answered, as one group's pipelined appends are."""
    nodes = [await start_node(node, answers=(node == "1") != dialer_sends) for node in ("1", "2")]
    addresses = {"1": nodes[0][3], "2": nodes[1][3]}
    for transport, echo, _, _ in nodes:
        transport.set_peers(addresses)
        await transport.start(echo)
    for _, echo, _, _ in nodes:
        await echo.up.wait()
    transport, echo = nodes[0 if dialer_sends else 1][:2]
    peer = "2" if dialer_sends else "1"
    message = append(count, size)
    sent, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        while sent - echo.messages < in_flight:
            transport.send(peer, [message])
            sent += 1
        echo.window.clear()
        await echo.window.wait()
    took, used = time.perf_counter() - began, time.process_time() - used
    frames = transport.stats()[peer].frames_sent
    name = f"{count} entries of {size}, {'dialer' if dialer_sends else 'listener'} sends"
    rate, megabytes = echo.messages / took, echo.messages * count * size / took / MIB
    print(f"{name:44} {rate:9.0f} {megabytes:8.0f} {used / echo.messages * 1e6:9.1f} {frames / sent:12.2f}")
    for transport, _, _, _ in nodes:
        await transport.close()
    for _, _, runner, _ in nodes:
        await runner.cleanup()


async def bench_links(seconds: float) -> None:
    print(f"\n{'link, 8 in flight, each answered':44} {'msgs/s':>9} {'MiB/s':>8} {'µs cpu':>9} {'frames/msg':>12}")
    for count, size in SHAPES:
        for dialer_sends in (True, False):
            await bench_link(count, size, seconds, dialer_sends=dialer_sends)


if __name__ == "__main__":
    bench_codec()
    uvloop.run(bench_links(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
