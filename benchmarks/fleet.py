"""A fleet of real nodes on one machine: how soon it is settled, and what each node costs while nobody wants anything.

    python -m benchmarks.fleet [--nodes 15] [--seconds 60] [--no-baseline]

All nodes are founders (`kvstore serve --initial-cluster`). Settled: every node tells that all members are alive, and
who leads the shard of the keyspace default. Then nothing is asked of them, and the processor time of their processes
is read from the kernel. What of it is gossip is told by a second fleet whose gossip is thirty times slower: the
difference counts everything that gossip causes, system calls and wake-ups of the loop as well.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.crash.processes import ProcessCluster, until

SETTLE_SECONDS_MAX = 120.0
REST_SECONDS = 10.0  # news has been told by then, and idle groups sleep
SLOW_GOSSIP_MS = 30_000


@dataclass(frozen=True, slots=True)
class Idle:
    """Percent of a core by the name of a node, and which groups each holds."""

    cost: Mapping[str, float]
    groups: Mapping[str, tuple[int, ...]]

    @property
    def mean(self) -> float:
        return statistics.mean(self.cost.values())


async def _settled(cluster: ProcessCluster) -> bool:
    for name, node in cluster.nodes.items():
        assert node.running, f"{name} has ended: {node.output()[-3:]}"
        members, routes = await asyncio.gather(cluster.get(name, "/v1/members"), cluster.get(name, "/v1/routes"))
        if [row["state"] for row in members or ()] != ["alive"] * len(cluster.nodes):
            return False
        if not routes or not routes["shards"] or routes["shards"][0]["leader"] is None:
            return False
    return True


def _processor_seconds(pid: int) -> float:
    """Of all threads of the process, to the nanosecond."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


async def _idle(cluster: ProcessCluster, seconds: float) -> Idle:
    groups = {}
    for name in cluster.nodes:
        status = await cluster.get(name, "/v1/status")
        groups[name] = tuple(sorted(row["id"] for row in status["shards"]))
    await asyncio.sleep(REST_SECONDS)
    began = time.monotonic()
    before = {name: _processor_seconds(node.pid) for name, node in cluster.nodes.items()}
    await asyncio.sleep(seconds)
    after = {name: _processor_seconds(node.pid) for name, node in cluster.nodes.items()}
    wall = time.monotonic() - began
    return Idle({name: 100 * (after[name] - before[name]) / wall for name in before}, groups)


async def _measure(nodes: int, seconds: float, *flags: str, tells: bool) -> Idle:
    with tempfile.TemporaryDirectory(prefix="kvstore-fleet-") as folder:
        cluster = ProcessCluster(Path(folder), nodes, flags=flags)
        began = time.monotonic()
        async with cluster:
            ready = time.monotonic() - began
            await until(lambda: _settled(cluster), seconds=SETTLE_SECONDS_MAX)
            settled = time.monotonic() - began
            if tells:
                print(f"{nodes} nodes: all ready {ready:.1f} s after the processes were begun, settled {settled:.1f} s")
            return await _idle(cluster, seconds)


def _tell(idle: Idle) -> None:
    kinds: dict[tuple[int, ...], list[float]] = {}
    for name, cost in idle.cost.items():
        kinds.setdefault(idle.groups[name], []).append(cost)
    for held, costs in sorted(kinds.items()):
        what = ", ".join(map(str, held)) or "none"
        print(
            f"  holding groups {what}: {len(costs)} nodes, mean {statistics.mean(costs):.2f} %, most {max(costs):.2f} %"
        )


async def run(nodes: int, seconds: float, *, baseline: bool) -> None:
    idle = await _measure(nodes, seconds, tells=True)
    print(f"idle for {seconds:.0f} s: mean {idle.mean:.2f} %, most {max(idle.cost.values()):.2f} % of a core a node")
    _tell(idle)
    if baseline:
        slow = await _measure(nodes, seconds, "--gossip-ms", str(SLOW_GOSSIP_MS), tells=False)
        print(f"with gossip {SLOW_GOSSIP_MS // 1_000} times slower: mean {slow.mean:.2f} %")
        _tell(slow)
        print(f"gossip: {idle.mean - slow.mean:.2f} % of a core a node")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the idle fleet is watched")
    parser.add_argument("--no-baseline", action="store_true", help="without the second fleet")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(arguments.nodes, arguments.seconds, baseline=not arguments.no_baseline))


if __name__ == "__main__":
    main()
