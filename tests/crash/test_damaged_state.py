"""A data record rots under a running node: only that replica stops, the node and its other shard stay up, others serve,
and the new leader heals the damaged replica with a snapshot.

Method: real processes; the nodes stop gracefully (which flushes nothing more than a crash would, so the flush is waited
for), one byte of a known value is flipped in state/data.mdb, and the replica is made to read it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.base.errors import KVError
from kvstore.client import Client
from tests.crash.files import flip, holds
from tests.crash.processes import ProcessCluster, until

MARK = b"a-value-that-is-nowhere-else-in-the-file-0123456789"
ALL = ("n1", "n2", "n3")
FLUSH = ("--flush-interval-ms", "200")


async def _written(cluster: ProcessCluster) -> dict[bytes, bytes]:
    """What was written, and is flushed on every node; all have stopped afterwards."""
    written = {b"key-%03d" % n: b"v" * 100 for n in range(300)} | {b"marked": MARK}
    async with cluster.client() as kv:
        await kv.put_many(written)
        for name in cluster.nodes:

            async def flushed(name: str = name) -> bool:
                return holds(cluster[name].data / "state", MARK)

            await until(flushed)
    await cluster.kill(*cluster.nodes)
    return written


async def _lead(cluster: ProcessCluster, name: str) -> None:
    await cluster.keep_leaders()

    async def leads() -> bool:
        leader = await cluster.leader()
        if leader != name:
            await cluster.transfer(leader, 2, name)
        return leader == name

    await until(leads)


async def _check(kv: Client, written: dict[bytes, bytes]) -> None:
    found = {item.key: item.value async for item in kv.scan(timeout=15)}
    assert {key: found.get(key) for key in written} == written


@pytest.mark.slow
async def test_replica_with_a_damaged_record_is_replaced_and_healed(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, flags=FLUSH) as cluster:
        written = await _written(cluster)
        flip(cluster["n2"].data / "state" / "data.mdb", MARK)
        await cluster.start(*ALL)
        await cluster.wait_ready()
        since = cluster["n2"].output_bytes
        await _lead(cluster, "n2")
        async with cluster.client() as kv:
            assert await kv.get(b"marked", timeout=15) == MARK  # from another one
            assert await cluster.leader() != "n2"
            told = [line for line in cluster["n2"].output(since) if "damage" in line and "group 2" in line]
            assert any("b'dmarked'" in line or "marked" in line for line in told), told
            assert cluster["n2"].running

            async def healed() -> bool:
                row = await cluster.replica("n2")
                other = await cluster.replica("n2", 1)
                assert other is not None
                assert other["role"] != "failed"
                return row is not None and row["role"] == "follower" and not row["damaged"] and row["applied"] > 0

            await until(healed)
            # It is whole, and may lead again.
            await _lead(cluster, "n2")
            await _check(kv, written)
            assert await cluster.leader() == "n2"
            await cluster.kill("n3")
            await kv.put(b"after", b"1")
            await _check(kv, written)


@pytest.mark.slow
async def test_damage_of_the_only_replica_destroys_nothing_else(tmp_path: Path) -> None:
    """Nobody can heal a cluster of one: it says what is wrong and keeps what it has."""
    async with ProcessCluster(tmp_path, nodes=1, flags=FLUSH) as cluster:
        written = await _written(cluster)
        flip(cluster["n1"].data / "state" / "data.mdb", MARK)
        await cluster.start("n1")
        await cluster.wait_ready()
        async with cluster.client() as kv:
            assert await kv.get(b"key-000") == written[b"key-000"]
            with pytest.raises(KVError, match="stopped"):
                await kv.get(b"marked", timeout=1)
        row = await cluster.replica("n1")
        assert row is not None
        assert row["role"] == "failed"
        assert "marked" in row["problem"]
        assert await cluster.get("n1", "/healthz") is not None
        await cluster.kill("n1")
        await cluster.start("n1")
        await cluster.wait_ready()
        async with cluster.client() as kv:
            assert await kv.get(b"key-000") == written[b"key-000"]
