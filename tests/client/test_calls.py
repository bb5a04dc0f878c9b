"""What the calls return and refuse, with everything well behind them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jepsen.sim.loop import simulated
from kvstore.base.limits import Limits
from kvstore.client import (
    BatchConflict,
    Cas,
    Client,
    Conflict,
    Delete,
    Found,
    Get,
    Invalid,
    NotFound,
    Overloaded,
    Put,
    TooLarge,
)
from kvstore.client.connection import parse_endpoints
from kvstore.client.keys import prefix_range
from tests.client.fake_client import client_of
from tests.client.fake_cluster import Act, Cluster


@simulated
async def test_single_key_operations() -> None:
    async with client_of(Cluster()) as kv:
        assert await kv.get("a") is None
        assert await kv.put("a", "1") == 1
        assert await kv.put(b"a", b"2") == 2
        assert await kv.get(b"a") == b"2"
        assert await kv.get_record("a") == Found(b"2", 2, 1, 2)
        assert await kv.get_record("b") is None
        assert await kv.delete("a") is True
        assert await kv.delete("a") is False
        assert await kv.put("umlaut ü", bytearray(b"x")) > 0  # type: ignore[arg-type]
        assert await kv.get("umlaut ü".encode()) == b"x"


@simulated
async def test_compare_and_set() -> None:
    async with client_of(Cluster()) as kv:
        first = await kv.cas("a", "1", absent=True)
        with pytest.raises(Conflict) as caught:
            await kv.cas("a", "2", absent=True)
        assert caught.value.detail == Found(b"1", first, first, 1)
        assert caught.value.outcome == "failed"
        second = await kv.cas("a", "2", revision=first)
        with pytest.raises(Conflict):
            await kv.cas("a", "3", revision=first)
        assert await kv.cas("a", "3", expected="2") == second + 1
        await kv.cas("a", None, expected="3")
        with pytest.raises(Conflict) as caught:
            await kv.cas("a", "4", expected="3")
        assert caught.value.detail is None
        for wrong in ({}, {"revision": 1, "absent": True}, {"revision": 1, "expected": "x"}):
            with pytest.raises(Invalid):
                await kv.cas("a", "5", **wrong)
        with pytest.raises(Invalid):
            await kv.cas("a", "5", revision=-1)


@simulated
async def test_batches() -> None:
    async with client_of(Cluster()) as kv:
        done = await kv.batch().put("a", "1").put("b", "2").get("c").delete("c").commit()
        assert done.revision == 1
        assert done.results == [1, 1, None, 0]
        done = await kv.batch([Cas(0, b"a", b"3", 1), Get(0, b"b"), Delete(0, b"b"), Put(0, b"d", b"")])
        assert done.results == [2, Found(b"2", 1, 1, 1), 2, 2]
        with pytest.raises(BatchConflict) as caught:
            await kv.batch().put("x", "y").cas("a", "4", revision=1).commit()
        assert caught.value.index == 1
        assert caught.value.detail == Found(b"3", 2, 1, 2)
        assert await kv.get("x") is None
        with pytest.raises(Invalid):
            await kv.batch().commit()
        with pytest.raises(Invalid):
            await kv.batch([Put(0, b"", b"")])
        with pytest.raises(Invalid):
            await kv.batch(["put"])  # type: ignore[list-item]


@simulated
async def test_a_batch_over_two_shards_is_refused() -> None:
    """But only after the routes were asked for anew: the shards may have merged."""
    cluster = Cluster(splits=(b"m",))
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        with pytest.raises(Invalid, match="different"):
            await kv.batch().put("a", "2").put("z", "2").commit()
        assert await kv.get("a") == b"1"
        cluster.merge(2, 3)
        assert (await kv.batch().put("a", "2").put("z", "2").commit()).revision > 0


@simulated
async def test_many() -> None:
    cluster = Cluster(splits=(b"k05000", b"k08000"))
    async with client_of(cluster) as kv:
        pairs = [(f"k{i:05}", str(i)) for i in range(20_000)]
        revisions = await kv.put_many(iter(pairs))
        assert len(revisions) == 20_000
        assert all(isinstance(one, int) for one in revisions)
        values = await kv.get_many([key for key, _ in pairs])
        assert values == [value.encode() for _, value in pairs]
        results = await kv.put_many([("", "x"), ("ok", "x"), ("big", b"x" * (1 << 20 | 1))])
        assert [type(one) for one in results] == [Invalid, int, TooLarge]
        assert await kv.get_many(["ok", "none"], max_staleness=1.0) == [b"x", None]
        mixed = await kv.get_many(["ok", ""])
        assert mixed[0] == b"x"
        assert isinstance(mixed[1], Invalid)
        assert await kv.put_many([]) == []


@simulated
async def test_stale_reads_are_served_by_any_replica() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        for node in cluster.nodes.values():
            node.frames.clear()
        read = await kv.get_stale("a", max_staleness=3)
        assert read.record is not None
        assert (read.record.value, read.applied_index, read.age_seconds) == (b"1", 1, 0.007)
        assert await kv.get("a", max_staleness=0) == b"1"
        assert [item.key async for item in kv.scan(max_staleness=0.5)] == [b"a"]
        assert [frame.max_staleness_ms for frame in cluster.frames()] == [3_000, 0, 500]  # type: ignore[union-attr]
        with pytest.raises(Invalid):
            await kv.get("a", max_staleness=-1)
    async with client_of(cluster, endpoints=("n2",), read_mode="stale", max_staleness=2) as kv:
        assert await kv.get("a") == b"1"
        assert await kv.get_record("a") is not None
        assert len(cluster.nodes["n2"].frames) >= 2


@simulated
async def test_a_stale_read_that_a_follower_refuses_goes_to_the_leader() -> None:
    cluster = Cluster()
    async with client_of(cluster, endpoints=("n2",)) as kv:
        cluster.shards[2].version = 2
        cluster.nodes["n2"].hint = lambda route: Cluster(1).route(Cluster(1).shards[2])  # an old picture
        assert await kv.get("a", max_staleness=1) is None
        assert cluster.nodes["n1"].frames or cluster.nodes["n3"].frames


@simulated
async def test_wrong_arguments_never_leave_the_client() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("warm", "up")  # the limits are known from here on
        before = len(cluster.frames())
        odd: Any = 1
        wrong: list[tuple[type[Exception], Any]] = [
            (Invalid, lambda: kv.put("", "x")),
            (Invalid, lambda: kv.get("")),
            (TooLarge, lambda: kv.get(b"k" * 481)),
            (TooLarge, lambda: kv.put("k", b"x" * (1 << 20 | 1))),
            (TooLarge, lambda: kv.cas("k", b"x" * (1 << 20 | 1), absent=True)),
            (TypeError, lambda: kv.put(odd, "x")),
            (TypeError, lambda: kv.put("x", odd)),
            (Invalid, lambda: kv.scan_page(limit=0)),
            (Invalid, lambda: kv.scan_page(start="b", end="a")),
            (Invalid, lambda: kv.scan_page(prefix="b", end="a")),
            (TooLarge, lambda: kv.scan_page(start=b"k" * 481)),
            (Invalid, lambda: kv.delete_range()),
            (Invalid, lambda: kv.delete_range("a")),
            (TooLarge, lambda: kv.batch([Put(0, b"%d" % i, b"x" * (1 << 20)) for i in range(5)])),
            (Invalid, lambda: kv.batch([Put(0, b"k", b"x")] * 1_001)),
        ]
        for kind, call in wrong:
            with pytest.raises(kind):
                await call()
        assert len(cluster.frames()) == before


def test_constructor_arguments() -> None:
    assert parse_endpoints("http://a:1, b:2,,a:1/") == ("a:1", "b:2")
    assert parse_endpoints(["[::1]:7001"]) == ("[::1]:7001",)
    for endpoints in ("", "a", "a:x", ":1", "https://a:1", "a:0", "a:70000", "http://a:1/v1"):
        with pytest.raises(ValueError, match="endpoint"):
            Client(endpoints)
    for arguments in ({"timeout": 0}, {"read_mode": "dirty"}, {"waiting_max": 0}, {"max_staleness": -1}):
        with pytest.raises(ValueError, match="is"):
            Client("a:1", **arguments)


def test_prefixes() -> None:
    assert prefix_range(b"a") == (b"a", b"b")
    assert prefix_range(b"a\xff\xff") == (b"a\xff\xff", b"b")
    assert prefix_range(b"\xff") == (b"\xff", b"")
    assert prefix_range(b"") == (b"", b"")


@simulated
async def test_use_before_open_and_after_close() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        with pytest.raises(RuntimeError):
            await kv.open()
    with pytest.raises(RuntimeError):
        await kv.put("a", "b")
    await kv.close()
    fresh = Client("a:1")
    with pytest.raises(RuntimeError):
        await fresh.get("a")
    await fresh.close()


@simulated
async def test_an_unknown_keyspace_is_said_at_once() -> None:
    async with client_of(Cluster(), keyspace="nowhere") as kv:
        with pytest.raises(NotFound, match="nowhere"):
            await kv.put("a", "1")
        with pytest.raises(NotFound):
            await kv.routes()
    assert asyncio.get_running_loop().time() < 1_001


@simulated
async def test_routes() -> None:
    cluster = Cluster(splits=(b"m",))
    async with client_of(cluster) as kv:
        assert [(route.id, route.leader) for route in await kv.routes()] == [(2, "n1"), (3, "n2")]
        cluster.lead(3, "n3")
        await asyncio.sleep(0.1)
        assert [route.leader for route in await kv.routes()] == ["n1", "n3"]


@simulated
async def test_calls_of_one_turn_travel_in_one_frame_a_shard() -> None:
    """And in one message a node."""
    cluster = Cluster(2, splits=(b"c", b"f", b"i"))
    async with client_of(cluster) as kv:
        await kv.get_many(["a", "d", "g", "j"])
        await asyncio.sleep(1)
        cluster.messages.clear()
        for node in cluster.nodes.values():
            node.frames.clear()
        puts = [kv.put(f"{letter}{i}", "v") for i in range(100) for letter in "adgj"]
        gets = [kv.get(f"{letter}{i}") for i in range(100) for letter in "adgj"]
        await asyncio.gather(*puts, *gets)
        assert len(cluster.frames()) == 8
        assert len(cluster.messages) == 2


@simulated
async def test_frames_keep_within_the_limits() -> None:
    cluster = Cluster(1)
    cluster.limits = Limits(value_bytes_max=50_000, request_bytes_max=200_000, frame_operations_max=10)
    async with client_of(cluster) as kv:
        sizes = [10] * 95 + [40_000] * 25
        await asyncio.gather(*(kv.put(f"k{i}", b"x" * size) for i, size in enumerate(sizes)))
        assert len(await kv.get_many([f"k{i}" for i in range(120)])) == 120
    counts = [len(shard_log) for shard_log in [cluster.log()]]
    assert counts == [120]  # each once; the cluster refuses over-long messages and frames


@simulated
async def test_too_many_waiting_operations_are_refused_here() -> None:
    cluster = Cluster(1)
    async with client_of(cluster, waiting_max=10, timeout=1) as kv:
        await kv.put("warm", "up")
        cluster.script = lambda node, frame: Act.HANG
        hanging = [asyncio.ensure_future(kv.get("a")) for _ in range(10)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded) as caught:
            await kv.put("a", "1")
        assert caught.value.outcome == "failed"
        results = await kv.put_many([("a", "1")])
        assert isinstance(results[0], Overloaded)
        await asyncio.gather(*hanging, return_exceptions=True)
        cluster.script = None
        await kv.put("a", "1")
