"""Nodes that found, join and are removed while the cluster serves; nodes without replicas; who is connected."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from kvstore.base.errors import NotFound, StartRefused
from kvstore.base.ids import META_SHARD
from kvstore.testing import LocalCluster
from tests.node.test_http import FAST, url

QUICK: dict[str, Any] = {**FAST, "gossip_ms": 200}


def _replicas(cluster: LocalCluster, shard: int) -> set[str]:
    """Names of the nodes with a voter of the shard, as the shard's leader says."""
    for node in cluster.nodes.values():
        if node.host.leads(shard):
            (row,) = [row for row in node.admin.shards() if row["id"] == shard]
            if row["joint"]:
                return set()  # both memberships still count
            return {place["node"] for place in row["replicas"] if place["role"] == "voter"}
    return set()


async def _all_known(cluster: LocalCluster) -> None:
    """Until every node has written its record."""

    async def known() -> bool:
        rows = await cluster.nodes["n1"].admin.members()
        return {row["name"] for row in rows} >= set(cluster.nodes)

    await cluster.until(known)


async def test_new_node_gets_replicas_where_some_are_missing() -> None:
    async with LocalCluster(nodes=1) as cluster, cluster.client() as kv:
        await asyncio.gather(*(kv.put(b"key-%d" % n, b"v" * 100) for n in range(2_000)))
        await cluster.add("n2")
        await cluster.add("n3")

        async def everywhere() -> bool:
            return all(_replicas(cluster, shard) == {"n1", "n2", "n3"} for shard in (1, 2))

        await cluster.until(everywhere)
        await cluster.kill("n1")  # the first one is not needed any more
        async with cluster.client() as later:
            assert await later.get(b"key-1999") == b"v" * 100
            await later.put(b"after", b"1")
            assert len([item async for item in later.scan(prefix=b"key-")]) == 2_000


async def test_removed_node_is_replaced_by_a_spare_one(cluster: LocalCluster) -> None:
    async with cluster.client() as kv:
        await kv.put(b"k", b"v")
        await cluster.add("n4")
        await _all_known(cluster)
        await cluster.kill("n2")
        await cluster.nodes["n1"].admin.remove_node("n2")

        async def replaced() -> bool:
            return all(_replicas(cluster, shard) == {"n1", "n3", "n4"} for shard in (1, 2))

        await cluster.until(replaced)

        async def forgotten() -> bool:
            return {row["name"] for row in await cluster.nodes["n4"].admin.members()} == {"n1", "n3", "n4"}

        await cluster.until(forgotten)
        assert await kv.get(b"k") == b"v"


async def test_removed_node_does_not_come_back(cluster: LocalCluster) -> None:
    """Its disk may hold votes of a membership that is over: it is told to begin with an empty directory."""
    await _all_known(cluster)
    await cluster.kill("n2")
    await cluster.nodes["n1"].admin.remove_node("n2")

    async def left() -> bool:
        return all(_replicas(cluster, shard) == {"n1", "n3"} for shard in (1, 2))

    await cluster.until(left)
    node = await cluster.start("n2")
    error = await asyncio.wait_for(node.fatal, 10)
    assert isinstance(error, StartRefused)
    assert "was removed from the cluster for good" in str(error)


async def test_taken_name_is_refused(cluster: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    """A node with an empty directory and the name of a member that lives. Both sides say so."""
    await _all_known(cluster)
    with pytest.raises(StartRefused, match=r"DUPLICATE_NAME: .* belongs to another node"):
        await cluster.add("n1", folder="other")
    assert set(cluster.nodes) == {"n1", "n2", "n3"}
    (line,) = [one.getMessage() for one in caplog.records if "DUPLICATE_NAME" in one.getMessage()]
    assert cluster.nodes["n1"].address in line


# -- many founders -----------------------------------------------------------------------------------------------------


async def _states(cluster: LocalCluster, name: str) -> dict[str, str]:
    """Of all members, as the node tells them."""
    return {row["name"]: row["state"] for row in await cluster.nodes[name].admin.members()}


async def _all_alive(cluster: LocalCluster) -> None:
    wanted = dict.fromkeys(cluster.nodes, "alive")

    async def alive() -> bool:
        return all([await _states(cluster, name) == wanted for name in cluster.nodes])

    await cluster.until(alive)


def _held(cluster: LocalCluster) -> dict[str, list[int]]:
    return {name: sorted(node.host.core.replicas) for name, node in cluster.nodes.items()}


async def test_founders_without_a_replica_serve_like_all_others() -> None:
    """Eight founders: five keep the cluster's records, three the data; each is asked for everything."""
    async with LocalCluster(nodes=8, **QUICK) as cluster, aiohttp.ClientSession() as http:
        assert sorted(map(tuple, _held(cluster).values())) == [(1,)] * 5 + [(2,)] * 3
        await _all_alive(cluster)
        for name in cluster.nodes:
            async with http.put(url(cluster, name, f"/v1/kv/default/{name}"), data=name.encode()) as response:
                assert response.status == 200, await response.text()
            async with http.get(url(cluster, name, "/readyz")) as response:
                assert response.status == 200
            async with http.get(url(cluster, name, "/v1/routes")) as response:
                assert (await response.json())["shards"][0]["leader"] == await cluster.leader(2)
            async with cluster.client() as kv:
                assert await kv.get(name.encode()) == name.encode()
        without = next(name for name, shards in _held(cluster).items() if shards == [1])
        async with http.get(url(cluster, without, "/v1/kv/default/n1")) as response:
            assert await response.read() == b"n1"
        await asyncio.sleep(0.6)  # a round of repair: five voters are what the meta group should have
        assert sorted(map(tuple, _held(cluster).values())) == [(1,)] * 5 + [(2,)] * 3


async def test_nodes_without_the_records_follow_the_meta_groups_leader() -> None:
    """It dies; members are told, and changed, through a node that has no replica of the meta group."""
    async with LocalCluster(nodes=6, **QUICK) as cluster:
        await _all_alive(cluster)
        asked = next(name for name, shards in _held(cluster).items() if META_SHARD not in shards)
        killed = await cluster.leader(META_SHARD)
        await cluster.kill(killed)
        assert (await cluster.nodes[asked].admin.remove_node(killed))["removed"] == killed

        async def removed() -> bool:
            return killed not in await _states(cluster, asked)

        await cluster.until(removed)


async def test_only_nodes_that_share_a_group_are_connected() -> None:
    """A newcomer is connected with nobody until it gets a replica, and at once when it gets one."""
    async with LocalCluster(nodes=3, **QUICK) as cluster:
        leader = await cluster.leader(2)
        await cluster.add("n4")
        await _all_alive(cluster)
        assert not _connected(cluster, "n4")
        loop = asyncio.get_running_loop()
        began = loop.time()
        change = asyncio.ensure_future(cluster.nodes[leader].admin.add_replica(2, "n4"))

        async def connected() -> bool:
            return leader in _connected(cluster, "n4")

        await cluster.until(connected)
        assert loop.time() - began < 2.0
        await change
        assert 2 in cluster.nodes["n4"].host.core.replicas


def _connected(cluster: LocalCluster, name: str) -> set[str]:
    """Names of the nodes that it has a connection with."""
    transport = cluster.nodes[name].host._transport
    assert transport is not None
    ids = {one: other.admin.status()["node_id"] for one, other in cluster.nodes.items()}
    return {one for one, node_id in ids.items() if transport.connected(node_id)}


async def test_founders_of_different_groups_are_not_connected() -> None:
    async with LocalCluster(nodes=8, **QUICK) as cluster:
        await _all_alive(cluster)
        held = _held(cluster)

        async def connected() -> bool:
            return all(
                _connected(cluster, name) == {one for one, others in held.items() if others == shards} - {name}
                for name, shards in held.items()
            )

        await cluster.until(connected)


# -- removal -----------------------------------------------------------------------------------------------------------


async def test_a_removed_node_that_still_runs_ends_with_an_error() -> None:
    async with LocalCluster(nodes=4, **QUICK) as cluster:
        await _all_alive(cluster)
        leaders = {await cluster.leader(1), await cluster.leader(2)}
        gone = next(name for name in cluster.nodes if name not in leaders)
        await cluster.nodes[min(leaders)].admin.remove_node(gone)
        error = await asyncio.wait_for(cluster.nodes[gone].fatal, 10)
        assert isinstance(error, StartRefused)
        assert "was removed from the cluster for good" in str(error)
        left = {name: "alive" for name in cluster.nodes if name != gone}
        await cluster.kill(gone)
        assert await _states(cluster, min(leaders)) == left


async def test_a_removal_may_be_repeated(cluster: LocalCluster) -> None:
    await _all_known(cluster)
    await cluster.kill("n3")
    first = await cluster.nodes["n1"].admin.remove_node("n3")
    assert await cluster.nodes["n2"].admin.remove_node("n3") == first
    with pytest.raises(NotFound):
        await cluster.nodes["n1"].admin.remove_node("n9")


async def test_a_bound_name_that_nobody_has_heard_of_is_dead() -> None:
    """After a restart of the whole cluster one node is missing: what gossip knew of it was in memory only."""
    async with LocalCluster(nodes=4, **QUICK) as cluster:
        await _all_alive(cluster)
        missing = next(name for name, shards in _held(cluster).items() if META_SHARD not in shards)
        for name in list(cluster.nodes):
            await cluster.kill(name)
        await asyncio.gather(*(cluster.start(name) for name in ("n1", "n2", "n3", "n4") if name != missing))
        await cluster.wait_ready()

        async def told() -> bool:
            return all([(await _states(cluster, name)).get(missing) == "dead" for name in cluster.nodes])

        await cluster.until(told)
