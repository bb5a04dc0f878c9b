"""The placement driver of whole nodes: a node joins, is drained, is lost; the driver's own node dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvstore.base.errors import Invalid, KVError, NotFound
from kvstore.client import Client
from kvstore.testing import LocalCluster


@contextlib.asynccontextmanager
async def load(kv: Client) -> AsyncIterator[list[KVError]]:
    """Puts and reads all the time; the errors that callers saw."""
    errors: list[KVError] = []

    async def work(number: int) -> None:
        key = b"load-%d" % number
        while True:
            try:
                await kv.put(key, key)
                assert await kv.get(key) == key
            except KVError as error:
                errors.append(error)

    tasks = [asyncio.get_running_loop().create_task(work(number)) for number in range(8)]
    try:
        yield errors
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    for one in done:
        if isinstance(one, Exception):
            raise one


def admin_of(cluster: LocalCluster) -> Any:
    """Of any node that runs; it finds the driver."""
    return next(iter(cluster.nodes.values())).admin.placement


def voters(cluster: LocalCluster, shard: int) -> set[str]:
    """By name, as its leader has it; empty while it changes."""
    for node in cluster.nodes.values():
        if node.host.leads(shard):
            (row,) = [row for row in node.admin.shards() if row["id"] == shard]
            learners = [place for place in row["replicas"] if place["role"] != "voter"]
            return set() if row["joint"] or learners else {place["node"] for place in row["replicas"]}
    return set()


async def all_members(cluster: LocalCluster) -> None:
    async def known() -> bool:
        rows = await next(iter(cluster.nodes.values())).admin.members()
        return {row["name"] for row in rows if row["state"] == "alive"} >= set(cluster.nodes)

    await cluster.until(known)


async def test_a_drained_node_is_empty_and_no_request_fails(cluster: LocalCluster) -> None:
    await cluster.add("n4")
    await all_members(cluster)
    async with cluster.client() as kv:
        victim = await cluster.leader(2)
        async with load(kv) as errors:
            progress = await admin_of(cluster).drain(victim)
            assert progress["draining"]
            assert progress["replicas"] == 2 or not progress["ready"]

            async def drained() -> bool:
                return bool((await admin_of(cluster).drain_progress(victim))["done"])

            await cluster.until(drained)
        assert errors == []
        for shard in (1, 2):
            assert voters(cluster, shard) == set(cluster.nodes) - {victim}
        rows = await admin_of(cluster).operators()
        assert {row["reason"] for row in rows if row["kind"] == "drain"} == {f"{victim} is drained"}
        assert await admin_of(cluster).undrain(victim) == {"draining": None, "node": victim}
        assert not (await admin_of(cluster).drain_progress(victim))["draining"]


async def test_a_drain_that_cannot_go_on_says_why(cluster: LocalCluster) -> None:
    await all_members(cluster)
    await admin_of(cluster).drain("n2")

    async def blocked() -> bool:
        progress = await admin_of(cluster).drain_progress("n2")
        return len(progress["blocked"]) == 2 and not progress["leaders"]

    await cluster.until(blocked)
    (one, _) = (await admin_of(cluster).drain_progress("n2"))["blocked"]
    assert "every node has a replica already" in one["reason"]
    with pytest.raises(NotFound):
        await admin_of(cluster).drain("n9")
    await admin_of(cluster).drain("n1")
    with pytest.raises(Invalid, match="last node"):
        await admin_of(cluster).drain("n3")


async def test_a_node_that_is_down_for_too_long_is_replaced(cluster: LocalCluster) -> None:
    await cluster.add("n4")
    await all_members(cluster)
    await admin_of(cluster).set_settings({"dead_after_seconds": 1})
    async with cluster.client() as kv:
        await kv.put(b"k", b"v")
        victim = next(iter(voters(cluster, 2) - {await cluster.leader(1)}))
        await cluster.kill(victim)

        async def replaced() -> bool:
            return all(voters(cluster, shard) == set(cluster.nodes) for shard in (1, 2))

        await cluster.until(replaced)
        assert await kv.get(b"k") == b"v"


async def test_the_driver_dies_in_the_middle_of_a_drain(cluster: LocalCluster) -> None:
    """The next one goes on: what people wish is in the meta group."""
    for name in ("n4", "n5"):
        await cluster.add(name)
    await all_members(cluster)
    await admin_of(cluster).set_settings({"dead_after_seconds": 1})
    driver = await cluster.leader(1)
    victim = next(iter(voters(cluster, 2) - {driver}))
    async with cluster.client() as kv:
        await kv.put(b"k", b"v")
        await admin_of(cluster).drain(victim)
        await cluster.kill(driver)

        async def done() -> bool:
            stay = set(cluster.nodes) - {victim}
            return all(len(voters(cluster, shard)) == 3 and voters(cluster, shard) <= stay for shard in (1, 2))

        await cluster.until(done)
        assert await kv.get(b"k") == b"v"


async def test_settings_are_of_the_whole_cluster_and_survive(cluster: LocalCluster) -> None:
    await all_members(cluster)
    admin = admin_of(cluster)
    await admin.set_settings({"operators_max": 7, "replication_factor/default": 1})
    await cluster.kill(await cluster.leader(1))

    async def values() -> bool:
        try:
            rows = {row["name"]: row for row in (await admin_of(cluster).settings())["settings"]}
        except KVError:
            return False
        changed = rows["operators_max"]
        return (changed["value"], changed["default"], changed["changed"]) == (7, 64, True) and rows[
            "replication_factor/default"
        ]["value"] == 1

    await cluster.until(values)

    async def shrunk() -> bool:
        return len(voters(cluster, 2)) == 1

    await cluster.until(shrunk)
    rows = (await admin_of(cluster).set_settings({"operators_max": None, "replication_factor/default": None}))[
        "settings"
    ]
    assert not any(row["changed"] for row in rows)
    for wrong in ({"operators_max": 0}, {"nonsense": 1}, {"replication_factor/nowhere": 3}, {}):
        with pytest.raises(Invalid):
            await admin_of(cluster).set_settings(wrong)


async def test_data_that_grows_is_split_and_spread_over_a_node_that_joins(cluster: LocalCluster) -> None:
    """Under load, which sees no error; and everything is there in the end."""
    await all_members(cluster)
    await admin_of(cluster).set_settings({"split_bytes": 1 << 20, "receiving_max": 8, "sending_max": 8})
    async with cluster.client() as kv, load(kv) as errors:
        value = b"v" * 1_000
        for number in range(0, 10_000, 500):
            await asyncio.gather(*(kv.put(b"%06d" % (number + one), value) for one in range(500)))

        async def has_split() -> bool:
            return len(led(cluster)) >= 10

        await cluster.until(has_split)
        await cluster.add("n4")

        async def balanced() -> bool:
            shards = led(cluster)
            replicas = Counter(name for shard in shards for name in voters(cluster, shard))
            leaders = Counter(shards.values())
            if set(replicas) != set(cluster.nodes) or sum(replicas.values()) != 3 * len(shards):
                return False
            return spread_of(replicas) <= 2 and spread_of(leaders) <= 3 and len(leaders) == 4

        await cluster.until(balanced)
        assert len([item async for item in kv.scan(prefix=b"00")]) == 10_000
    assert errors == []
    rows = await admin_of(cluster).operators()
    assert {"split", "balance replicas"} <= {row["kind"] for row in rows}


def led(cluster: LocalCluster) -> dict[int, str]:
    """Shard -> the name of the node that leads it."""
    return {
        shard: name
        for name, node in cluster.nodes.items()
        for shard, replica in node.host.core.replicas.items()
        if replica.leads is not None
    }


def spread_of(counts: Counter[str]) -> int:
    return max(counts.values()) - min(counts.values())
