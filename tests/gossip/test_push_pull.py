"""Goal: whole states are exchanged only with members, within bounds, and a broken or hostile peer costs nothing but
its connection. Method: a driver that serves, and a raw WebSocket behind a real hello as the other side.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import web

from kvstore.gossip import push_pull
from kvstore.gossip.member import Member, MemberState
from kvstore.gossip.push_pull import CARGO_ITEMS_MAX, SERVED_MAX, TALE_VERSION, Tale
from kvstore.transport.dial import PATHS, Dialed, dial
from kvstore.transport.frames import PART_BYTES_MAX, cut
from kvstore.transport.hello import Fault, Identity, Purpose, encode_greeting
from kvstore.transport.protocol import PeerHello
from tests.gossip.rig import CLUSTER, IDS, Node, stop_all, until, with_settings
from tests.transport.rig import FAST as TRANSPORT

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

PEER = Member(IDS["n2"], "n2", "127.0.0.1:9", 1_000_000)
IDENTITY = Identity(cluster=CLUSTER, node=PEER.node, name=PEER.name, boot="b", address=PEER.address)


@asynccontextmanager
async def serving(**options: object) -> AsyncIterator[Node]:
    node = Node("n1", **options)  # type: ignore[arg-type]
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


@asynccontextmanager
async def dialed(node: Node, identity: Identity = IDENTITY) -> AsyncIterator[Dialed]:
    async with dial(
        node.address, node="", purpose=Purpose.GOSSIP, identity=identity, secrets=(), settings=TRANSPORT
    ) as one:
        yield one


@contextmanager
def silent() -> Iterator[str]:
    """The address of a process that does not run: the kernel takes connections, and nobody greets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def fault_of_close(websocket: aiohttp.ClientWebSocketResponse) -> Fault:
    while (message := await websocket.receive(timeout=10)).type is aiohttp.WSMsgType.BINARY:
        pass
    assert message.type is aiohttp.WSMsgType.CLOSE
    return Fault(message.data)


async def test_members_numbers_and_cargo_go_both_ways() -> None:
    once = with_settings(push_pull_seconds=60.0)
    one, two = (Node(name, secrets=(b"s" * 32,), settings=once) for name in ("n1", "n2"))
    for node in (one, two):
        node.endpoint.cut = True  # only TCP
        await node.start()
    one.driver._swim.pull_state([Member(IDS["n3"], "n3", "127.0.0.1:9", 5)], one.driver.now())
    one.parcels.held.update(f"a{number}" for number in range(20))
    two.parcels.held.add("b")
    assert await one.driver._push_pull.exchange(two.address, node=two.id)
    assert len(one.parcels.held) == 21
    await until(lambda: two.parcels.held == one.parcels.held)  # the listener gets the last message
    assert set(two.states()) == set(one.states()) == {"n1", "n2", "n3"}
    assert {node.hex() for node, *_ in two.driver._seal.seen()} >= {one.id, two.id}
    await stop_all(one, two)


async def test_a_state_of_many_parts_is_carried() -> None:
    one, two = Node("n1"), Node("n2")
    for node in (one, two):
        node.endpoint.cut = True
        await node.start()
    labels = {f"label{number}": "x" * 40 for number in range(8)}
    many = [Member(f"{number:032x}", f"m{number}", "127.0.0.1:9", 1, labels=labels) for number in range(1, 1_500)]
    one.driver._swim.pull_state(many, one.driver.now())
    assert len(msgspec.msgpack.encode(one.driver.tell())) > 2 * PART_BYTES_MAX
    assert await one.driver._push_pull.exchange(two.address)
    assert len(two.driver.members()) == len(many) + 2
    await stop_all(one, two)


async def test_a_probe_over_tcp_proves_who_is_there() -> None:
    one, two = Node("n1"), Node("n2")
    for node in (one, two):
        await node.start()
    ask = one.driver._push_pull.answers
    assert await ask(two.address, node=two.id, seconds_max=5)
    assert not await ask(two.address, node=IDS["n3"], seconds_max=5)  # somebody else is there
    await two.stop()
    assert not await ask(two.address, node=two.id, seconds_max=5)
    await one.stop()


async def test_a_probe_of_a_stopped_process_ends_in_time() -> None:
    async with serving() as one:
        began = one.driver.now()
        with silent() as address:
            assert not await one.driver._push_pull.answers(address, node=IDS["n2"], seconds_max=0.2)
        assert one.driver.now() - began < 2


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"nonsense",
        msgspec.msgpack.encode([TALE_VERSION]),
        msgspec.msgpack.encode([TALE_VERSION, [["not a member"]]]),
        msgspec.msgpack.encode([TALE_VERSION, [], [[b"short", 1, 1]]]),
        msgspec.msgpack.encode([TALE_VERSION, [], [[bytes(16), -1, 1]]]),
        msgspec.msgpack.encode([TALE_VERSION, [], [], bytes(10_000)]),
        msgspec.msgpack.encode([TALE_VERSION, [[]] * 20_000]),
        b"\x91" * 10_000,
    ],
)
async def test_what_is_not_a_tale_is_refused_by_name_and_changes_nothing(message: bytes) -> None:
    async with serving() as one, dialed(one) as other:
        await other.websocket.send_bytes(message)
        assert await fault_of_close(other.websocket) is Fault.MALFORMED
        assert list(one.states()) == ["n1"]


async def test_another_version_and_what_is_not_cargo_are_refused_by_name() -> None:
    async with serving() as one:
        async with dialed(one) as other:
            await other.websocket.send_bytes(msgspec.msgpack.encode(Tale(TALE_VERSION + 1, [])))
            assert await fault_of_close(other.websocket) is Fault.PROTOCOL_MISMATCH
        for cargo in (b"\xc1\x05x", b"nonsense", msgspec.msgpack.encode([1] * (CARGO_ITEMS_MAX + 1))):
            async with dialed(one) as other:
                await other.websocket.send_bytes(msgspec.msgpack.encode(Tale(TALE_VERSION, [])))
                for part in cut(cargo):
                    await other.websocket.send_bytes(part)
                assert await fault_of_close(other.websocket) is Fault.MALFORMED


async def test_who_breaks_off_anywhere_leaves_nothing() -> None:
    tale = msgspec.msgpack.encode(Tale(TALE_VERSION, [PEER]))
    async with serving() as one:
        for messages in ([], [tale[:5]], [tale]):
            async with dialed(one) as other:
                for message in messages:
                    await other.websocket.send_bytes(message)
        await until(lambda: not one.driver._push_pull._served)
        assert one.state("n2") in (None, MemberState.ALIVE)


async def test_a_peer_that_stalls_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_pull, "EXCHANGE_SECONDS_MAX", 0.2)
    async with serving() as one:
        async with dialed(one) as other:
            assert await fault_of_close(other.websocket) is Fault.TOO_SLOW
        await until(lambda: not one.driver._push_pull._served)


async def test_a_listener_that_stalls_ends_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_pull, "EXCHANGE_SECONDS_MAX", 0.2)
    async with serving() as one:
        with silent() as address:
            assert not await one.driver._push_pull.exchange(address)
        assert one.driver._push_pull.failed == 1


async def test_those_served_at_once_are_bounded() -> None:
    async with serving() as one, aiohttp.ClientSession() as http:
        url = f"http://{one.address}{PATHS[Purpose.GOSSIP]}"
        held = [await http.ws_connect(url) for _ in range(SERVED_MAX)]
        async with http.get(url) as response:
            assert response.status == 503
        for websocket in held:
            await websocket.close()
        await until(lambda: not one.driver._push_pull._served)
        async with dialed(one):
            pass


async def test_exchanges_at_once_are_bounded_and_keep_no_probe_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_pull, "EXCHANGES_MAX", 1)
    tale = msgspec.msgpack.encode(Tale(TALE_VERSION, []))
    async with serving() as one:
        two = Node("n3")
        await two.start()
        async with dialed(one) as first:
            await first.websocket.send_bytes(tale)
            await first.websocket.receive_bytes()  # its turn has come, and it does not go on
            async with dialed(one) as second:
                await second.websocket.send_bytes(tale)
                assert await fault_of_close(second.websocket) is Fault.BUSY
            assert not await two.driver._push_pull.exchange(one.address)
            assert await two.driver._push_pull.answers(one.address, node=one.id, seconds_max=5)
        await until(lambda: not one.driver._push_pull._served)
        assert await two.driver._push_pull.exchange(one.address)
        await two.stop()


async def test_nothing_is_told_to_who_has_not_proved_itself() -> None:
    async with serving(secrets=(b"s" * 32,)) as one, aiohttp.ClientSession() as http:
        async with http.ws_connect(f"http://{one.address}{PATHS[Purpose.GOSSIP]}") as websocket:
            hello = PeerHello(cluster=CLUSTER, node=PEER.node, to_node="", name="n2", boot="b", protocol=1)
            await websocket.send_bytes(encode_greeting(hello, Purpose.GOSSIP, bytes(32)))
            await websocket.receive_bytes()  # its greeting
            await websocket.send_bytes(bytes(32))  # no proof
            await websocket.send_bytes(msgspec.msgpack.encode(Tale(TALE_VERSION, [PEER])))
            assert await fault_of_close(websocket) is Fault.SECRET_MISMATCH
        assert list(one.states()) == ["n1"]


async def test_before_the_start_and_behind_the_end_it_is_not_served() -> None:
    one = Node("n1")
    app = web.Application()
    app.add_routes(one.driver.routes())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, one.listener).start()
    async with aiohttp.ClientSession() as http:
        url = f"http://{one.address}{PATHS[Purpose.GOSSIP]}"
        async with http.get(url) as response:
            assert response.status == 503
        one.driver.start()
        async with dialed(one) as other:
            await one.driver.close()
            assert (await other.websocket.receive()).type is not aiohttp.WSMsgType.BINARY
        async with http.get(url) as response:
            assert response.status == 503
    await runner.cleanup()
    one.listener.close()
