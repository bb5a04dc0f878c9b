"""How long clients wait when the leader goes: killed twenty times, paused five times.

    python -m benchmarks.failover [--kills 20] [--pauses 5]

Three real processes on this machine, four writers, each with one put at a time. Measured is the time from the signal
to the acknowledgement of the first put that was begun after it; what was acknowledged is checked at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from tests.crash.load import Load
from tests.crash.processes import ProcessCluster

SETTLE_SECONDS = 1.0  # between two faults, so that the cluster is at rest as it mostly is


async def _killed(cluster: ProcessCluster, load: Load) -> float:
    leader = await cluster.leader()
    began = time.monotonic()
    cluster[leader].send(signal.SIGKILL)
    waited = await load.accepted(began, seconds=30)
    await cluster[leader].ended()
    await cluster.start(leader)
    await cluster.wait_ready()
    return waited


async def _paused(cluster: ProcessCluster, load: Load) -> float:
    leader = await cluster.leader()
    began = time.monotonic()
    cluster[leader].send(signal.SIGSTOP)
    try:
        return await load.accepted(began, seconds=30)
    finally:
        cluster[leader].send(signal.SIGCONT)
        await cluster.wait_ready()


def _tell(what: str, waits: list[float]) -> None:
    if waits:
        each = " ".join(f"{wait:.2f}" for wait in waits)
        print(f"{what}: median {statistics.median(waits):.3f} s, worst {max(waits):.3f} s of {len(waits)} ({each})")


async def run(kills: int, pauses: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kvstore-failover-") as folder:
        async with ProcessCluster(Path(folder)) as cluster, cluster.client() as kv, Load(kv, pause=0.01) as load:
            waits: dict[str, list[float]] = {"killed": [], "paused": []}
            for what, count, fault in (("killed", kills, _killed), ("paused", pauses, _paused)):
                for _ in range(count):
                    await asyncio.sleep(SETTLE_SECONDS)
                    waits[what].append(await fault(cluster, load))
                _tell(f"leader {what} to next accepted write", waits[what])
            await load.stop()
            await load.check()
            print(load.summary())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pauses", type=int, default=5)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(arguments.kills, arguments.pauses))


if __name__ == "__main__":
    main()
