"""What thousands of Raft groups cost while they have nothing to do, and how soon all of them have a leader again.

    python -m benchmarks.groups [--groups 1000] [--idle 30]

Three real processes on this machine found a cluster and stop; then every directory is given the replicas of that many
more groups, each with a range of its own (as founding does it), and the nodes start as usual. Measured are

    start    from the start of the processes until every group has a leader
    sleep    until every replica sleeps
    idle     CPU of each process over that time, and its anonymous memory (smaps_rollup)
    gather   one node is made the leader of all groups, and all sleep again
    kill     that node is killed (SIGKILL): until every group has another leader
    back     it starts again: until all replicas sleep
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import uvloop

from kvstore.base.clock import SystemClock
from kvstore.base.config import NodeConfig
from kvstore.base.metrics import Metrics
from kvstore.base.shards import Replica, ShardDescriptor, keyspace_prefix
from kvstore.replica.environment import Environment
from kvstore.replica.host_driver import HostDriver
from kvstore.storage.directory import DataDirectory
from kvstore.storage.log_store import LmdbLogStore
from kvstore.storage.state_store import LmdbStateStore
from raft import ConfState
from tests.crash.processes import ProcessCluster

FIRST_GROUP = 1_000
KEYSPACE = 77  # nobody else's
POLL_SECONDS = 0.1
WAIT_SECONDS = 60.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Counts:
    """Replicas of one node, by what they do."""

    leader: int
    hibernating: int
    all: int


def made_up(groups: int, nodes: list[str]) -> Iterator[tuple[ShardDescriptor, ConfState]]:
    """`groups` neighbours that fill one keyspace, with a replica on each node."""
    prefix = keyspace_prefix(KEYSPACE)
    bounds = [prefix, *(prefix + b"%08d" % number for number in range(1, groups)), keyspace_prefix(KEYSPACE + 1)]
    ids = tuple(range(1, len(nodes) + 1))
    replicas = tuple(Replica(node, replica) for node, replica in zip(nodes, ids, strict=True))
    for number in range(groups):
        shard = ShardDescriptor(
            id=FIRST_GROUP + number,
            keyspace=KEYSPACE,
            start=bounds[number],
            end=bounds[number + 1],
            version=1,
            conf=1,
            replicas=replicas,
        )
        yield shard, ConfState(voters=ids)


async def add_groups(folders: dict[str, Path], groups: int) -> None:
    """Found them in the directories of nodes that do not run."""
    identities = {}
    for name, folder in folders.items():
        async with _Stores(name, folder) as stores:
            identity = stores.log.node_identity()
            assert identity is not None
            identities[name] = identity.node
    nodes = list(identities.values())
    for name, folder in folders.items():
        async with _Stores(name, folder) as stores:
            host = stores.host(identities[name])
            loop = asyncio.get_running_loop()
            written = []
            for descriptor, conf_state in made_up(groups, nodes):
                done: asyncio.Future[None] = loop.create_future()
                host.lifecycle.found(descriptor, conf_state, stamp=1, done=partial(done.set_result, None))
                written.append(done)
            await asyncio.gather(*written)


class _Stores:
    """A node's directory and stores, for as long as the context lasts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.config = NodeConfig(name=name, data=folder)

    async def __aenter__(self) -> _Stores:
        loop = asyncio.get_running_loop()
        self.directory = DataDirectory.open(self.config.data)
        self.log = LmdbLogStore(self.directory.log_path, loop=loop, on_fatal=_raise)
        self.state = LmdbStateStore(self.directory.state_path, loop=loop, on_fatal=_raise)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.close()
        self.state.close()
        self.directory.close()

    def host(self, node: str) -> HostDriver:
        environment = Environment(
            config=self.config,
            node=node,
            boot="",
            clock=SystemClock(),
            rng=random.Random(1),
            metrics=Metrics(node=self.config.name, process=False),
            log_store=self.log,
            state_store=self.state,
        )
        return HostDriver(environment, on_fatal=_raise)


def _raise(error: BaseException) -> None:
    raise error


# -- looking -----------------------------------------------------------------------------------------------------------


class Watch:
    """What the nodes' metrics say."""

    def __init__(self, cluster: ProcessCluster, http: aiohttp.ClientSession) -> None:
        self._cluster = cluster
        self._http = http

    async def counts(self, name: str) -> Counts | None:
        """None: it does not answer (yet)."""
        try:
            async with self._http.get(f"http://{self._cluster[name].address}/metrics") as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        values = {}
        for line in text.splitlines():
            if line.startswith('kvstore_raft_groups{role="'):
                role, number = line.removeprefix('kvstore_raft_groups{role="').split('"} ')
                values[role] = int(float(number))
        asleep = values.pop("hibernating", 0)
        return Counts(values.get("leader", 0), asleep, sum(values.values()))

    async def until(self, groups: int, *names: str, asleep: bool = False, leader: str = "") -> float:
        """Until all groups have a leader on these nodes (on `leader`, if given), or sleep there; the seconds it took.
        Raises AssertionError, with what is the case, after WAIT_SECONDS."""
        began = time.monotonic()
        while True:
            looked = time.monotonic()
            found = {name: counts for name in names if (counts := await self.counts(name)) is not None}
            if len(found) == len(names):
                leads = sum(one.leader for name, one in found.items() if leader in ("", name))
                sleeps = all(one.hibernating == one.all == groups for one in found.values())
                if leads == groups and (sleeps or not asleep):
                    return looked - began
            assert looked - began < WAIT_SECONDS, found
            await asyncio.sleep(POLL_SECONDS)


def cpu_seconds(pid: int) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def spent(cluster: ProcessCluster, names: list[str], before: float = 0.0) -> str:
    """What these processes have used of the CPU, for machines that others use as well."""
    used = sum(cpu_seconds(cluster[name].pid) for name in names) - before
    return f" (CPU {used:.1f} s in all)"


def anonymous_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1_024
    raise AssertionError("no smaps_rollup")


async def gather(cluster: ProcessCluster, http: aiohttp.ClientSession, groups: int, name: str) -> None:
    """Have one node lead everything, some transfers at a time; repeated by the caller until it holds."""
    room = asyncio.Semaphore(16)

    async def transfer(shard: int) -> None:
        async with room:
            url = f"http://{cluster[name].address}/v1/shards/{shard}/transfer"
            async with http.post(url, json={"node": name}):
                pass

    await asyncio.gather(*(transfer(shard) for shard in (1, 2, *range(FIRST_GROUP, FIRST_GROUP + groups))))


# -- the run -----------------------------------------------------------------------------------------------------------


async def run(groups: int, idle: float) -> None:
    with tempfile.TemporaryDirectory(prefix="kvstore-groups-") as folder:
        async with ProcessCluster(Path(folder)) as cluster:
            timeout = aiohttp.ClientTimeout(total=20)
            async with aiohttp.ClientSession(timeout=timeout) as http:
                await measure(cluster, http, groups, idle)


async def measure(cluster: ProcessCluster, http: aiohttp.ClientSession, groups: int, idle: float) -> None:
    names = list(cluster.nodes)
    watch = Watch(cluster, http)
    everything = groups + 2
    for name in names:
        await cluster[name].stop()
    began = time.monotonic()
    await add_groups({name: cluster[name].data for name in names}, groups)
    print(f"{groups} groups founded on {len(names)} nodes in {time.monotonic() - began:.1f} s")

    for round_ in ("first start", "restart"):
        began = time.monotonic()
        await cluster.start(*names)
        await watch.until(everything, *names)
        print(f"{round_}: every group has a leader after {time.monotonic() - began:.2f} s{spent(cluster, names)}")
        await watch.until(everything, *names, asleep=True)
        print(f"{round_}: every replica sleeps after {time.monotonic() - began:.2f} s{spent(cluster, names)}")
        if round_ == "first start":
            await cluster.kill(*names)
    await tell_idle(cluster, names, idle)
    await lose_one(cluster, http, watch, names, everything, idle)


async def lose_one(
    cluster: ProcessCluster, http: aiohttp.ClientSession, watch: Watch, names: list[str], everything: int, idle: float
) -> None:
    """The node that leads all groups dies, and comes back."""
    victim = names[0]
    # Else the placement driver would spread the leaders again.
    async with http.patch(f"http://{cluster[victim].address}/v1/settings", json={"rebalance": False}) as response:
        assert response.status == 200, await response.text()
    for _ in range(5):
        await gather(cluster, http, everything - 2, victim)
        await watch.until(everything, *names, asleep=True)
        counts = await watch.counts(victim)
        if counts is not None and counts.leader == everything:
            break
    print(f"{victim} leads all {everything} groups, which sleep")

    survivors = names[1:]
    await asyncio.sleep(2.0)
    before = sum(cpu_seconds(cluster[name].pid) for name in survivors)
    began = time.monotonic()
    cluster[victim].send(signal.SIGKILL)
    await watch.until(everything, *survivors)
    took = time.monotonic() - began
    print(f"{victim} killed: every group has another leader after {took:.2f} s{spent(cluster, survivors, before)}")
    counts_by_name = {name: await watch.counts(name) for name in survivors}
    print("leaders: " + ", ".join(f"{name} {one.leader}" for name, one in counts_by_name.items() if one is not None))
    await cluster[victim].ended()
    await watch.until(everything, *survivors, asleep=True)
    took = time.monotonic() - began
    print(
        f"every replica of the others sleeps after {took:.2f} s{spent(cluster, survivors, before)}, with {victim} dead"
    )
    await tell_idle(cluster, survivors, idle)

    before = sum(cpu_seconds(cluster[name].pid) for name in survivors)
    began = time.monotonic()
    await cluster.start(victim)
    await watch.until(everything, *names, asleep=True)
    took = time.monotonic() - began
    print(f"{victim} is back: every replica sleeps after {took:.2f} s{spent(cluster, names, before)}")


async def tell_idle(cluster: ProcessCluster, names: list[str], seconds: float) -> None:
    """Nobody asks anything meanwhile."""
    await asyncio.sleep(2.0)
    before = {name: cpu_seconds(cluster[name].pid) for name in names}
    began = time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - began
    shares = {name: (cpu_seconds(cluster[name].pid) - before[name]) / passed * 100 for name in names}
    each = ", ".join(f"{name} {share:.2f} %" for name, share in shares.items())
    print(f"idle for {passed:.0f} s: {sum(shares.values()):.2f} % of a core in all ({each})")
    print("anonymous memory: " + ", ".join(f"{name} {anonymous_mib(cluster[name].pid):.0f} MiB" for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1_000)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds over which idle nodes are measured")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(arguments.groups, arguments.idle))


if __name__ == "__main__":
    main()
