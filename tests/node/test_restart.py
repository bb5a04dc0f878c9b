"""Nodes that stop, die and come back: acknowledged writes stay, and clients go on.

Method: production nodes in this process (LMDB, fsync, HTTP), a client under load while nodes go away.
"""

from __future__ import annotations

import asyncio

from kvstore.base.errors import KVError
from kvstore.client import Client
from kvstore.testing import LocalCluster


class Load:
    """Writers that count up keys of their own; remembers what was acknowledged and what failed."""

    def __init__(self, client: Client, *, writers: int = 8) -> None:
        self._client = client
        self._stop = asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._write(number)) for number in range(writers)]
        self.acknowledged: dict[bytes, bytes] = {}
        self.errors: list[KVError] = []

    async def _write(self, number: int) -> None:
        key = b"writer-%d" % number
        count = 0
        while not self._stop.is_set():
            count += 1
            try:
                await self._client.put(key, b"%d" % count)
                self.acknowledged[key] = b"%d" % count
            except KVError as error:
                self.errors.append(error)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def check(self) -> None:
        """Every acknowledged count is there, or a later one of the same writer that was not acknowledged."""
        for key, value in self.acknowledged.items():
            found = await self._client.get(key)
            assert found is not None
            assert int(found) >= int(value), (key, found, value)


async def test_rolling_restart_shows_clients_no_error(cluster: LocalCluster) -> None:
    """SIGTERM's way: each node hands its leaderships over before it stops."""
    async with cluster.client() as kv:
        load = Load(kv)
        for name in ("n1", "n2", "n3"):
            await cluster.stop(name)
            await cluster.start(name)
            await cluster.wait_ready()
        await load.stop()
        assert not load.errors
        assert len(load.acknowledged) == 8
        await load.check()


async def test_killed_leader_loses_nothing(cluster: LocalCluster) -> None:
    async with cluster.client() as kv:
        load = Load(kv)
        for _ in range(3):
            leader = await cluster.leader()
            before = dict(load.acknowledged)
            await cluster.kill(leader)
            await cluster.until(_all_advanced(load, before), seconds=10)
            await cluster.start(leader)
            await cluster.wait_ready()
        await load.stop()
        assert not load.errors
        await load.check()


def _all_advanced(load: Load, before: dict[bytes, bytes]):  # type: ignore[no-untyped-def]
    async def advanced() -> bool:
        return all(load.acknowledged.get(b"writer-%d" % n) != before.get(b"writer-%d" % n) for n in range(8))

    return advanced


async def test_all_nodes_restart_with_everything(cluster: LocalCluster) -> None:
    async with cluster.client() as kv:
        written = {b"key-%03d" % n: b"value-%d" % n for n in range(300)}
        await asyncio.gather(*(kv.put(key, value) for key, value in written.items()))
        for name in ("n1", "n2", "n3"):
            await cluster.kill(name)
        await asyncio.gather(*(cluster.start(name) for name in ("n1", "n2", "n3")))
        await cluster.wait_ready()
        found = {item.key: item.value async for item in kv.scan(prefix=b"key-")}
        assert found == written


async def test_single_node_restarts_with_everything(single: LocalCluster) -> None:
    async with single.client() as kv:
        await asyncio.gather(*(kv.put(b"%d" % n, b"v") for n in range(100)))
        await single.kill("n1")
        await single.start("n1")
        await single.wait_ready()
        assert len([item async for item in kv.scan()]) == 100


async def test_revisions_and_sessions_survive_a_restart(single: LocalCluster) -> None:
    async with single.client() as kv:
        first = await kv.put(b"k", b"1")
        await single.stop("n1")
        await single.start("n1")
        await single.wait_ready()
        second = await kv.put(b"k", b"2")
        assert second == first + 1
        record = await kv.get_record(b"k")
        assert record is not None
        assert (record.create_revision, record.mod_revision, record.version) == (first, second, 2)
