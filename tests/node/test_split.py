"""Shards that split under load, in real nodes: clients see no error, lose nothing, and scans stay whole and ordered.

Method: writers that count what was acknowledged, a reader that scans over and over, and splits asked for by REST.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import aiohttp

from kvstore.client import Client
from kvstore.testing import LocalCluster
from tests.node.test_http import running, url

KEYS = 300
WRITERS = 8


async def ask(http: aiohttp.ClientSession, cluster: LocalCluster, name: str, shard: int, **body: str) -> Any:
    async with http.post(url(cluster, name, f"/v1/shards/{shard}/split"), json=body) as response:
        return response.status, await response.json()


def key_of(number: int) -> str:
    return f"k{number:04d}"


class Load:
    """Each writer has keys of its own and rewrites them in turn."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.written: dict[str, int] = {}
        self.stopped = False
        self.scans = 0

    async def write(self, writer: int) -> None:
        count = 0
        while not self.stopped:
            count += 1
            for number in range(writer, KEYS, WRITERS):
                await self.client.put(key_of(number), b"%d" % count)
                self.written[key_of(number)] = count

    async def scan(self) -> None:
        """Every key that was there before it began is found once, in order, at least as new as it was then."""
        while not self.stopped:
            before = dict(self.written)
            reverse = self.scans % 2 == 1
            found = [(item.key, int(item.value)) async for item in self.client.scan(reverse=reverse, page_keys=40)]
            keys = [key for key, _ in found]
            assert keys == sorted(set(keys), reverse=reverse)
            values = {key.decode(): value for key, value in found}
            for key, count in before.items():
                assert values[key] >= count, key
            self.scans += 1


async def test_splits_under_load() -> None:
    async with running() as (cluster, http), cluster.client() as client:
        names = list(cluster.nodes)
        load = Load(client)
        async with asyncio.TaskGroup() as group:
            for writer in range(WRITERS):
                group.create_task(load.write(writer))
            await cluster.until(_holds(lambda: len(load.written) == KEYS))
            group.create_task(load.scan())
            shard = 2
            children = []
            for number, at in enumerate((150, 75, 225, 30, 270)):
                routes = await client.routes()
                shard = next(one.id for one in routes if one.start <= key_of(at).encode() and _below(at, one.end))
                status, answer = await ask(http, cluster, names[number % 3], shard, at=key_of(at))
                assert status == 200, answer
                assert answer["at"] == key_of(at)
                children.append(answer["child"])
                await asyncio.sleep(0.2)
            scans = load.scans
            await cluster.until(_holds(lambda: load.scans > scans + 1))
            load.stopped = True
        assert len(set(children)) == 5
        routes = sorted(await client.routes(), key=lambda one: one.start)
        assert [one.start for one in routes] == [b"", *(key_of(at).encode() for at in (30, 75, 150, 225, 270))]
        assert [one.end for one in routes[:-1]] == [one.start for one in routes[1:]]
        found = {item.key.decode(): int(item.value) async for item in client.scan()}
        assert found == load.written
        # Asked again, as by somebody who got no answer: nothing happens.
        status, answer = await ask(http, cluster, names[0], 2, at=key_of(30))
        assert (status, answer["child"]) == (200, None)
        deleted = await client.delete_range(start=key_of(0), end=key_of(280))
        assert deleted == 280
        assert [item.key async for item in client.scan()] == [key_of(number).encode() for number in range(280, KEYS)]


async def test_middle_of_the_data_and_key_groups() -> None:
    async with running() as (cluster, http), cluster.client() as client:
        await client.put_many([(f"a{number}", b"v" * 100) for number in range(9)])
        await client.put_many([(f"{{order-17}}/{number:03d}", b"v" * 100) for number in range(100)])
        status, answer = await ask(http, cluster, "n1", 2, at="{order-17}/050")
        assert (status, answer["code"]) == (400, "INVALID")
        assert "'{order-17}'" in answer["detail"]
        assert "'{order-17~'" in answer["detail"]
        status, answer = await ask(http, cluster, "n2", 2)
        assert status == 200, answer
        assert answer["at"] == "{order-17}"
        status, answer = await ask(http, cluster, "n3", answer["child"])
        assert (status, answer["code"]) == (400, "INVALID"), "one key group is all that it holds"
        whole = [row["id"] for node in cluster.nodes.values() for row in node.admin.shards() if row["indivisible"]]
        assert len(whole) == 1, "its leader tells"
        counts = [node.metrics.gauge("kvstore_shards")["indivisible"] for node in cluster.nodes.values()]
        assert sorted(counts) == [0, 0, 1]
        for status, answer in (
            await ask(http, cluster, "n1", 77, at="m"),
            await ask(http, cluster, "n1", 1, at="m"),
        ):
            assert status in (400, 404), answer


async def test_children_survive_a_restart_of_all() -> None:
    async with running() as (cluster, http), cluster.client() as client:
        for number in range(20):
            await client.put(key_of(number), b"1")
        status, answer = await ask(http, cluster, "n1", 2, at=key_of(10))
        assert status == 200, answer
        await client.put(key_of(15), b"2")
        for name in list(cluster.nodes):
            await cluster.kill(name)
        await asyncio.gather(*(cluster.start(name) for name in FOUNDERS))
        await cluster.wait_ready()
        assert await client.get(key_of(15)) == b"2"
        assert await client.get(key_of(5)) == b"1"
        await client.put(key_of(16), b"3")


async def test_nodes_killed_in_the_middle_of_splits() -> None:
    """Each time another node dies within ms of a split, the shard's leader more often than not, and comes back. What a
    client heard is there, each write once; the halves are led again, and are all of the keyspace."""
    rng = random.Random(4)
    async with running(flush_interval_ms=700) as (cluster, http), cluster.client(timeout=30.0) as client:
        load = Load(client)
        async with asyncio.TaskGroup() as group:
            for writer in range(WRITERS):
                group.create_task(load.write(writer))
            await cluster.until(_holds(lambda: len(load.written) == KEYS))
            for at in rng.sample(range(10, KEYS), 6):
                routes = await client.routes()
                route = next(one for one in routes if one.start <= key_of(at).encode() and _below(at, one.end))
                asked = asyncio.create_task(_ask_quietly(http, cluster, rng.choice(FOUNDERS), route.id, key_of(at)))
                await asyncio.sleep(rng.choice((0.0, 0.005, 0.02, 0.1)) * rng.random())
                victim = route.leader if route.leader in cluster.nodes and rng.random() < 0.6 else rng.choice(FOUNDERS)
                await cluster.kill(victim)
                await asked
                await asyncio.sleep(rng.random())
                await cluster.start(victim)
                await cluster.wait_ready()
            load.stopped = True
        found = {item.key.decode(): int(item.value) async for item in client.scan()}
        assert found == load.written
        routes = sorted(await client.routes(), key=lambda one: one.start)
        assert len(routes) > 2
        assert routes[0].start == routes[-1].end == b""
        assert [one.end for one in routes[:-1]] == [one.start for one in routes[1:]]
        for key, count in load.written.items():
            record = await client.get_record(key)
            assert record is not None
            assert record.version == count, "a write was done twice, or not at all"


async def _ask_quietly(http: aiohttp.ClientSession, cluster: LocalCluster, name: str, shard: int, at: str) -> None:
    with contextlib.suppress(aiohttp.ClientError):  # the node that is asked may be the one that dies
        await ask(http, cluster, name, shard, at=at)


FOUNDERS = ("n1", "n2", "n3")


def _holds(condition: Any) -> Any:
    async def holds() -> bool:
        return bool(condition())

    return holds


def _below(at: int, end: bytes) -> bool:
    return not end or key_of(at).encode() < end


async def test_batch_by_rest_across_shards_is_refused_at_once() -> None:
    """And one that was done before the split is answered as it was, by its Idempotency-Key."""
    async with running() as (cluster, http), cluster.client() as client:
        await client.put("a", b"0")
        operations = [{"op": "put", "key": "a", "value": "1"}, {"op": "put", "key": "z", "value": "1"}]
        path, headers = "/v1/batch/default", {"Idempotency-Key": "order-1"}
        async with http.post(url(cluster, "n1", path), json={"operations": operations}, headers=headers) as response:
            done = await response.json()
            assert response.status == 200, done
        status, _ = await ask(http, cluster, "n1", 2, at="m")
        assert status == 200
        for name in FOUNDERS:
            async with http.post(
                url(cluster, name, path), json={"operations": operations}, headers=headers
            ) as response:
                assert (response.status, await response.json()) == (200, done)
            async with http.post(url(cluster, name, path), json={"operations": operations}) as response:
                answer = await response.json()
                assert (response.status, answer["code"]) == (400, "INVALID")
                assert "lie in different ones" in answer["detail"]
