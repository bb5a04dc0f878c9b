"""Goal: links between two nodes can be cut, slowed and made lossy, each direction for itself, and heal. Method: two
"nodes", an echo server in this process and a dialer in a child process, so that the switch has two owners to tell
apart; clients are this process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from jepsen.switch import CLIENT, Switch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the switch asks Linux who owns a connection")
QUIET_SECONDS = 0.15  # in which a cut link lets nothing through
WAIT_SECONDS = 10.0
# It connects when it is told to: before that the switch does not know whose process it is.
DIALER = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
one = None
for line in sys.stdin.buffer:
    one = one or socket.create_connection((host, port))
    one.sendall(line)
    print(one.makefile("rb").readline().decode(), end="", flush=True)
"""


@dataclass
class Rig:
    switch: Switch
    known_as: tuple[str, int]
    listens: tuple[str, int]
    echoed: int = 0


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """The node "echo" is known at one address and listens at another one."""
    switch = Switch(random.Random(1))
    server: asyncio.Server

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1_024):
                rig.echoed += 1
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.77.0.1", 0)
    listens = server.sockets[0].getsockname()
    rig = Rig(switch, ("127.77.0.101", listens[1]), listens)
    await switch.add("echo", listens=rig.listens, known_as=rig.known_as)
    yield rig
    await switch.close()
    server.close()
    await server.wait_closed()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bytes:
    writer.write(text)
    async with asyncio.timeout(WAIT_SECONDS):
        return await reader.readexactly(len(text))


async def test_a_node_that_does_not_run_refuses_connections(rig: Rig) -> None:
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*rig.known_as)
    await rig.switch.open("echo", 1)
    reader, writer = await asyncio.open_connection(*rig.known_as)
    assert await ask(reader, writer, b"hello") == b"hello"
    rig.switch.shut("echo")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*rig.known_as)
    writer.close()


async def test_one_direction_is_cut_and_delivers_once_it_is_healed(rig: Rig) -> None:
    await rig.switch.open("echo", 1)
    reader, writer = await asyncio.open_connection(*rig.known_as)
    assert await ask(reader, writer, b"one") == b"one"
    rig.switch.link("echo", CLIENT).cut = True
    writer.write(b"two")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            await reader.readexactly(3)
    assert rig.echoed == 2, "the way there was not cut"
    rig.switch.heal()
    async with asyncio.timeout(WAIT_SECONDS):
        assert await reader.readexactly(3) == b"two"
    rig.switch.link(CLIENT, "echo").cut = True
    writer.write(b"three")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            await reader.readexactly(5)
    assert rig.echoed == 2
    rig.switch.heal()
    async with asyncio.timeout(WAIT_SECONDS):
        assert await reader.readexactly(5) == b"three"
    writer.close()


async def test_a_slow_link_takes_its_time_and_keeps_the_order(rig: Rig) -> None:
    await rig.switch.open("echo", 1)
    rig.switch.link(CLIENT, "echo").delay = rig.switch.link("echo", CLIENT).delay = 0.05
    rig.switch.link(CLIENT, "echo").jitter = 0.04
    reader, writer = await asyncio.open_connection(*rig.known_as)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await ask(reader, writer, b"0") == b"0"
    assert loop.time() - began >= 0.06
    text = bytes(range(100))
    for place in range(100):
        writer.write(text[place : place + 1])
        await asyncio.sleep(0)
    async with asyncio.timeout(WAIT_SECONDS):
        assert await reader.readexactly(100) == text
    writer.close()


async def test_a_nodes_own_connections_are_told_from_those_of_clients(rig: Rig) -> None:
    """Only the child's link is cut; this process's goes on."""
    await rig.switch.open("echo", 1)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DIALER, rig.known_as[0], str(rig.known_as[1]),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    with socket.socket() as spare:
        spare.bind(("127.77.0.2", 0))
        address = spare.getsockname()
    await rig.switch.add("dialer", listens=("127.77.0.2", address[1]), known_as=("127.77.0.102", address[1]))
    await rig.switch.open("dialer", child.pid)
    child.stdin.write(b"a\n")
    async with asyncio.timeout(WAIT_SECONDS):
        assert await child.stdout.readline() == b"a\n"
    rig.switch.link("dialer", "echo").cut = True
    reader, writer = await asyncio.open_connection(*rig.known_as)
    assert await ask(reader, writer, b"client") == b"client"
    child.stdin.write(b"b\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            await child.stdout.readline()
    rig.switch.heal()
    async with asyncio.timeout(WAIT_SECONDS):
        assert await child.stdout.readline() == b"b\n"
    writer.close()
    child.stdin.close()
    async with asyncio.timeout(WAIT_SECONDS):
        await child.wait()


class Inbox(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.put_nowait((data, addr))


async def test_datagrams_are_carried_both_ways_and_dropped_on_a_cut_link() -> None:
    """The receiver sees the sender at the address by which it is known, so its answers find back."""
    switch = Switch(random.Random(1))
    loop = asyncio.get_running_loop()
    known = {}
    sockets = {}
    for number, name in enumerate(("a", "b"), start=1):
        transport, inbox = await loop.create_datagram_endpoint(Inbox, local_addr=(f"127.77.1.{number}", 0))
        port = transport.get_extra_info("sockname")[1]
        known[name] = (f"127.77.1.{number + 100}", port)
        sockets[name] = (transport, inbox)
        await switch.add(name, listens=(f"127.77.1.{number}", port), known_as=known[name])
    (out, back), (other, inbox) = sockets["a"], sockets["b"]
    async with asyncio.timeout(WAIT_SECONDS):
        out.sendto(b"ping", known["b"])
        assert await inbox.got.get() == (b"ping", known["a"])
        other.sendto(b"pong", known["a"])
        assert await back.got.get() == (b"pong", known["b"])
        switch.link("a", "b").cut = True
        out.sendto(b"lost", known["b"])
        while switch.datagrams_dropped == 0:  # noqa: ASYNC110 (nobody is told of a drop)
            await asyncio.sleep(0)
        switch.link("a", "b").cut = False
        switch.link("a", "b").delay = 0.03
        began = loop.time()
        out.sendto(b"late", known["b"])
        assert (await inbox.got.get())[0] == b"late"
        assert loop.time() - began >= 0.03
        switch.link("a", "b").loss = 1.0
        out.sendto(b"lost", known["b"])
        while switch.datagrams_dropped == 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert inbox.got.empty()
    out.close()
    other.close()
    await switch.close()
