"""A real cluster at rest sleeps, and nobody notices: not its clients, nor when the node dies that led it."""

from __future__ import annotations

import asyncio
import time

from kvstore.testing import LocalCluster

ELECTION_MS = 400


def asleep(cluster: LocalCluster) -> bool:
    return not any(node.host.core.hibernation.awake for node in cluster.nodes.values())


async def rest(cluster: LocalCluster) -> None:
    """Until no group has anything to say for two election timeouts: what follows a start is over."""

    async def still() -> bool:
        before = sent(cluster)
        await asyncio.sleep(2 * ELECTION_MS / 1_000)
        return asleep(cluster) and sent(cluster) == before

    await cluster.until(still)


def sent(cluster: LocalCluster) -> list[int]:
    return [node.metrics.raft_messages_sent for node in cluster.nodes.values()]


async def test_a_cluster_at_rest_sleeps_and_wakes() -> None:
    settings = {"election_ms": ELECTION_MS, "heartbeat_ms": 100}
    async with LocalCluster(nodes=3, **settings) as cluster, cluster.client() as kv:
        await kv.put(b"k", b"1")
        await rest(cluster)
        assert await kv.get(b"k") == b"1"

        await rest(cluster)
        victim = await cluster.leader()
        killed_at = time.monotonic()
        await cluster.kill(victim)
        await kv.put(b"k", b"2")
        waited = time.monotonic() - killed_at
        print(f"a sleeping shard's leader killed to the next write: {waited:.2f} s")
        assert waited < 5.0
        await rest(cluster)  # the dead node keeps nobody awake
