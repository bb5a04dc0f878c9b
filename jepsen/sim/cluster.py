"""A simulated cluster: machines with disks and clocks, the nodes that live on them, and what may be done to them.

Invariant: a node that ends by itself is a failure of the run (`crashes`): nothing that a network or a power cut does
    may bring a node to that.
Invariant: a machine's disk and clock outlive its processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from jepsen.sim.loop import Process, VirtualLoop
from jepsen.sim.network import CLIENTS, Network, Pair
from jepsen.sim.node import SimClock, SimNode
from jepsen.sim.swarm import Swarm
from jepsen.sim.wire import SimConnector
from kvstore.base.config import NodeConfig, ReadMode
from kvstore.base.errors import KVError
from kvstore.base.ids import META_SHARD
from kvstore.client import Client
from kvstore.storage.memory import MemoryDisk
from kvstore.transport.memory import Weather
from kvstore.transport.settings import TransportSettings

PORT = 7_001
START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0
ADMIN_SECONDS_MAX = 10.0
POLL_SECONDS = 0.05


class SimulationError(Exception):
    """The cluster did not do what every cluster must: start, recover, go on."""


class Machine:
    """What a node lives on."""

    def __init__(self, name: str, address: str, rng: random.Random, clock: SimClock) -> None:
        self.name = name
        self.address = address
        self.rng = rng
        self.clock = clock
        self.disk_seconds = (0.0005, 0.002)
        self.disk = MemoryDisk(latency=lambda: rng.uniform(*self.disk_seconds))
        self.lives = 0
        self.process: Process | None = None  # that runs, or is paused
        self.node: SimNode | None = None
        self.starting: asyncio.Task[None] | None = None
        self.silence: list[Pair] = []  # cuts that stand for a pause

    @property
    def running(self) -> bool:
        return self.process is not None

    @property
    def serves(self) -> bool:
        """Whether it has started and is not paused."""
        process, starting = self.process, self.starting
        return process is not None and not process.paused and starting is not None and starting.done()


class SimCluster:
    """Nodes n1, n2, ..."""

    def __init__(self, loop: VirtualLoop, swarm: Swarm, rng: random.Random) -> None:
        self.loop = loop
        self.swarm = swarm
        self.rng = rng
        self.weather = Weather(
            latency_seconds_min=swarm.latency_seconds[0], latency_seconds_max=swarm.latency_seconds[1], loss=swarm.loss
        )
        settings = TransportSettings.for_elections(swarm.election_ms)
        self.network = Network(loop, random.Random(rng.getrandbits(64)), weather=self.weather, settings=settings)
        self.crashes: list[str] = []
        self.machines: dict[str, Machine] = {}
        for number in range(1, swarm.nodes + 1):
            clock = SimClock(loop, rng.randint(-swarm.skew_ms, swarm.skew_ms))
            machine = Machine(f"n{number}", f"10.0.0.{number}:{PORT}", random.Random(rng.getrandbits(64)), clock)
            machine.disk_seconds = swarm.disk_seconds
            self.machines[machine.name] = machine
        self._founders = {machine.name: machine.address for machine in self.machines.values()}

    # -- life ------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """All nodes at once, until they have founded their cluster. Raises SimulationError."""
        self.start(*self.machines)
        await self.wait_started()

    def start(self, *names: str) -> None:
        """Those of them that do not run."""
        for name in names:
            machine = self.machines[name]
            if not machine.running:
                self._boot(machine)

    def _boot(self, machine: Machine) -> None:
        machine.lives += 1
        process = machine.process = Process(self.loop, f"{machine.name}.{machine.lives}")
        machine.node = process.run(self._make_node, machine, process)
        machine.starting = process.spawn(machine.node.start(), f"start {process.name}")
        machine.starting.add_done_callback(lambda task: self._on_started(machine, process, task))

    def _make_node(self, machine: Machine, process: Process) -> SimNode:
        swarm = self.swarm
        config = NodeConfig(
            name=machine.name,
            data=Path("/nowhere") / machine.name,
            listen=machine.address,
            initial_cluster=self._founders,
            read_mode=ReadMode(swarm.read_mode),
            tick_ms=swarm.tick_ms,
            heartbeat_ms=swarm.heartbeat_ms,
            election_ms=swarm.election_ms,
            flush_interval_ms=swarm.flush_ms,
            reserve_bytes=0,
        )
        node = SimNode(
            config,
            network=self.network,
            disk=machine.disk,
            process=process,
            clock=machine.clock,
            rng=random.Random(machine.rng.getrandbits(64)),
        )
        node.fatal.add_done_callback(lambda fatal: self._on_fatal(machine, process, fatal))
        return node

    def _on_started(self, machine: Machine, process: Process, task: asyncio.Task[None]) -> None:
        if machine.process is process and not task.cancelled() and (error := task.exception()) is not None:
            self.crashes.append(f"{process.name} did not start: {error!r}")

    def _on_fatal(self, machine: Machine, process: Process, fatal: asyncio.Future[BaseException]) -> None:
        if machine.process is process and not fatal.cancelled():
            self.crashes.append(f"{process.name} ended by itself: {fatal.result()!r}")

    def kill(self, *names: str) -> None:
        """SIGKILL or a power cut, all at the same moment: what was not synced is lost, or not, as chance has it."""
        for name in names:
            machine = self.machines[name]
            if machine.process is None:
                continue
            self.resume(name, run=False)
            machine.process.kill()
            machine.disk.crash(machine.rng)
            self._leave(machine)

    def _leave(self, machine: Machine) -> None:
        node, machine.process, machine.node = machine.node, None, None
        assert node is not None
        if node.transport is not None:
            node.transport.kill()
        self.network.end(node.net)

    async def stop(self, name: str) -> None:
        """Gracefully."""
        machine = self.machines[name]
        process, node = machine.process, machine.node
        if process is None or node is None or not machine.serves:
            return
        stopping = process.spawn(node.stop(), f"stop {process.name}")
        done, _ = await asyncio.wait((stopping,), timeout=STOP_SECONDS_MAX)
        if not done:
            raise SimulationError(f"{process.name} does not stop")
        stopping.result()
        process.kill()
        machine.disk.crash(machine.rng)
        self._leave(machine)

    def pause(self, name: str) -> None:
        """SIGSTOP: it keeps its connections, and says nothing on them."""
        machine = self.machines[name]
        if machine.process is None or machine.process.paused or machine.node is None:
            return
        machine.process.pause()
        own = machine.node.net.node
        machine.silence = [(own, other) for other in (*self.ends(), CLIENTS) if other != own]
        self.network.cut(machine.silence)

    def resume(self, name: str, *, run: bool = True) -> None:
        machine = self.machines[name]
        self.network.mend(machine.silence)
        machine.silence = []
        if machine.process is not None and run:
            machine.process.resume()

    # -- asking ----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(self.machines)

    @property
    def running(self) -> list[str]:
        return [name for name, machine in self.machines.items() if machine.running]

    def ends(self) -> list[str]:
        """Of links: the ids of the nodes that run."""
        return [machine.node.net.node for machine in self.machines.values() if machine.node is not None]

    def end_of(self, name: str) -> str | None:
        node = self.machines[name].node
        return None if node is None else node.net.node

    def client(self, rng: random.Random, *, timeout: float) -> Client:
        """Not open yet."""
        addresses = [machine.address for machine in self.machines.values()]
        return Client(addresses, connector=SimConnector(self.network), rng=rng, timeout=timeout)

    def leader(self, shard: int) -> str | None:
        """The one of the highest term, as it believes itself."""
        best, found = 0, None
        for name, machine in self.machines.items():
            if machine.serves and machine.node is not None:
                replica = machine.node.host.core.replicas.get(shard)
                if replica is not None and replica.is_leader and replica.raw.term > best:
                    best, found = replica.raw.term, name
        return found

    def shards(self) -> dict[int, str]:
        """Users' shards that have a leader, with its name."""
        shards: dict[int, str] = {}
        for machine in self.machines.values():
            if machine.serves and machine.node is not None:
                for shard in machine.node.host.core.replicas:
                    if shard != META_SHARD and (leader := self.leader(shard)) is not None:
                        shards[shard] = leader
        return dict(sorted(shards.items()))

    async def administer(self, name: str, work: Coroutine[Any, Any, Any]) -> str:
        """What the node's administration says, as a word; it may be killed over it."""
        process = self.machines[name].process
        assert process is not None
        task = process.spawn(work, "administration")
        await asyncio.wait((task,), timeout=ADMIN_SECONDS_MAX)
        if not task.done():
            return "no answer"
        with contextlib.suppress(KVError):
            task.result()
            return "done"
        return "refused"

    async def wait_started(self) -> None:
        """Until all nodes run and have started. Raises SimulationError."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                while not all(machine.serves for machine in self.machines.values()):
                    await asyncio.sleep(POLL_SECONDS)
                    self.check()
        except TimeoutError:
            raise SimulationError("the nodes do not start") from None
        self.check()

    def check(self) -> None:
        """Raises SimulationError when a node has ended by itself."""
        if self.crashes:
            raise SimulationError("; ".join(self.crashes))
