"""Nodes that join and are removed while the cluster serves."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.base.errors import StartRefused
from kvstore.testing import LocalCluster


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


async def test_taken_name_is_refused(cluster: LocalCluster) -> None:
    """A node with an empty directory and the name of a member that lives."""
    await _all_known(cluster)
    with pytest.raises(StartRefused, match="belongs to another node"):
        await cluster.add("n1", folder="other")
    assert set(cluster.nodes) == {"n1", "n2", "n3"}
