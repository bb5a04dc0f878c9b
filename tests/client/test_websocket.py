"""The real network path: WebSockets on a local port, and the synchronous client on its thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiohttp import web

from kvstore.base.stream import Mutate, Read
from kvstore.client import Cas, Client, Conflict, Invalid, KVError, SyncClient, Unavailable
from tests.client.fake_cluster import Act, Cluster, Node
from tests.client.fake_transport import serve


async def test_a_cluster_on_real_sockets() -> None:
    cluster = Cluster(splits=(b"m",))
    async with serve(cluster) as addresses, Client([f"http://{addresses[0]}"]) as kv:
        await asyncio.gather(*(kv.put(f"{letter}{i}", b"x" * i) for letter in "az" for i in range(200)))
        assert await kv.get("z199") == b"x" * 199
        assert len([item async for item in kv.scan()]) == 400
        cluster.then(Act.DROP_AFTER, Act.GARBAGE, Act.DROP_BEFORE)
        assert await kv.put("a", "1") == 201
        cluster.lead(2, "n3")
        assert await kv.put("a", "2") == 202
        assert all(node.dialled >= 1 for node in cluster.nodes.values())


async def test_large_values_travel_in_several_messages() -> None:
    cluster = Cluster(1)
    async with serve(cluster) as addresses, Client(addresses) as kv:
        values = {f"k{i}": bytes([i]) * (1 << 20) for i in range(12)}
        assert all(isinstance(one, int) for one in await kv.put_many(values))
        assert await kv.get_many(list(values)) == list(values.values())
        assert [len(item.value) async for item in kv.scan()] == [1 << 20] * 12


async def test_what_is_no_node_is_told() -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with Client(f"127.0.0.1:{runner.addresses[0][1]}", timeout=0.3) as kv:
            with pytest.raises(Unavailable, match="HTTP 404"):
                await kv.get("a")
    finally:
        await runner.cleanup()
    async with Client("127.0.0.1:9", timeout=0.3) as kv:
        with pytest.raises(Unavailable, match="cannot connect"):
            await kv.get("a")


async def test_an_endpoint_written_in_another_way_is_the_same_node() -> None:
    """One connection a node, although the routes name 127.0.0.1 and the user wrote localhost."""
    cluster = Cluster(1)
    async with serve(cluster) as addresses:
        port = addresses[0].rpartition(":")[2]
        async with Client(f"localhost:{port}") as kv:
            await kv.put("a", "1")
            assert await kv.get("a") == b"1"
        assert cluster.nodes["n1"].dialled == 1


@contextmanager
def served_in_a_thread(cluster: Cluster) -> Iterator[list[str]]:
    ready: concurrent.futures.Future[list[str]] = concurrent.futures.Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with serve(cluster) as addresses:
            ready.set_result(addresses)
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        yield ready.result(10)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_the_synchronous_client_has_the_same_methods() -> None:
    public = {name for name in vars(Client) if not name.startswith("_")} - {"open"}
    assert public <= {name for name in vars(SyncClient) if not name.startswith("_")}


def test_the_synchronous_client() -> None:
    cluster = Cluster(splits=(b"m",))
    with served_in_a_thread(cluster) as addresses, SyncClient(addresses, timeout=10) as kv:
        assert kv.put("a", "1") == 1
        assert kv.get("a") == b"1"
        record = kv.get_record("a")
        assert record is not None
        assert kv.cas("a", "2", revision=record.mod_revision) == 2
        with pytest.raises(Conflict):
            kv.cas("a", "3", absent=True)
        assert kv.get_stale("a").applied_index == 2
        assert kv.batch().put("b", "1").delete("a").commit().revision == 3
        assert kv.batch([Cas(0, b"b", b"2", 3)]).results == [4]
        assert kv.put_many({"x": "1", "y": "2"}) == [1, 2]
        assert kv.get_many(["x", "y", "a"]) == [b"1", b"2", None]
        assert [item.key for item in kv.scan(page_keys=1)] == [b"b", b"x", b"y"]
        assert [item.key for item in kv.scan(reverse=True, limit=2)] == [b"y", b"x"]
        assert kv.scan_page(prefix="x").items[0].value == b"1"
        assert kv.delete("b") is True
        assert kv.delete_range(prefix="x") == 1
        assert [route.id for route in kv.routes()] == [2, 3]
        with pytest.raises(Invalid):
            kv.put("", "")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(lambda i: kv.put(f"t{i}", "v"), range(200)))) == 200
    with pytest.raises(RuntimeError):
        kv.get("a")
    kv.close()
    assert not any(thread.name == "kvstore-client" for thread in threading.enumerate())


def test_an_interrupted_call_leaves_the_client_usable() -> None:
    cluster = Cluster(1)
    with served_in_a_thread(cluster) as addresses, SyncClient(addresses) as kv:
        kv.put("a", "1")
        cluster.then(Act.HANG)
        timer = threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            kv.get("a")
        timer.join()
        assert kv.get("a") == b"1"


def test_closing_from_another_thread_ends_waiting_calls() -> None:
    cluster = Cluster(1)
    with served_in_a_thread(cluster) as addresses:
        kv = SyncClient(addresses)
        kv.put("a", "1")
        arrived = threading.Event()

        def hang(node: Node, frame: Mutate | Read) -> Act:
            arrived.set()
            return Act.HANG

        cluster.script = hang
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(kv.put, "a", "2")
            assert arrived.wait(10)
            kv.close()
            with pytest.raises(KVError) as caught:
                waiting.result()
            assert caught.value.outcome == "unknown"


PROGRAM = """
    import asyncio, sys
    from kvstore.client import Client

    async def main() -> None:
        async with Client(sys.argv[1]) as kv:
            await kv.put("a", "1")
            print("ready", flush=True)
            async with asyncio.TaskGroup() as group:
                for i in range(50):
                    group.create_task(worker(kv, i))

    async def worker(kv: Client, i: int) -> None:
        while True:
            await kv.put(f"k{i}", "v")

    asyncio.run(main())
"""


def test_ctrl_c_ends_a_program_cleanly() -> None:
    """No complaint of asyncio about tasks, futures or transports on the way out."""
    cluster = Cluster(1)
    with served_in_a_thread(cluster) as addresses:
        program = subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", textwrap.dedent(PROGRAM), addresses[0]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with program:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=20)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    for complaint in ("Task", "never retrieved", "ResourceWarning", "Unclosed", "never awaited"):
        assert complaint not in errors.replace("TaskGroup", ""), errors
