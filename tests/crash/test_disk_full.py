"""A disk that is nearly full: writes are refused as such, deletes and reads go on, leaderships move to nodes with room,
and all comes back by itself.

Method: real processes on a small ext4, filled by a file that only reserves its space.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvstore.base.errors import DiskFull, KVError
from kvstore.base.limits import DISK_RESERVE_BYTES, MIB
from tests.crash.load import Load
from tests.crash.processes import ProcessCluster, until
from tests.crash.small_disk import small_disk

DISK_BYTES = 4_096 * MIB  # sparse
NEARLY_FULL_BYTES = 600 * MIB  # below the bound of 1 GiB
FULL_BYTES = 100 * MIB  # below the reserve


async def _tells_full(cluster: ProcessCluster, name: str, full: bool) -> None:
    async def tells() -> bool:
        status = await cluster.get(name, "/v1/status")
        return status is not None and status["disk_full"] is full

    await until(tells, seconds=10)


async def _has_reserve(cluster: ProcessCluster, name: str, has: bool) -> None:
    async def there() -> bool:
        return (cluster[name].data / "reserve").exists() is has

    await until(there, seconds=10)


def _remove(ballast: Path) -> None:
    os.unlink(ballast)


@pytest.mark.slow
async def test_full_disk_refuses_writes_and_takes_deletes(tmp_path: Path) -> None:
    with small_disk(tmp_path, size_bytes=DISK_BYTES) as disk:
        async with (
            ProcessCluster(tmp_path, nodes=1, disks={"n1": disk.path}) as cluster,
            cluster.client(timeout=2) as kv,
        ):
            await kv.put_many({b"key-%d" % n: b"v" * 100 for n in range(100)})
            await _has_reserve(cluster, "n1", True)
            ballast = disk.fill_up(leave_bytes=NEARLY_FULL_BYTES)
            await _tells_full(cluster, "n1", True)
            with pytest.raises(DiskFull) as refused:
                await kv.put(b"new", b"1", timeout=1)
            assert refused.value.definite
            assert await kv.get(b"new") is None
            assert await kv.delete(b"key-0")
            assert await kv.delete_range(prefix=b"key-1") == 11
            assert await kv.get(b"key-2") == b"v" * 100

            _remove(ballast)
            ballast = disk.fill_up(leave_bytes=FULL_BYTES)
            await _has_reserve(cluster, "n1", False)
            assert disk.free_bytes() > FULL_BYTES + DISK_RESERVE_BYTES // 2, "the reserve gave its space"
            assert await kv.delete(b"key-2")

            _remove(ballast)
            await _tells_full(cluster, "n1", False)
            await kv.put(b"new", b"2")
            await _has_reserve(cluster, "n1", True)
            assert len([item async for item in kv.scan(prefix=b"key-")]) == 87


async def _moved_away(cluster: ProcessCluster, name: str) -> None:
    async def moved() -> bool:
        return name not in (await cluster.leader(1), await cluster.leader(2))

    await until(moved, seconds=15)


async def _lead(cluster: ProcessCluster, name: str) -> None:
    await cluster.keep_leaders()

    async def leads() -> bool:
        leader = await cluster.leader()
        if leader != name:
            await cluster.transfer(leader, 2, name)
        return leader == name

    await until(leads)


@pytest.mark.slow
async def test_leadership_leaves_a_node_whose_disk_is_full(tmp_path: Path) -> None:
    """Clients do not notice: their writes go to a node with room. The full one still follows and votes."""
    with small_disk(tmp_path, size_bytes=DISK_BYTES) as disk:
        async with ProcessCluster(tmp_path, disks={"n1": disk.path}) as cluster:
            await _lead(cluster, "n1")
            async with cluster.client() as kv, Load(kv, pause=0.01) as load:
                disk.fill_up(leave_bytes=NEARLY_FULL_BYTES)
                await _tells_full(cluster, "n1", True)
                await _moved_away(cluster, "n1")
                await load.stop()
                await load.check()
                assert not load.told.errors, load.told.errors[:3]
                assert not load.told.refused
            # It comes to lead again by an election, and gives the leadership away again.
            async with cluster.client(timeout=15) as kv:
                await _lead(cluster, "n1")
                await _moved_away(cluster, "n1")
                await kv.put(b"after", b"1")


@pytest.mark.slow
async def test_disk_that_is_really_full_ends_the_node_and_loses_nothing(tmp_path: Path) -> None:
    """ENOSPC in a commit is final for the process; with room it starts again with all that it acknowledged."""
    with small_disk(tmp_path, size_bytes=DISK_BYTES) as disk:
        async with ProcessCluster(tmp_path, nodes=1, disks={"n1": disk.path}) as cluster, cluster.client() as kv:
            keys = [b"key-%05d" % n for n in range(4_000)]
            await kv.put_many((key, b"v" * 100) for key in keys)
            await _has_reserve(cluster, "n1", True)
            ballast = [disk.fill_up(leave_bytes=FULL_BYTES)]
            await _has_reserve(cluster, "n1", False)  # its space goes, too
            ballast.append(disk.fill_up(leave_bytes=0))
            deleted: set[bytes] = set()
            unknown: set[bytes] = set()
            for key in keys:
                try:
                    await kv.delete(key, timeout=1)
                    deleted.add(key)
                except KVError:
                    unknown.add(key)
                    break
            assert await cluster["n1"].ended() == 1
            output = cluster["n1"].output()
            assert [line for line in output if "CRITICAL" in line]
            assert [line for line in output if "No space left on device" in line]
            for file in ballast:
                _remove(file)
            await cluster.start("n1")
            await cluster.wait_ready()
            found = {item.key async for item in kv.scan(timeout=15)}
            assert found - unknown == set(keys) - deleted - unknown
            await kv.put(b"after", b"1", timeout=15)
            print(f"{len(deleted)} deletes until the disk was really full")
