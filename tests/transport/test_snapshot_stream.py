"""Goal: a snapshot arrives whole, once, within its bounds, or the sender knows why not.

Method: two transports on real sockets, with a proxy between them that cuts, or a handler that holds chunks back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kvstore.base.limits import KIB
from kvstore.transport.protocol import SnapshotRefused
from kvstore.transport.snapshot_stream import SnapshotReceiver
from tests.transport.proxy import Proxy
from tests.transport.rig import FAST, Node, connect, stop_all

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

HEADER = b"group 7 at 100"


class Source:
    """A snapshot of `count` chunks that counts what was read of it."""

    def __init__(self, count: int, chunk_bytes: int = 4 * KIB) -> None:
        self.chunks = [os.urandom(chunk_bytes) for _ in range(count)]
        self.reads: list[int] = []
        self.read = asyncio.Event()

    async def until_reads(self, count: int) -> None:
        while len(self.reads) < count:
            self.read.clear()
            await self.read.wait()

    async def __call__(self, number: int) -> bytes | None:
        self.reads.append(number)
        self.read.set()
        return self.chunks[number] if number < len(self.chunks) else None


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    nodes = Node("n1"), Node("n2")
    await connect(*nodes)
    yield nodes
    await stop_all(*nodes)


Proxied = tuple[Node, Node, Proxy]


@pytest.fixture
async def proxied() -> AsyncIterator[Proxied]:
    """n1 reaches n2 only through a proxy."""
    one, two = Node("n1"), Node("n2")
    proxy = Proxy(two.port)
    await proxy.start()
    await one.start({two.node: proxy.address})
    await two.start()
    await one.handler.until_event("up", two.node, two.boot)
    yield one, two, proxy
    await stop_all(one, two)
    await proxy.stop()


async def test_a_snapshot_arrives_in_both_directions(pair: tuple[Node, Node]) -> None:
    for sender, receiver in (pair, pair[::-1]):
        source = Source(20)
        await sender.transport.send_snapshot(receiver.node, HEADER, source)
        assert receiver.handler.snapshots[sender.node, HEADER] == source.chunks
        assert source.reads == list(range(21))


async def test_an_empty_snapshot_and_large_chunks(pair: tuple[Node, Node]) -> None:
    one, two = pair
    for source in (Source(0), Source(2, 3 * 1024 * KIB)):
        header = b"%d" % len(source.chunks)
        await one.transport.send_snapshot(two.node, header, source)
        assert two.handler.snapshots[one.node, header] == source.chunks


async def test_a_broken_stream_is_resumed_where_the_receiver_is(proxied: Proxied) -> None:
    one, two, proxy = proxied
    source = Source(40, 16 * KIB)
    cuts = 0

    def cut_twice() -> None:
        nonlocal cuts
        if proxy.forwarded > (cuts + 1) * 200 * KIB and cuts < 2:
            cuts += 1
            proxy.cut()

    proxy.on_forward = cut_twice
    await one.transport.send_snapshot(two.node, HEADER, source)
    assert two.handler.snapshots[one.node, HEADER] == source.chunks
    assert cuts == 2
    assert two.handler.resumes[0] == 0
    assert 0 < two.handler.resumes[1] < two.handler.resumes[2] < 40
    assert len(source.reads) < 2 * 40


async def test_a_stream_that_never_gets_on_is_given_up(proxied: Proxied) -> None:
    one, two, proxy = proxied
    two.handler.gate.clear()
    proxy.on_forward = lambda: proxy.cut() if proxy.forwarded > 8 * KIB else None
    sending = asyncio.ensure_future(one.transport.send_snapshot(two.node, HEADER, Source(4, 64 * KIB)))
    try:
        with pytest.raises(ConnectionError, match="given up at chunk 0"):
            await sending
    finally:
        proxy.on_forward = None
        two.handler.gate.set()
    assert proxy.accepted <= 2 + 6 + 200  # the Raft link redials through the proxy too, all the while


async def test_a_slow_receiver_holds_the_sender_back(pair: tuple[Node, Node]) -> None:
    one, two = pair
    source = Source(50)
    two.handler.gate.clear()
    sending = asyncio.ensure_future(one.transport.send_snapshot(two.node, HEADER, source))
    await two.handler.until_event("snapshot", one.node)
    window = FAST.snapshot_window
    await source.until_reads(window)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await source.until_reads(window + 1)
    two.handler.gate.set()
    await sending
    assert two.handler.snapshots[one.node, HEADER] == source.chunks


async def test_a_refusal_reaches_the_sender_with_its_reason(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.handler.refusal = SnapshotRefused("the range overlaps shard 9")
    with pytest.raises(SnapshotRefused, match="the range overlaps shard 9"):
        await one.transport.send_snapshot(two.node, HEADER, Source(3))
    assert two.handler.installing == 0


async def test_a_handler_that_fails_refuses_and_is_reported(
    pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair
    two.handler.refusal = ValueError("no such column")
    with pytest.raises(SnapshotRefused, match="ValueError"):
        await one.transport.send_snapshot(two.node, HEADER, Source(3))
    assert "could not be installed" in caplog.text


async def test_what_reading_a_chunk_raises_comes_out_of_send(pair: tuple[Node, Node]) -> None:
    async def read(number: int) -> bytes | None:
        if number == 2:
            raise KeyError("the snapshot is no longer kept")
        return b"x"

    one, two = pair
    with pytest.raises(KeyError):
        await one.transport.send_snapshot(two.node, HEADER, read)
    await two.handler.until_event("snapshot broken", one.node)


async def test_a_cancelled_send_ends_at_both_ends(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.handler.gate.clear()
    sending = asyncio.ensure_future(one.transport.send_snapshot(two.node, HEADER, Source(9)))
    await two.handler.until_event("snapshot", one.node)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    two.handler.gate.set()
    await two.handler.until_event("snapshot broken", one.node)


async def test_the_rate_is_limited() -> None:
    settings = replace(FAST, snapshot_bytes_per_second=1_000_000.0)
    one, two = Node("n1", settings=settings), Node("n2")
    await connect(one, two)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await one.transport.send_snapshot(two.node, HEADER, Source(20, 32_768))  # 655,360 bytes, 524,288 of them at once
    took = loop.time() - began
    assert took >= 0.9 * (655_360 - 524_288) / 1_000_000
    await stop_all(one, two)


async def test_few_streams_at_a_time(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.handler.install_gate.clear()
    sends = [
        asyncio.ensure_future(one.transport.send_snapshot(two.node, b"%d" % number, Source(2))) for number in range(8)
    ]
    await two.handler.until_event("snapshot", one.node, count=FAST.snapshot_streams_max)
    two.handler.install_gate.set()
    await asyncio.gather(*sends)
    assert two.handler.installing_max == FAST.snapshot_streams_max
    assert len(two.handler.snapshots) == 8


async def test_too_many_waiting_are_refused(pair: tuple[Node, Node]) -> None:
    one, two = pair
    two.handler.install_gate.clear()
    allowed = FAST.snapshot_streams_max + FAST.snapshot_waiting_max
    sends = [
        asyncio.ensure_future(one.transport.send_snapshot(two.node, b"%d" % number, Source(1)))
        for number in range(allowed)
    ]
    await two.handler.until_event("snapshot", one.node, count=FAST.snapshot_streams_max)
    with pytest.raises(SnapshotRefused, match="too many"):
        await one.transport.send_snapshot(two.node, HEADER, Source(1))
    two.handler.install_gate.set()
    await asyncio.gather(*sends)


async def test_a_busy_receiver_refuses_another_sender_after_a_while() -> None:
    nodes = one, two, three = Node("n1"), Node("n2"), Node("n3")
    await connect(*nodes)
    three.handler.install_gate.clear()
    sends = [
        asyncio.ensure_future(one.transport.send_snapshot(three.node, b"%d" % number, Source(1))) for number in range(3)
    ]
    await three.handler.until_event("snapshot", one.node, count=3)
    with pytest.raises(SnapshotRefused, match="busy"):
        await two.transport.send_snapshot(three.node, HEADER, Source(1))
    three.handler.install_gate.set()
    await asyncio.gather(*sends)
    await stop_all(*nodes)


@pytest.mark.parametrize("closing", ["sender", "receiver"])
async def test_closing_either_end_under_way_is_clean(pair: tuple[Node, Node], closing: str) -> None:
    one, two = pair
    two.handler.gate.clear()
    sending = asyncio.ensure_future(one.transport.send_snapshot(two.node, HEADER, Source(9)))
    await two.handler.until_event("snapshot", one.node)
    await (one if closing == "sender" else two).stop()
    two.handler.gate.set()
    with pytest.raises(ConnectionError):
        await sending


async def test_an_unknown_address_is_a_connection_error(pair: tuple[Node, Node]) -> None:
    with pytest.raises(ConnectionError, match="not known"):
        await pair[0].transport.send_snapshot("9" * 32, HEADER, Source(1))


async def test_a_connection_anew_waits_until_the_old_handler_has_ended(proxied: Proxied) -> None:
    """The sender's end breaks unnoticed by the receiver (a stalled network): no two handlers for one snapshot."""
    one, two, proxy = proxied
    two.handler.gate.clear()
    first = asyncio.ensure_future(one.transport.send_snapshot(two.node, HEADER, Source(9)))
    await two.handler.until_event("snapshot", one.node)
    proxy.stall()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    direct = {two.node: two.address}
    one.transport.set_peers(direct)
    source = Source(9)
    second = asyncio.ensure_future(one.transport.send_snapshot(two.node, HEADER, source))
    assert isinstance(two.transport._snapshot_receiver, SnapshotReceiver)
    two.handler.gate.set()
    await second
    assert two.handler.installing_max == 1
    assert len(two.handler.snapshots[one.node, HEADER]) == 9
    proxy.flow()
