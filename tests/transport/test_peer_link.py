"""Goal: Raft traffic between real sockets. Method: two or three transports in one loop on free ports."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType

from kvstore.base.limits import KIB, MIB, PEER_MESSAGE_BYTES_MAX
from kvstore.transport.frames import PART_BYTES_MAX, WEBSOCKET_BYTES_MAX, encode
from kvstore.transport.hello import Fault, HelloError, Identity, Purpose, greet_as_dialer
from kvstore.transport.protocol import GroupMessage
from tests.ports import free_port
from tests.transport.proxy import Proxy
from tests.transport.rig import (
    CLUSTER,
    FAST,
    IDS,
    Node,
    append,
    connect,
    heartbeat,
    introduce,
    stop_all,
)

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    nodes = Node("n1"), Node("n2")
    await connect(*nodes)
    yield nodes
    await stop_all(*nodes)


async def test_messages_arrive_in_order_in_both_directions(pair: tuple[Node, Node]) -> None:
    one, two = pair
    for index in range(300):
        assert one.transport.send(two.node, [append(index, b"x" * index)])
        assert two.transport.send(one.node, [heartbeat(index)])
        if index % 17 == 0:
            await asyncio.sleep(0)
    await two.handler.until(lambda: len(two.messages_from(one)) == 300)
    await one.handler.until(lambda: len(one.messages_from(two)) == 300)
    assert two.handler.indexes(one.node) == list(range(300)) == one.handler.indexes(two.node)
    assert two.messages_from(one)[7] == append(7, b"x" * 7)


async def test_a_turn_of_the_loop_is_one_websocket_message(pair: tuple[Node, Node]) -> None:
    one, two = pair
    frames_before = one.transport.stats()[two.node].frames_sent
    for index in range(1_000):
        one.transport.send(two.node, [heartbeat(index, group=index)])
    await two.handler.until(lambda: len(two.messages_from(one)) == 1_000)
    assert one.transport.stats()[two.node].frames_sent - frames_before <= 2
    assert two.handler.calls <= 2


async def test_a_killed_peer_is_gone_on_both_sides_of_the_dial(pair: tuple[Node, Node]) -> None:
    loop = asyncio.get_running_loop()
    one, two = pair
    for victim, witness in ((one, two), (two, one)):
        began = loop.time()
        await victim.kill()
        gone = await witness.handler.until_event("gone", victim.node)
        assert gone - began < 0.2
        assert not witness.transport.connected(victim.node)
        assert not witness.transport.send(victim.node, [heartbeat(1)])
        await victim.start({witness.node: witness.address})
        await witness.handler.until_event("up", victim.node, victim.boot)
    assert victim.boots == 2


async def test_nodelay_is_set(pair: tuple[Node, Node]) -> None:
    for node, other in (pair, pair[::-1]):
        connection = node.transport._peers[other.node].connection
        assert connection is not None
        raw = connection._websocket.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_three_nodes_have_one_connection_a_pair() -> None:
    nodes = [Node("n1"), Node("n2"), Node("n3")]
    await connect(*nodes)
    introduce(*nodes)
    for node in nodes:
        assert [stats.connects for stats in node.transport.stats().values()] == [1, 1]
    await stop_all(*nodes)


# -- what may go wrong with a peer


async def hello_as(node: Node, name: str, boot: str, socket: aiohttp.ClientWebSocketResponse) -> None:
    """Open a raw WebSocket as a node without a secret."""
    identity = Identity(cluster=CLUSTER, node=IDS[name], name=name, boot=boot)
    await greet_as_dialer(socket, identity, (), node=node.node, purpose=Purpose.RAFT)


@asynccontextmanager
async def raw(node: Node, name: str = "n1", boot: str = "raw") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://{node.address}/v1/peer/raft", timeout=aiohttp.ClientWSTimeout(ws_close=1)) as ws,
    ):
        await hello_as(node, name, boot, ws)
        yield ws


async def closed_with(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(5):
        while (await socket.receive()).type is WSMsgType.BINARY:
            pass
    return socket.close_code


@pytest.fixture
async def listener() -> AsyncIterator[Node]:
    node = Node("n2")
    await node.start()
    yield node
    await node.stop()


@pytest.mark.parametrize(
    "garbage", [b"garbage", b"\xc1\x07x", encode([heartbeat(1)])[:-1], b"\x93\x01\xdd\xff\xff\xff\xff"]
)
async def test_garbage_ends_the_connection_with_a_name(listener: Node, garbage: bytes) -> None:
    async with raw(listener) as socket:
        await socket.send_bytes(encode([heartbeat(7)]))
        await socket.send_bytes(garbage)
        assert await closed_with(socket) == Fault.MALFORMED
    assert listener.handler.indexes(IDS["n1"]) == [7]
    assert not listener.transport.connected(IDS["n1"])


async def test_a_text_message_ends_the_connection(listener: Node) -> None:
    async with raw(listener) as socket:
        await socket.send_str("hello")
        assert await closed_with(socket) == Fault.MALFORMED


async def test_a_message_over_the_limit_ends_the_connection(listener: Node) -> None:
    async with raw(listener) as socket:
        await socket.send_bytes(bytes(WEBSOCKET_BYTES_MAX + 1))
        assert await closed_with(socket) in (WSCloseCode.MESSAGE_TOO_BIG, WSCloseCode.ABNORMAL_CLOSURE)


async def test_parts_without_an_end_are_bounded(listener: Node) -> None:
    async with raw(listener) as socket:
        with suppress(ConnectionError):
            for _ in range(PEER_MESSAGE_BYTES_MAX // PART_BYTES_MAX + 2):
                await socket.send_bytes(b"\xc1\x00" + bytes(PART_BYTES_MAX))
        assert await closed_with(socket) in (Fault.MALFORMED, WSCloseCode.ABNORMAL_CLOSURE)


async def test_a_new_boot_replaces_the_old_connection(listener: Node) -> None:
    async with raw(listener, boot="first") as old:
        await listener.handler.until_event("up", IDS["n1"], "first")
        async with raw(listener, boot="second") as new:
            await listener.handler.until_event("up", IDS["n1"], "second")
            assert await closed_with(old) == Fault.REPLACED
            await new.send_bytes(encode([heartbeat(2)]))
            await listener.handler.until(lambda: listener.handler.indexes(IDS["n1"]) == [2])
            assert listener.transport.connected(IDS["n1"])


async def test_nothing_of_a_replaced_connection_is_delivered(listener: Node) -> None:
    """Frames of the old process that are already here must not come after the new one is told."""
    async with raw(listener, boot="first") as old, raw(listener, boot="second"):
        with suppress(ConnectionError):
            await old.send_bytes(encode([heartbeat(1)]))
        assert await closed_with(old) == Fault.REPLACED
    assert not listener.handler.indexes(IDS["n1"])


async def test_strangers_are_limited_but_known_nodes_may_come_anew() -> None:
    node = Node("n3", settings=replace(FAST, peers_max=1))
    await node.start()
    async with raw(node, "n1", "first"):
        await node.handler.until_event("up", IDS["n1"], "first")
        with pytest.raises(HelloError, match="BUSY"):
            async with raw(node, "n2"):
                pass
        async with raw(node, "n1", "second"):
            await node.handler.until_event("up", IDS["n1"], "second")
    await node.stop()


async def test_a_handlers_exception_reaches_the_loops_handler(pair: tuple[Node, Node]) -> None:
    one, two = pair
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    complain = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(str(context["exception"])))

    def on_messages(node: str, messages: list[GroupMessage]) -> None:
        raise ArithmeticError("a bug of the host")

    two.handler.on_messages = on_messages  # type: ignore[method-assign]
    one.transport.send(two.node, [heartbeat(1)])
    await one.handler.until_event("up", two.node, two.boot, count=2)  # it goes on with a new connection
    loop.set_exception_handler(complain)
    assert reported == ["a bug of the host"]


# -- queues


async def test_a_peer_that_does_not_read_costs_a_bounded_queue() -> None:
    settings = replace(FAST, queue_bytes_max=4 * MIB)
    one, two = Node("n1", settings=settings), Node("n2")
    proxy = Proxy(two.port)
    await proxy.start()
    await one.start({two.node: proxy.address})
    await two.start()
    await one.handler.until_event("up", two.node, two.boot)
    proxy.stall()
    taken = 0
    for index in range(200):
        taken += one.transport.send(two.node, [append(index, bytes(256 * KIB))])
        await asyncio.sleep(0)
    stats = one.transport.stats()[two.node]
    assert taken < 200
    assert stats.messages_dropped == 200 - taken
    assert one.transport.queued_bytes(two.node) <= settings.queue_bytes_max
    proxy.flow()
    await two.handler.until(lambda: len(two.messages_from(one)) == taken)
    indexes = two.handler.indexes(one.node)
    assert indexes == sorted(indexes)
    await stop_all(one, two)
    await proxy.stop()


async def test_large_messages_travel_in_parts_between_small_ones(pair: tuple[Node, Node]) -> None:
    one, two = pair
    sizes = [10, 5 * MIB, 20, PART_BYTES_MAX, PART_BYTES_MAX - 60, 3 * MIB, 30]
    for sender, receiver in (pair, pair[::-1]):
        for index, size in enumerate(sizes):
            assert sender.transport.send(receiver.node, [append(index, bytes(size)), heartbeat(index)])
        await receiver.handler.until(lambda s=sender, r=receiver: len(r.messages_from(s)) == 2 * len(sizes))  # type: ignore[misc]
        got = receiver.messages_from(sender)
        assert [len(one.message.entries[0].data) for one in got[::2]] == sizes
        assert [one.message.index for one in got[1::2]] == list(range(len(sizes)))
    assert one.transport.connected(two.node)


async def test_a_message_that_can_never_be_sent_is_said_loudly(
    pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair
    assert not one.transport.send(two.node, [append(1, bytes(PEER_MESSAGE_BYTES_MAX))])
    assert "can't be sent" in caplog.text
    assert one.transport.stats()[two.node].messages_dropped == 1


async def test_removed_notices_are_bounded_and_in_one_frame(pair: tuple[Node, Node]) -> None:
    one, two = pair
    frames = one.transport.stats()[two.node].frames_sent
    for group in range(FAST.removed_max + 10):
        one.transport.send_removed(two.node, group, 3)
    await two.handler.until_event("removed", one.node, FAST.removed_max - 1, 3)
    assert ("removed", one.node, FAST.removed_max, 3) not in two.handler.events
    assert one.transport.stats()[two.node].frames_sent - frames <= 2


# -- silence, evidence, addresses


async def test_a_silent_peer_is_given_up_and_that_is_no_evidence() -> None:
    """Half-open: TCP stays up, nothing comes through (a paused process, a firewall that drops)."""
    one, two = Node("n1"), Node("n2")
    proxy = Proxy(two.port)
    await proxy.start()
    await one.start({two.node: proxy.address})
    await two.start()
    await one.handler.until_event("up", two.node, two.boot)
    proxy.stall()
    down = asyncio.ensure_future(two.transport._peers[one.node].connection.wait_ended())  # type: ignore[union-attr]
    await one.transport._peers[two.node].connection.wait_ended()  # type: ignore[union-attr]
    await down
    assert ("gone", two.node) not in one.handler.events
    assert ("gone", one.node) not in two.handler.events
    proxy.flow()
    await one.handler.until_event("up", two.node, two.boot, count=2)
    await stop_all(one, two)
    await proxy.stop()


async def test_a_pause_of_this_process_is_not_the_peers_silence(pair: tuple[Node, Node]) -> None:
    one, two = pair
    time.sleep(FAST.beat_seconds * (FAST.silent_beats_max + 2))  # noqa: ASYNC251  the loop stands still
    one.transport.send(two.node, [heartbeat(1)])
    await two.handler.until(lambda: two.handler.indexes(one.node) == [1])
    assert one.transport.stats()[two.node].connects == 1


async def test_beats_keep_an_idle_connection(pair: tuple[Node, Node]) -> None:
    one, two = pair
    received = two.transport.stats()[one.node]
    await asyncio.sleep(FAST.beat_seconds * (FAST.silent_beats_max + 2))
    assert received.frames_received > FAST.silent_beats_max
    assert one.transport.stats()[two.node].connects == 1
    assert not two.handler.messages


async def test_evidence_is_repeated_while_it_lasts_and_stops_with_it(pair: tuple[Node, Node]) -> None:
    one, two = pair
    await one.kill()
    await two.handler.until_event("gone", one.node, count=3)
    await one.start({two.node: two.address})
    await two.handler.until_event("up", one.node, one.boot)
    seen = two.handler.events.count(("gone", one.node))
    await asyncio.sleep(FAST.backoff_seconds_max * 2)
    assert two.handler.events.count(("gone", one.node)) == seen


async def test_the_dialer_follows_a_new_address() -> None:
    one, two = Node("n1"), Node("n2")
    await one.start({two.node: f"127.0.0.1:{free_port()}"})  # nobody there
    await two.start()
    await one.handler.until_event("gone", two.node)
    one.transport.set_peers({two.node: two.address})
    await two.handler.until_event("up", one.node, one.boot)
    assert ("gone", one.node) not in two.handler.events
    await stop_all(one, two)


async def test_the_higher_node_may_not_dial_one_that_knows_it() -> None:
    node = Node("n2")
    await node.start({IDS["n3"]: f"127.0.0.1:{free_port()}"})
    with pytest.raises(HelloError, match="WRONG_DIALER"):
        async with raw(node, "n3"):
            pass
    node.transport.set_peers({})
    async with raw(node, "n3"):
        await node.handler.until_event("up", IDS["n3"], "raw")
    await node.stop()


async def test_closing_while_dialling_is_clean() -> None:
    """Against a listener that accepts and says nothing."""
    one = Node("n1")
    accepted = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await one.start({IDS["n2"]: f"127.0.0.1:{port}"})
    await accepted.wait()
    await one.stop()
    assert one.handler.events == []
    server.close()
    await server.wait_closed()


async def test_the_dialers_hello_is_bounded_in_time_too() -> None:
    """A listener that accepts and says nothing: dialled again and again, no evidence."""
    one = Node("n1", settings=replace(FAST, hello_seconds_max=0.05))
    requests = asyncio.Queue[bytes]()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(65_536)
        if request:  # and not a probe
            requests.put_nowait(request)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    await one.start({IDS["n2"]: f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
    for _ in range(3):
        async with asyncio.timeout(5):
            assert b"/v1/peer/raft" in await requests.get()
    assert one.handler.events == []
    await one.stop()
    server.close()
    await server.wait_closed()


async def test_thirty_restarts_leave_nothing_behind(pair: tuple[Node, Node]) -> None:
    one, two = pair
    tasks = len(asyncio.all_tasks())
    for _ in range(30):
        await one.kill()
        await one.start({two.node: two.address})
        await two.handler.until_event("up", one.node, one.boot)
        await one.handler.until_event("up", two.node, two.boot, count=one.boots)
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) <= tasks + 2


async def test_a_dialer_that_has_gone_before_it_is_answered_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a pause of this process: the request is read, and its sender gave up long ago."""
    node = Node("n1")
    await node.start()

    async def gone(*_: object) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(aiohttp.web.WebSocketResponse, "prepare", gone)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.ws_connect(f"http://{node.address}/v1/peer/raft")
    await node.stop()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
