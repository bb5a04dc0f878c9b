"""A cluster of real `kvstore serve` processes that can be killed, paused, stopped and started again.

Invariant: no process outlives the context: it is killed at its end, and by the kernel should the tests die before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import aiohttp

from jepsen.serve_process import ServeProcess
from kvstore.client import Client
from tests.ports import free_port

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 15.0
POLL_SECONDS = 0.02


class NodeProcess(ServeProcess):
    """A node at a port of this machine."""

    def __init__(self, name: str, folder: Path, *, port: int, flags: Sequence[str], disk: Path | None = None) -> None:
        """`folder`: where the log goes to, and the data directory, called like the node, if it is not on `disk`."""
        super().__init__(name, data=(disk or folder) / name, log=folder / f"{name}.log")
        self.address = f"127.0.0.1:{port}"
        self._flags = list(flags)

    async def start(self, *flags: str) -> None:
        """Begin to run; `flags` come behind those given at first. It is not ready yet."""
        await self.launch("--listen", self.address, *self._flags, *flags)

    async def ended(self, seconds: float = STOP_SECONDS_MAX) -> int:
        """Its exit code, negative for a signal. Raises TimeoutError."""
        return await self.exit_code(seconds)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self._process is not None:
            await self.ended()

    async def stop(self) -> int:
        """Gracefully; the exit code."""
        self.send(signal.SIGTERM)
        return await self.ended()

    def output(self, since: int = 0) -> list[str]:
        """The lines of its log from byte `since` on."""
        return self.log.read_bytes()[since:].decode("utf-8", "replace").splitlines() if self.log.exists() else []

    @property
    def output_bytes(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


class ProcessCluster:
    """Nodes n1, n2, ... in processes of their own."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        flags: Sequence[str] = (),
        disks: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """`disks`: where the data of some nodes lies, if not in `folder`."""
        ports = [free_port() for _ in range(nodes)]
        while len(set(ports)) < nodes:
            ports = [free_port() for _ in range(nodes)]
        names = [f"n{number}" for number in range(1, nodes + 1)]
        founders = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(names, ports, strict=True))
        founding = ["--initial-cluster", founders] if nodes > 1 else []
        self.folder = folder
        self._flags = list(flags)
        self.nodes = {
            name: NodeProcess(name, folder, port=port, flags=[*founding, *flags], disk=disks.get(name))
            for name, port in zip(names, ports, strict=True)
        }
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2))
        try:
            await self.start(*self.nodes)
            await self.wait_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        for node in self.nodes.values():
            node.send(signal.SIGKILL)
        await asyncio.gather(*(node.kill() for node in self.nodes.values()))
        if self._http is not None:
            await self._http.close()

    def __getitem__(self, name: str) -> NodeProcess:
        return self.nodes[name]

    @property
    def endpoints(self) -> list[str]:
        return [node.address for node in self.nodes.values()]

    def client(self, **options: Any) -> Client:
        """To be used as a context."""
        return Client(self.endpoints, **options)

    def joining(self, name: str, *, folder: Path | None = None) -> NodeProcess:
        """A node that is to join the ones that run; it ends with the cluster. It is not started yet."""
        others = ",".join(node.address for node in self.nodes.values() if node.running)
        node = NodeProcess(name, folder or self.folder, port=free_port(), flags=["--join", others, *self._flags])
        self.nodes[name] = node
        return node

    # -- life and death

    async def start(self, *names: str) -> None:
        await asyncio.gather(*(self.nodes[name].start() for name in names))

    async def kill(self, *names: str) -> None:
        """SIGKILL, all at the same moment."""
        for name in names:
            self.nodes[name].send(signal.SIGKILL)
        await asyncio.gather(*(self.nodes[name].ended() for name in names))

    # -- asking

    async def get(self, name: str, path: str) -> Any:
        """The JSON that the node answers, None where it does not answer 200."""
        assert self._http is not None
        try:
            async with self._http.get(f"http://{self.nodes[name].address}{path}") as response:
                return await response.json() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def remove_member(self, through: str, name: str) -> None:
        """As `kvctl node remove`."""
        assert self._http is not None
        url = f"http://{self.nodes[through].address}/v1/members/{name}"
        async with self._http.delete(url, timeout=aiohttp.ClientTimeout(total=20)) as response:
            assert response.status < 300, await response.text()

    async def keep_leaders(self) -> None:
        """From now on nobody but the test moves leaderships: balance would move some back."""

        async def kept() -> bool:
            assert self._http is not None
            for node in self.nodes.values():
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    url = f"http://{node.address}/v1/settings"
                    async with self._http.patch(url, json={"rebalance": False}) as response:
                        return response.status < 300
            return False

        await until(kept)

    async def transfer(self, through: str, shard: int, name: str) -> None:
        """Ask for a transfer of the shard's leadership; it may be refused, and is not waited for."""
        assert self._http is not None
        url = f"http://{self.nodes[through].address}/v1/shards/{shard}/transfer"
        async with self._http.post(url, json={"node": name}):
            pass

    async def wait_ready(self, *names: str, seconds: float = START_SECONDS_MAX) -> None:
        """Until these (none named: all that run) can commit and read."""
        wanted = names or tuple(name for name, node in self.nodes.items() if node.running)

        async def all_ready() -> bool:
            for name in wanted:
                assert self.nodes[name].running, f"{name} has ended: {self.nodes[name].output()[-3:]}"
            return None not in await asyncio.gather(*(self.get(name, "/readyz") for name in wanted))

        await until(all_ready, seconds=seconds)

    async def leader(self, shard: int = 2) -> str:
        """The name of the node that leads the shard, as most recently elected."""
        found = ""

        async def led() -> bool:
            nonlocal found
            best = 0
            for name, node in self.nodes.items():
                row = await self.replica(name, shard) if node.running else None
                if row is not None and row["role"] == "leader" and row["term"] > best:
                    found, best = name, row["term"]
            return best > 0

        await until(led)
        return found

    async def wait_replicated(self, *names: str) -> None:
        """Until both shards have a voter on each of these nodes and nowhere else. A node that began anew may have
        a predecessor of its name, so it is asked which of the two it is."""

        async def everywhere() -> bool:
            for shard in (1, 2):
                rows = await self.get(await self.leader(shard), "/v1/shards")
                row = next((row for row in rows or () if row["id"] == shard), None)
                if row is None or row["joint"] or len(row["replicas"]) != len(names):
                    return False
                voters = {place["node"]: place["replica_id"] for place in row["replicas"] if place["role"] == "voter"}
                own = {name: await self.replica(name, shard) or {} for name in names}
                if voters != {name: one.get("replica_id") for name, one in own.items()}:
                    return False
            return True

        await until(everywhere)

    async def replica(self, name: str, shard: int = 2) -> dict[str, Any] | None:
        """What the node's status tells of its replica."""
        status = await self.get(name, "/v1/status")
        rows = [row for row in status["shards"] if row["id"] == shard] if status else []
        return rows[0] if rows else None


async def until(true: Callable[[], Any], *, seconds: float = START_SECONDS_MAX) -> float:
    """Poll a coroutine function until it says yes; the seconds that took. Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 (what is waited for happens in other processes)
            await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - began
