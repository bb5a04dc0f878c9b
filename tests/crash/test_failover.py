"""How long clients wait when a leader goes: killed, paused, or stopped as a rolling restart does it.

Bounds here are loose (other programs share the machine); benchmarks/failover.py measures with more rounds.
"""

from __future__ import annotations

import signal
import statistics
import time
from pathlib import Path

import pytest

from kvstore.replica import haste
from kvstore.testing import LocalCluster
from tests.crash.load import Load
from tests.crash.processes import ProcessCluster

KILLS = 5


@pytest.mark.slow
async def test_writes_go_on_soon_after_the_leader_was_killed(tmp_path: Path) -> None:
    waits: list[float] = []
    async with ProcessCluster(tmp_path) as cluster, cluster.client() as kv, Load(kv, pause=0.01) as load:
        for _ in range(KILLS):
            leader = await cluster.leader()
            killed_at = time.monotonic()
            cluster[leader].send(signal.SIGKILL)
            waits.append(await load.accepted(killed_at, seconds=15))
            await cluster[leader].ended()
            await cluster.start(leader)
            await cluster.wait_ready()
        await load.stop()
        await load.check()
        assert not load.told.errors, load.told.errors[:3]
    print(f"leader killed to next accepted write: median {statistics.median(waits):.2f} s, worst {max(waits):.2f} s")
    # Without the evidence of closed connections it would take an election timeout, 1 to 2 s, each time.
    assert statistics.median(waits) < 1.0


@pytest.mark.slow
async def test_paused_leader_is_replaced_and_follows_when_it_wakes(tmp_path: Path) -> None:
    """Its connections stay open, so only the election timeout tells; what it still believes harms nobody."""
    async with ProcessCluster(tmp_path) as cluster, cluster.client() as kv, Load(kv, pause=0.01) as load:
        paused = await cluster.leader()
        await load.accepted(time.monotonic(), seconds=10)
        paused_at = time.monotonic()
        cluster[paused].send(signal.SIGSTOP)
        wait = await load.accepted(paused_at, seconds=20)
        await load.check()
        cluster[paused].send(signal.SIGCONT)
        await cluster.wait_ready()
        await load.stop()
        await load.check()
        assert not load.told.errors, load.told.errors[:3]
        assert await cluster.leader() != paused
    print(f"leader paused to next accepted write: {wait:.2f} s")
    assert wait < 8.0


@pytest.mark.slow
async def test_rolling_restart_shows_clients_no_error(tmp_path: Path) -> None:
    """SIGTERM: leaderships are handed over first, so even writes with a short deadline go through."""
    async with ProcessCluster(tmp_path) as cluster, cluster.client() as kv, Load(kv, pause=0.01) as load:
        for name in ("n1", "n2", "n3"):
            assert await cluster[name].stop() == 0
            await cluster.start(name)
            await cluster.wait_ready()
        await load.stop()
        await load.check()
        writes = [ended - began for began, ended in load.writes]
        print(f"rolling restart: {load.summary()}; slowest put {max(writes):.2f} s")
        assert not load.told.errors, load.told.errors[:3]
        assert not load.told.refused
        assert not load.told.unknown


async def test_survivors_that_split_the_votes_try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hasten at the same moment, ask for each other's vote and give it to themselves. The election timeout, five
    seconds here, is not waited for."""
    for name, value in (("FIRST_MS_MIN", 50), ("FIRST_MS_MAX", 50), ("TURN_MS", 0), ("STEP_MS", 0)):
        monkeypatch.setattr(haste, name, value)
    async with LocalCluster(nodes=3, election_ms=5_000) as cluster, cluster.client() as kv:
        async with Load(kv, pause=0.01) as load:
            leader = await cluster.leader()
            terms = {node.host.core.replicas[2].raw.term for node in cluster.nodes.values()}
            killed_at = time.monotonic()
            await cluster.kill(leader)
            waited = await load.accepted(killed_at, seconds=15)
        await load.check()
        new = cluster.nodes[await cluster.leader()].host.core.replicas[2].raw.term
        print(f"{waited:.2f} s, {new - max(terms)} terms later")
        assert waited < 3.0
