"""A log record of a stopped node rots: the node says so, does not vote with what is left, and is healed by the leader.

Method: real processes; one byte of a known value is flipped in every place of log/data.mdb. The state is not flushed
between the write and the kill (it would be every five seconds at the earliest), so the record is still needed.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from kvstore.client import Client
from tests.crash.files import flip, holds, truncate
from tests.crash.processes import ProcessCluster, until

MARK = b"a-value-that-is-nowhere-else-in-the-file-0123456789"
ALL = ("n1", "n2", "n3")


async def _write(kv: Client, prefix: bytes, *, count: int = 50) -> dict[bytes, bytes]:
    """One after the other, so that each is an entry of its own."""
    written = {prefix + b"-%03d" % n: prefix * 5 + b"%03d" % n for n in range(count)}
    for key, value in written.items():
        await kv.put(key, value)
    return written


async def _check(kv: Client, written: dict[bytes, bytes]) -> None:
    found = {item.key: item.value async for item in kv.scan()}
    assert {key: found.get(key) for key in written} == written


async def _healed(cluster: ProcessCluster, name: str) -> None:
    async def sound() -> bool:
        rows = [await cluster.replica(name, shard) for shard in (1, 2)]
        return all(row is not None and not row["damaged"] and row["role"] != "failed" for row in rows)

    await until(sound)


def _tells_of_loss(cluster: ProcessCluster, name: str, since: int) -> list[str]:
    return [line for line in cluster[name].output(since) if "log records behind index" in line]


async def _damaged(cluster: ProcessCluster, victim: str) -> dict[bytes, bytes]:
    """A cluster that has all stopped, with the last part of the victim's log damaged; what was acknowledged."""
    async with cluster.client() as kv:
        written = await _write(kv, b"before")
        await kv.put(b"marked", MARK)
        written |= {b"marked": MARK} | await _write(kv, b"after", count=5)

        # A follower may hear of the last entries, and have them on its disk, a moment after they were acknowledged.
        async def has_all() -> bool:
            rows = [await cluster.replica(name) for name in ALL]
            last = next(reversed(written.values()))
            return len({row["last_index"] for row in rows if row}) == 1 and holds(cluster[victim].data / "log", last)

        await until(has_all)
    await cluster.kill(*ALL)
    flip(cluster[victim].data / "log" / "data.mdb", MARK)
    return written


@pytest.mark.slow
async def test_flipped_byte_in_a_log_is_told_and_healed(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster:
        written = await _damaged(cluster, "n2")
        since = cluster["n2"].output_bytes
        await cluster.start(*ALL)
        await cluster.wait_ready()
        await _healed(cluster, "n2")
        assert len(_tells_of_loss(cluster, "n2", since)) == 1
        async with cluster.client() as kv:
            await _check(kv, written)
            # Healed for good: it is needed for the quorum now, and a restart finds nothing wrong.
            await cluster.kill("n3")
            written |= await _write(kv, b"with-the-healed-one")
            await _check(kv, written)
            since = cluster["n2"].output_bytes
            await cluster.kill("n2")
            await cluster.start("n2")
            await cluster.wait_ready()
            assert not _tells_of_loss(cluster, "n2", since)
            await _check(kv, written)
            await cluster.start("n3")
            await cluster.wait_ready()


@pytest.mark.slow
async def test_damaged_replica_does_not_vote_before_it_is_healed(tmp_path: Path) -> None:
    """It may have acknowledged what it lost: with its vote a replica could lead that has never seen it."""
    async with ProcessCluster(tmp_path) as cluster:
        written = await _damaged(cluster, "n2")
        await cluster.start("n1", "n2")

        async def both_up() -> bool:
            return None not in (await cluster.get("n1", "/healthz"), await cluster.get("n2", "/healthz"))

        await until(both_up)
        # Two election timeouts at their longest: a sound pair would have a leader by then.
        deadline = time.monotonic() + 4.0
        while time.monotonic() < deadline:
            row = await cluster.replica("n1")
            assert row is not None
            assert row["role"] != "leader"
            row = await cluster.replica("n2")
            assert row is not None
            assert row["role"] != "leader"
            assert row["damaged"]
            await asyncio.sleep(0.1)
        await cluster.start("n3")
        await cluster.wait_ready()
        await _healed(cluster, "n2")
        async with cluster.client() as kv:
            await _check(kv, written)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["log", "state"])
async def test_cut_file_is_set_aside_in_one_line(tmp_path: Path, part: str) -> None:
    """No SIGBUS: the file is looked at before it is mapped. What its votes were is lost, so it is another node now."""
    async with ProcessCluster(tmp_path) as cluster:
        async with cluster.client() as kv:
            written = await _write(kv, b"before", count=400)
        await cluster["n2"].stop()  # flushed, so that both files have something to lose
        truncate(cluster["n2"].data / part / "data.mdb", 0.5)
        since = cluster["n2"].output_bytes
        await cluster.start("n2")
        assert await cluster["n2"].ended() == 2
        output = cluster["n2"].output(since)
        assert len([line for line in output if "is cut off" in line]) == 1, output
        assert "belongs to another node" in output[-1], output
        assert "node remove n2" in output[-1], output
        assert [entry for entry in os.listdir(tmp_path) if entry.startswith("n2.lost-")], "the lost one is kept"
        async with cluster.client() as kv:
            await _check(kv, written)
            await cluster.remove_member("n1", "n2")
            await cluster.start("n2")
            await cluster.wait_ready()
            await cluster.wait_replicated(*ALL)
            await cluster.kill("n3")
            await _check(kv, written)
