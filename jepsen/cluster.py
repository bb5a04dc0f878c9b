"""A cluster of real `kvstore serve` processes behind a switch: started, killed, paused, stopped, asked.

Invariant: no process outlives the context: all are killed at its end, and by the kernel should this process die before.
Invariant: a node that ends without having been told to is a failure of the run (`crashed`), not of an operation.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp

from jepsen.serve_process import ServeProcess
from jepsen.switch import Switch
from kvstore.client import Client

PORT = 7_400
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0
ASK_SECONDS_MAX = 3.0
REMOVE_SECONDS_MAX = 8.0
"""A node gives up a change of the members after six."""
REMOVED_SECONDS_MAX = 120.0
POLL_SECONDS = 0.05
ERROR = re.compile(r" (ERROR|CRITICAL) |^Traceback|^\w*Error\b")


class ClusterError(Exception):
    """The cluster did not do what every cluster must: start, recover, end when told."""


class NodeProcess(ServeProcess):
    """A node behind the switch: where it listens is not where it is known."""

    def __init__(self, name: str, folder: Path, *, listen: str, advertise: str, flags: Sequence[str]) -> None:
        super().__init__(name, data=folder / "data" / name, log=folder / f"{name}.log")
        self.listen = listen
        self.advertise = advertise
        self.flags = list(flags)
        self.environment: dict[str, str] = {}
        self.wanted = False  # whether it should be running
        self.paused = False
        self.retired = False  # to be removed for good: nobody starts it any more
        self.starts = 0

    @property
    def crashed(self) -> bool:
        return self.wanted and not self.running

    async def start(self) -> None:
        self.data.parent.mkdir(parents=True, exist_ok=True)
        addresses = ("--listen", self.listen, "--advertise", self.advertise)
        await self.launch(*addresses, *self.flags, surroundings=self.environment)
        self.wanted, self.paused = True, False
        self.starts += 1

    async def ended(self) -> int:
        """Its exit code, negative for a signal."""
        try:
            return await self.exit_code(STOP_SECONDS_MAX)
        except TimeoutError:
            raise ClusterError(f"{self.name} does not end") from None

    def last_words(self, lines: int = 5) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def errors(self) -> list[str]:
        """Lines of its log that tell of something that must not happen."""
        if not self.log.exists():
            return []
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return [line.rstrip() for line in lines if ERROR.search(line)]


class Cluster:
    """Nodes n1, n2, ... A context; `through the switch` is how they and their clients know each other."""

    def __init__(
        self, folder: Path, nodes: int, *, rng: random.Random, flags: Sequence[str] = (), switch: Switch | None = None
    ) -> None:
        self.folder = folder
        self.switch = switch or Switch(rng)
        self._net = f"127.{rng.randrange(16, 250)}.{rng.randrange(1, 250)}"
        self._flags = list(flags)
        self.nodes: dict[str, NodeProcess] = {}
        self._ever: dict[str, NodeProcess] = {}  # with those that were removed
        self._number = 0  # of the node that was added last
        names = [f"n{number}" for number in range(1, nodes + 1)]
        founders = ",".join(f"{name}={self._known_as(number)}" for number, name in enumerate(names, start=1))
        for name in names:
            self._add(name, ["--initial-cluster", founders] if nodes > 1 else [])
        self._http: aiohttp.ClientSession | None = None

    def _known_as(self, number: int) -> str:
        return f"{self._net}.{number + 100}:{PORT}"

    def _add(self, name: str, flags: Sequence[str]) -> NodeProcess:
        self._number += 1
        number = self._number
        assert number < 100, "the addresses are used up"
        node = NodeProcess(
            name,
            self.folder,
            listen=f"{self._net}.{number}:{PORT}",
            advertise=self._known_as(number),
            flags=[*flags, *self._flags],
        )
        self.nodes[name] = self._ever[name] = node
        return node

    # -- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        try:
            for node in self.nodes.values():
                await self._connect(node)
            await self.start(*self.nodes)
            await self.wait_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _connect(self, node: NodeProcess) -> None:
        await self.switch.add(node.name, listens=_parse(node.listen), known_as=_parse(node.advertise))

    async def _end(self) -> None:
        for node in self.nodes.values():
            node.wanted = False
            node.send(signal.SIGKILL)
        for node in self.nodes.values():
            if node.starts:
                await node.ended()
        await self.switch.close()
        if self._http is not None:
            await self._http.close()

    async def start(self, *names: str) -> None:
        """Those of them that do not run and are not to be removed."""
        for name in names:
            node = self.nodes.get(name)
            if node is None or node.running or node.retired:
                continue
            await node.start()
            await self.switch.open(name, node.pid)

    async def join(self) -> str:
        """A new node, that joins the ones that run; its name."""
        name = f"n{self._number + 1}"
        seeds = [node.advertise for node in self.nodes.values() if node.running]
        node = self._add(name, ["--join", ",".join(seeds)])
        await self._connect(node)
        await self.start(name)
        return name

    def forget(self, name: str) -> None:
        """A node that was removed for good, and does not run."""
        assert not self.nodes[name].running
        del self.nodes[name]

    async def kill(self, *names: str) -> None:
        """SIGKILL, all at the same moment. Who was removed meanwhile is dead already."""
        nodes = [self.nodes[name] for name in names if name in self.nodes]
        for node in nodes:
            node.wanted = False
            node.send(signal.SIGKILL)
        for node in nodes:
            await node.ended()
            self.switch.shut(node.name)

    async def stop(self, name: str) -> int:
        """Gracefully; the exit code."""
        node = self.nodes[name]
        node.wanted = False
        node.send(signal.SIGTERM)
        code = await node.ended()
        self.switch.shut(name)
        return code

    def pause(self, *names: str) -> None:
        for name in names:
            self.nodes[name].paused = True
            self.nodes[name].send(signal.SIGSTOP)

    def resume(self, *names: str) -> None:
        for name in names:
            if name in self.nodes:  # it may have been removed meanwhile
                self.nodes[name].paused = False
                self.nodes[name].send(signal.SIGCONT)

    # -- asking ----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(self.nodes)

    @property
    def running(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.running]

    @property
    def endpoints(self) -> list[str]:
        """As clients know them."""
        return [node.advertise for node in self.nodes.values()]

    def client(self, **options: Any) -> Client:
        """Not open yet."""
        return Client(self.endpoints, **options)

    def crashed(self) -> list[str]:
        """Nodes that ended by themselves, with their last words."""
        return [f"{node.name}: {node.last_words()}" for node in self.nodes.values() if node.crashed]

    def errors(self) -> dict[str, list[str]]:
        """Of the nodes that said something of the kind, those that were removed included."""
        return {name: lines for name, node in self._ever.items() if (lines := node.errors())}

    async def ask(
        self,
        name: str,
        path: str,
        *,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        seconds: float = ASK_SECONDS_MAX,
    ) -> tuple[int, Any]:
        """(status, JSON) of the node itself, past the switch; (0, None) when it does not answer."""
        assert self._http is not None
        url = f"http://{self.nodes[name].listen}{path}"
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._http.request(method, url, json=body, timeout=timeout) as response:
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0, None

    async def remove_member(self, name: str) -> None:
        """An operator says that the node is gone for good; then the name is free. Raises ClusterError.

        A removal is told by the name, so one of which nothing was heard is waited for before the next: it may still be
        done, and must not hit the node that has the name then.
        """

        async def removed() -> bool:
            through = next((other for other in self.running if other != name and not self.nodes[other].paused), None)
            if through is None:
                return False
            status, _ = await self.ask(through, f"/v1/members/{name}", method="DELETE", seconds=REMOVE_SECONDS_MAX)
            if status == 0:
                await asyncio.sleep(REMOVE_SECONDS_MAX)
            return status in (200, 404)

        await until(removed, seconds=REMOVED_SECONDS_MAX, what=f"{name} is removed")

    async def leader(self, shard: int) -> str | None:
        """The name of the running node that leads the shard in the highest term, as it believes itself."""
        best, found = 0, None
        for name in self.running:
            if self.nodes[name].paused:
                continue
            status, answer = await self.ask(name, "/v1/status")
            for row in answer["shards"] if status == 200 else ():
                if row["id"] == shard and row["role"] == "leader" and row["term"] > best:
                    best, found = row["term"], name
        return found

    async def shards(self) -> list[dict[str, Any]]:
        """Every shard as its leader describes it, by id."""
        newest: dict[int, dict[str, Any]] = {}
        for name in self.running:
            if self.nodes[name].paused:
                continue
            status, answer = await self.ask(name, "/v1/shards")
            for row in answer if status == 200 and isinstance(answer, list) else ():
                known = newest.get(row["id"])
                if known is None or _age(row, name) > _age(known, known["told_by"]):
                    newest[row["id"]] = row | {"told_by": name}
        return [newest[shard] for shard in sorted(newest)]

    async def wait_ready(self, *, seconds: float = START_SECONDS_MAX) -> float:
        """Until all running nodes can read through every shard's leader; the seconds that took."""

        async def all_ready() -> bool:
            crashed = self.crashed()
            if crashed:
                raise ClusterError("a node has ended: " + "; ".join(crashed))
            answers = await asyncio.gather(*(self.ask(name, "/readyz") for name in self.running))
            return all(status == 200 for status, _ in answers)

        return await until(all_ready, seconds=seconds, what="every node is ready")


async def until(true: Callable[[], Awaitable[bool]], *, seconds: float, what: str) -> float:
    """Ask again and again until it is so; the seconds that took. Raises ClusterError."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            while not await true():  # noqa: ASYNC110 (it happens in other processes)
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise ClusterError(f"not within {seconds:.0f} s: {what}") from None
    return time.monotonic() - began


def _age(row: dict[str, Any], name: str) -> tuple[int, int, bool]:
    epoch = row["epoch"]
    return epoch["version"], epoch["conf"], row["leader"] == name


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
