"""Finding the leader: redirects, elections, splits, merges, nodes that come and go."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from jepsen.sim.loop import simulated
from kvstore.base.errors import Code
from kvstore.base.operations import Failure
from kvstore.base.shards import Route
from kvstore.client import Client, Unavailable
from tests.client.fake_client import client_of
from tests.client.fake_cluster import Act, Cluster, FailEach, Refuse
from tests.client.fake_transport import MemoryConnector


def now() -> float:
    return asyncio.get_running_loop().time()


def leaderless(route: Route) -> Route:
    return msgspec.structs.replace(route, leader=None, address=None)


async def took(work: object) -> float:
    before = now()
    await work  # type: ignore[misc]
    return now() - before


@simulated
async def test_a_moved_leader_is_followed_at_once() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.lead(2, "n3")
        assert await took(kv.put("a", "2")) < 0.01  # two hops and a dial, no pause
        assert len(cluster.nodes["n1"].frames) == 2
        await kv.get("a")
        assert len(cluster.nodes["n3"].frames) == 2
    assert [seq for _, seq, _ in cluster.log()] == [1, 2]  # the number did not change with the redirect


@simulated
async def test_without_a_hint_the_other_nodes_are_tried() -> None:
    cluster = Cluster()
    async with client_of(cluster, endpoints=("n1",)) as kv:
        await kv.put("a", "1")
        for node in cluster.nodes.values():
            node.hint = leaderless
        cluster.lead(2, "n3")
        assert await took(kv.put("a", "2")) < 0.2
        assert await took(kv.put("a", "3")) < 0.2


@simulated
async def test_an_election_is_waited_for() -> None:
    """No leader for two seconds: the operation succeeds soon after there is one, and the nodes are not stormed."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        for node in cluster.nodes.values():
            node.hint = leaderless
        cluster.lead(2, None)
        calls = [asyncio.ensure_future(kv.put(f"k{i}", "2")) for i in range(50)]
        await asyncio.sleep(2)
        cluster.lead(2, "n2")
        assert await took(asyncio.gather(*calls)) < 0.4
    assert len(cluster.frames()) < 80
    assert len(cluster.log()) == 51


@simulated
async def test_two_nodes_that_each_name_the_other_are_not_asked_in_a_busy_circle() -> None:
    cluster = Cluster(2)

    def names(other: str) -> object:
        def hint(route: Route) -> Route:
            return msgspec.structs.replace(route, leader=other, address=cluster.nodes[other].address)

        return hint

    async with client_of(cluster, timeout=1.0) as kv:
        cluster.nodes["n1"].hint = names("n2")  # type: ignore[assignment]
        cluster.nodes["n2"].hint = names("n1")  # type: ignore[assignment]
        cluster.lead(2, None)
        with pytest.raises(Unavailable) as caught:
            await kv.put("a", "1")
        assert caught.value.outcome == "failed"
    assert len(cluster.frames()) < 40


@simulated
async def test_a_split_is_followed() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put_many({"a": "1", "z": "1"})
        cluster.split(2, b"m", child=5, leader="n2")
        await asyncio.gather(kv.put("a", "2"), kv.put("z", "2"))
        assert await kv.get_many(["a", "z"]) == [b"2", b"2"]
        assert [route.id for route in await kv.routes()] == [2, 5]
    assert sorted(cluster.shards[5].data) == [b"z"]


@simulated
async def test_a_merge_is_followed() -> None:
    cluster = Cluster(splits=(b"m",))
    async with client_of(cluster) as kv:
        await kv.put_many({"a": "1", "z": "1"})
        cluster.merge(2, 3)
        assert await kv.get_many(["a", "z"]) == [b"1", b"1"]
        await kv.put("z", "2")
    assert cluster.shards[2].data[b"z"].value == b"2"


@simulated
async def test_a_stale_route_told_by_the_entry_is_definite_and_retried() -> None:
    """The shard split between staging and applying: each operation carries the refusal, without routes."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.then(FailEach(Failure(Code.STALE_ROUTE, "moved")))
        await kv.put("a", "2")
        cluster.then(FailEach(Failure(Code.NOT_LEADER, "lost it", definite=False)))
        await kv.put("a", "3")
    assert len(cluster.log()) == 3


@simulated
async def test_a_node_behind_us_is_no_news() -> None:
    """A new leader that has not applied the split yet answers with the older descriptors; we wait for it."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        cluster.split(2, b"m", child=5, leader="n1")
        await kv.put("a", "1")
        old = Cluster().routes(cluster.nodes["n1"])
        cluster.then(*[Refuse(Code.STALE_ROUTE, routes=old)] * 5)
        await kv.put("a", "2")
        assert [route.version for route in await kv.routes()] == [2, 2]


@simulated
async def test_a_node_without_the_shard_is_not_asked_again() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        route = cluster.route(cluster.shards[2])
        cluster.lead(2, "n2")
        cluster.nodes["n1"].hint = lambda _: route
        cluster.then(Refuse(Code.STALE_ROUTE, routes=(route,)))
        assert await took(kv.put("a", "2")) < 0.5


@simulated
async def test_all_first_endpoints_may_vanish() -> None:
    cluster = Cluster(4)
    async with client_of(cluster, endpoints=("n1",)) as kv:
        await kv.put("a", "1")
        cluster.nodes["n1"].kill()
        cluster.lead(2, "n3")
        await kv.put("a", "2")
        cluster.nodes["n2"].kill()
        cluster.nodes["n3"].kill()
        cluster.lead(2, "n4")
        await kv.put("a", "3")
    assert cluster.shards[2].data[b"a"].value == b"3"


@simulated
async def test_new_nodes_are_heard_of_while_in_use() -> None:
    """The client refreshes its routes while it is in use; so it knows nodes that joined after it began."""
    cluster = Cluster(2)
    async with client_of(cluster, endpoints=("n1",)) as kv:
        for _ in range(80):
            await kv.put("a", "1")
            await asyncio.sleep(1)
        cluster.add_node("n7", "10.0.0.7:7001")
        for _ in range(80):
            await kv.put("a", "1")
            await asyncio.sleep(1)
        cluster.nodes["n1"].kill()
        cluster.nodes["n2"].kill()
        cluster.lead(2, "n7")
        await kv.put("a", "2")


@simulated
async def test_a_dead_first_endpoint_costs_little() -> None:
    cluster = Cluster()
    connector = MemoryConnector(cluster)
    connector.black_holes.add(cluster.nodes["n1"].address)
    cluster.nodes["n2"].up = False
    cluster.lead(2, "n3")
    async with client_of(cluster, connector=connector) as kv:
        assert await took(kv.put("a", "1")) < 0.6


@simulated
async def test_a_leader_in_a_black_hole_holds_operations_only_once() -> None:
    cluster = Cluster()
    connector = MemoryConnector(cluster)
    async with client_of(cluster, connector=connector) as kv:
        await kv.put("a", "1")
        address = cluster.nodes["n1"].address
        connector.black_holes.add(address)
        cluster.nodes["n1"].kill()
        cluster.lead(2, "n2")
        assert await took(kv.put("a", "2")) < 0.3
        for _ in range(20):
            assert await took(kv.put("a", "3")) < 0.01
            await asyncio.sleep(0.2)


@simulated
async def test_a_silent_leader_is_given_up_before_the_deadline() -> None:
    """The process is paused: its connection stays open and says nothing. Another one leads after 1.2 s."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.nodes["n1"].mute = True
        cluster.then(Act.HANG)
        call = asyncio.ensure_future(kv.put("a", "2"))
        await asyncio.sleep(1.2)
        cluster.lead(2, "n2")
        assert await took(call) < 1.3
        cluster.nodes["n1"].mute = False
    assert [operation.value for _, _, operation in cluster.log()] == [b"1", b"2"]  # type: ignore[union-attr]


@simulated
async def test_a_slow_network_is_not_silence() -> None:
    """Four megabytes at 1.3 MB/s: neither an answer nor a pong can come for three seconds."""
    cluster = Cluster(1)
    connector = MemoryConnector(cluster)
    async with client_of(cluster, connector=connector, timeout=20) as kv:
        await kv.put("a", b"x")
        connector.latency = 1.5
        results = await kv.put_many([(f"k{i}", bytes(1 << 20)) for i in range(4)])
        assert results == [2, 3, 4, 5]
    assert cluster.nodes["n1"].dialled == 1


@simulated
async def test_a_slow_answer_is_not_silence() -> None:
    """The node answers pings while the operation takes three seconds."""
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        dialled = cluster.nodes["n1"].dialled
        cluster.then(Act.HANG)
        slow = asyncio.ensure_future(kv.put("a", "2", timeout=3))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(slow), 2.9)
        await kv.get("a")
        assert cluster.nodes["n1"].dialled == dialled
        await asyncio.gather(slow, return_exceptions=True)


@simulated
async def test_an_idle_connection_is_left_alone() -> None:
    cluster = Cluster()
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        await asyncio.sleep(5)
        messages = len(cluster.messages)
        await asyncio.sleep(3_600)
        assert len(cluster.messages) == messages
        assert await took(kv.put("a", "2")) < 0.01
        assert cluster.nodes["n1"].dialled == 1


@simulated
async def test_a_restarted_single_node_is_found_again() -> None:
    cluster = Cluster(1)
    async with client_of(cluster) as kv:
        await kv.put("a", "1")
        cluster.nodes["n1"].kill()
        call = asyncio.ensure_future(kv.get("a"))
        await asyncio.sleep(3)
        cluster.nodes["n1"].up = True
        assert await took(call) < 1.5
        assert cluster.nodes["n1"].dialled == 2


@simulated
async def test_nobody_there() -> None:
    cluster = Cluster()
    for node in cluster.nodes.values():
        node.up = False
    async with client_of(cluster, timeout=1.0) as kv:
        for call in (kv.put("a", "1"), kv.get("a"), kv.routes()):
            before = now()
            with pytest.raises(Unavailable, match=r"10\.0\.0\..*refused") as caught:
                await call
            assert caught.value.outcome == "failed"
            assert now() - before == pytest.approx(1.0, abs=0.01)


@simulated
async def test_a_node_of_another_cluster_is_never_used() -> None:
    ours, theirs = Cluster(1), Cluster(1)
    theirs.id = "d" * 32
    theirs.nodes["n1"].address = "10.9.9.9:1"
    both = Cluster(1)
    both.nodes = {"n1": ours.nodes["n1"], "x": theirs.nodes["n1"]}
    kv = Client([ours.nodes["n1"].address], connector=MemoryConnector(both), timeout=1.0)
    async with kv:
        await kv.put("a", "1")
        ours.nodes["n1"].up = False
        ours.nodes["n1"].kill()
        assert kv._dispatcher is not None
        kv._dispatcher.nodes.add(["10.9.9.9:1"])
        with pytest.raises(Unavailable):
            await kv.put("a", "2")
    assert theirs.log() == []
    assert theirs.nodes["n1"].dialled > 0


@simulated
async def test_another_protocol_version_is_said() -> None:
    cluster = Cluster(1)
    cluster.protocol = 9
    async with client_of(cluster, timeout=0.5) as kv:
        with pytest.raises(Unavailable, match="protocol 9"):
            await kv.get("a")
