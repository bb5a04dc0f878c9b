"""Every node is killed with SIGKILL again and again while clients write; nothing that was promised is lost.

Method: three real processes, writers through the client library, ten rounds; in each one node, the leader, two nodes
or all three die at the same moment, or all three twice. The state is flushed often, so that kills hit flushes, too.
CRASH_SEED and CRASH_ROUNDS choose other moments and more rounds.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from tests.crash.load import Load
from tests.crash.processes import ProcessCluster

SEED = int(os.environ.get("CRASH_SEED", "1"))
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "10"))
ALL = ("n1", "n2", "n3")
KINDS = ("one", "leader", "two", "all", "twice")  # twice: all, and again while they start


async def _victims(kind: str, cluster: ProcessCluster, rng: random.Random) -> tuple[str, ...]:
    if kind == "leader":
        return (await cluster.leader(),)
    return tuple(rng.sample(ALL, {"one": 1, "two": 2, "all": 3, "twice": 3}[kind]))


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * ROUNDS)
async def test_killed_nodes_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    kinds = [KINDS[number % len(KINDS)] for number in range(ROUNDS)]
    rng.shuffle(kinds)
    failovers: list[float] = []
    began = time.monotonic()
    async with (
        ProcessCluster(tmp_path, flags=("--flush-interval-ms", "150")) as cluster,
        cluster.client() as kv,
        Load(kv, pause=0.005) as load,
    ):
        for number, kind in enumerate(kinds, 1):
            await asyncio.sleep(rng.uniform(0.05, 0.6))
            victims = await _victims(kind, cluster, rng)
            killed_at = time.monotonic()
            await cluster.kill(*victims)
            if kind in ("one", "leader"):
                failover = await load.accepted(killed_at, seconds=15)
                if kind == "leader":
                    failovers.append(failover)
            await cluster.start(*victims)
            if kind == "twice":
                await asyncio.sleep(rng.uniform(0.1, 1.5))  # while they load, connect and elect
                await cluster.kill(*victims)
                await cluster.start(*victims)
            back = await load.accepted(time.monotonic(), seconds=15)
            await cluster.wait_ready()
            await load.check()
            print(f"round {number}: SIGKILL of {', '.join(victims)} ({kind}); writes again {back:.2f} s later")
        await load.stop()
        await load.check()
        print(f"seed {SEED}: {ROUNDS} rounds in {time.monotonic() - began:.0f} s; {load.summary()}")
        print("leader killed to next accepted write:", ", ".join(f"{one:.2f}" for one in failovers), "s")
        assert not load.told.errors, load.told.errors[:3]
        assert load.told.acknowledged
        for name in ALL:
            assert not [line for line in cluster[name].output() if "Traceback" in line or "AssertionError" in line]
