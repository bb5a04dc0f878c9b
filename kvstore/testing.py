"""A real cluster inside the caller's process, for tests of programs that use the store.

    async with LocalCluster(nodes=3) as cluster:
        async with cluster.client() as kv:
            await kv.put(b"k", b"v")
            await cluster.kill("n1")          # like kill -9: nothing is handed over or flushed
            ...

The nodes are the production ones: LMDB with fsync, HTTP on free ports of 127.0.0.1.

Invariant: after the context is left, no task, thread, socket or temporary folder of the cluster is left.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kvstore.base.config import NodeConfig
from kvstore.base.errors import KVError
from kvstore.base.limits import MIB
from kvstore.client import Client
from kvstore.node import Node

START_SECONDS_MAX = 30.0
TEST_MAP_BYTES = 1024 * MIB


class LocalCluster:
    """Nodes n1, n2, ... in this process."""

    def __init__(self, nodes: int = 3, *, data: Path | str | None = None, **settings: Any) -> None:
        """`data`: a folder to keep (one subfolder a node); None = a temporary one, removed at the end.

        `settings` go to every NodeConfig (election_ms, read_mode, ...).
        """
        if nodes < 1:
            raise ValueError("a cluster has at least one node")
        self._data = None if data is None else Path(data)
        self._settings = {"map_bytes": TEST_MAP_BYTES, "reserve_bytes": 0, **settings}
        self._names = [f"n{number}" for number in range(1, nodes + 1)]
        self._founders = list(self._names)
        self._addresses: dict[str, str] = {}
        self._temporary: Path | None = None
        self.nodes: dict[str, Node] = {}  # those that run
        self._clients: list[Client] = []

    # -- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._data is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="kvstore-"))
        try:
            ports = {name: FreePort.take() for name in self._names}
            self._addresses = {name: port.address for name, port in ports.items()}
            async with asyncio.timeout(START_SECONDS_MAX):
                await self._start_all(ports)
                await self.wait_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def _start_all(self, ports: Mapping[str, FreePort]) -> None:
        """All at once; where one can't start, the others are stopped before its error is told."""
        starts = [asyncio.ensure_future(self._start(name, port)) for name, port in ports.items()]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            for port in ports.values():
                port.close()  # of a start that was cancelled before it began
            raise

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients))
        # All at once: a node that stops alone hands its leaderships over, which is no use when all go.
        await asyncio.gather(*(node.kill() for node in self.nodes.values()))
        self.nodes.clear()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where the nodes' directories are."""
        folder = self._data or self._temporary
        assert folder is not None, "the cluster has not been entered"
        return folder

    @property
    def endpoints(self) -> list[str]:
        """http://HOST:PORT of every node, running or not."""
        return [f"http://{address}" for address in self._addresses.values()]

    def address(self, name: str) -> str:
        return self._addresses[name]

    def client(self, **options: Any) -> Client:
        """A client of this cluster; closed with the cluster at the latest."""
        client = Client(self.endpoints, **options)
        self._clients.append(client)
        return client

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _config(self, name: str, address: str, join: tuple[str, ...], folder: str) -> NodeConfig:
        founders = {one: self._addresses[one] for one in self._founders} if len(self._founders) > 1 else {}
        return NodeConfig(
            name=name,
            data=self.folder / (folder or name),
            listen=address,
            initial_cluster={} if join else founders,
            join=join,
            **self._settings,
        )

    async def _start(
        self, name: str, port: FreePort | None = None, join: tuple[str, ...] = (), folder: str = ""
    ) -> Node:
        address = self._addresses[name] if port is None else port.address
        listener, datagrams = (None, None) if port is None else (port.listener, port.datagrams)
        try:
            node = Node(self._config(name, address, join, folder), listener=listener, datagrams=datagrams)
        except BaseException:
            if port is not None:
                port.close()
            raise
        await node.start()
        self.nodes[name] = node
        self._addresses[name] = address
        return node

    async def start(self, name: str) -> Node:
        """Start a node that was stopped or killed, on its old directory and port."""
        if name in self.nodes:
            raise ValueError(f"{name} runs already")
        return await self._start(name, join=() if name in self._founders else tuple(self._running_addresses()))

    async def add(self, name: str, *, folder: str = "") -> Node:
        """Start a new node that joins; its directory is called like it, or `folder`."""
        return await self._start(name, FreePort.take(), tuple(self._running_addresses()), folder)

    def _running_addresses(self) -> list[str]:
        return [node.address for node in self.nodes.values()]

    async def stop(self, name: str) -> None:
        """Gracefully: leaderships are handed over first."""
        await self.nodes.pop(name).stop()

    async def kill(self, name: str) -> None:
        """As abruptly as is possible inside one process: nothing is handed over, flushed or answered."""
        await self.nodes.pop(name).kill()

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Until every running node can commit and read (or START_SECONDS_MAX)."""
        await self.until(self._all_ready)

    async def _all_ready(self) -> bool:
        try:
            await asyncio.gather(*(node.admin.ready() for node in self.nodes.values()))
        except KVError:
            return False
        return True

    async def leader(self, shard: int = 2) -> str:
        """Name of the node that leads the shard; waits for an election."""
        found = ""

        async def led() -> bool:
            nonlocal found
            leading = [
                (node.host.core.replicas[shard].raw.term, name)
                for name, node in self.nodes.items()
                if node.host.leads(shard)
            ]
            found = max(leading)[1] if leading else ""
            return bool(found)

        await self.until(led)
        return found

    async def until(self, true: Callable[[], Awaitable[bool]], *, seconds: float = START_SECONDS_MAX) -> None:
        """Poll until it holds. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not await true():  # noqa: ASYNC110  (the caller's condition may lie anywhere, over several nodes)
                await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class FreePort:
    """A port that is held for both TCP and UDP, so that nobody else can take it before the node does."""

    listener: socket.socket
    datagrams: socket.socket

    @classmethod
    def take(cls) -> Self:
        while True:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
            datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                datagrams.bind(listener.getsockname())
            except OSError:  # that number is in use for UDP
                listener.close()
                datagrams.close()
                continue
            listener.listen(1_024)
            listener.setblocking(False)
            return cls(listener, datagrams)

    @property
    def address(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return f"{host}:{port}"

    def close(self) -> None:
        self.listener.close()
        self.datagrams.close()
