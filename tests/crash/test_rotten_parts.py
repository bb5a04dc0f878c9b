"""Damage that only turns up while a node runs, in places that are not looked at when it starts: old log records that
a slow follower still needs, and sessions.

Method: production nodes in this process; a byte is flipped while the node is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from kvstore.base.errors import KVError
from kvstore.client import Client
from kvstore.storage.state_store import LmdbStateStore
from kvstore.testing import LocalCluster
from tests.crash.files import flip

MARK = b"a-value-that-is-nowhere-else-in-the-file-0123456789"


@pytest.fixture
async def cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(nodes=3, flush_interval_ms=100) as running:
        yield running


async def _flushed(cluster: LocalCluster, *names: str) -> None:
    """Until everything that is committed now is in these nodes' state files."""
    target = cluster.nodes[await cluster.leader()].host.core.replicas[2].raw.commit

    async def all_flushed() -> bool:
        for name in names:
            image = cluster.nodes[name].host.environment.state_store.shards().get(2)
            if image is None or image.applied_index < target:
                return False
        return True

    await cluster.until(all_flushed)


async def _lead(cluster: LocalCluster, name: str) -> None:
    await cluster.nodes[name].admin.placement.set_settings({"rebalance": False})  # which might move it back

    async def led() -> bool:
        leader = await cluster.leader()
        if leader != name:
            with contextlib.suppress(KVError):  # the members' records are read every half second only
                await cluster.nodes[leader].admin.transfer(2, name)
        return leader == name

    await cluster.until(led)


async def _sound(cluster: LocalCluster, name: str) -> None:
    async def sound() -> bool:
        replica = cluster.nodes[name].host.core.replicas.get(2)
        return (
            replica is not None
            and not replica.failed
            and replica.state is not None
            and not replica.healing.damaged
            and not cluster.nodes[name].fatal.done()
        )

    await cluster.until(sound)


async def _check(kv: Client, written: dict[bytes, bytes]) -> None:
    found = {item.key: item.value async for item in kv.scan(timeout=15)}
    assert found == written


async def test_old_log_record_that_a_follower_needs(cluster: LocalCluster) -> None:
    """It lies below the flushed index, where a start does not look. The leader that reads it stops leading, and is
    healed by the next one; the slow follower gets the record from there."""
    async with cluster.client(timeout=15) as kv:
        written = {b"key-%03d" % n: b"v" * 50 for n in range(50)} | {b"marked": MARK}
        await _lead(cluster, "n1")
        await cluster.kill("n3")
        await kv.put_many(written)
        await _flushed(cluster, "n1", "n2")
        await cluster.kill("n1")
        await cluster.kill("n2")
        flip(cluster.folder / "n1" / "log" / "data.mdb", MARK)
        damaged = await cluster.start("n1")
        await cluster.start("n2")
        await cluster.wait_ready()
        await _lead(cluster, "n1")
        assert damaged.metrics.damaged_records == 0
        await cluster.start("n3")  # needs the record, and n1 is to send it

        async def noticed() -> bool:
            return damaged.metrics.damaged_records > 0

        await cluster.until(noticed)
        await _sound(cluster, "n1")
        await _sound(cluster, "n3")
        assert await cluster.leader() != "n1"
        await _check(kv, written)
        for name in cluster.nodes:
            await _lead(cluster, name)
            await _check(kv, written)


async def test_damaged_session_stops_and_heals_one_replica(cluster: LocalCluster) -> None:
    """Found when the replica is loaded: the node starts nevertheless, and its other shard serves."""
    async with cluster.client(timeout=15) as kv:
        written = {b"key-%03d" % n: b"v" * 50 for n in range(50)}
        await kv.put_many(written)
        await _flushed(cluster, "n1", "n2", "n3")
        store = cluster.nodes["n3"].host.environment.state_store
        ((_, answers),) = store.sessions(2).items()
        await cluster.kill("n3")
        flip(cluster.folder / "n3" / "state" / "data.mdb", answers)
        node = await cluster.start("n3")
        assert node.metrics.damaged_records == 1
        await _sound(cluster, "n3")
        assert node.metrics.snapshots_installed == 1
        await _lead(cluster, "n3")
        await _check(kv, written)


async def test_crash_in_the_middle_of_a_rebuild(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is forgotten, the damaged state is still there: the replica is barred, and finds its damage anew."""
    async with cluster.client(timeout=15) as kv:
        written = {b"key-%03d" % n: b"v" * 50 for n in range(50)} | {b"marked": MARK}
        await kv.put_many(written)
        await _flushed(cluster, "n1", "n2", "n3")
        await cluster.kill("n3")
        flip(cluster.folder / "n3" / "state" / "data.mdb", MARK)
        node = await cluster.start("n3")
        await cluster.wait_ready()
        began = asyncio.Event()
        with monkeypatch.context() as patch:
            patch.setattr(LmdbStateStore, "destroy_shard", lambda *_: began.set())
            await _lead(cluster, "n3")
            assert await kv.get(b"marked") == MARK
            async with asyncio.timeout(10):
                await began.wait()
            await cluster.kill("n3")
        node = await cluster.start("n3")
        assert node.host.core.replicas[2].raw.barred
        await _sound(cluster, "n3")
        await _lead(cluster, "n3")
        assert await kv.get(b"marked") == MARK
        await _sound(cluster, "n3")
        assert node.metrics.snapshots_installed == 1
        await _lead(cluster, "n3")
        await _check(kv, written)
