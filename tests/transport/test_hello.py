"""Goal: only nodes of the cluster that know its secret get in, each knows whom it speaks to, and both sides can read
in their logs why not. Method: tables for the pure checks; real transports, and a raw WebSocket as the attacker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from kvstore.base.limits import PEER_PROTOCOL
from kvstore.transport.frames import PART_BYTES_MAX
from kvstore.transport.hello import (
    Fault,
    HelloError,
    Identity,
    Purpose,
    check_hello,
    check_proof,
    decode_greeting,
    encode_greeting,
    prove,
)
from kvstore.transport.protocol import PeerHello
from tests.transport.rig import CLUSTER, FAST, IDS, Node, connect, heartbeat, introduce, stop_all

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

ME = Identity(cluster=CLUSTER, node=IDS["n2"], name="n2", boot="boot")
HELLO = PeerHello(cluster=CLUSTER, node=IDS["n1"], to_node="", name="n1", boot="b1", protocol=PEER_PROTOCOL)
NONCE = bytes(range(32))


@pytest.mark.parametrize(
    ("hello", "expected", "fault"),
    [
        (HELLO, "", None),
        (HELLO, IDS["n1"], None),
        (replace(HELLO, to_node=IDS["n2"]), IDS["n1"], None),
        (replace(HELLO, cluster="other"), "", Fault.CLUSTER_MISMATCH),
        (replace(HELLO, node=IDS["n2"]), "", Fault.OWN_NODE),
        (replace(HELLO, name="n2"), "", Fault.DUPLICATE_NAME),
        (HELLO, IDS["n3"], Fault.NODE_MISMATCH),
        (replace(HELLO, to_node=IDS["n3"]), "", Fault.NODE_MISMATCH),
    ],
)
def test_who_may_connect(hello: PeerHello, expected: str, fault: Fault | None) -> None:
    if fault is None:
        check_hello(hello, ME, expected=expected)
        return
    with pytest.raises(HelloError) as error:
        check_hello(hello, ME, expected=expected)
    assert error.value.fault is fault


def test_a_greeting_comes_back() -> None:
    assert decode_greeting(encode_greeting(HELLO, Purpose.SNAPSHOT, NONCE)) == (HELLO, Purpose.SNAPSHOT)


def test_a_later_version_is_named_whatever_its_shape() -> None:
    with pytest.raises(HelloError, match=r"PROTOCOL_MISMATCH.*version 99"):
        decode_greeting(msgspec.msgpack.encode([99, {"entirely": "different"}]))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_greeting_or_a_named_error(data: bytes) -> None:
    try:
        decode_greeting(data)
    except HelloError as error:
        assert error.fault in (Fault.MALFORMED, Fault.PROTOCOL_MISMATCH)


def test_a_proof_holds_for_one_role_and_one_pair_of_greetings() -> None:
    proof = prove(b"s", b"dialer", b"hello 1", b"hello 2")
    check_proof(proof, [b"old", b"s"], b"dialer", b"hello 1", b"hello 2")
    others = [
        (b"listener", b"hello 1", b"hello 2"),
        (b"dialer", b"hello 1", b"hello 3"),
        (b"dialer", b"hello 2", b"hello 1"),
        (b"dialer", b"hello", b" 1hello 2"),
    ]
    for role, dialer, listener in others:
        with pytest.raises(HelloError, match="SECRET_MISMATCH"):
            check_proof(proof, [b"s"], role, dialer, listener)
    for wrong in (b"", proof[:-1], bytes(32)):
        with pytest.raises(HelloError, match="SECRET_MISMATCH"):
            check_proof(wrong, [b"s"], b"dialer", b"hello 1", b"hello 2")
    with pytest.raises(HelloError, match="this node has none"):
        check_proof(proof, [], b"dialer", b"hello 1", b"hello 2")


# -- between transports


async def until_logged(caplog: pytest.LogCaptureFixture, condition: Callable[[str], bool]) -> None:
    """A log line has no event to wait for."""
    logged = asyncio.Event()

    class Waker(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()

    waker = Waker()
    logger = logging.getLogger("kvstore.transport")
    logger.addHandler(waker)
    try:
        async with asyncio.timeout(5):
            while not condition(caplog.text):
                logged.clear()
                await logged.wait()
    finally:
        logger.removeHandler(waker)


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (Node("n2", cluster="d" * 32), "CLUSTER_MISMATCH"),
        (Node("n2", node=IDS["n3"]), "NODE_MISMATCH"),
        (Node("n2", secrets=(b"another",)), "SECRET_MISMATCH"),
        (Node("n2", secrets=()), "SECRET_MISMATCH"),
        (Node("n1", node=IDS["n2"]), "DUPLICATE_NAME"),
    ],
)
@pytest.mark.parametrize("wrong_dials", [False, True])
async def test_a_mismatch_is_named_on_both_sides(
    other: Node, fault: str, wrong_dials: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Both directions of the dial: the wrong one listens, or dials itself (then it has the lower id)."""
    right = Node("n1", secrets=(b"secret",))
    wrong = Node(other.name, node=other.node, cluster=other.cluster, secrets=other.secrets)
    if fault != "SECRET_MISMATCH":
        wrong.secrets = right.secrets
    if wrong_dials:
        right.node, wrong.node = IDS["n2"], IDS["n1"] if other.node == IDS["n2"] else "0" * 32
    dialer, listener = (wrong, right) if wrong_dials else (right, wrong)
    wanted = IDS["n2"] if fault != "NODE_MISMATCH" else "7" * 32
    await listener.start()
    await dialer.start({wanted: listener.address})
    await until_logged(
        caplog, lambda text: f"refused this node: {fault}" in text and "this node refused" in text and fault in text
    )
    assert not [event for node in (right, wrong) for event in node.handler.events if event[0] == "up"]
    await stop_all(right, wrong)


async def test_the_same_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    fast = replace(FAST, backoff_seconds_max=0.01)
    one, two = Node("n1", settings=fast), Node("n2", cluster="d" * 32)
    await two.start()
    await one.start({two.node: two.address})
    await until_logged(caplog, lambda text: "refused this node: CLUSTER_MISMATCH" in text)
    await asyncio.sleep(0.1)  # some more attempts
    assert caplog.text.count("refused this node: CLUSTER_MISMATCH") == 1
    await stop_all(one, two)


async def test_a_node_with_our_own_id_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    one, copy = Node("n1"), Node("n1")
    await one.start()
    await copy.start({IDS["n2"]: one.address})
    await until_logged(caplog, lambda text: text.count("OWN_NODE") >= 2 or "refused this node: OWN_NODE" in text)
    await stop_all(one, copy)


async def test_the_secret_is_changed_without_losing_a_node() -> None:
    """Accept both, then prove with the new one, then drop the old one; each node restarts once a step, in turn."""
    nodes = [Node(name, secrets=(b"old",)) for name in IDS]
    await connect(*nodes)
    for secrets in ((b"old", b"new"), (b"new", b"old"), (b"new",)):
        for node in nodes:
            await node.stop()
            node.secrets = secrets
            await node.start({other.node: other.address for other in nodes})
            for other in nodes:
                if other is not node:
                    await node.handler.until_event("up", other.node, other.boot, count=1)
                    await other.handler.until_event("up", node.node, node.boot)
    await stop_all(*nodes)


async def test_secrets_can_be_set_while_the_node_runs() -> None:
    one, two = Node("n1", secrets=(b"old",)), Node("n2", secrets=(b"old",))
    await connect(one, two)
    one.transport.set_secrets([b"new"])
    two.transport.set_secrets([b"new"])
    assert one.transport.connected(two.node)  # an open connection stays
    two.transport._peers[one.node].connection.stop(Fault.LEAVING, "test")  # type: ignore[union-attr]
    await one.handler.until_event("up", two.node, two.boot, count=2)
    await stop_all(one, two)


# -- a raw WebSocket against a node


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node("n2", secrets=(b"secret",), settings=replace(FAST, hello_seconds_max=0.5))
    await node.start()
    yield node
    await node.stop()


@asynccontextmanager
async def raw(node: Node, path: str = "/v1/peer/raft") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://{node.address}{path}", timeout=aiohttp.ClientWSTimeout(ws_close=1.0)) as socket,
    ):
        yield socket


async def closed_with(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(5):
        while (await socket.receive()).type is WSMsgType.BINARY:
            pass
    return socket.close_code


GREETING = encode_greeting(replace(HELLO, to_node=IDS["n2"]), Purpose.RAFT, NONCE)


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (b"", Fault.MALFORMED),
        (b"garbage", Fault.MALFORMED),
        (b"\xff" * PART_BYTES_MAX, Fault.MALFORMED),
        (encode_greeting(HELLO, Purpose.RAFT, b"short"), Fault.MALFORMED),
        (encode_greeting(HELLO, Purpose.SNAPSHOT, NONCE), Fault.MALFORMED),
        (encode_greeting(replace(HELLO, name="x" * 5_000), Purpose.RAFT, NONCE), Fault.MALFORMED),
        (encode_greeting(replace(HELLO, protocol=2), Purpose.RAFT, NONCE), Fault.PROTOCOL_MISMATCH),
        (encode_greeting(replace(HELLO, node=IDS["n2"]), Purpose.RAFT, NONCE), Fault.OWN_NODE),
    ],
)
async def test_bad_greetings_close_with_their_fault(node: Node, first: bytes, fault: Fault) -> None:
    async with raw(node) as socket:
        await socket.send_bytes(first)
        assert await closed_with(socket) == fault


async def test_a_text_message_is_no_greeting(node: Node) -> None:
    async with raw(node) as socket:
        await socket.send_str("hello")
        assert await closed_with(socket) == Fault.MALFORMED


async def test_a_message_over_the_limit_is_refused_before_it_is_read(node: Node) -> None:
    async with raw(node) as socket:
        await socket.send_bytes(bytes(2 * PART_BYTES_MAX))
        assert await closed_with(socket) in (aiohttp.WSCloseCode.MESSAGE_TOO_BIG, aiohttp.WSCloseCode.ABNORMAL_CLOSURE)


@pytest.mark.parametrize("greets", [False, True])
async def test_a_half_open_hello_ends_in_time(node: Node, greets: bool) -> None:
    async with raw(node) as socket:
        if greets:
            await socket.send_bytes(GREETING)
        assert await closed_with(socket) == Fault.TOO_SLOW


async def test_greetings_are_limited_and_the_limit_passes() -> None:
    node = Node("n2", settings=replace(FAST, hello_seconds_max=0.3, greetings_max=3))
    await node.start()
    sockets = [raw(node) for _ in range(3)]
    for socket in sockets:
        await socket.__aenter__()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await raw(node).__aenter__()
    for socket in sockets:
        await socket.__aexit__(None, None, None)
    one = Node("n1")
    await one.start({node.node: node.address})
    await one.handler.until_event("up", node.node, node.boot)
    await stop_all(one, node)


async def test_the_listener_proves_nothing_to_who_has_not_proved_it_first(node: Node) -> None:
    async with raw(node) as socket:
        await socket.send_bytes(GREETING)
        theirs = await socket.receive_bytes()
        assert decode_greeting(theirs)[0].node == node.node
        await socket.send_bytes(bytes(32))
        message = await socket.receive()
        assert message.type is WSMsgType.CLOSE
        assert message.data == Fault.SECRET_MISMATCH


async def test_a_recorded_handshake_is_of_no_use(node: Node) -> None:
    """An eavesdropper plays back, byte for byte, what an honest node sent."""
    async with raw(node) as socket:
        await socket.send_bytes(GREETING)
        theirs = await socket.receive_bytes()
        proof = prove(b"secret", b"dialer", GREETING, theirs)
        await socket.send_bytes(proof)
        check_proof(await socket.receive_bytes(), [b"secret"], b"listener", GREETING, theirs)
        await node.handler.until_event("up", IDS["n1"], "b1")
    async with raw(node) as socket:
        await socket.send_bytes(GREETING)
        again = await socket.receive_bytes()
        assert again != theirs  # a nonce of its own each time
        await socket.send_bytes(proof)
        assert await closed_with(socket) == Fault.SECRET_MISMATCH
    assert node.handler.events.count(("up", IDS["n1"], "b1")) == 1


async def test_the_listeners_own_proof_cannot_be_sent_back(node: Node) -> None:
    """Reflection: make the node prove on one connection what another one asks for."""
    async with raw(node) as socket:
        await socket.send_bytes(GREETING)
        theirs = await socket.receive_bytes()
        await socket.send_bytes(prove(b"secret", b"listener", GREETING, theirs))
        assert await closed_with(socket) == Fault.SECRET_MISMATCH


async def test_a_proof_for_snapshots_does_not_open_raft(node: Node) -> None:
    async with raw(node, "/v1/peer/snapshot") as socket:
        await socket.send_bytes(GREETING)
        assert await closed_with(socket) == Fault.MALFORMED


async def test_before_start_and_after_close_nobody_is_let_in() -> None:
    one, two = Node("n1"), Node("n2")
    await connect(one, two)
    await two.transport.close()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await raw(two).__aenter__()
    assert not two.transport.send(one.node, [heartbeat(1)])
    introduce(one, two)
    await stop_all(one, two)


async def test_plain_http_on_a_peers_path_is_a_client_error(node: Node) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"http://{node.address}/v1/peer/raft") as response:
        assert response.status == 400
