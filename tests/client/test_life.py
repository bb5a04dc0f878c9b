"""Opening, closing, cancelling: nothing is left behind and nobody disturbs another."""

from __future__ import annotations

import asyncio
import gc

import pytest

from jepsen.sim.loop import simulated
from kvstore.base.errors import Code
from kvstore.client import Client, KVError, Timeout, Unavailable
from tests.client.fake_client import check_settled, client_of
from tests.client.fake_cluster import Act, Cluster, Delay, Refuse
from tests.client.fake_transport import MemoryConnector


@simulated
async def test_a_cancelled_caller_does_not_disturb_others() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        cluster.then(Delay(0.5))
        calls = [asyncio.ensure_future(kv.put(f"k{i}", "1")) for i in range(10)]
        await asyncio.sleep(0.1)
        calls[3].cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results].count(int) == 9
        assert isinstance(results[3], asyncio.CancelledError)
        assert await kv.get("k3") == b"1"  # it was under way


@simulated
async def test_a_cancelled_mutation_is_not_sent_again() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        cluster.then(Refuse(Code.OVERLOADED, retry_after_ms=500), Refuse(Code.OVERLOADED, retry_after_ms=500))
        gone, stays = asyncio.ensure_future(kv.put("gone", "1")), asyncio.ensure_future(kv.put("stays", "1"))
        await asyncio.sleep(0.1)
        gone.cancel()
        await stays
        assert await kv.get("gone") is None
        assert b"gone" not in bytes(cluster.frames()[-2].operations)


@simulated
async def test_cancelled_before_it_was_sent() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        call = asyncio.ensure_future(kv.get("a"))
        await asyncio.sleep(0)  # it is in the inbox
        call.cancel()
        assert await kv.put("b", "1") == 2


@simulated
async def test_a_time_limit_around_a_call() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        cluster.then(Act.HANG)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await kv.put("a", "1")
        await kv.put("a", "2")


@simulated
async def test_a_cancelled_put_many_cancels_the_rest() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")
        cluster.script = lambda node, frame: Act.HANG
        call = asyncio.ensure_future(kv.put_many({f"k{i}": "1" for i in range(100)}))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@simulated
async def test_closing_ends_what_is_under_way_with_the_right_outcome() -> None:
    cluster = Cluster()
    kv = Client([cluster.nodes["n1"].address], connector=MemoryConnector(cluster))
    await kv.open()
    await kv.put("warm", "up")
    cluster.then(Act.HANG, Act.HANG, Refuse(Code.OVERLOADED, retry_after_ms=3_000))
    sent, read, waiting = (asyncio.ensure_future(call) for call in (kv.put("a", "1"), kv.get("a"), kv.put("b", "1")))
    await asyncio.sleep(0.1)
    inbox = asyncio.ensure_future(kv.put("c", "1"))
    await asyncio.sleep(0)
    await kv.close()
    check_settled(kv)
    results = await asyncio.gather(sent, read, waiting, inbox, return_exceptions=True)
    assert [type(result) for result in results] == [Timeout, Unavailable, Timeout, Unavailable]
    assert [result.outcome for result in results if isinstance(result, KVError)] == [
        "unknown",
        "failed",
        "unknown",  # it shared the frame of "a"
        "failed",
    ]
    assert not any(node.connections for node in cluster.nodes.values())


@simulated
async def test_closing_while_connecting_and_waiting_for_routes() -> None:
    cluster = Cluster()
    connector = MemoryConnector(cluster)
    connector.black_holes.update(node.address for node in cluster.nodes.values())
    kv = Client([cluster.nodes["n1"].address], connector=connector)
    await kv.open()
    call = asyncio.ensure_future(kv.put("a", "1"))
    await asyncio.sleep(0.3)
    await kv.close()
    with pytest.raises(Unavailable) as caught:
        await call
    assert caught.value.outcome == "failed"
    assert connector.closed


@simulated
async def test_closing_during_every_stage() -> None:
    """Whatever the moment, closing leaves no task, no complaint and no caller without an answer."""
    for milliseconds in range(0, 60, 1):
        cluster = Cluster(splits=(b"k5",))
        cluster.then(None, Act.DROP_AFTER, Refuse(Code.NOT_LEADER), None, Act.GARBAGE)
        kv = Client([node.address for node in cluster.nodes.values()], connector=MemoryConnector(cluster))
        await kv.open()
        calls = [asyncio.ensure_future(kv.put(f"k{i}", "1")) for i in range(10)]
        await asyncio.sleep(milliseconds / 1_000)
        await kv.close()
        check_settled(kv)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, (int, KVError)) for result in results)


@simulated
async def test_interrupting_the_body_closes() -> None:
    cluster = Cluster()

    async def program() -> None:
        async with client_of(cluster) as kv:
            await kv.put("a", "1")
            cluster.script = lambda node, frame: Act.HANG
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(kv.put("a", "2"))

    task = asyncio.ensure_future(program())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(node.connections for node in cluster.nodes.values())


@simulated
async def test_no_complaints_about_errors_that_nobody_took() -> None:
    cluster = Cluster()
    async with client_of(cluster, timeout=0.3) as kv:
        cluster.script = lambda node, frame: Act.HANG
        results = await kv.put_many({f"k{i}": "1" for i in range(5)})
        assert all(isinstance(result, Timeout) for result in results)
        call = asyncio.ensure_future(kv.get("a"))
        await asyncio.sleep(0.1)
        call.cancel()
        del call
        await asyncio.sleep(1)
    gc.collect()


def test_an_error_of_our_own_does_not_hang_callers() -> None:
    async def body() -> None:
        cluster = Cluster()
        kv = Client([cluster.nodes["n1"].address], connector=MemoryConnector(cluster))
        await kv.open()
        await kv.put("a", "1")
        assert kv._dispatcher is not None
        kv._dispatcher.on_results = None  # type: ignore[method-assign,assignment]  # a bug
        with pytest.raises(KVError, match="the outcome is unknown"):
            await kv.put("a", "2")
        with pytest.raises(RuntimeError):
            await kv.put("a", "3")
        await kv.close()

    with pytest.raises(AssertionError, match="the client failed"):
        simulated(body)()


@simulated
async def test_the_window_of_frames_is_bounded_and_moves_on() -> None:
    """Each turn one operation: frames pile up to the window, then operations gather until there is room."""
    cluster = Cluster(1)
    async with client_of(cluster, timeout=20) as kv:
        await kv.put("warm", "up")
        cluster.script = lambda node, frame: Delay(1.0)
        calls = []
        for i in range(1_000):
            calls.append(asyncio.ensure_future(kv.put(f"k{i}", "1")))
            await asyncio.sleep(0.0005)
        assert len(cluster.frames()) <= 257
        await asyncio.gather(*calls)
        assert len(cluster.frames()) < 400
    assert len(cluster.log()) == 1_001
