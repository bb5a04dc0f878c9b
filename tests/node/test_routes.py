"""Routes on whole nodes: every node knows them and all members, waiting is answered by a change, and a client goes on
when all the nodes that it was started with are gone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from kvstore.client import Client
from kvstore.testing import LocalCluster
from tests.node.test_membership import _all_known, _replicas


async def get_routes(http: aiohttp.ClientSession, address: str, query: str = "") -> dict[str, Any]:
    async with http.get(f"http://{address}/v1/routes{query}") as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def test_every_node_knows_the_leader_and_all_members(cluster: LocalCluster) -> None:
    """Also one that has no replica."""
    await cluster.add("n4")
    names = sorted(cluster.nodes)
    async with aiohttp.ClientSession() as http:

        async def agreed() -> bool:
            leader = await cluster.leader()
            answers = [await get_routes(http, cluster.address(name)) for name in names]
            return all(
                [shard["leader"] for shard in answer["shards"]] == [leader]
                and [node["name"] for node in answer["nodes"]] == names
                and len(answer["shards"][0]["replicas"]) == 3
                for answer in answers
            )

        await cluster.until(agreed)
        versions = {name: (await get_routes(http, cluster.address(name)))["version"] for name in names}
        assert len(set(versions.values())) == 4
        waiting = get_routes(http, cluster.address("n1"), f"?version={versions['n1']}&wait_ms=20000")
        told, _ = await asyncio.gather(waiting, cluster.stop("n4"))
        assert [node["name"] for node in told["nodes"]] == ["n1", "n2", "n3"]


async def test_a_new_leader_ends_the_waiting_on_every_node(cluster: LocalCluster) -> None:
    """By Raft where there is a replica, and by gossip where there is none."""
    await cluster.add("n4")
    await _all_known(cluster)
    leader = await cluster.leader()
    target = next(name for name in ("n1", "n2", "n3") if name != leader)
    async with aiohttp.ClientSession() as http:

        async def wait_for(name: str) -> float:
            """Until this node names the target as the leader; when that was."""
            address = cluster.address(name)
            answer = await get_routes(http, address)
            while [shard["leader"] for shard in answer["shards"]] != [target]:
                answer = await get_routes(http, address, f"?version={answer['version']}&wait_ms=20000")
            return time.monotonic()

        waiting = [asyncio.ensure_future(wait_for(name)) for name in cluster.nodes]
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await cluster.nodes[leader].admin.transfer(2, target)
        async with asyncio.timeout(10.0):
            for told_at in await asyncio.gather(*waiting):
                assert told_at - began < 5.0


async def test_a_stopping_node_does_not_wait_for_who_waits_there(cluster: LocalCluster) -> None:
    async with aiohttp.ClientSession() as http:
        address = cluster.address("n2")
        version = (await get_routes(http, address))["version"]
        waiting = asyncio.ensure_future(get_routes(http, address, f"?version={version}&wait_ms=30000"))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(8.0):
            await cluster.stop("n2")
            await waiting


async def test_the_client_outlives_all_the_nodes_that_it_was_started_with(cluster: LocalCluster) -> None:
    written = 0
    async with Client([cluster.address("n1")], timeout=20.0) as kv:

        async def write() -> None:
            nonlocal written
            while True:
                await kv.put("count", str(written + 1))
                written += 1
                await asyncio.sleep(0.01)

        writing = asyncio.ensure_future(write())
        for number in (1, 2, 3):
            gone, new = f"n{number}", f"n{number + 3}"
            await cluster.add(new)

            async def known(name: str = new) -> bool:
                rows = await cluster.nodes[name].admin.members()
                return {row["name"] for row in rows if row["state"] == "alive"} == set(cluster.nodes)

            await cluster.until(known)
            await asyncio.sleep(0.5)  # the client listens: it needs no more than that to hear of the new one
            await cluster.kill(gone)
            await cluster.nodes[new].admin.remove_node(gone)

            async def replaced() -> bool:
                return all(_replicas(cluster, shard) == set(cluster.nodes) for shard in (1, 2))

            await cluster.until(replaced)
            assert not writing.done(), writing.exception()
        assert set(cluster.nodes) == {"n4", "n5", "n6"}
        before = written

        async def more() -> bool:
            return written > before + 20

        await cluster.until(more)
        writing.cancel()
        await asyncio.wait((writing,))
        assert int(await kv.get("count") or 0) - written in (0, 1), "one may have been under way"
