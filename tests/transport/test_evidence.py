"""Goal: a dead process is noticed within milliseconds, and nothing else is taken for one.

Method: the probe against sockets in every state; a real process that is killed with SIGKILL, or stopped.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process

import pytest

from kvstore.transport.evidence import Reach, met_itself, probe
from tests.ports import free_port
from tests.transport.rig import FAST, Node, heartbeat

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


async def test_nobody_listens() -> None:
    assert await probe(f"127.0.0.1:{free_port()}", seconds_max=1) is Reach.REFUSED
    assert await probe(f"localhost:{free_port()}", seconds_max=1) is Reach.REFUSED  # all of its addresses


async def test_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await probe(f"127.0.0.1:{port}", seconds_max=1) is Reach.OPEN
        assert await probe(f"localhost:{port}", seconds_max=1) is Reach.OPEN  # one of its addresses


async def test_a_listener_that_goes_after_the_connect_is_a_refusal() -> None:
    """The order in which the kernel closes what a killed process had: connections first, the listener last."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        asyncio.get_running_loop().call_later(0.02, server.close)
        assert await probe(address, seconds_max=1, linger=0.5) is Reach.REFUSED


async def test_a_peer_that_only_closes_the_probes_connection_is_there() -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    assert await probe(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", seconds_max=1, linger=0.5) is Reach.OPEN
    server.close()
    await server.wait_closed()


async def test_lingering_is_bounded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        loop = asyncio.get_running_loop()
        began = loop.time()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert await probe(address, seconds_max=1, linger=0.03) is Reach.OPEN
        assert 0.025 < loop.time() - began < 0.5


async def test_a_full_backlog_is_a_time_out_and_no_evidence() -> None:
    """A process that is stopped, or too busy to accept, looks like this."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(address)
            waiting.append(one)
        assert await probe(f"127.0.0.1:{address[1]}", seconds_max=0.05) is Reach.UNKNOWN
        for one in waiting:
            one.close()


async def test_a_name_that_is_not_to_be_had_is_no_evidence() -> None:
    assert await probe("no-such-host.invalid:7001", seconds_max=5) is Reach.UNKNOWN


def test_meeting_oneself_is_told_from_meeting_a_peer() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.connect(one.getsockname())
        assert met_itself(one)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        assert not met_itself(one)


async def start_process(node: Node, name: str, port: int) -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.transport.peer_process", name, str(port), node.name, node.address, stdout=PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"ready\n"
    return process


async def end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


@pytest.mark.parametrize("name", ["n1", "n3"])
async def test_a_killed_process_is_noticed_at_once(name: str) -> None:
    """n2 dials n3 and is dialled by n1: both directions. What it sent before it was killed has arrived."""
    witness, victim = Node("n2"), Node(name)
    await witness.start({victim.node: victim.address})
    process = await start_process(witness, name, victim.port)
    for index in range(50):
        witness.transport.send(victim.node, [heartbeat(index)])
    await witness.handler.until(lambda: len(witness.messages_from(victim)) == 50)
    seen = witness.handler.events.count(("gone", victim.node))  # it was not there at first
    killed = asyncio.get_running_loop().time()
    process.send_signal(signal.SIGKILL)
    gone = await witness.handler.until_event("gone", victim.node, count=seen + 1)
    assert gone - killed < 0.25  # ~10 ms on an idle machine
    await end(process)
    await witness.stop()


async def test_a_stopped_process_is_given_up_by_silence_and_is_no_evidence() -> None:
    witness, victim = Node("n2"), Node("n3")
    await witness.start({victim.node: victim.address})
    process = await start_process(witness, "n3", victim.port)
    seen = witness.handler.events.count(("gone", victim.node))
    connection = witness.transport._peers[victim.node].connection
    assert connection is not None
    process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(FAST.beat_seconds * FAST.silent_beats_max + 2):
        await connection.wait_ended()
    process.send_signal(signal.SIGCONT)
    await witness.handler.until_event("up", victim.node, victim.name + "-boot-1", count=2)
    assert witness.handler.events.count(("gone", victim.node)) == seen
    await end(process)
    await witness.stop()
