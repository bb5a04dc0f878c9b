"""Goal: Raft traffic between real sockets. Method: two or three transports in one loop on free ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from tests.transport.rig import Node, append, connect, heartbeat, introduce, stop_all

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
