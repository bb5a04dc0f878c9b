"""A real three-node cluster for the tests of kvctl, in a thread of its own: the commands run loops of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
import pytest
import uvloop
from click.testing import CliRunner, Result

from kvstore.cli.main import kvctl
from kvstore.testing import LocalCluster

T = TypeVar("T")
WAIT_SECONDS = 60.0


class ClusterThread:
    """Runs a LocalCluster; `ask` runs a coroutine beside it and waits for the result."""

    def __init__(self) -> None:
        self.cluster: LocalCluster | None = None
        self._loop = uvloop.new_event_loop()  # as nodes run on; asyncio's own drops connections that it is accepting
        self._started: Future[None] = Future()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), name="cluster")

    def __enter__(self) -> ClusterThread:
        self._thread.start()
        self._started.result(WAIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the cluster did not stop"
        self._loop.close()

    async def _run(self) -> None:
        try:
            async with LocalCluster(nodes=3) as cluster:
                self.cluster = cluster
                await cluster.until(lambda: all_know(cluster, 3))
                self._started.set_result(None)
                await self._end.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    @property
    def endpoints(self) -> str:
        assert self.cluster is not None, "the cluster runs inside the context only"
        return ",".join(self.cluster.endpoints)

    def ask(self, work: Callable[[LocalCluster], Awaitable[T]]) -> T:
        async def run() -> T:
            assert self.cluster is not None
            return await work(self.cluster)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_SECONDS)


async def all_know(cluster: LocalCluster, members: int) -> bool:
    """Every node knows so many members: they enter themselves after they have begun to serve."""
    return all([len(await node.admin.members()) == members for node in cluster.nodes.values()])


@dataclass(frozen=True)
class Kvctl:
    """kvctl as a user calls it. `endpoints` may name a cluster that is not there."""

    endpoints: str

    def __call__(self, *arguments: str, stdin: bytes = b"", exit_code: int | None = 0) -> Result:
        """Run it; `exit_code` None = any."""
        runner = CliRunner(env={"KVCTL_ENDPOINTS": self.endpoints})
        result = runner.invoke(kvctl, arguments, input=stdin, prog_name="kvctl")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if exit_code is not None:
            assert result.exit_code == exit_code, f"{arguments}: {result.stdout}{result.stderr}"
        return result

    def json(self, *arguments: str, stdin: bytes = b"") -> Any:
        """The JSON on stdout, which must be all that is there."""
        return orjson.loads(self(*arguments, "-o", "json", stdin=stdin).stdout_bytes)

    def error(self, *arguments: str, exit_code: int) -> str:
        """The one line on stderr; nothing is on stdout."""
        result = self(*arguments, exit_code=exit_code)
        assert result.stdout == ""
        lines: list[str] = result.stderr.splitlines()
        assert len(lines) == 1, lines
        return lines[0]


@pytest.fixture(scope="package")
def cluster() -> Iterator[ClusterThread]:
    with ClusterThread() as thread:
        yield thread


@pytest.fixture
def ctl(cluster: ClusterThread) -> Iterator[Kvctl]:
    """kvctl of the shared cluster, whose default keyspace is empty before each test."""
    run = Kvctl(cluster.endpoints)
    run("delete-range", "--start", "", "--yes")
    yield run
