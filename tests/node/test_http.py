"""REST against whole nodes: any node answers for any key; conditions, retries and administration end to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from kvstore.testing import LocalCluster

FAST: dict[str, Any] = {"election_ms": 300, "tick_ms": 20, "heartbeat_ms": 40}


@asynccontextmanager
async def running(nodes: int = 3, **settings: Any) -> AsyncIterator[tuple[LocalCluster, aiohttp.ClientSession]]:
    async with LocalCluster(nodes=nodes, **FAST, **settings) as cluster, aiohttp.ClientSession() as http:
        yield cluster, http


def url(cluster: LocalCluster, name: str, path: str) -> str:
    return f"http://{cluster.address(name)}{path}"


async def test_any_node_answers_for_any_key() -> None:
    async with running() as (cluster, http):
        names = list(cluster.nodes)
        for number, writer in enumerate(names):
            path = f"/v1/kv/default/key-{number}"
            async with http.put(url(cluster, writer, path), data=b"value-%d" % number) as response:
                assert response.status == 200, await response.text()
                etag = response.headers["ETag"]
            for reader in names:
                async with http.get(url(cluster, reader, path)) as response:
                    assert (await response.read(), response.headers["ETag"]) == (b"value-%d" % number, etag)


async def test_conditions_are_compare_and_set_through_every_node() -> None:
    async with running() as (cluster, http):
        names = list(cluster.nodes)
        path = "/v1/kv/default/cas"
        async with http.put(url(cluster, names[0], path), data=b"1", headers={"If-None-Match": "*"}) as response:
            assert response.status == 200
            first = response.headers["ETag"]
        for name in names:
            async with http.put(url(cluster, name, path), data=b"x", headers={"If-None-Match": "*"}) as response:
                problem = await response.json()
                assert (response.status, problem["code"], response.headers["ETag"]) == (412, "CONFLICT", first)
        etag = first
        for number, name in enumerate(names):
            async with http.put(url(cluster, name, path), data=b"%d" % number, headers={"If-Match": etag}) as response:
                assert response.status == 200, await response.text()
                etag = response.headers["ETag"]
        async with http.delete(url(cluster, names[1], path), headers={"If-Match": first}) as response:
            assert response.status == 412
        async with http.delete(url(cluster, names[2], path), headers={"If-Match": etag}) as response:
            assert (await response.json())["deleted"] is True
        async with http.get(url(cluster, names[0], path)) as response:
            assert response.status == 404


async def test_idempotency_key_holds_across_a_leader_kill() -> None:
    async with running() as (cluster, http):
        leader = await cluster.leader()
        path = "/v1/kv/default/once"
        headers = {"Idempotency-Key": "order-1"}
        async with http.put(url(cluster, leader, path), data=b"1", headers=headers) as response:
            revision = (await response.json())["revision"]
        await cluster.kill(leader)
        other = next(iter(cluster.nodes))
        async with http.put(url(cluster, other, path), data=b"1", headers=headers) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["revision"] == revision  # the first attempt's answer, not a second write
        async with http.get(url(cluster, other, path)) as response:
            assert response.headers["Kv-Version"] == "1"


async def test_write_during_a_leader_kill_is_forwarded_to_the_next_one() -> None:
    async with running() as (cluster, http):
        leader = await cluster.leader()
        other = next(name for name in cluster.nodes if name != leader)
        await cluster.kill(leader)
        async with http.put(url(cluster, other, "/v1/kv/default/k?timeout_ms=8000"), data=b"v") as response:
            assert response.status == 200, await response.text()


async def test_stale_reads_come_from_followers_and_tell_their_age() -> None:
    async with running() as (cluster, http):
        leader = await cluster.leader()
        follower = next(name for name in cluster.nodes if name != leader)
        path = "/v1/kv/default/k"
        async with http.put(url(cluster, leader, path), data=b"v") as response:
            assert response.status == 200
        metrics = cluster.nodes[follower].metrics
        stale = url(cluster, follower, f"{path}?consistency=stale&max_staleness_ms=5000")
        for _ in range(3):
            async with http.get(stale) as response:
                assert response.status == 200
                assert 0 <= int(response.headers["Kv-Age-Ms"]) <= 5_000
                assert int(response.headers["Kv-Applied-Index"]) > 0
        assert metrics.reads_stale == 3
        assert metrics.reads_linearizable == 0


async def test_leadership_goes_where_it_is_sent_from_any_node() -> None:
    async with running() as (cluster, http):
        leader = await cluster.leader()
        target, asked = (name for name in cluster.nodes if name != leader)
        async with http.post(url(cluster, asked, "/v1/shards/2/transfer"), json={"node": target}) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["leader"] == target
        assert await cluster.leader() == target
        async with http.post(url(cluster, asked, "/v1/shards/2/transfer"), json={"node": "n9"}) as response:
            assert (response.status, (await response.json())["code"]) == (404, "NOT_FOUND")


async def test_two_joins_with_one_name_give_one_member() -> None:
    async with running() as (cluster, http):
        await cluster.until(_member_count(cluster, 3))

        async def join(through: str, node_id: str) -> int:
            body = {"name": "n7", "node_id": node_id, "address": "127.0.0.1:9", "labels": {}}
            async with http.post(url(cluster, through, "/v1/members"), json=body) as response:
                return response.status

        statuses = await asyncio.gather(*(join(f"n{1 + k % 3}", f"{k:032x}") for k in range(6)))
        assert sorted(statuses) == [200, 409, 409, 409, 409, 409]
        await cluster.until(_member_count(cluster, 4))


def _member_count(cluster: LocalCluster, count: int) -> Any:
    async def reached() -> bool:
        return len(await cluster.nodes["n1"].admin.members()) == count

    return reached


async def test_metrics_of_a_node_with_traffic() -> None:
    async with running() as (cluster, http):
        async with cluster.client() as kv:
            await asyncio.gather(*(kv.put(b"key-%d" % number, b"v" * 10) for number in range(200)))
            await asyncio.gather(*(kv.get(b"key-%d" % number) for number in range(200)))
        leader = await cluster.leader()
        samples: dict[str, float] = {}

        async def at_rest() -> bool:
            """Nothing waits: looked at again, as the nodes write a little of their own now and then."""
            async with http.get(url(cluster, leader, "/metrics")) as response:
                samples.update(_samples(await response.text()))
            families = ("kvstore_queue_depth{", "kvstore_raft_applied_lag{")
            waiting = [one for name, one in samples.items() if name.startswith(families)]
            return len(waiting) == 3 + 2 and not any(waiting)

        await cluster.until(at_rest)
        value = samples.__getitem__
        assert value("kvstore_raft_proposals_total") >= 200
        assert value("kvstore_raft_applies_total") >= 200
        assert value("kvstore_raft_commits_total") >= 1
        assert value("kvstore_reads_linearizable_total") >= 200
        assert value("kvstore_stream_operations_total") >= 400
        assert value("kvstore_raft_leader_changes_total") >= 1
        assert value("kvstore_raft_commit_seconds_count") >= 1
        assert value("kvstore_log_fsync_seconds_count") >= 1
        assert 0 < value("kvstore_log_fsync_seconds_sum") < 60
        roles = {name: one for name, one in samples.items() if name.startswith("kvstore_raft_groups{")}
        assert sum(roles.values()) == 2
        assert value('kvstore_raft_groups{role="leader"}') >= 1
        for family in ("kvstore_storage_bytes{", "kvstore_http_requests_total{", "kvstore_stream_requests_total{"):
            assert any(name.startswith(family) for name in samples), family
        assert any(one > 0 for name, one in samples.items() if name.startswith("kvstore_storage_bytes{"))


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            yield name, float(number)


@pytest.mark.parametrize("mode", ["index", "lease"])
async def test_reads_are_right_in_both_modes_across_a_leader_kill(mode: str) -> None:
    async with running(read_mode=mode) as (cluster, _), cluster.client() as kv:
        for round_ in range(2):
            for number in range(50):
                await kv.put(b"k", b"%d" % number)
                assert await kv.get(b"k") == b"%d" % number
            leader = await cluster.leader()
            if round_ == 0:
                await cluster.kill(leader)
                assert await kv.get(b"k") == b"49"
